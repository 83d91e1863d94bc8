"""Ensembles against a world whose predictive distribution is known, and the cheats that must not pay."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.evaluation.stochastic_world import (
    STEPS,
    ConstantWidth,
    DrawsForTheBatch,
    Exact,
    IgnoresTheSeed,
    fitted,
    predictive_std,
    scored,
    value,
)
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import BrokenEnsembleError, LeakageError, UserError
from universal_simulator.evaluation import uncertainty as u
from universal_simulator.evaluation.calibration_fit import choose, fit_calibration
from universal_simulator.evaluation.ensemble import EnsembleRules, measure_ensemble
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.recalibration import Recalibration
from universal_simulator.model.calibration import RegimeCalibration


def test_the_true_distribution_is_calibrated_and_its_crps_is_the_closed_form(
    data: Dataset, selection: Trajectories
) -> None:
    result, examples = scored(Exact(), selection, fitted(Exact(), data))
    assert value(result, "ece_raw") < 0.02
    assert value(result, "ece") < 0.02
    assert value(result, "spread_skill_raw") == pytest.approx(1, abs=0.03)
    assert value(result, "spread_skill") == pytest.approx(1, abs=0.04)
    for name in ("spread_skill_lowest_bin", "spread_skill_highest_bin"):
        assert value(result, name) == pytest.approx(1, abs=0.12), "right in every bin of spread"
    std = predictive_std(STEPS)
    assert value(result, "crps_fair_raw") == pytest.approx(float(std.mean()) / math.sqrt(math.pi), rel=0.02)
    skill = result.metrics["crps_skill_raw"]
    assert skill.low is not None
    assert skill.low > 0.02, "its spread knows where the error is"
    curve = torch.tensor(result.curves["crps_fair_raw"], dtype=torch.float64)
    assert torch.allclose(curve, std.mean(dim=1) / math.sqrt(math.pi), rtol=0.06)
    assert value(result, "nrmse") == pytest.approx(value(result, "nrmse_operator"), rel=0.05)
    assert examples.members is not None
    assert examples.members.shape == (3, 8, 3, 1, selection.grid.points[0])
    for name in ("ece", "ece_raw", "crps_fair", "crps_skill", "spread_skill", "spread_skill_raw"):
        metric, low = result.metrics[name], result.curves[f"{name}_low"]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= value(result, name) <= metric.high
        assert len(result.curves[name]) == len(low) == STEPS
    assert result.curves["coverage_level"] == pytest.approx(result.curves["coverage"], abs=0.03)
    assert result.curves["rank_histogram"] == pytest.approx([1 / 17] * 17, abs=0.012)


def test_too_narrow_an_ensemble_is_seen_and_mended_by_the_calibration_half(
    data: Dataset, selection: Trajectories
) -> None:
    narrow = Exact(width=0.5)
    calibration = fitted(narrow, data)
    assert calibration.scale[0].log2().mean() == pytest.approx(1, abs=0.05), "twice as wide, at every lead"
    result, _ = scored(narrow, selection, calibration)
    assert value(result, "spread_skill_raw") == pytest.approx(0.5, abs=0.03)
    assert value(result, "ece_raw") > 0.15
    assert value(result, "ece") < 0.025
    assert value(result, "spread_skill") == pytest.approx(1, abs=0.06)
    assert value(result, "crps_fair") < 0.95 * value(result, "crps_fair_raw")
    uncalibrated, _ = scored(narrow, selection)
    assert value(uncalibrated, "ece") == value(uncalibrated, "ece_raw")
    assert "not recalibrated" in uncalibrated.metrics["ece"].reason
    assert uncalibrated.metrics["crps_skill"].value is None


@pytest.mark.parametrize(("width", "calibrated_at", "asked_of"), [(2.0, 16, 4), (1.6, 4, 16)])
def test_a_calibration_holds_at_another_number_of_members(
    data: Dataset, selection: Trajectories, width: float, calibrated_at: int, asked_of: int
) -> None:
    """The scale that is right about a mean of 16 members is not about a mean of 4."""
    calibration = fitted(Exact(calibrated_at, width), data)
    result, _ = scored(Exact(asked_of, width), selection, calibration)
    assert value(result, "spread_skill") == pytest.approx(1, abs=0.05)
    own = calibration.of_regime("all", STEPS)
    untouched = RegimeCalibration(own.scale, own.width, asked_of)
    uncorrected = EnsembleRules(calibrations={"all": untouched})
    found, _ = Evaluator(selection, {}, batch_size=64, bootstrap_samples=20, ensemble=uncorrected).run(
        Exact(asked_of, width)
    )
    assert abs(value(found["all"], "spread_skill") - 1) > 0.07
    # and back again it is itself
    again = own.at(asked_of).at(calibrated_at)
    assert torch.allclose(again.scale, own.scale)
    assert torch.allclose(again.width, own.width)
    cheat = ConstantWidth(asked_of, width)
    constant, _ = scored(cheat, selection, fitted(ConstantWidth(calibrated_at, width), data))
    assert value(constant, "crps_skill") < 0.02, "the reference knows of the other mean as well"


def test_recalibration_is_chosen_where_it_helps_groups_it_was_not_fitted_on(data: Dataset) -> None:
    """Few independent points, so that scales per lead time are noise where there is nothing to mend."""
    groups = [str(index) for index in range(12)]
    growing = torch.linspace(0.1, 1.0, 30)[:, None, None]
    chosen: dict[str, list[str]] = {"right": [], "narrow": [], "growing": []}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randn(12, 30, 1, 3, generator=generator)
        right = torch.randn(12, 8, 30, 1, 3, generator=generator)
        chosen["right"].append(choose(right, truth, groups))
        chosen["narrow"].append(choose(0.4 * right, truth, groups))
        chosen["growing"].append(choose(right, growing * truth, groups))
    assert chosen["right"].count("scale_per_lead_time") <= 1, "pooled ece would choose it"
    assert chosen["narrow"].count("one_scale") >= 4
    assert chosen["growing"].count("scale_per_lead_time") >= 4
    assert choose(0.4 * right, truth, ["a"] * 12) == "none", "nothing to leave out"
    entry = fitted(Exact(width=0.5), data).entry
    assert entry.choices[0] in ("one_scale", "scale_per_lead_time")


def test_cheat_a_constant_width_has_no_skill(data: Dataset, selection: Trajectories) -> None:
    cheat = ConstantWidth()
    result, _ = scored(cheat, selection, fitted(cheat, data))
    assert value(result, "ece") < 0.05, "pooled coverage alone would let it pass"
    assert value(result, "spread_skill_raw") == pytest.approx(1, abs=0.05), "and so would this"
    for name in ("crps_skill", "crps_skill_raw"):
        low = result.metrics[name].low
        assert low is not None
        assert low <= 0, "its skill is not above zero, whatever its calibration"
        assert value(result, name) < 0.003


def test_cheat_members_that_ignore_the_seed_fail_everything(data: Dataset, selection: Trajectories) -> None:
    cheat = IgnoresTheSeed()
    result, _ = scored(cheat, selection, fitted(cheat, data))
    for suffix in ("", "_raw"):
        assert value(result, f"ece{suffix}") > 0.4
        assert value(result, f"spread_skill{suffix}") < 1e-3
        assert value(result, f"crps_skill{suffix}") < 0


def test_cheat_noise_of_the_batch_is_refused(data: Dataset, selection: Trajectories) -> None:
    with pytest.raises(UserError, match="depend on the batch"):
        scored(DrawsForTheBatch(), selection)


def test_batches_change_nothing_and_seeds_do(selection: Trajectories) -> None:
    whole, parts = (scored(Exact(8), selection, batch_size=size)[0] for size in (64, 7))
    assert whole.metrics == parts.metrics
    assert whole.curves == parts.curves
    other = scored(Exact(8), selection, seed=1)[0]
    assert value(other, "ece_raw") != value(whole, "ece_raw")
    assert value(other, "nrmse_operator") == value(whole, "nrmse_operator")


def test_cheat_recalibration_on_what_is_evaluated_is_leakage(data: Dataset) -> None:
    for split in ("selection", "calibration_rewards", "train", "calibration"):
        with pytest.raises(LeakageError, match="outside its half"):
            fit_calibration(Exact(4), data.load(split), data)
    used = set(data.load("calibration_uncertainty").groups)
    assert used.isdisjoint(data.load("calibration_rewards").groups)
    entry = fitted(Exact(4), data).entry
    assert set(entry.groups) == {group[:16] for group in used}


def test_headline_is_the_plans_choice_and_the_operator_stands_beside(selection: Trajectories) -> None:
    class Biased(Exact):
        """Its operator is off; its members are not."""

        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            return super().rollout(initial, parameters, steps) + 1.0

    mean, _ = scored(Biased(), selection)
    alone, _ = scored(Biased(), selection, headline="deterministic")
    assert value(mean, "nrmse_operator") == value(alone, "nrmse_operator") == value(alone, "nrmse")
    gain = mean.metrics["point_gain"]
    assert gain.low is not None
    assert gain.low > 0.1
    assert gain.value == pytest.approx(1 - value(mean, "nrmse") / value(mean, "nrmse_operator"), rel=1e-6)
    assert value(alone, "point_gain") == gain.value, "of the ensemble, whatever the headline"
    assert value(alone, "nrmse_point") == value(mean, "nrmse")
    assert value(mean, "nrmse_ensemble_mean") == value(mean, "nrmse"), "nothing is calibrated"
    assert value(alone, "ece") == value(mean, "ece")
    assert mean.per_group["nrmse_operator"] != mean.per_group["nrmse"]
    for result in (mean, alone):
        ours, operator = (torch.tensor(result.curves[f"nrmse_{name}"]) for name in ("point", "operator"))
        gains, low = (torch.tensor(result.curves[f"point_gain{end}"]) for end in ("", "_low"))
        assert torch.allclose(gains, 1 - ours / operator, atol=1e-6)
        assert bool((low > 0.05).all()), "better at every lead time, beyond what chance explains"
        assert float(ours.mean()) == pytest.approx(value(mean, "nrmse_point"), rel=1e-6)
        assert float(operator.mean()) == pytest.approx(value(mean, "nrmse_operator"), rel=1e-6)
        late = 1 - float(ours[STEPS // 2 :].mean() / operator[STEPS // 2 :].mean())
        assert value(result, "point_gain_late") == pytest.approx(late, rel=1e-6)
    assert mean.curves["nrmse"] == pytest.approx(mean.curves["nrmse_point"])
    assert alone.curves["nrmse"] == pytest.approx(alone.curves["nrmse_operator"])


def test_ensembles_on_some_initial_conditions_leave_every_deterministic_figure(
    data: Dataset, selection: Trajectories
) -> None:
    calibration, few = fitted(Exact(), data), 5
    whole, _ = scored(Exact(), selection, calibration, headline="deterministic")
    some, examples = scored(Exact(), selection, calibration, headline="deterministic", groups=few)
    alone, _ = scored(Exact(), selection.of_first_groups(few), calibration, headline="deterministic")
    for name in ("nrmse", "nrmse_p95", "conservation_gap", "horizon"):
        if name in whole.metrics:
            assert some.metrics[name] == whole.metrics[name]
    for name in ("ece", "ece_raw", "crps_fair", "spread_skill", "nrmse_ensemble_mean", "ensemble_gain"):
        assert value(some, name) == value(alone, name) != value(whole, name)
        assert "on the first 5 initial conditions" in some.metrics[name].reason
    assert some.per_group == {k: v for k, v in whole.per_group.items() if k != "nrmse_operator"}
    assert some.curves["coverage"] == alone.curves["coverage"]
    assert some.curves["nrmse"] == whole.curves["nrmse"]
    for name in ("nrmse_point", "nrmse_ensemble_mean", "nrmse_operator", "ece", "spread_skill_binned"):
        assert some.curves[name] == alone.curves[name] != whole.curves[name]
    assert examples.members is None
    assert examples.sampled is not None
    assert examples.sampled.members is not None
    shown = {selection.groups[row] for row in examples.sampled.rows.tolist()}
    assert shown <= set(selection.of_first_groups(few).groups)


def test_a_single_member_is_deterministic(data: Dataset, selection: Trajectories) -> None:
    result, examples = scored(Exact(members=1), selection)
    assert result.metrics["ece"].applicable is False
    assert "deterministic" in result.metrics["ece"].reason
    assert "nrmse_operator" not in result.metrics
    assert examples.members is None
    with pytest.raises(UserError, match="no spread"):
        fit_calibration(Exact(members=1), selection, data)


def test_a_broken_member_is_missing_not_averaged_away(data: Dataset, selection: Trajectories) -> None:
    class Broken(Exact):
        def _one(self, first: Tensor, steps: int, generator: torch.Generator) -> Tensor:
            members = super()._one(first, steps, generator).clone()
            if torch.equal(first, bad):
                members[0, -1] = math.nan
            return members

    bad = selection.fields[3, 0]
    result, _ = scored(Broken(), selection)
    for name in ("ece", "ece_raw", "crps_fair", "spread_skill", "sharpness", "spread_skill_lowest_bin"):
        assert result.metrics[name].value is None
        assert result.metrics[name].reason == f"not finite on 1 of {len(selection)} trajectories", name
    assert value(result, "failure_rate") == pytest.approx(1 / len(selection)), "the mean is broken too"
    assert result.curves["ece"][0] is not None
    assert result.curves["ece"][-1] is None
    half = data.load("calibration_uncertainty")
    bad = half.fields[0, 0]
    with pytest.raises(BrokenEnsembleError, match="members of 1 of"):
        fit_calibration(Broken(), half, data)


def test_a_calibration_speaks_only_of_its_own_lead_times_and_regimes(
    data: Dataset, selection: Trajectories
) -> None:
    calibration = fitted(Exact(4), data)
    asked = {"first_frame": 0, "spacing_s": 0.1, "steps": STEPS}
    assert calibration.why_not("all", **asked) is None  # type: ignore[arg-type]
    assert calibration.of_regime("all", 3).scale.shape == (3,)
    for changed, why in (
        ({"first_frame": 1}, "from frame 0"),
        ({"spacing_s": 0.2}, "steps of 0.1 s"),
        ({"steps": STEPS + 1}, "8 lead times"),
    ):
        assert why in str(calibration.why_not("all", **{**asked, **changed}))  # type: ignore[arg-type]
    assert "only for all" in str(calibration.why_not("nu=0.1", **asked))  # type: ignore[arg-type]
    rules = EnsembleRules.of(selection, calibration, first_frame=5, headline="ensemble_mean", noise_seed=0)
    assert rules.calibrations == {}
    assert "from frame 0" in rules.why_uncalibrated("all")


def test_recalibrated_pieces_are_those_of_the_recalibrated_ensemble() -> None:
    generator = torch.Generator().manual_seed(0)
    ensemble = torch.randn(3, 8, 4, 2, 6, generator=generator)
    truth = torch.randn(3, 4, 2, 6, generator=generator)
    scale, width = torch.tensor([0.4, 1.0, 2.3, 0.9]).double(), torch.full((4, 2), 0.7).double()
    calibration = RegimeCalibration(scale, width, 8, centre=0.35)
    pieces = measure_ensemble(ensemble, truth, calibration, x_stride=1).pieces
    made, whole = Recalibration(scale).apply(ensemble), truth.double()
    expected: dict[str, Callable[[], Tensor]] = {
        "coverage": lambda: u.coverage(made, whole),
        "crps": lambda: u.crps_frames(made, whole),
        "spread": lambda: u.spread_and_error(made, whole)[0],
        "error": lambda: u.spread_and_error(made, whole)[1],
        "squares": lambda: (made.mean(dim=1) - whole).square(),
        "sharpness": lambda: u.sharpness_frames(made, whole),
        "ranks": lambda: u.rank_histogram(made, whole),
        "crps_constant": lambda: u.crps_constant_frames(made, whole, width),
    }
    for name, compute in expected.items():
        assert torch.allclose(pieces[name].double(), compute(), atol=1e-5), name
    plain = measure_ensemble(ensemble, truth, None, x_stride=1).pieces
    assert torch.equal(plain["coverage_raw"], u.coverage(ensemble, truth))
    assert torch.equal(plain["coverage"], plain["coverage_raw"])
