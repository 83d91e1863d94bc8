"""Predictors that know nothing: every neural number stands beside the best of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import fourier_shift, wavenumbers


def trivial_predictions(
    equation: Equation, initial: Tensor, parameters: Tensor, times_s: Tensor, grid: Grid
) -> dict[str, Tensor]:
    """name -> (B, T, C, X) at times_s (T,) after the initial frame (B, C, X).

    persistence: u(0). spatial_mean: its mean. linearised (Burgers): heat equation and
    advection by the mean, exact in Fourier space. A linear equation has no linearised
    predictor: it would be the solution.
    """
    frames = len(times_s)
    held = initial[:, None].expand(-1, frames, -1, -1)
    out = {"persistence": held, "spatial_mean": held.mean(dim=-1, keepdim=True).expand_as(held)}
    if equation.name == "burgers":
        out["linearised"] = _linearised_burgers(initial, parameters, times_s, grid)
    return out


def _linearised_burgers(initial: Tensor, parameters: Tensor, times_s: Tensor, grid: Grid) -> Tensor:
    k = wavenumbers(initial.shape[-1], grid.lengths[0]).to(initial)
    rate = parameters[:, :1] / math.pi * k.square()
    decay = torch.exp(-times_s.to(initial)[None, :, None] * rate[:, None])
    spectrum = torch.fft.rfft(initial)[:, None] * decay[:, :, None]
    diffused = torch.fft.irfft(spectrum, n=initial.shape[-1])
    distance = initial.mean(dim=-1)[:, None] * times_s.to(initial)[None, :, None]
    return fourier_shift(diffused, distance, grid)
