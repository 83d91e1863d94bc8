"""A predictor that is the reference solver itself, and the smoke truth with its references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.evaluation.stochastic_world import world
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.evaluation.references import Rows, reference_rows
from universal_simulator.physics.reference import solve


class SolverPredictor:
    """The reference solver as a predictor; `late` shifts its answer by rollout steps."""

    def __init__(self, truth: Trajectories, late: int = 0) -> None:
        self.truth, self.late = truth, late

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        times = torch.arange(steps + 1 + self.late, dtype=torch.float64) * self.truth.frame_spacing_s
        equation, grid = self.truth.equation, self.truth.grid
        return solve(equation, initial, parameters, times, grid, method="spectral", points=128)[
            :, 1 + self.late :
        ]

    def guard(self, fields: Tensor, initial: Tensor, parameters: Tensor) -> Tensor:
        return fields

    def step(self, fields: Tensor, parameters: Tensor) -> Tensor:
        return self.rollout(fields, parameters, 1)[:, 0]

    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor:
        return fields


@pytest.fixture(scope="session")
def solver() -> Callable[..., SolverPredictor]:
    return SolverPredictor


@pytest.fixture(scope="session")
def truth(smoke_data: Dataset) -> Trajectories:
    return smoke_data.load("validation", time_stride=2)


@pytest.fixture(scope="session")
def references(truth: Trajectories) -> Rows:
    return reference_rows(truth, classical_points=(32, 128), bootstrap_samples=200, method="finite_volume")[0]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The stochastic world whose predictive distribution is known."""
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def selection(data: Dataset) -> Trajectories:
    return data.load("selection")
