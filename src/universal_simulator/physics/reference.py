"""One door to the classical solvers: for data, and as the baseline beside every number."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.errors import UserError
from universal_simulator.physics import finite_volume, spectral_solver
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import resample

METHODS = ("spectral", "finite_volume", "exact")
#: equation -> the method that stands beside neural numbers, at coarse resolutions as well
_CLASSICAL = {"burgers": "finite_volume", "advection": "exact", "kuramoto_sivashinsky": "spectral"}


def classical_method(equation: Equation) -> str:
    """The classical baseline's method: exact where the equation is linear, shock-capturing where
    shocks form, spectral where solutions stay smooth; `none` where nobody declared the equation."""
    return _CLASSICAL.get(equation.name, "none")


def solve(
    equation: Equation,
    initial: Tensor,
    parameters: Tensor,
    times_s: Tensor,
    grid: Grid,
    *,
    method: str,
    points: int | None = None,
) -> Tensor:
    """Classical solution (B, T, C, X) from initial (B, C, X) under parameters (B, P).

    Solved in float64 on `points` cells (default: the given grid) and brought back to the
    given grid by trigonometric interpolation. Coarse initial values are cell means of the
    given field where the ratio is a whole number, but for Kuramoto-Sivashinsky its truncated
    Fourier series: a mean's damping of the resolved modes would grow with the chaos.
    """
    points = points or grid.points[0]
    coarsened = resample if equation.name == "kuramoto_sivashinsky" else to_grid
    field = coarsened(initial[:, 0].double(), points)
    solver_grid = grid.with_points(points)
    value = parameters[:, 0].double()
    if equation.name == "burgers" and method == "spectral":
        solution = spectral_solver.solve_burgers(field, value, times_s, solver_grid)
    elif equation.name == "burgers" and method == "finite_volume":
        solution = finite_volume.solve_burgers(field, value, times_s, solver_grid)
    elif equation.name == "advection" and method in ("spectral", "exact"):
        solution = spectral_solver.solve_advection(field, value, times_s, solver_grid)
    elif equation.name == "kuramoto_sivashinsky" and method == "spectral":
        solution = spectral_solver.solve_kuramoto_sivashinsky(field, value, times_s, solver_grid)
    else:
        raise UserError(f"no {method!r} solver for {equation.name!r}; methods: {', '.join(METHODS)}")
    return resample(solution, grid.points[0])[:, :, None].to(initial)


def to_grid(fields: Tensor, points: int) -> Tensor:
    """Cell means where `points` divides the grid, trigonometric interpolation otherwise."""
    before = fields.shape[-1]
    if before > points and before % points == 0:
        return fields.unflatten(-1, (points, before // points)).mean(dim=-1)
    return resample(fields, points)


def torch_times(num_frames: int, spacing_s: float) -> Tensor:
    return torch.arange(num_frames, dtype=torch.float64) * spacing_s
