"""What an equation conserves, dissipates and prescribes, as functions of fields (..., X).

Read by losses, rewards, guards and metrics alike, so that one quantity has one formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import resample
from universal_simulator.physics.spectral_solver import solve_kuramoto_sivashinsky


def integral(fields: Tensor, grid: Grid) -> Tensor:
    """Integral of u over the domain."""
    return fields.mean(dim=-1) * grid.domain_size


def energy(fields: Tensor, grid: Grid) -> Tensor:
    """Integral of u^2 / 2."""
    return 0.5 * fields.square().mean(dim=-1) * grid.domain_size


def total_variation(fields: Tensor, grid: Grid) -> Tensor:
    """Sum of |u_{i+1} - u_i| around the circle."""
    return (fields.roll(-1, -1) - fields).abs().sum(dim=-1)


def maximum(fields: Tensor, grid: Grid) -> Tensor:
    """Largest distance of u from its own mean (extrema principle)."""
    return (fields - fields.mean(dim=-1, keepdim=True)).abs().amax(dim=-1)


FUNCTIONALS: dict[str, Callable[[Tensor, Grid], Tensor]] = {
    "integral": integral,
    "energy": energy,
    "total_variation": total_variation,
    "maximum": maximum,
}


def burgers_residual(fields: Tensor, nu: Tensor, dt: float, grid: Grid, *, refine: int = 4) -> Tensor:
    """Residual of u_t + (u^2/2)_x - (nu/pi) u_xx between neighbouring frames, (B, T, X) -> (B, T-1, X).

    Finite-volume form: the time difference against the flux averaged over the two frames
    (trapezoidal, second order in dt), on a grid refined `refine` times by trigonometric
    interpolation so that the spatial error of the check is not mistaken for the model's.
    """
    points = fields.shape[-1]
    fine = resample(fields, points * refine)
    dx = grid.lengths[0] / fine.shape[-1]
    gradient = (fine.roll(-1, -1) - fine) / dx
    face = 0.5 * (fine + fine.roll(-1, -1))
    flux = 0.5 * face.square() - nu[:, None, None].to(fields) / math.pi * gradient
    divergence = (flux - flux.roll(1, -1)) / dx
    middle = 0.5 * (divergence[:, 1:] + divergence[:, :-1])
    return resample((fine[:, 1:] - fine[:, :-1]) / dt + middle, points)


def kuramoto_sivashinsky_residual(
    fields: Tensor, nu: Tensor, dt: float, grid: Grid, *, step: float = 0.1
) -> Tensor:
    """Residual of u_t + (u^2/2)_x + u_xx + nu u_xxxx, integrated: (B, T, X) -> (B, T-1, X).

    (u(t + dt) - S(u(t))) / dt with S the equation solved over dt in sub-steps of at most
    `step` min(nu) s, that is, the residual averaged over the step. A difference quotient
    would not do: frames are too far apart for it (the trapezoidal rule misses by more than
    most models do), and u_xxxx turns a millionth of noise in the highest mode into the whole.
    The default step leaves 3e-6 of rms(u) on true fields at dt = 1 s, and is stable, so finite,
    up to the ten-fold amplitude from which a rollout counts as diverged.
    """
    batch, frames, points = fields.shape
    times = torch.tensor([0.0, dt], dtype=torch.float64)
    before = fields[:, :-1].reshape(-1, points)
    after = solve_kuramoto_sivashinsky(before, nu.repeat_interleave(frames - 1), times, grid, step=step)
    return (fields[:, 1:] - after[:, 1].reshape(batch, frames - 1, points)) / dt


#: equation -> its residual (fields (B, T, X), parameter (B,), dt, grid) -> (B, T-1, X)
RESIDUALS: dict[str, Callable[[Tensor, Tensor, float, Grid], Tensor]] = {
    "burgers": burgers_residual,
    "kuramoto_sivashinsky": kuramoto_sivashinsky_residual,
}


def pde_residual(
    fields: Tensor, parameters: Tensor, dt: float, grid: Grid, equation: Equation
) -> Tensor | None:
    """rms residual per sample, relative to rms(u)/dt: (B, T, C, X) -> (B,); None if undeclared."""
    if equation.name not in RESIDUALS:
        return None
    residual = RESIDUALS[equation.name](fields[:, :, 0], parameters[:, 0], dt, grid)
    scale = fields.square().mean(dim=(1, 2, 3)).sqrt()
    return residual.square().mean(dim=(1, 2)).sqrt() * dt / scale.clamp_min(torch.finfo(scale.dtype).tiny)
