"""Reference solvers against exact solutions, by order of convergence, and against each other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from universal_simulator.data.dataset import open_dataset
from universal_simulator.physics import finite_volume, spectral_solver
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.initial_conditions import draw_sine_family
from universal_simulator.physics.spectral import fourier_shift, resample

TIMES = torch.linspace(0, 0.5, 6, dtype=torch.float64)


def grid(points: int) -> Grid:
    return Grid((1.0,), (points,))


def nrmse(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    error = (predicted - truth).square().mean(-1).sqrt() / truth.square().mean(-1).sqrt()
    return float(error[:, 1:].mean())


def cole_hopf(x: torch.Tensor, time: float, nu: float) -> torch.Tensor:
    """u = -2 mu (log phi)_x with phi a solution of the heat equation, mu = nu / pi."""
    mu, k = nu / math.pi, 2 * math.pi
    decay = 0.5 * math.exp(-mu * k**2 * time)
    return 2 * mu * k * decay * torch.sin(k * x) / (1 + decay * torch.cos(k * x))


@pytest.mark.parametrize(("solver", "tolerance"), [(spectral_solver, 1e-6), (finite_volume, 2e-3)])
def test_cole_hopf(solver: object, tolerance: float) -> None:
    g = grid(256)
    x, nu = g.coordinates(), torch.tensor([0.5, 0.1], dtype=torch.float64)
    truth = torch.stack([torch.stack([cole_hopf(x, float(t), float(v)) for t in TIMES]) for v in nu])
    found = solver.solve_burgers(truth[:, 0], nu, TIMES, g)  # type: ignore[attr-defined]
    assert nrmse(found, truth) < tolerance


def test_spectral_solver_is_fourth_order_in_time() -> None:
    g = grid(128)
    u = torch.sin(2 * math.pi * g.coordinates())[None]
    nu = torch.tensor([0.05], dtype=torch.float64)
    end = TIMES[[0, 2]]
    exact = spectral_solver.solve_burgers(u, nu, end, g, courant=0.02)[:, 1]
    errors = [
        float((spectral_solver.solve_burgers(u, nu, end, g, courant=c)[:, 1] - exact).norm())
        for c in (0.8, 0.4)
    ]
    assert 3.6 < math.log2(errors[0] / errors[1]) < 4.6


def test_finite_volumes_are_second_order_in_the_mean() -> None:
    fine = grid(2048)
    nu = torch.tensor([0.05], dtype=torch.float64)
    u = torch.sin(2 * math.pi * fine.coordinates())[None]
    exact = spectral_solver.solve_burgers(u, nu, TIMES[:2], fine)[:, 1]
    errors = []
    for points in (64, 128, 256):
        ratio = 2048 // points
        means = u.unflatten(-1, (points, ratio)).mean(-1)
        found = finite_volume.solve_burgers(means, nu, TIMES[:2], grid(points))[:, 1]
        errors.append(float((found - exact.unflatten(-1, (points, ratio)).mean(-1)).abs().mean()))
    assert math.log2(errors[0] / errors[1]) > 1.6
    assert math.log2(errors[1] / errors[2]) > 1.6


def test_solvers_agree_conserve_mass_and_lose_energy() -> None:
    g = grid(512)
    u = draw_sine_family(6, torch.Generator().manual_seed(1))(g.coordinates())
    nu = torch.full((6,), 0.01, dtype=torch.float64)
    spectral = spectral_solver.solve_burgers(u, nu, TIMES, g)
    volumes = finite_volume.solve_burgers(u, nu, TIMES, g)
    assert nrmse(volumes, spectral) < 2e-3
    for solution in (spectral, volumes):
        assert float((solution.mean(-1) - u.mean(-1)[:, None]).abs().max()) < 1e-12
        assert float(solution.square().mean(-1).diff(dim=1).max()) <= 1e-10


def test_every_published_viscosity_is_affordable_and_stable() -> None:
    g = grid(64)
    u = draw_sine_family(12, torch.Generator().manual_seed(2))(g.coordinates())
    nu = torch.tensor([0.001, 0.002, 0.004, 0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 1.0, 2.0, 4.0]).double()
    solution = finite_volume.solve_burgers(u, nu, TIMES, g)
    assert bool(torch.isfinite(solution).all())
    assert float(solution.abs().amax(-1).diff(dim=1).max()) < 1e-9


def test_galilean_symmetry() -> None:
    g = grid(256)
    u = torch.sin(2 * math.pi * g.coordinates())[None]
    nu = torch.tensor([0.05], dtype=torch.float64)
    still = spectral_solver.solve_burgers(u, nu, TIMES, g)
    moving = spectral_solver.solve_burgers(u + 0.7, nu, TIMES, g)
    assert nrmse(fourier_shift(moving, -0.7 * TIMES[None], g) - 0.7, still) < 2e-6


def test_advection_is_the_shifted_initial_condition() -> None:
    g = grid(128)
    beta = torch.tensor([0.4, -1.3], dtype=torch.float64)

    def wave(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * math.pi * x) + 0.3 * torch.cos(6 * math.pi * x)

    truth = wave(g.coordinates() - beta[:, None, None] * TIMES[None, :, None])
    assert float((spectral_solver.solve_advection(truth[:, 0], beta, TIMES, g) - truth).abs().max()) < 1e-12


def test_resampling_is_exact_for_band_limited_fields() -> None:
    coarse, fine = grid(32), grid(96)
    values = [torch.cos(2 * math.pi * 5 * g.coordinates() + 0.3) for g in (coarse, fine)]
    assert float((resample(values[0], 96) - values[1]).abs().max()) < 1e-12
    assert float((resample(values[1], 32) - values[0]).abs().max()) < 1e-12


@pytest.mark.parametrize(("nu", "bound"), [("0.01", 6e-4), ("0.001", 1.5e-3)])
def test_genuine_samples_are_reproduced(nu: str, bound: float, sample_file: Path) -> None:
    path = sample_file.with_name(f"1D_Burgers_Sols_Nu{nu}_sample16.hdf5")
    truth = open_dataset(path).load("all", num_frames=51)
    fields = truth.fields[:4, :, 0].double()
    found = finite_volume.solve_burgers(
        fields[:, 0], truth.parameters[:4, 0].double(), truth.times_s, truth.grid
    )
    assert nrmse(found, fields) < bound


def test_family_has_the_published_shares() -> None:
    family = draw_sine_family(4000, torch.Generator().manual_seed(0))
    assert abs(float(family.absolute.double().mean()) - 0.1) < 0.02
    assert abs(float(family.windowed.double().mean()) - 0.1) < 0.02
    assert set(family.wavenumber.unique().tolist()) == {0, 1, 2, 3, 4, 6, 8}
    assert bool((family.wavenumber > 0).sum(1).le(2).all())
    u = family(grid(256).coordinates())
    plain = u[~(family.absolute | family.windowed)]
    ratio = plain.mean(-1).abs() / plain.square().mean(-1).sqrt()
    assert 0.6 < float(ratio.median()) < 0.9
