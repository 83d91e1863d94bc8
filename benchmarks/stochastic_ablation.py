"""What each stochastic part is worth: operator, controls, corrector, student, at equal data and cost.

    python benchmarks/stochastic_ablation.py kuramoto_sivashinsky --folder runs/ks --seeds 0 1 2 \
        --lyapunov-time-s 20.8 --out benchmarks/results/stochastic_ks.json [key=value ...]
    python benchmarks/stochastic_ablation.py --runs RUN_FOLDER RUN_FOLDER RUN_FOLDER --out FILE.json

The first trains the config with all its stages for each seed, and a *capacity control*: an operator
of the parameters of operator and corrector together, trained with the floating-point operations of
all of its training (cache, units, choice of noise and calibration included) and without an early
stop. The second takes runs that were trained already, such as a sweep's baseline seeds, and controls
where --controls names them, one for each. Both ask, on the selection split, the operator, the
*perturbed* operator (the control of equal inference: as many rollouts as the ensemble's operations
pay for), the teacher's ensemble and the student's, each with noise and recalibration of its own.
Gains are paired over the same trajectories and pooled over seeds.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from capacity_control import Run, control_of, flops_by_stage, trained

from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import UserError
from universal_simulator.evaluation.ablation import (
    Answer,
    Error,
    answer,
    inference_flops,
    paired_gain,
    verdict,
)
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.contract import EnsemblePredictor, FieldPredictor
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.identity import code_version
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.perturbed import PerturbedOperator
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.calibration import Calibration
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_json

#: ours, theirs
PAIRS = (
    ("control", "operator"),
    ("perturbed", "operator"),
    ("teacher", "operator"),
    ("student", "operator"),
    ("teacher", "control"),
    ("student", "control"),
    ("student", "perturbed"),
    ("student", "teacher"),
)
ERRORS: tuple[Error, ...] = ("nrmse", "nrmse_raw", "crps")
#: of rms(u(0)), from which the perturbed operator takes the lowest CRPS on validation
AMPLITUDES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
#: a control with a smaller share of the operations is no control
ENOUGH = 0.95

Rows = dict[str, dict[str, list[Answer]]]


def sampling(run: Run, sampler: Literal["teacher", "student"]) -> Surrogate | None:
    """The run's model with this sampler and its noise; None where the model has dropped it."""
    surrogate = load_surrogate(run.files.model)
    corrector = surrogate.corrector
    assert corrector is not None
    if sampler == "student" and corrector.student is None:
        return None
    surrogate.use_sampler(sampler)
    for name, value in run.found.noise[sampler].model_dump(exclude={"at_edge"}).items():
        corrector.get_buffer(name).fill_(value)
    return surrogate


def amplitude_of(run: Run, surrogate: Surrogate, validation: Trajectories, members: int) -> float:
    scores = {}
    for amplitude in AMPLITUDES:
        predictor = PerturbedOperator(surrogate, run.config.guards, members=members, amplitude=amplitude)
        found = [
            answer(
                predictor,
                validation.subset(rows),
                label,
                rules=EnsembleRules(),
                batch_size=64,
                bootstrap_samples=1,
            )
            for label, rows in validation.regimes().items()
        ]
        scores[amplitude] = float(torch.stack([one.crps.nanmean() for one in found]).mean())
    return min(scores, key=scores.__getitem__)


def predictors_of(
    run: Run, control: Path | None, dataset: Dataset, given: argparse.Namespace
) -> tuple[dict[str, FieldPredictor], dict[str, Calibration], dict[str, Any]]:
    """Who is asked, the recalibration of each, and what was chosen on the way."""
    guards, evaluation = run.config.guards, run.config.evaluation
    members = given.members or evaluation.members
    surrogate = load_surrogate(run.files.model)
    asked: dict[str, FieldPredictor] = {"operator": SurrogatePredictor(surrogate, guards)}
    samplers: dict[str, EnsemblePredictor] = {}
    for name in ("teacher", "student"):
        model = sampling(run, name)  # type: ignore[arg-type] # one of the two
        if model is not None:
            samplers[name] = StochasticPredictor(model, guards, members=members)
    validation = run.load(dataset, "validation", run.config.training.ensemble_validation.groups)
    cheapest = samplers.get("student", samplers["teacher"])
    equal = max(
        2, round(inference_flops(cheapest, validation) / inference_flops(asked["operator"], validation))
    )
    amplitude = amplitude_of(run, surrogate, validation, min(equal, members))
    samplers["perturbed"] = PerturbedOperator(surrogate, guards, members=equal, amplitude=amplitude)
    half = run.load(dataset, "calibration_uncertainty", given.calibration_groups)
    fits = {
        name: fit_calibration(
            sampler, half, dataset, first_frame=evaluation.first_frame, noise_seed=evaluation.noise_seed
        )
        for name, sampler in samplers.items()
    }
    if control is not None:
        asked["control"] = SurrogatePredictor(load_surrogate(RunFolder.of_path(control).model), guards)
    told = {
        "perturbed_amplitude": amplitude,
        "perturbed_amplitude_at_edge": amplitude in (AMPLITUDES[0], AMPLITUDES[-1]),
        "perturbed_members": equal,
        "calibration_groups": len(set(half.groups)),
        "calibration": {
            name: {
                label: {"choice": choice, "operator_share_of_centre": centre}
                for label, choice, centre in zip(
                    fit.entry.regimes, fit.entry.choices, fit.entry.centres, strict=True
                )
            }
            for name, fit in fits.items()
        },
    }
    return asked | samplers, fits, told


def ask(
    run: Run, control: Path | None, rows: Rows, given: argparse.Namespace
) -> tuple[dict[str, Any], Trajectories]:
    """Add one seed's answers to the rows; what they cost and what was chosen."""
    dataset, evaluation = run.dataset, run.config.evaluation
    truth = run.load(dataset, "selection", given.groups)
    predictors, fits, told = predictors_of(run, control, dataset, given)
    for name, predictor in predictors.items():
        rules = EnsembleRules.of(
            truth, fits.get(name), first_frame=evaluation.first_frame, noise_seed=evaluation.noise_seed
        )
        for label, part in truth.regimes().items():
            found = answer(
                predictor,
                truth.subset(part),
                label,
                rules=rules,
                batch_size=evaluation.batch_size,
                bootstrap_samples=evaluation.bootstrap_samples,
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
    if control is not None:
        other = read_document(RunFolder.of_path(control).summary, RunRecord).training
        assert other is not None
        share = other.result.training_flops / training.result.training_flops
        cost |= {
            "control": control.name,
            "control_params": other.result.params,
            "control_share_of_flops": share,
        }
        cost |= {"control_seconds_by_stage": other.observation["wall_clock_s_by_stage"]}
        if share < ENOUGH:
            raise UserError(f"{control.name} had {share:.2f} of the training operations: it is no control")
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
                    for of in ERRORS
                }
        out[label] = {
            "answers": {name: [written(one) for one in found] for name, found in answers.items()},
            "gains": gains,
        }
    return out


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
    return {
        "nrmse": float(found.nrmse.nanmean()),
        "nrmse_raw": float(found.nrmse_raw.nanmean()),
        "crps_relative": float(found.crps.nanmean()),
        "nrmse_by_lead_time": found.nrmse.nanmean(dim=0).tolist(),
        "crps_by_lead_time": found.crps.nanmean(dim=0).tolist(),
        "nrmse_per_trajectory": found.nrmse.nanmean(dim=1).tolist(),
        "crps_per_trajectory": found.crps.nanmean(dim=1).tolist(),
        "metrics": {name: [m.value, m.low, m.high] for name, m in found.metrics.items()},
        "curves": dict(found.curves),
        "inference_seconds": found.seconds,
        "inference_flops": found.flops,
    }


def tell(result: dict[str, Any]) -> None:
    for label, regime in result.items():
        for name, seeds in regime["answers"].items():
            shown = [f"nrmse {one['nrmse']:.4g} ({one['nrmse_raw']:.4g} raw) crps {one['crps_relative']:.4g}" for one in seeds]
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
                "regimes": result,
                "costs": costs,
            },
        )
    tell(result)


if __name__ == "__main__":
    main()
