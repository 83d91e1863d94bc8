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


def pde_residual(
    fields: Tensor, parameters: Tensor, dt: float, grid: Grid, equation: Equation
) -> Tensor | None:
    """rms residual per sample, relative to rms(u)/dt: (B, T, C, X) -> (B,); None if undeclared."""
    if equation.name != "burgers":
        return None
    residual = burgers_residual(fields[:, :, 0], parameters[:, 0], dt, grid)
    scale = fields.square().mean(dim=(1, 2, 3)).sqrt()
    return residual.square().mean(dim=(1, 2)).sqrt() * dt / scale.clamp_min(torch.finfo(scale.dtype).tiny)
