"""What an equation conserves, dissipates and prescribes, as functions of fields (..., X).

Read by losses, rewards, guards and metrics alike, so that one quantity has one formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.finite_volume import advance_burgers
from universal_simulator.physics.spectral_solver import solve_advection, solve_kuramoto_sivashinsky


def integral(fields: Float[Tensor, "*S X"], grid: Grid) -> Float[Tensor, "*S"]:
    """Integral of u over the domain."""
    return fields.mean(dim=-1) * grid.domain_size


def energy(fields: Float[Tensor, "*S X"], grid: Grid) -> Float[Tensor, "*S"]:
    """Integral of u^2 / 2."""
    return 0.5 * fields.square().mean(dim=-1) * grid.domain_size


def total_variation(fields: Float[Tensor, "*S X"], grid: Grid) -> Float[Tensor, "*S"]:
    """Sum of |u_{i+1} - u_i| around the circle."""
    return (fields.roll(-1, -1) - fields).abs().sum(dim=-1)


def maximum(fields: Float[Tensor, "*S X"], grid: Grid) -> Float[Tensor, "*S"]:
    """Largest distance of u from its own mean (extrema principle)."""
    return (fields - fields.mean(dim=-1, keepdim=True)).abs().amax(dim=-1)


FUNCTIONALS: dict[str, Callable[[Tensor, Grid], Tensor]] = {
    "integral": integral,
    "energy": energy,
    "total_variation": total_variation,
    "maximum": maximum,
}


#: Courant number of the residual's sub-steps: half the accuracy of the data's .25 at half the cost
RESIDUAL_COURANT = 0.5
#: frames advanced together
FRAMES_AT_ONCE = 256
#: every third pair of neighbouring frames is judged; 3 shares no factor with the usual segments of
#: a rollout (`model.reencode_every`), so no place within a segment is favoured
PAIR_STRIDE = 3
#: beyond this many times the given frame's largest |u| a frame counts with that value: a rollout
#: that blows up has a residual of its own size, in bounded time
WILDEST = 10.0


def burgers_residual(
    fields: Float[Tensor, "B T X"], nu: Float[Tensor, " B"], dt: float, grid: Grid
) -> Float[Tensor, "B {fields.shape[1]-1} X"]:
    """Residual of u_t + (u^2/2)_x = (nu/pi) u_xx averaged over the step: (B, T, X) -> (B, T-1, X).

    (u(t + dt) - S(u(t))) / dt with S the equation in the generator's flux form (`finite_volume`),
    sub-stepped at Courant number .5; u in m/s, nu (B,) in m^2/s, dt in s. No difference quotient
    over dt would do: within one frame a shock crosses several cells. The floor is S's own error
    of one step on this grid, of order dx^2 where the field is smooth. dt / rms(u) times the
    residual of the published data on 256 points, dt = 0.02 s: 6e-4 at nu = .01, 1.7e-2 at .001
    (its shocks are thinner than a cell there); a solution by S itself scores below that.
    """
    batch, frames, points = fields.shape
    before = fields[:, :-1].reshape(-1, points)
    viscosity = nu.repeat_interleave(frames - 1)
    after = torch.empty_like(before)
    # a frame's sub-steps follow from its own speed: fast ones neither cost nor change the others
    needed = before.abs().amax(dim=-1).double() * dt / (RESIDUAL_COURANT * grid.spacing[0])
    substeps = _next_count(needed)
    for count in substeps.unique().tolist():
        for rows in (substeps == count).nonzero().flatten().split(FRAMES_AT_ONCE):
            after[rows] = advance_burgers(before[rows], viscosity[rows], dt, grid, substeps=int(count))
    return (fields[:, 1:] - after.reshape(batch, frames - 1, points)) / dt


def _next_count(needed: Tensor) -> Tensor:
    """The next whole number of the form 2^k or 3 2^k: few classes, at most half too many."""
    power = torch.exp2(needed.clamp_min(1).log2().ceil())
    return torch.where((power > 2) & (0.75 * power >= needed), 0.75 * power, power)


def advection_residual(
    fields: Float[Tensor, "B T X"], beta: Float[Tensor, " B"], dt: float, grid: Grid
) -> Float[Tensor, "B {fields.shape[1]-1} X"]:
    """(u(x, t + dt) - u(x - beta dt, t)) / dt, the exact shift: (B, T, X) -> (B, T-1, X)."""
    batch, frames, points = fields.shape
    times = torch.tensor([0.0, dt], dtype=torch.float64)
    before = fields[:, :-1].reshape(-1, points)
    after = solve_advection(before, beta.repeat_interleave(frames - 1), times, grid)
    return (fields[:, 1:] - after[:, 1].reshape(batch, frames - 1, points)) / dt


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
    "advection": advection_residual,
    "kuramoto_sivashinsky": kuramoto_sivashinsky_residual,
}


def pde_residual(
    fields: Float[Tensor, "B T C X"],
    parameters: Float[Tensor, "B P"],
    dt: float,
    grid: Grid,
    equation: Equation,
) -> Float[Tensor, " B"] | None:
    """rms residual per sample, relative to rms(u)/dt: (B, T, C, X) -> (B,); None if undeclared.

    Of every third pair of neighbouring frames, from the first on. Range [0, inf), lower is
    better. NaN where a judged frame holds NaN or inf; a frame beyond ten times the first one's
    largest |u| is advanced from its clipped values.
    """
    if equation.name not in RESIDUALS:
        return None
    values = fields[:, :, 0]
    scale = values.square().mean(dim=(1, 2)).sqrt()
    before, after = values[:, :-1:PAIR_STRIDE], values[:, 1::PAIR_STRIDE]
    broken = ~(torch.isfinite(before) & torch.isfinite(after)).all(dim=-1)
    limit = WILDEST * values[:, :1].abs().amax(dim=-1, keepdim=True).nan_to_num(nan=0.0, posinf=0.0)
    tame = torch.maximum(torch.minimum(before.nan_to_num(), limit), -limit)
    pairs = torch.stack([tame, after], dim=2).flatten(0, 1)
    own = parameters[:, 0].repeat_interleave(before.shape[1])
    residual = RESIDUALS[equation.name](pairs, own, dt, grid)[:, 0].reshape(before.shape)
    residual = residual.masked_fill(broken[..., None], torch.nan)
    size = residual.square().mean(dim=(1, 2)).sqrt()
    return size * dt / scale.clamp_min(torch.finfo(scale.dtype).tiny)
