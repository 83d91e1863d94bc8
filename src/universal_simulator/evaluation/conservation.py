"""Physics of decoded fields: what is conserved, what may only decrease, the boundary, the spectrum.

Everything is read from the equation's declaration; what it does not declare is not measured.
All results are per sample, (B,); NaN and inf propagate.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from universal_simulator.evaluation.accuracy import BANDS
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.invariants import FUNCTIONALS
from universal_simulator.physics.spectral import energy_spectrum

#: a band that holds less than this share of the truth's energy is no part of what a model is asked for: of the
#: fields' amplitude it is a thousandth, and dividing by it led the mean (163,216 where 1 is "no energy at all")
SPECTRUM_FLOOR = 1e-6


def conservation_gap(fields: Tensor, initial: Tensor, grid: Grid, equation: Equation) -> Tensor | None:
    """max_t |Q(t) - Q(0)| / (rms(u(0)) |domain|) per sample, worst conserved quantity.

    fields (B, T, C, X), *before* any guard: after a projection it is a tautology.
    Range [0, inf), lower is better; None where nothing is declared conserved. Quadratic
    quantities (energy) are made relative by rms(u(0))^2 |domain|. Computed in float64.
    Bias: a maximum over frames grows with the length of the rollout.
    """
    if not equation.conserved:
        return None
    whole, start = fields.double(), initial.double()
    scale = start.square().mean(dim=(-2, -1)).sqrt()
    gaps = []
    for name in equation.conserved:
        change = (FUNCTIONALS[name](whole, grid) - FUNCTIONALS[name](start, grid)[:, None]).abs()
        unit = scale if name == "integral" else scale.square()
        gaps.append(change.flatten(1).amax(dim=1) / (unit * grid.domain_size))
    return torch.stack(gaps).amax(dim=0)


def dissipation_violation(
    fields: Tensor, initial: Tensor, grid: Grid, equation: Equation
) -> dict[str, Tensor]:
    """max(0, E(t + dt) - E(t)) / E(0), mean over steps and channels, per declared functional.

    Range [0, inf), lower is better, 0 where E never grows. The step from the initial frame
    counts. E(0) = 0 gives NaN unless E stays 0.
    """
    whole = torch.cat([initial[:, None], fields], dim=1).double()
    out = {}
    for name in equation.dissipated:
        values = FUNCTIONALS[name](whole, grid)
        growth = (values[:, 1:] - values[:, :-1]).clamp_min(0)
        out[name] = torch.where(growth == 0, growth, growth / values[:, :1]).flatten(1).mean(dim=1)
    return out


def seam_jumps(seam: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """Jump of value and of slope (B,), worst channel, of a decoder queried around the seam.

    seam (B, C, 6): its own u at -d, 0, d and at L - d, L, L + d, the seam approached from both
    ends of the domain; slopes are central differences.
    """
    before0, at0, after0, before1, at1, after1 = seam.double().unbind(-1)
    value = (at0 - at1).abs().amax(dim=-1)
    slope = ((after0 - before0) - (after1 - before1)).abs().amax(dim=-1) / (2 * distance)
    return value, slope


def grid_seam_jumps(fields: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The same jumps of fields (B, C, X) known on cell centres only.

    Value and slope at the seam are extrapolated from the four nearest cells of either end
    (cubic, so smooth fields keep a residual of order spacing^4 and spacing^3 that is the grid's).
    """
    fields = fields.double()
    value_weights, slope_weights = (torch.from_numpy(w).to(fields) for w in _one_sided_weights())
    start, end = fields[..., :4], fields[..., -4:].flip(-1)
    value = (start @ value_weights - end @ value_weights).abs().amax(dim=-1)
    slope = (start @ slope_weights + end @ slope_weights).abs().amax(dim=-1) / grid.spacing[0]
    return value, slope


@cache
def _one_sided_weights() -> tuple[np.ndarray, np.ndarray]:
    """Weights of u at 1/2, 3/2, 5/2, 7/2 cells that give u and u' (per cell) at 0."""
    powers = np.vander(np.arange(4) + 0.5, increasing=True).T
    return np.linalg.solve(powers, np.eye(4)[0]), np.linalg.solve(powers, np.eye(4)[1])


def boundary_violation(value: Tensor, slope: Tensor, fields: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Periodic residual at the seam relative to rms(u): value, slope, and the worse of both.

    A jump of slope weighs with half a cell: what the kink displaces at the nearest centre.
    Range [0, inf), lower is better; round-off for a decoder that is periodic by construction.
    """
    scale = fields.double().square().mean(dim=(-2, -1)).sqrt()
    jump, kink = value / scale, slope * grid.spacing[0] * 0.5 / scale
    return {
        "bc_violation": torch.maximum(jump, kink),
        "bc_violation_value": jump,
        "bc_violation_slope": kink,
    }


def grid_wall_values(fields: Tensor) -> Tensor:
    """Fields (B, C, X) known on cell centres only, carried to both walls: (B, C, 2).

    Cubic through the four nearest cells, so smooth fields keep an error of order spacing^4.
    """
    fields = fields.double()
    weights = torch.from_numpy(_one_sided_weights()[0]).to(fields)
    return torch.stack([fields[..., :4] @ weights, fields[..., -4:].flip(-1) @ weights], dim=-1)


def wall_violation(walls: Tensor, boundary_value: float, fields: Tensor) -> dict[str, Tensor]:
    """Dirichlet residual |u - g| at the worse wall and channel, relative to rms(u), (B,).

    walls (B, C, 2): the decoded field at both ends, asked of the decoder itself where it has one;
    fields (B, C, X): whose rms is the unit. Range [0, inf), lower is better. A given value says
    nothing of the slope, so none is judged.
    """
    scale = fields.double().square().mean(dim=(-2, -1)).sqrt()
    value = (walls.double() - boundary_value).abs().amax(dim=(-2, -1)) / scale
    return {"bc_violation": value, "bc_violation_value": value}


def spectrum_error(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """sum |S_p - S_y| / sum S_y of the fluctuation's energy spectrum, whole and per band.

    Sums run over the band's modes (the mean, mode 0, left out), frames and channels.
    Range [0, inf), lower is better; 1 is what a prediction without energy in the band scores.
    Blind to phase: read it beside nrmse. Bias: the energetic early frames weigh most.
    NaN rule: NaN (excluded and counted) where the truth holds less than `SPECTRUM_FLOOR` of its energy,
    the mean's included, in the band: next to nothing divides there.
    """
    p, y = (energy_spectrum(u.double()).sum(dim=2) for u in (predicted, truth))
    total = y.sum(dim=(1, 2))
    out = {}
    for name, (low, high) in {"": (1, None), **{f"_{k}": v for k, v in BANDS.items()}}.items():
        modes = slice(max(low, 1), high)
        energy = y[..., modes].sum(dim=(1, 2))
        difference = (p[..., modes] - y[..., modes]).abs().sum(dim=(1, 2))
        held = energy > SPECTRUM_FLOOR * total
        out[f"spectrum_error{name}"] = torch.where(held, difference / energy, torch.nan)
    return out
