"""Every metric's unit, direction and meaning in one line: read by records and by reports."""

from __future__ import annotations

from dataclasses import dataclass

from universal_simulator.run_record import Better


@dataclass(frozen=True)
class Entry:
    """`unit` "field" stands for the unit of the equation's first field."""

    text: str
    unit: str = "1"
    better: Better = "lower"


_FIELD = "field"
ENTRIES: dict[str, Entry] = {
    "nrmse": Entry(
        "rms error of a frame over the rms of its truth; mean over frames and trajectories, guarded"
    ),
    "nrmse_raw": Entry("the same before any guard"),
    "nrmse_median": Entry("median trajectory: the mean is led by a few quiet ones"),
    "nrmse_p95": Entry("95th percentile over trajectories"),
    "nrmse_step": Entry("one step from the true previous frame (every tenth frame)"),
    "nrmse@": Entry("nrmse at this rollout step"),
    "reconstruction": Entry("nrmse of decode(encode(truth)): the codec's floor"),
    "trivial_ratio": Entry("nrmse over that of the best predictor that knows nothing; below 1 it knows more"),
    "failure_rate": Entry("share of trajectories with NaN, inf or nrmse above 10; each counts as 10"),
    "excluded_frames": Entry("share of frames without energy to be relative to", better="none"),
    "excluded_groups": Entry("initial conditions without a single such frame", unit="groups", better="none"),
    "rel_l2": Entry("Frobenius error of the whole trajectory over the norm of its truth"),
    "vrmse": Entry("rms error over the standard deviation of the truth"),
    "rmse": Entry("rms error per frame, mean over frames", _FIELD),
    "max_error": Entry("largest error anywhere in a trajectory, mean over trajectories", _FIELD),
    "rmse_boundary": Entry("rms error of the first and last cell", _FIELD),
    "rmse_conserved": Entry("error of the spatial mean", _FIELD),
    "rmse_fourier_": Entry("mean amplitude of the error's modes: low 0-3, mid 4-11, high from 12", _FIELD),
    "pdebench_": Entry("the estimator of PDEBench's own code: pooled over samples before the frames", _FIELD),
    "horizon": Entry("rollout steps before the mean correlation falls below 0.8", "steps", "higher"),
    "horizon_nrmse20": Entry("rollout steps before the mean nrmse exceeds 0.2", "steps", "higher"),
    "ece": Entry("mean distance of the coverage of central intervals from their level, recalibrated"),
    "ece_raw": Entry("the same before recalibration"),
    "crps_fair": Entry(
        "continuous ranked probability score, recalibrated, as of infinitely many members", _FIELD
    ),
    "crps_fair_raw": Entry("the same before recalibration", _FIELD),
    "crps_skill": Entry(
        "CRPS gain over a Gaussian of the best constant width about the same mean; above 0 the spread knows "
        "where the error is, recalibrated",
        better="higher",
    ),
    "crps_skill_raw": Entry("the same before recalibration", better="higher"),
    "spread_skill": Entry(
        "spread over the rms error of the mean, recalibrated; below 1 overconfident", better="one"
    ),
    "spread_skill_raw": Entry("the same before recalibration", better="one"),
    "spread_skill_lowest_bin": Entry(
        "the same in that fifth of predicted spread where it is lowest", better="one"
    ),
    "spread_skill_highest_bin": Entry("the same in that fifth where it is highest", better="one"),
    "sharpness": Entry(
        "width of the interval of about 90 % over rms of the truth; at equal ece lower is better"
    ),
    "sharpness_raw": Entry("the same before recalibration"),
    "nrmse_operator": Entry("nrmse of the deterministic operator alone, guarded"),
    "nrmse_point": Entry(
        "nrmse of the ensemble's point forecast: the mean of the guarded members, or where calibration data says "
        "so a point between it and the operator; the headline where the ensemble's is"
    ),
    "nrmse_ensemble_mean": Entry(
        "nrmse of the mean of the guarded members, about which all figures of the distribution are"
    ),
    "point_operator_share": Entry(
        "share of the operator in the point forecast, by calibration; 1: its own answer", better="none"
    ),
    "point_gain": Entry(
        "nrmse saved by the point forecast, as a share of the operator's; 0 where point_operator_share is 1",
        better="higher",
    ),
    "point_gain_late": Entry("the same over the second half of the rollout", better="higher"),
    "ensemble_gain": Entry(
        "nrmse saved by the members' own mean, as a share of the operator's", better="higher"
    ),
    "ttc_oracle_gain": Entry(
        "what the best of each candidate set would save of its mean's error: the bound of what picks or weighs",
        better="higher",
    ),
    "ttc_answer_gain": Entry("the same of what was chosen", better="higher"),
    "ttc_spread_over_error": Entry(
        "rms distance of a set's candidates from its mean over that mean's error", better="none"
    ),
    "ttc_spearman": Entry(
        "rank correlation of reward and -error within a candidate set; a random reward scores 0",
        better="higher",
    ),
    "ttc_reward_informs": Entry(
        "whether that rank correlation's whole interval lies above 0: 1, or 0 where the reward is uninformed, no "
        "better than a random one",
        better="higher",
    ),
    "ttc_gain_equal_evaluations": Entry(
        "nrmse saved of the best rival without a reward (operator, ensemble's centre, representations) at as many "
        "evaluations or more",
        better="higher",
    ),
    "ttc_gain_equal_operations": Entry(
        "the same at as many floating-point operations or more", better="higher"
    ),
    "ttc_gain_over_operator": Entry("nrmse saved of the plain operator's", better="higher"),
    "ttc_gain_over_ensemble": Entry(
        "nrmse saved of the recalibrated centre of two members or more, at as many evaluations or more",
        better="higher",
    ),
    "ttc_gain_over_ensemble_equal_operations": Entry(
        "the same at as many floating-point operations", better="higher"
    ),
    "ttc_gain_over_representations": Entry(
        "nrmse saved of symmetric representations without a reward, at as many evaluations or more: the learned "
        "reward's own",
        better="higher",
    ),
    "ttc_gain_over_representations_equal_operations": Entry(
        "the same at as many floating-point operations", better="higher"
    ),
    "ttc_gain_over_random": Entry(
        "nrmse saved of the same search acting as often, at random, which pays no threshold questions: what "
        "knowing where is worth",
        better="higher",
    ),
    "ttc_gain_over_first": Entry(
        "nrmse saved of the same search acting as often, in the first segments, without threshold questions",
        better="higher",
    ),
    "ttc_operations": Entry(
        "floating-point operations per rollout beyond the plain one, in operator steps, reward included",
        better="none",
    ),
    "ttc_evaluations": Entry(
        "operator steps and corrector samples per rollout beyond the plain one", better="none"
    ),
    "ttc_reward_evaluations": Entry("evaluations of the reward per rollout", better="none"),
    "ttc_dropped": Entry("candidates per rollout that were not finite"),
    "ttc_reward_nans": Entry("finite candidates per rollout whose reward was not finite; dropped as well"),
    "ttc_segments": Entry("segments acted on per rollout", better="none"),
    "conservation_gap_members": Entry("conservation gap of single members before any guard, mean over them"),
    "conservation_gap": Entry("largest drift of a conserved integral over rms(u(0)), before any guard"),
    "conservation_gap_guarded": Entry("the same after the guards"),
    "conservation_gap_reference": Entry("the same of the reference data on this grid"),
    "dissipation_violation_": Entry("relative growth per step of what may only decrease"),
    "bc_violation": Entry(
        "jump of value or slope at the periodic seam, the worse of both, or distance from a wall's value; over "
        "rms(u)"
    ),
    "bc_violation_value": Entry("jump of the value at the seam, or its distance from a wall's, over rms(u)"),
    "bc_violation_slope": Entry("jump of the slope at the seam times half a cell over rms(u)"),
    "pde_residual": Entry(
        "what the equation, solved in sub-steps, leaves of a frame after its neighbour, relative to rms(u)/dt"
    ),
    "spectrum_error": Entry("relative error of the energy spectrum, phase ignored"),
    "spectrum_error_": Entry("the same per band of modes"),
}


def entry(name: str) -> Entry:
    """The entry of a metric: its own, or that of the longest prefix that ends in `_` or `@`."""
    if name in ENTRIES:
        return ENTRIES[name]
    families = [key for key in ENTRIES if key[-1] in "_@" and name.startswith(key)]
    if not families:
        raise KeyError(f"metric {name!r} has no line in the glossary")
    return ENTRIES[max(families, key=len)]
