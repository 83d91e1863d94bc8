"""Trivial predictors and the coarse classical solver under the same protocol."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.evaluation.bootstrap import mean_interval
from universal_simulator.evaluation.trivial import trivial_predictions
from universal_simulator.physics.reference import solve
from universal_simulator.run_record import Metric

Rows = dict[str, dict[str, dict[str, Metric]]]


def reference_rows(
    truth: Trajectories, *, classical_points: Sequence[int], bootstrap_samples: int, method: str
) -> tuple[Rows, dict[str, float]]:
    """(regime -> predictor -> metric, seconds per trajectory of each classical resolution)."""
    rows: Rows = {}
    seconds: dict[str, float] = {}
    for label, indices in truth.regimes().items():
        part = truth.subset(indices)
        initial, parameters, times = part.fields[:, 0], part.parameters, part.times_s
        predictions = trivial_predictions(part.equation, initial, parameters, times[1:], part.grid)
        rows[label] = {
            name: _score(prediction, part, bootstrap_samples) for name, prediction in predictions.items()
        }
        for points in classical_points:
            if points > part.grid.points[0]:
                continue
            started = time.perf_counter()
            solution = solve(
                part.equation, initial, parameters, times, part.grid, method=method, points=points
            )[:, 1:]
            name = f"classical_{points}"
            seconds[f"{label}/{name}"] = (time.perf_counter() - started) / len(part)
            rows[label][name] = _score(solution, part, bootstrap_samples)
    return rows, seconds


def _score(prediction: Tensor, truth: Trajectories, samples: int) -> dict[str, Metric]:
    error, valid, _ = nrmse_frames(prediction, truth.fields[:, 1:], truth.fields[:, 0])
    per_sample = mean_valid(error, valid, dims=(1, 2)).double().numpy()
    low, high = mean_interval(per_sample, samples=samples)
    return {"nrmse": Metric(value=float(np.mean(per_sample)), low=low, high=high)}


def best_trivial(rows: dict[str, dict[str, Metric]]) -> tuple[str, float]:
    """Name and nrmse of the best predictor that knows nothing."""
    names = [name for name in ("persistence", "spatial_mean", "linearised") if name in rows]
    scored = [(rows[name]["nrmse"].value or torch.inf, name) for name in names]
    value, name = min(scored)
    return name, float(value)
