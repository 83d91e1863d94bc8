"""The steady problem: its solver, its field, its declaration, its boundary and what is conserved."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from universal_simulator.evaluation.conservation import grid_wall_values, wall_violation
from universal_simulator.physics.darcy import (
    DARCY,
    LogNormalMobility,
    darcy_flux_residual,
    solve_darcy,
)
from universal_simulator.physics.domain import BoundaryCondition, Grid

FIELD = LogNormalMobility(deviation=1.0, corner=6.0, modes=40)


def waves(points: int) -> tuple[Tensor, Tensor]:
    """1/a = 1 + cos(2 pi x) / 2 and its pressure for f = 1, integrated by hand (q = x - 1/2)."""
    x = Grid((1.0,), (points,)).coordinates()
    wave = 2 * math.pi * x
    primitive = -0.5 * (x + wave.sin() / (4 * math.pi)) + x.square() / 2
    primitive = primitive + 0.5 * (x * wave.sin() / (2 * math.pi) + (wave.cos() - 1) / (4 * math.pi**2))
    return 1 / (1 + 0.5 * wave.cos()), -primitive


def test_the_equation_declares_its_walls_and_no_time() -> None:
    assert DARCY.boundary is BoundaryCondition.DIRICHLET
    assert DARCY.boundary_value == 0.0
    assert not hasattr(DARCY, "conserved")


def test_a_constant_mobility_gives_the_parabola() -> None:
    grid = Grid((2.0,), (64,))
    x = grid.coordinates()
    pressure = solve_darcy(torch.full((1, 64), 4.0, dtype=torch.float64), 3.0, grid)
    # the flux through the wall's half cell is taken at the wall: exact up to f h^2 / (8 a)
    excess = pressure[0] - 3.0 / 8.0 * x * (2.0 - x)
    assert torch.allclose(excess, torch.full_like(excess, 3.0 * grid.spacing[0] ** 2 / 32), atol=1e-14)


def test_the_order_of_convergence_is_two() -> None:
    errors = []
    for points in (32, 64, 128, 256):
        mobility, exact = waves(points)
        found = solve_darcy(mobility[None], 1.0, Grid((1.0,), (points,)))[0]
        errors.append(float((found - exact).abs().max()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < 1e-5
    assert all(1.9 < order < 2.1 for order in orders)


def test_the_running_sums_solve_the_tridiagonal_system() -> None:
    grid = Grid((1.5,), (24,))
    log_a = FIELD.log_mobility(FIELD.draw(3, torch.Generator().manual_seed(0)), grid.coordinates() / 1.5)
    mobility, step = log_a.exp(), grid.spacing[0]
    inner = 2 / (1 / mobility[:, 1:] + 1 / mobility[:, :-1]) / step**2
    wall = 2 * mobility[:, [0, -1]] / step**2
    left = torch.cat([wall[:, :1], inner], dim=1)
    right = torch.cat([inner, wall[:, 1:]], dim=1)
    matrix = (
        torch.diag_embed(left + right)
        - torch.diag_embed(inner, offset=1)
        - torch.diag_embed(inner, offset=-1)
    )
    expected = torch.linalg.solve(matrix, torch.full((3, 24), 2.0, dtype=torch.float64))
    assert torch.allclose(solve_darcy(mobility, 2.0, grid), expected, rtol=1e-10)


def test_a_solution_conserves_its_flux_and_a_wrong_one_does_not() -> None:
    grid = Grid((1.0,), (128,))
    log_a = FIELD.log_mobility(FIELD.draw(8, torch.Generator().manual_seed(1)), grid.coordinates())
    pressure = solve_darcy(log_a.exp(), 1.0, grid)
    assert float(darcy_flux_residual(pressure, log_a.exp(), 1.0, grid).max()) < 1e-10
    assert float(darcy_flux_residual(pressure.roll(1, 0), log_a.exp(), 1.0, grid).min()) > 0.05
    assert (pressure > 0).all(), "the maximum principle: a source and two zeros"


def test_an_impossible_mobility_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        solve_darcy(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), 1.0, Grid((1.0,), (4,)))


def test_bc_violation_meets_the_walls() -> None:
    mobility, exact = waves(128)
    fields = solve_darcy(mobility[None], 1.0, Grid((1.0,), (128,)))[:, None]
    assert float(wall_violation(grid_wall_values(fields), 0.0, fields)["bc_violation"]) < 1e-3
    lifted = fields + 0.1 * float(exact.square().mean().sqrt())
    found = float(wall_violation(grid_wall_values(lifted), 0.0, lifted)["bc_violation"])
    scale = float(exact.square().mean().sqrt() / lifted.square().mean().sqrt())
    assert found == pytest.approx(0.1 * scale, rel=0.02)
    # the parabola is as good as periodic: what the seam would be asked would not have seen it
    assert float((lifted[0, 0, 0] - lifted[0, 0, -1]).abs()) < 1e-9


def test_the_mobility_has_the_variance_and_seeds_it_says() -> None:
    fractions = torch.tensor([0.1, 0.5, 0.9])
    log_a = FIELD.log_mobility(FIELD.draw(20_000, torch.Generator().manual_seed(2)), fractions)
    assert torch.allclose(log_a.std(0), torch.ones(3, dtype=torch.float64), atol=0.03)
    again = FIELD.draw(5, torch.Generator().manual_seed(2))
    assert torch.equal(again, FIELD.draw(5, torch.Generator().manual_seed(2)))
    assert not torch.equal(again, FIELD.draw(5, torch.Generator().manual_seed(3)))


def test_conditioned_draws_meet_what_was_seen_and_have_the_right_spread_elsewhere() -> None:
    generator = torch.Generator().manual_seed(4)
    sensors, between = torch.linspace(0.05, 0.95, 8), torch.tensor([0.37])
    truth = FIELD.draw(400, generator)
    seen = FIELD.log_mobility(truth, sensors)
    members = FIELD.conditioned(seen, sensors, members=50, generator=generator)
    assert torch.allclose(members @ FIELD.basis(sensors), seen[:, None].expand(-1, 50, -1), atol=1e-4)
    unseen = (members @ FIELD.basis(between))[..., 0]
    error = unseen.mean(1) - FIELD.log_mobility(truth, between)[:, 0]
    ratio = float(unseen.var(1).mean().sqrt() * math.sqrt(51 / 50) / error.square().mean().sqrt())
    assert 0.9 < ratio < 1.1, "the spread is the error's"
    assert float(unseen.std(1).mean()) > 0.2
