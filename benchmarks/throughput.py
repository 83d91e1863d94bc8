"""Throughput with the error beside it: trained members, the classical solver at several resolutions.

    python benchmarks/throughput.py --folder runs/embedded

Reads a finished sweep's models and data (`make sweep` makes them); all figures come from one run on
one machine, so their ratios are what counts. One JSON document on standard output.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from universal_simulator.configuration import load_config
from universal_simulator.configuration.schema import GuardsConfig, RunConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.windows import WindowSource
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import BURGERS
from universal_simulator.physics.initial_conditions import draw_sine_family
from universal_simulator.physics.reference import solve
from universal_simulator.run_record import RunFolder
from universal_simulator.stages import planned
from universal_simulator.sweep.driver import rebuild_reports
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.state import SweepState
from universal_simulator.training.batches import CanonicalBatches
from universal_simulator.training.loop import StageTraining

GROUPS = 64
TRAINING_STEPS = 8


def seconds(work: Callable[[], object]) -> float:
    """The faster of two repeats after a warm-up."""
    work()
    spans = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        spans.append(time.perf_counter() - started)
    return min(spans)


def nrmse(prediction: torch.Tensor, part: Trajectories) -> float:
    error, valid, _ = nrmse_frames(prediction, part.fields[:, 1:], part.fields[:, 0])
    return float(mean_valid(error, valid, dims=(1, 2)).nanmean())


def rollout_rows(state: SweepState, part: Trajectories) -> dict[str, Any]:
    initial, steps = part.fields[:, 0], part.fields.shape[1] - 1
    rows: dict[str, Any] = {}
    for points in (32, 64, 128, 256):
        if points > part.grid.points[0]:
            continue

        def classical(points: int = points) -> torch.Tensor:
            return solve(
                part.equation,
                initial,
                part.parameters,
                part.times_s,
                part.grid,
                method="finite_volume",
                points=points,
            )[:, 1:]

        rows[f"finite_volume_{points}"] = {
            "trajectories_per_s": len(part) / seconds(classical),
            "nrmse": nrmse(classical(), part),
        }
    for run in state.runs:
        path = RunFolder(state.folder, run.run_id).model
        if run.seed or not path.exists():
            continue
        predictor = SurrogatePredictor(load_surrogate(path), GuardsConfig())

        def neural(predictor: SurrogatePredictor = predictor) -> torch.Tensor:
            raw = predictor.rollout(initial, part.parameters, steps)
            return predictor.guard(raw, initial, part.parameters)

        rows[run.config] = {
            "trajectories_per_s": len(part) / seconds(neural),
            "nrmse": nrmse(neural(), part),
            "params": predictor.surrogate.deterministic_parameters(),
        }
    return rows


def training_rows(state: SweepState, dataset: Dataset) -> dict[str, Any]:
    """Optimiser steps of the operator stage per second, at the longest rollout of its curriculum."""
    rows = {}
    train = dataset.load("train", time_stride=2, max_groups=GROUPS)
    for run in state.runs:
        path = RunFolder(state.folder, run.run_id).model
        if run.seed or not path.exists():
            continue
        config = load_config(run.config, profile=state.plan.profile).config
        length = config.training.rollout_curriculum[-1]
        with tempfile.TemporaryDirectory() as folder:
            rate = steps_per_s(load_surrogate(path), config, WindowSource(train), Path(folder), length=length)
        rows[run.config] = {
            "rollout_length": length,
            "steps_per_s": rate,
            "trajectory_steps_per_s": rate
            * config.training.batch_size
            * config.training.accumulation
            * length,
        }
    return rows


def steps_per_s(
    surrogate: Surrogate, config: RunConfig, windows: WindowSource, folder: Path, *, length: int
) -> float:
    """Whole steps as training takes them: windows drawn, forward, backward, clip, AdamW, average, log."""
    training = config.training
    batches = CanonicalBatches(
        windows, surrogate, start_fraction=training.windows_from_start, augmentation=training.augmentation
    )
    stage = next(item for item in planned(config, surrogate, batches) if item.name == "operator")
    surrogate.train().requires_grad_(False)
    begun = stage.begin(surrogate)
    for parameter in begun.parameters:
        parameter.requires_grad_(True)
    trained = StageTraining(
        surrogate,
        training,
        stage.stage,
        loss=stage.loss,
        batch_size=stage.batch_size,
        accumulation=stage.accumulation,
        rollout_length=lambda step: length,
        seed=0,
        batches=begun.source,
        validate=lambda _: 0.0,
        validations=1,
        state_path=folder / "state.pt",
        log_path=folder / "log.jsonl",
        input_hash="throughput",
    )

    def work() -> None:
        for step in range(TRAINING_STEPS):
            trained._step(step)

    return TRAINING_STEPS / seconds(work)


def generator_rows() -> dict[str, float]:
    """Trajectories per second of 200 frames at 256 points, as the embedded data are made."""
    rows = {}
    times = torch.arange(201, dtype=torch.float64) * 0.01
    for nu, points in ((0.01, 512), (0.1, 256)):
        grid = Grid((1.0,), (points,))
        family = draw_sine_family(32, torch.Generator().manual_seed(0))
        initial, values = family(grid.coordinates())[:, None], torch.full((32, 1), nu, dtype=torch.float64)

        def work(
            initial: torch.Tensor = initial, values: torch.Tensor = values, grid: Grid = grid
        ) -> torch.Tensor:
            return solve(BURGERS, initial, values, times, grid, method="spectral")

        rows[f"nu={nu:g}, {points} points"] = 32 / seconds(work)
    return rows


def driver_rows(state: SweepState) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        append = seconds(lambda: [journal.append("job_ended", job="x", seconds=1.0) for _ in range(50)]) / 50
    rebuild = seconds(lambda: rebuild_reports(state.folder))
    return {
        "journal_append_s": append,
        "reports_rebuild_s_per_run": rebuild / len(state.runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded"))
    folder = parser.parse_args().folder
    if not (folder / "journal.jsonl").exists():
        raise SystemExit(f"{folder} holds no sweep; run `make sweep` first, or give --folder")
    state = SweepState(folder)
    dataset = open_dataset(folder / "data" / f"{state.plan.dataset}.hdf5")
    truth = dataset.load("validation", time_stride=2, max_groups=GROUPS)
    report = {
        "host": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "plan": state.plan.name,
        },
        "rollout": {
            label: rollout_rows(state, truth.subset(rows)) for label, rows in truth.regimes().items()
        },
        "training": training_rows(state, dataset),
        "generator_trajectories_per_s": generator_rows(),
        "driver": driver_rows(state),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
