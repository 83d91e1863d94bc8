"""What each stochastic part is worth: operator, capacity control, corrector, student, at equal data.

    python benchmarks/stochastic_ablation.py kuramoto_sivashinsky --folder runs/ks --seeds 0 1 2 \
        --out benchmarks/results/stochastic_ks.json [key=value ...]

For each seed the config is trained with all its stages; its operator, its teacher's ensemble and
its student's are evaluated on the same trajectories of the selection split. The capacity control
is an operator wide enough to have the parameters of operator and corrector together, trained for
the same floating-point operations. Figures per regime: mean over seeds, and every seed.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from universal_simulator import assessment, experiment
from universal_simulator.configuration import load_config
from universal_simulator.configuration.schema import RunConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import open_dataset
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.contract import stochastic
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.references import reference_rows
from universal_simulator.identity import code_version
from universal_simulator.inference.ensemble import predictor_of
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.run_record import RunFolder, RunRecord, write_json

METRICS = (
    "nrmse",
    "nrmse_operator",
    "nrmse_ensemble_mean",
    "ensemble_gain",
    "crps_fair",
    "crps_fair_raw",
    "crps_skill",
    "crps_skill_raw",
    "ece",
    "ece_raw",
    "spread_skill",
    "spread_skill_raw",
    "spread_skill_lowest_bin",
    "spread_skill_highest_bin",
    "sharpness",
    "horizon",
    "horizon_nrmse20",
    "failure_rate",
)
CURVES = (
    "nrmse",
    "spread_skill",
    "spread_skill_raw",
    "coverage_level",
    "coverage",
    "coverage_raw",
    "rank_histogram",
    "rank_histogram_raw",
)


def trained(config: str, profile: str, folder: Path, words: list[str]) -> tuple[RunFolder, RunRecord]:
    record = experiment.run(load_config(config, words, profile=profile), folder)
    return RunFolder(folder, record.run_id), record


def answers(
    surrogate: Surrogate, config: RunConfig, truth: Trajectories, references: Any
) -> dict[str, dict[str, Any]]:
    """regime -> figures of one predictor."""
    predictor = predictor_of(surrogate, config.guards, members=config.evaluation.members)
    rules = EnsembleRules.of(
        truth, surrogate.calibration, first_frame=0, headline=config.evaluation.headline, noise_seed=0
    )
    evaluator = Evaluator(
        truth,
        references,
        batch_size=config.evaluation.batch_size,
        bootstrap_samples=config.evaluation.bootstrap_samples,
        ensemble=rules,
    )
    regimes, _ = evaluator.run(predictor)
    out = {}
    for label, result in regimes.items():
        figures: dict[str, Any] = {"seconds_per_trajectory": evaluator.rollout_s[label]}
        for name in METRICS:
            metric = result.metrics.get(name)
            if metric is not None and metric.value is not None:
                figures[name] = [metric.value, metric.low, metric.high]
        figures["curves"] = {name: result.curves[name] for name in CURVES if name in result.curves}
        figures["nrmse_per_group"] = list(result.per_group.get("nrmse", ()))
        out[label] = figures
    return out


def control_words(config: RunConfig, record: RunRecord, target_params: int) -> list[str]:
    """Overrides of the capacity control: as wide as its parameters allow, as long as its operations do."""
    assert record.training is not None
    options = config.model.options
    width = options["operator"]["hidden"]
    step = options["operator"]["heads"] * options["operator"]["group_size"]
    while params_with(config, width + step) <= target_params:
        width += step
    stages = "training.stages=[codec,operator]"
    # a step of the wide operator costs about (width ratio)^2 of the narrow one's
    share = (width / options["operator"]["hidden"]) ** 2
    steps = round(config.training.operator.steps * record.training.result.training_flops
                  / operator_flops(record) / share)
    return [stages, f"model.options.operator.hidden={width}", f"training.operator.steps={max(steps, 1)}"]


def params_with(config: RunConfig, width: int) -> int:
    from universal_simulator.model.contract import Problem
    from universal_simulator.model.surrogate import build_member

    options = {**config.model.options, "operator": {**config.model.options["operator"], "hidden": width}}
    member = build_member(config.model.import_path, Problem(1, 1, 64, 1.0), options)
    return sum(parameter.numel() for parameter in member.parameters())


def operator_flops(record: RunRecord) -> float:
    assert record.training is not None
    by_stage = record.training.observation.get("training_flops_by_stage", {})
    return float(by_stage["codec"] + by_stage["operator"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("words", nargs="*", help="overrides, key=value")
    given = parser.parse_intermixed_args()
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    costs: list[dict[str, Any]] = []
    for seed in given.seeds:
        words = [*given.words, f"seed={seed}"]
        files, record = trained(given.config, given.profile, given.folder, words)
        config = load_config(given.config, words, profile=given.profile).config
        assert record.training is not None
        dataset = open_dataset(assessment.subject_of(files.path).data_file or "")
        truth = dataset.load("selection", time_stride=config.data.time_stride, max_groups=given.groups)
        references, _ = reference_rows(
            truth, classical_points=(), bootstrap_samples=config.evaluation.bootstrap_samples, method="none"
        )
        student = load_surrogate(files.model)
        teacher = load_surrogate(files.model)
        teacher.architecture = teacher.architecture.model_copy(update={"sampler": "teacher"})
        sampler = stochastic(predictor_of(teacher, config.guards, members=config.evaluation.members))
        assert sampler is not None
        half = dataset.load("calibration_uncertainty", time_stride=config.data.time_stride)
        teacher.calibrate(fit_calibration(sampler, half, dataset))
        control_files, control = trained(
            given.config,
            given.profile,
            given.folder,
            [*words, *control_words(config, record, student.num_parameters())],
        )
        assert control.training is not None
        predictors = {"student": student, "teacher": teacher, "control": load_surrogate(control_files.model)}
        for name, surrogate in predictors.items():
            started = time.monotonic()
            for label, figures in answers(surrogate, config, truth, references).items():
                rows.setdefault(label, {}).setdefault(name, []).append({"seed": seed, **figures})
            print(f"seed {seed} {name}: {time.monotonic() - started:.0f} s", flush=True)
        costs.append(
            {
                "seed": seed,
                "params": record.training.result.params,
                "control_params": control.training.result.params,
                "training_flops": record.training.result.training_flops,
                "control_training_flops": control.training.result.training_flops,
                "seconds_by_stage": record.training.observation["wall_clock_s_by_stage"],
                "validation": record.training.result.validation,
                "persistence": float(student.corrector.persistence) if student.corrector else None,
                "temperature": float(student.corrector.temperature) if student.corrector else None,
            }
        )
        write_json(
            given.out,
            {
                "command": " ".join(["python", *sys.argv]),
                "commit": subprocess.run(
                    ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
                ).stdout.strip(),
                "code_version": code_version(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "data_identity": dataset.identity,
                "groups": given.groups,
                "rows": rows,
                "costs": costs,
            },
        )
        tell(rows)


def tell(rows: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    for label, predictors in rows.items():
        for name, seeds in predictors.items():
            parts = []
            for metric in METRICS:
                values = [row[metric][0] for row in seeds if metric in row]
                if values:
                    parts.append(f"{metric} {sum(values) / len(values):.4g}")
            print(f"{label} {name}: {'; '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
