"""Exact projections onto what the equation declares; applied to decoded fields only.

Each is the nearest point of a convex set that holds every solution, so none can move a prediction
away from the truth (in the norm it is made in).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation

#: periods L, L/2 .. L/16 that `energy_bound` looks for in the first frame
PERIODS = 16
#: a grid that is too coarse for a shock shows another norm than the solution has
SLACK = 1.02
#: of fields kept in single precision, relative to max|u(0)|
ROUND_OFF = 4 * torch.finfo(torch.float32).eps


class Guards:
    """The guards that are both switched on and declared, in the order they act."""

    def __init__(
        self, equation: Equation, config: GuardsConfig, *, grid: Grid, frame_spacing_s: float
    ) -> None:
        names = []
        if config.positivity and equation.non_negative:
            names.append("positivity")
        if config.mass_projection and "integral" in equation.conserved:
            names.append("mass_projection")
        if config.energy_bound and equation.diffusion is not None:
            names.append("energy_bound")
        self.names: tuple[str, ...] = tuple(names)
        self._diffusion = equation.diffusion or 0.0
        self._length = grid.lengths[0]
        self._spacing_s = frame_spacing_s

    def apply(
        self,
        fields: Float[Tensor, "B T C X"],
        initial: Float[Tensor, "B C X"],
        parameters: Float[Tensor, "B P"],
    ) -> Float[Tensor, "B T C X"]:
        """fields (B, T, C, X), the T frames that follow initial (B, C, X) -> guarded fields."""
        for name in self.names:
            if name == "mass_projection":
                fields = project_mass(fields, initial)
            elif name == "positivity":
                fields = fields.clamp_min(0)
            else:
                times_s = self._spacing_s * torch.arange(1, fields.shape[1] + 1, dtype=torch.float64)
                diffusivity = self._diffusion * parameters[:, 0].double()
                bound = energy_bound(initial, diffusivity, times_s.to(fields.device), self._length)
                fields = shrink(fields, bound)
        return fields


def project_mass(
    fields: Float[Tensor, "B T C X"], initial: Float[Tensor, "B C X"]
) -> Float[Tensor, "B T C X"]:
    """Nearest field (least squares) whose mean equals the initial one: u - <u> + <u(0)>."""
    mean = initial.mean(dim=-1, keepdim=True)[:, None]
    return fields - fields.mean(dim=-1, keepdim=True) + mean


def energy_bound(
    initial: Float[Tensor, "B C X"],
    diffusivity: Float[Tensor, " B"],
    times_s: Float[Tensor, " T"],
    length: float,
) -> Float[Tensor, "B T C"]:
    """What rms(u - <u>) cannot exceed at times_s (T,) after initial (B, C, X): (B, T, C), in its unit.

    Of u_t + (f(u))_x = k u_xx, periodic: ||w||, w = u - <u>, falls at least as fast as the Poincare
    inequality has it, and where w has the shorter period L/g it keeps it:

        ||w(t)|| <= exp(-k (2 pi g / L)^2 t) ||P_g w(0)|| + sqrt(2 max|w(0)| ||w(0) - P_g w(0)||_1)

    P_g: the part of period L/g. What is left out of it stays as small as it was in L1 (solutions of
    a scalar conservation law contract there) and within the range of the first frame: the second
    term. The least of g = 1 .. 16 counts; g = 1 leaves nothing out. diffusivity k: (B,), m^2/s.
    Source: Evans, Partial Differential Equations, 5.8.1; Kruzkov 1970 (contraction).
    """
    w = initial.double() - initial.double().mean(dim=-1, keepdim=True)
    spectrum = torch.fft.rfft(w)
    modes = torch.arange(spectrum.shape[-1], device=w.device)
    largest = w.abs().amax(dim=-1)
    found = []
    for g in range(1, min(PERIODS, w.shape[-1] // 2) + 1):
        part = torch.fft.irfft(spectrum * (modes % g == 0), n=w.shape[-1])
        rest = (2 * largest * (w - part).abs().mean(dim=-1)).sqrt() if g > 1 else torch.zeros_like(largest)
        rate = diffusivity.to(w) * (2 * math.pi * g / length) ** 2
        decay = (-rate[:, None] * times_s.to(w)).exp()[:, :, None]
        found.append(decay * part.square().mean(dim=-1).sqrt()[:, None] + rest[:, None])
    round_off = ROUND_OFF * initial.double().abs().amax(dim=-1)
    return SLACK * torch.stack(found).amin(dim=0) + round_off[:, None]


def shrink(fields: Float[Tensor, "B T C X"], bound: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C X"]:
    """Nearest fields with rms(u - <u>) <= bound (B, T, C); NaN and inf stay what they are."""
    mean = fields.mean(dim=-1, keepdim=True)
    around = fields - mean
    size = around.square().mean(dim=-1).sqrt()
    too_large = size > bound.to(size)
    factor = torch.where(too_large, bound.to(size) / size, torch.ones_like(size))[..., None]
    return torch.where(too_large[..., None], mean + factor * around, fields)
