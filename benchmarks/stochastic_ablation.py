"""What each stochastic part is worth: operator, controls, corrector, student, at equal data and cost.

    python benchmarks/stochastic_ablation.py kuramoto_sivashinsky --folder runs/ks --seeds 0 1 2 \
        --lyapunov-time-s 20.8 --out benchmarks/results/stochastic_ks.json [key=value ...]
    python benchmarks/stochastic_ablation.py --runs RUN_FOLDER RUN_FOLDER RUN_FOLDER --out FILE.json

The first trains the config with all its stages for each seed, and a *capacity control*: an operator
of the parameters of operator and corrector together, trained with the floating-point operations of
all of its training (cache, units, choice of noise and calibration included) and without an early
stop. The second takes runs that were trained already, such as a sweep's baseline seeds, and controls
where --controls names them, one for each. Both ask, on the selection split, the operator and its control,
each bare and *dressed* with its best constant width (no CRPS is compared with a bare point's); the teacher's
ensemble and the student's; the *moments*, which are the corrector without its flow; and the *perturbed*
operator, the control of equal inference (as many rollouts as the ensemble's operations pay for).
--represented adds the ensembles whose members stand each in a symmetric representation of its own, --copies
operator and control as the mean of so many copies in such representations, bare and dressed. Each has
noise, width or recalibration of its own, from validation and calibration data. Gains are paired over the
same trajectories and pooled over seeds.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from capacity_control import FLOPS_SHARES, Run, control_of, control_shares, flops_by_stage, trained
from stochastic_predictors import COPIES, REPRESENTED, SAMPLERS, asked_of, in_representations, rules_of

from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import UserError
from universal_simulator.evaluation.ablation import (
    Answer,
    Error,
    answer,
    horizon_of,
    kept_share,
    paired_gain,
    paired_horizon,
    verdict,
)
from universal_simulator.identity import code_version
from universal_simulator.model.surrogate import load_surrogate
from universal_simulator.run_record import Metric, RunFolder, RunRecord, read_document, write_json

MODELS = ("operator", "control")
#: points without a width: their errors are compared, and no CRPS
BARE = (*MODELS, *(in_representations(name, count) for name in MODELS for count in COPIES))
#: the same points with their best constant width: their CRPS is compared
DRESSED = tuple(f"{name} dressed" for name in BARE)
ENSEMBLES = (*SAMPLERS, *(f"{name} represented" for name in REPRESENTED))
#: ours, theirs
PAIRS = (
    ("control", "operator"),
    ("control dressed", "operator dressed"),
    *((in_representations(name, count), name) for name in MODELS for count in COPIES),
    *(
        (f"{in_representations(name, count)} dressed", f"{name} dressed")
        for name in MODELS
        for count in COPIES
    ),
    *((ours, theirs) for ours in ENSEMBLES for theirs in (*BARE, *DRESSED)),
    *((f"{name} represented", name) for name in REPRESENTED),
    ("student represented", "moments represented"),
    ("student", "perturbed"),
    ("student", "moments"),
    ("teacher", "moments"),
    ("student", "teacher"),
)
#: zero, ours, of whom
SHARES = (("operator dressed", "student", "teacher"), ("moments", "student", "teacher"))
Rows = dict[str, dict[str, list[Answer]]]


def ask(
    run: Run, control: Path | None, rows: Rows, given: argparse.Namespace
) -> tuple[dict[str, Any], Trajectories]:
    """Add one seed's answers to the rows; what they cost and what was chosen."""
    dataset, evaluation = run.dataset, run.config.evaluation
    shares = None if control is None else control_shares(run, control, tuple(given.control_shares))
    truth = run.load(dataset, "selection", given.groups)
    asked, told = asked_of(
        run,
        control,
        dataset,
        samplers=tuple(given.samplers),
        members=given.members or evaluation.members,
        calibration_groups=given.calibration_groups,
        represented=given.represented,
        noise_groups=given.noise_groups,
        copies=tuple(given.copies),
    )
    for name, one in asked.items():
        for label, part in truth.regimes().items():
            regime = truth.subset(part)
            found = answer(
                one.predictors[label],
                regime,
                label,
                rules=rules_of(one, regime, label, run),
                batch_size=evaluation.batch_size,
                bootstrap_samples=evaluation.bootstrap_samples,
                dressing=one.dressings.get(label),
            )
            rows.setdefault(label, {}).setdefault(name, []).append(found)
        print(f"{run.files.run_id} {name}: asked", flush=True)
    training = run.record.training
    assert training is not None
    cost: dict[str, Any] = {
        "run": run.files.run_id,
        "seed": training.result.seed,
        "params": load_surrogate(run.files.model).num_parameters(),
        "training_flops_by_stage": flops_by_stage(run.files.path),
        "seconds_by_stage": training.observation["wall_clock_s_by_stage"],
        "validation": run.found.model_dump(mode="json"),
        "data_identity": dataset.identity,
        **told,
    }
    if control is not None and shares is not None:
        other = read_document(RunFolder.of_path(control).summary, RunRecord).training
        assert other is not None
        cost |= {
            "control": control.name,
            "control_params": load_surrogate(RunFolder.of_path(control).model).num_parameters(),
            "control_share_of_flops": shares[0],
            "control_share_of_parameters": shares[1],
        }
        cost |= {"control_seconds_by_stage": other.observation["wall_clock_s_by_stage"]}
    return cost, truth


def table(rows: Rows, truth: Trajectories, *, lyapunov_time_s: float | None, samples: int) -> dict[str, Any]:
    """Per regime: every answer of every seed, and the paired gains pooled over seeds."""
    out: dict[str, Any] = {}
    times = truth.times_s[1:] - truth.times_s[0]
    spans = {"whole": slice(None), "second_half": slice(len(times) // 2, None)}
    if lyapunov_time_s is not None:
        spans["beyond_lyapunov_time"] = slice(int((times <= lyapunov_time_s).sum()), None)
    for label, part in truth.regimes().items():
        groups = truth.subset(part).groups
        answers = rows[label]
        gains: dict[str, Any] = {}
        for ours, theirs in PAIRS:
            counts = [len(answers.get(name, ())) for name in (ours, theirs)]
            if counts[0] != counts[1] and min(counts) > 0:
                print(f"{label} {ours} over {theirs}: {counts[0]} and {counts[1]} answers, so no pairs")
            if counts[0] == counts[1] > 0:
                gains[f"{ours} over {theirs}"] = {
                    of: {
                        span: told(answers[ours], answers[theirs], groups, of, frames, samples)
                        for span, frames in spans.items()
                    }
                    for of in compared_in(ours, theirs)
                }
        out[label] = {
            "answers": {name: [written(one) for one in found] for name, found in answers.items()},
            "gains": gains,
            "kept": kept(answers, groups, samples),
            "horizons": horizons(answers, groups, samples),
        }
    return out


def compared_in(ours: str, theirs: str) -> tuple[Error, ...]:
    """A point is compared in its error, dressed in its CRPS; two ensembles in all."""
    if theirs in BARE:
        return ("nrmse",) if ours in BARE else ("nrmse", "nrmse_mean")
    if theirs in DRESSED:
        return ("crps",) if ours in DRESSED else ("crps", "crps_recalibrated")
    return ("nrmse", "nrmse_mean", "crps", "crps_recalibrated")


def kept(answers: dict[str, list[Answer]], groups: tuple[str, ...], samples: int) -> dict[str, Any]:
    """What the student keeps of the teacher's gain in CRPS, over the dressed operator and over the moments."""
    return {
        f"{ours} of {whole} over {zero}": interval(
            kept_share(answers[zero], answers[ours], answers[whole], groups, of="crps", samples=samples)
        )
        for zero, ours, whole in SHARES
        if {zero, ours, whole} <= answers.keys() and len({len(answers[n]) for n in (zero, ours, whole)}) == 1
    }


def horizons(answers: dict[str, list[Answer]], groups: tuple[str, ...], samples: int) -> dict[str, Any]:
    """In rollout steps, of point forecasts and of members' means, and paired with operator and control."""
    out: dict[str, Any] = {}
    for name, found in answers.items():
        if name in DRESSED:
            continue
        of = ("correlation",) if name in BARE else ("correlation", "correlation_mean")
        out[name] = {which: interval(horizon_of(found, groups, of=which, samples=samples)) for which in of}
        for other in MODELS:
            if name != other and len(answers.get(other, ())) == len(found):
                out[f"{name} over {other}"] = {
                    which: interval(paired_horizon(found, answers[other], groups, of=which, samples=samples))
                    for which in of
                }
    return out


def interval(metric: Metric) -> dict[str, Any]:
    return {"value": metric.value, "low": metric.low, "high": metric.high, "reason": metric.reason}


def told(
    ours: list[Answer], theirs: list[Answer], groups: tuple[str, ...], of: Error, frames: slice, samples: int
) -> dict[str, Any]:
    gain = paired_gain(ours, theirs, groups, of=of, frames=frames, samples=samples)
    seeds = [
        paired_gain([one], [other], groups, of=of, frames=frames, samples=samples)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return {
        "value": gain.value,
        "low": gain.low,
        "high": gain.high,
        "verdict": verdict(gain),
        "seeds": [[seed.value, seed.low, seed.high] for seed in seeds],
    }


def written(found: Answer) -> dict[str, Any]:
    """Errors per trajectory and by lead time, and everything measured of the ensemble."""
    means = {name: float(getattr(found, name).nanmean()) for name in ("nrmse", "nrmse_mean")}
    means |= {
        f"{name}_relative": float(getattr(found, name).nanmean()) for name in ("crps", "crps_recalibrated")
    }
    by_lead_time = ("nrmse", "nrmse_mean", "crps", "crps_recalibrated", "correlation")
    whole = {
        **means,
        **{f"{name}_by_lead_time": getattr(found, name).nanmean(dim=0).tolist() for name in by_lead_time},
        **{
            f"{name}_per_trajectory": getattr(found, name).nanmean(dim=1).tolist()
            for name in by_lead_time[:4]
        },
        "metrics": {name: [m.value, m.low, m.high] for name, m in found.metrics.items()},
        "curves": {k: v for k, v in found.curves.items() if not k.endswith(("_low", "_high"))},
        "inference_seconds": found.seconds,
        "inference_flops": found.flops,
    }
    return {name: rounded(value) for name, value in whole.items()}


def rounded(value: Any) -> Any:
    """Five significant digits: the files stay small."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def tell(result: dict[str, Any]) -> None:
    for label, regime in result.items():
        for name, seeds in regime["answers"].items():
            shown = [
                f"nrmse {one['nrmse']:.4g} (mean {one['nrmse_mean']:.4g}) "
                f"crps {one['crps_relative']:.4g} (recalibrated {one['crps_recalibrated_relative']:.4g})"
                for one in seeds
            ]
            print(f"{label} {name}: {'; '.join(shown)}; {seeds[0]['inference_flops']:.3g} operations")
        for pair, gains in regime["gains"].items():
            for of, spans in gains.items():
                for span, gain in spans.items():
                    if gain["value"] is not None and gain["low"] is not None:
                        interval = f"{100 * gain['low']:.1f} to {100 * gain['high']:.1f}"
                        print(
                            f"{label} {pair}, {of}, {span}: {100 * gain['value']:.1f} % ({interval}), {gain['verdict']}"
                        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", nargs="?")
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], help="trained already: nothing is trained"
    )
    parser.add_argument("--controls", type=Path, nargs="+", default=[], help="capacity controls of --runs")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--members", type=int, help="as configured where it is not given")
    parser.add_argument("--calibration-groups", type=int, help="all of their half where it is not given")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument(
        "--represented",
        action="store_true",
        help="the samplers also with model.member_representations, under noise chosen for that",
    )
    parser.add_argument(
        "--noise-groups", type=int, help="choose every sampler's noise here, on so many conditions to the end"
    )
    parser.add_argument(
        "--copies", type=int, nargs="+", choices=COPIES, default=[], help="points also as means of these"
    )
    parser.add_argument(
        "--control-shares", type=float, nargs=2, default=FLOPS_SHARES, metavar=("LOW", "HIGH")
    )
    parser.add_argument("--lyapunov-time-s", type=float)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("words", nargs="*", help="overrides, key=value")
    given = parser.parse_intermixed_args()
    if given.config and "=" in given.config:
        parser.error(f"{given.config} is an override; name the config first")
    if bool(given.runs) == bool(given.config and given.folder):
        parser.error("give either CONFIG and --folder, which trains, or --runs, which does not")
    if given.controls and len(given.controls) != len(given.runs):
        parser.error("--controls needs one run for each of --runs, in their order")
    return given


def main() -> None:
    given = arguments()
    rows: Rows = {}
    costs: list[dict[str, Any]] = []
    for index in range(len(given.runs or given.seeds)):
        control: Path | None = None
        if given.runs:
            run = Run.of(given.runs[index])
            control = given.controls[index] if given.controls else None
        else:
            words = [*given.words, f"seed={given.seeds[index]}"]
            run = Run.of(trained(given.config, given.profile, given.folder, words))
            control = control_of(run, given.config, given.profile, given.folder, words)
        cost, truth = ask(run, control, rows, given)
        costs.append(cost)
        if cost["data_identity"] != costs[0]["data_identity"]:
            raise UserError(f"{run.files.run_id} was trained on other data than {costs[0]['run']}: no pairs")
        samples = run.config.evaluation.bootstrap_samples
        result = table(rows, truth, lyapunov_time_s=given.lyapunov_time_s, samples=samples)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        write_json(
            given.out,
            {
                "command": " ".join(["python", *sys.argv]),
                "commit": commit.stdout.strip(),
                "code_version": code_version(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "groups": given.groups,
                "noise_groups": given.noise_groups,
                "samplers": list(given.samplers),
                "regimes": result,
                "costs": costs,
            },
        )
    tell(result)


if __name__ == "__main__":
    main()
