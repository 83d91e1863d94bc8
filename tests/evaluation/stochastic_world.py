"""A stochastic world whose predictive distribution is known: independent points of an AR(1) process.

u_{t+1}(x) = A u_t(x) + sigma(x) xi with xi ~ N(0, 1), so that k steps after u_0

    u_k ~ N(A^k u_0, sigma^2 (1 - A^{2k}) / (1 - A^2)).

sigma varies along x: whoever knows it beats every constant width, by a known amount.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from universal_simulator.data.arrays import import_array
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.ensemble import EnsembleRules, Headline
from universal_simulator.evaluation.evaluator import Evaluator, Examples
from universal_simulator.inference.noise import generator_of
from universal_simulator.model.calibration import Calibration
from universal_simulator.run_record import RegimeResult

A, POINTS, STEPS = 0.8, 64, 8


def sigma() -> Tensor:
    x = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    return 0.5 * (1 + 0.8 * torch.sin(2 * torch.pi * x))


def predictive_std(steps: int) -> Tensor:
    """(T, X)"""
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    return ((1 - A ** (2 * k)) / (1 - A**2)).sqrt()[:, None] * sigma()


def world(folder: Path, trajectories: int = 480) -> Dataset:
    """Split by initial condition as any imported file: a tenth each but for training."""
    random = np.random.default_rng(0)
    fields = np.zeros((trajectories, STEPS + 1, POINTS))
    fields[:, 0] = 2 * random.standard_normal((trajectories, POINTS))
    for step in range(STEPS):
        noise = random.standard_normal((trajectories, POINTS))
        fields[:, step + 1] = A * fields[:, step] + sigma().numpy() * noise
    np.save(folder / "world.npy", fields)
    return import_array(
        folder / "world.npy", folder / "world.hdf5", axes=("trajectory", "time", "x"), dt_s=0.1, dx=1 / POINTS
    )


class Exact:
    """Draws from the true predictive distribution; `width` multiplies its noise."""

    def __init__(self, members: int = 16, width: float = 1.0) -> None:
        self.members, self.width = members, width

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        powers = A ** torch.arange(1, steps + 1)
        return initial[:, None] * powers[:, None, None]

    def rollout_members(self, initial: Tensor, parameters: Tensor, steps: int, *, seed: int) -> Tensor:
        return torch.stack([self._one(first, steps, generator_of(seed, first)) for first in initial])

    def _one(self, first: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        state, frames = first.expand(self.members, *first.shape), []
        for _ in range(steps):
            noise = torch.randn(state.shape, generator=generator)
            state = A * state + self.width * sigma().float() * noise
            frames.append(state)
        return torch.stack(frames, dim=1)

    def guard(self, fields: Tensor, initial: Tensor, parameters: Tensor) -> Tensor:
        return fields

    def step(self, fields: Tensor, parameters: Tensor) -> Tensor:
        return self.rollout(fields, parameters, 1)[:, 0]

    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor:
        return fields


class ConstantWidth(Exact):
    """Cheat: the right width on average, the same at every point; it knows nothing of where."""

    def _one(self, first: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        mean = self.rollout(first[None], first, steps)
        width = predictive_std(steps).square().mean(dim=1).sqrt().float()
        noise = torch.randn(self.members, *mean.shape[1:], generator=generator)
        return mean + width[:, None, None] * noise


class IgnoresTheSeed(Exact):
    """Cheat: all members are the same draw."""

    def _one(self, first: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        return super()._one(first, steps, generator)[:1].expand(self.members, -1, -1, -1)


class DrawsForTheBatch(Exact):
    """Cheat: one stream of noise for the whole batch, so a trajectory's depends on its neighbours."""

    def rollout_members(self, initial: Tensor, parameters: Tensor, steps: int, *, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([self._one(first, steps, generator) for first in initial])


def fitted(predictor: Exact, data: Dataset) -> Calibration:
    return fit_calibration(predictor, data.load("calibration_uncertainty"), data)


def scored(
    predictor: Exact,
    truth: Trajectories,
    calibration: Calibration | None = None,
    *,
    batch_size: int = 64,
    headline: Headline = "ensemble_mean",
    seed: int = 0,
    groups: int | None = None,
) -> tuple[RegimeResult, Examples]:
    rules = EnsembleRules.of(
        truth, calibration, first_frame=0, headline=headline, noise_seed=seed, groups=groups
    )
    evaluator = Evaluator(truth, {}, batch_size=batch_size, bootstrap_samples=200, ensemble=rules)
    results, examples = evaluator.run(predictor)
    assert list(results) == ["all"]
    return results["all"], examples["all"]


def value(result: RegimeResult, name: str) -> float:
    found = result.metrics[name].value
    assert found is not None, (name, result.metrics[name].reason)
    return found
