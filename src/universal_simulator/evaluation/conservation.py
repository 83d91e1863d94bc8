"""Physics of decoded fields: what is conserved, what may only decrease, the boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.invariants import FUNCTIONALS
from universal_simulator.physics.spectral import energy_spectrum


def conservation_gap(fields: Tensor, initial: Tensor, grid: Grid, equation: Equation) -> Tensor | None:
    """max_t |Q(t) - Q(0)| / (rms(u(0)) |domain|) per sample, worst conserved integral, (B,).

    fields (B, T, C, X) *before* any guard. None where nothing is declared conserved.
    Energy, where conserved, is made relative by rms(u(0))^2 |domain|.
    """
    if not equation.conserved:
        return None
    scale = initial.square().mean(dim=(-2, -1)).sqrt()
    gaps = []
    for name in equation.conserved:
        change = (FUNCTIONALS[name](fields, grid) - FUNCTIONALS[name](initial, grid)[:, None]).abs()
        unit = scale if name == "integral" else scale.square()
        gaps.append(change.flatten(1).amax(dim=1) / (unit * grid.domain_size))
    return torch.stack(gaps).amax(dim=0)


def dissipation_violation(
    fields: Tensor, initial: Tensor, grid: Grid, equation: Equation
) -> dict[str, Tensor]:
    """max(0, E(t + dt) - E(t)) / E(0), mean over steps, for each declared functional, (B,)."""
    whole = torch.cat([initial[:, None], fields], dim=1)
    out = {}
    for name in equation.dissipated:
        values = FUNCTIONALS[name](whole, grid)
        growth = (values[:, 1:] - values[:, :-1]).clamp_min(0) / values[:, :1].clamp_min(1e-30)
        out[name] = growth.flatten(1).mean(dim=1)
    return out


def boundary_violation(seam: Tensor, distance: float, fields: Tensor, grid: Grid) -> Tensor:
    """Periodic residual of value and slope at the seam relative to rms(u), worst of both, (B,).

    seam (B, C, 6): the decoder's own u at -d, 0, d and at L - d, L, L + d, i.e. the seam
    approached from the domain's two ends. Slopes are central differences and weigh with
    half a grid spacing. A decoder that is periodic by construction scores round-off.
    """
    before0, at0, after0, before1, at1, after1 = seam.unbind(-1)
    scale = fields.square().mean(dim=(-2, -1)).sqrt().clamp_min(1e-30)
    value = (at0 - at1).abs().amax(dim=-1)
    slope = ((after0 - before0) - (after1 - before1)).abs().amax(dim=-1) / (2 * distance)
    return torch.maximum(value, slope * grid.spacing[0] * 0.5) / scale


def spectrum_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """|S_p - S_y|_1 / |S_y|_1 of the fluctuation's energy spectrum, mean over frames, (B,)."""
    p, y = energy_spectrum(predicted)[..., 1:], energy_spectrum(truth)[..., 1:]
    error = (p - y).abs().sum(-1) / y.sum(-1).clamp_min(1e-30)
    return error.flatten(1).mean(dim=1)
