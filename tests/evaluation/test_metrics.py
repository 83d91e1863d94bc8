"""Metrics against brute force, identities and limits; the cheats that must not pay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.evaluation import accuracy, conservation
from universal_simulator.evaluation.bootstrap import mean_interval
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.references import reference_rows
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import BURGERS, undeclared
from universal_simulator.physics.reference import solve


def fields(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_nrmse_against_brute_force() -> None:
    p, y = fields(0, 3, 4, 2, 16), fields(1, 3, 4, 2, 16)
    error, valid, diverged = accuracy.nrmse_frames(p, y, y[:, 0])
    for b in range(3):
        for t in range(4):
            for c in range(2):
                top = math.sqrt(sum((p[b, t, c, x] - y[b, t, c, x]) ** 2 for x in range(16)) / 16)
                bottom = math.sqrt(sum(y[b, t, c, x] ** 2 for x in range(16)) / 16)
                assert math.isclose(error[b, t, c], top / bottom, rel_tol=1e-12)
    assert bool(valid.all())
    assert not bool(diverged.any())
    assert float(accuracy.nrmse_frames(y, y, y[:, 0])[0].max()) == 0.0
    scaled = accuracy.nrmse_frames(7 * p, 7 * y, 7 * y[:, 0])[0]
    assert torch.allclose(scaled, error, rtol=1e-12)


def test_diverged_counts_as_ten_and_silence_is_excluded() -> None:
    y = fields(1, 3, 4, 1, 16)
    y[2, 2:] *= 1e-9
    p = y.clone()
    p[0, 3, 0, 5] = float("nan")
    p[1] = 100 * p[1]
    error, valid, diverged = accuracy.nrmse_frames(p, y, y[:, 0])
    assert diverged.tolist() == [True, True, False]
    assert bool((error[:2] == 10).all())
    assert valid[2, :, 0].tolist() == [True, True, False, False]
    assert float(accuracy.mean_valid(error, valid, dims=(1, 2))[2]) == 0.0


def test_plain_metrics_against_numpy() -> None:
    p, y = fields(0, 2, 3, 1, 16), fields(1, 2, 3, 1, 16)
    d, n = (p - y).numpy(), y.numpy()
    assert np.allclose(
        accuracy.relative_l2(p, y), [np.linalg.norm(d[i]) / np.linalg.norm(n[i]) for i in range(2)]
    )
    assert np.allclose(accuracy.vrmse(p, y), [np.sqrt((d[i] ** 2).mean()) / n[i].std() for i in range(2)])
    assert np.allclose(accuracy.rmse(p, y), np.sqrt((d**2).mean(-1)).mean((1, 2)))
    assert np.allclose(accuracy.max_error(p, y), np.abs(d).max((1, 2, 3)))
    assert np.allclose(accuracy.rmse_boundary(p, y), np.sqrt((d[..., [0, 15]] ** 2).mean((1, 2, 3))))
    assert np.allclose(accuracy.rmse_conserved(p, y), np.sqrt((d.mean(-1) ** 2).mean((1, 2))))
    spectrum = np.abs(np.fft.rfft(d)) / 16
    bands = accuracy.rmse_fourier(p, y)
    assert np.allclose(bands["low"], np.sqrt((spectrum[..., :4] ** 2).mean(-1)).mean((1, 2)))
    correlation = accuracy.correlation(p, y)
    assert math.isclose(float(correlation[1, 2]), np.corrcoef(p[1, 2, 0], y[1, 2, 0])[0, 1], rel_tol=1e-9)


def test_horizon_counts_frames_before_the_first_fall() -> None:
    curve = torch.tensor([0.9, 0.85, 0.7, 0.9])
    assert accuracy.horizon(curve, 0.8, falls_below=True) == (2, False)
    assert accuracy.horizon(curve, 0.5, falls_below=True) == (4, True)
    assert accuracy.horizon(torch.tensor([float("nan")]), 0.8, falls_below=True) == (0, False)


def test_conservation_gap_sees_a_drift_and_ignores_a_shift() -> None:
    grid = Grid((2.0,), (32,))
    start = fields(3, 2, 1, 32)
    moved = torch.stack([start.roll(k, -1) for k in range(1, 4)], dim=1)
    gap = conservation.conservation_gap(moved, start, grid, BURGERS)
    assert gap is not None
    assert float(gap.max()) < 1e-14
    drifted = conservation.conservation_gap(moved + 0.1, start, grid, BURGERS)
    assert drifted is not None
    assert torch.allclose(drifted, 0.1 / start.square().mean((1, 2)).sqrt())
    assert conservation.conservation_gap(moved, start, grid, undeclared(["u"], ["a"])) is None
    growing = conservation.dissipation_violation(2 * moved, start, grid, BURGERS)
    assert math.isclose(float(growing["energy"][0]), 1.0, rel_tol=1e-9)


def test_bootstrap_interval_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, samples=4000)
    half = 1.96 * values.std(ddof=1) / 20
    assert abs(low - (values.mean() - half)) < 0.1 * half
    assert abs(high - (values.mean() + half)) < 0.1 * half


class SolverPredictor:
    """The reference solver as a predictor; `late` shifts its answer by frames."""

    def __init__(self, truth: Trajectories, late: int = 0) -> None:
        self.truth, self.late = truth, late

    def rollout(self, initial: torch.Tensor, parameters: torch.Tensor, steps: int) -> torch.Tensor:
        times = torch.arange(steps + 1 + self.late, dtype=torch.float64) * self.truth.frame_spacing_s
        found = solve(
            self.truth.equation, initial, parameters, times, self.truth.grid, method="spectral", points=128
        )
        return found[:, 1 + self.late :]

    def guard(self, values: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        return values

    def step(self, values: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        return self.rollout(values, parameters, 1)[:, 0]

    def reconstruct(self, values: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        return values

    def boundary_query(self, values: torch.Tensor, parameters: torch.Tensor, distance: float) -> torch.Tensor:
        return values[..., [-1, 0, 1, -1, 0, 1]]


@pytest.fixture
def evaluator(smoke_data: Dataset) -> Evaluator:
    truth = smoke_data.load("validation", time_stride=2)
    rows, _ = reference_rows(truth, classical_points=(32,), bootstrap_samples=200, method="finite_volume")
    return Evaluator(truth, rows, batch_size=16, bootstrap_samples=200)


def test_exact_solver_scores_zero_and_a_shift_of_one_frame_is_caught(evaluator: Evaluator) -> None:
    exact, _ = evaluator.run(SolverPredictor(evaluator.truth))
    late, _ = evaluator.run(SolverPredictor(evaluator.truth, late=1))
    for regime, result in exact.items():
        value, shifted = result.metrics["nrmse"].value, late[regime].metrics["nrmse"].value
        assert value is not None
        assert shifted is not None
        assert value < 2e-3
        assert shifted > 10 * value
        assert result.metrics["nrmse_step"].value < 2e-3  # type: ignore[operator]
        assert result.metrics["trivial_ratio"].value < 0.05  # type: ignore[operator]
        assert result.metrics["horizon"].reason.startswith(">=")
        assert result.metrics["ece"].applicable is False


def test_nan_predictions_are_failures_not_gaps(evaluator: Evaluator) -> None:
    class Broken(SolverPredictor):
        def rollout(self, initial: torch.Tensor, parameters: torch.Tensor, steps: int) -> torch.Tensor:
            found = super().rollout(initial, parameters, steps)
            found[0, -1, 0, 0] = float("nan")
            return found

    results, _ = evaluator.run(Broken(evaluator.truth))
    for result in results.values():
        assert result.metrics["failure_rate"].value == pytest.approx(1 / len(result.groups))
        assert max(result.per_group["nrmse"]) == 10.0


def test_trivial_predictors_are_plausible(evaluator: Evaluator) -> None:
    for rows in evaluator.references.values():
        assert rows["classical_32"]["nrmse"].value < rows["linearised"]["nrmse"].value  # type: ignore[operator]
        assert rows["linearised"]["nrmse"].value < rows["persistence"]["nrmse"].value  # type: ignore[operator]
