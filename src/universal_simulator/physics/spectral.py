"""Fourier operations on the last axis of periodic fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid


def wavenumbers(points: int, length: float) -> Tensor:
    """Angular wavenumbers 2 pi m / L of rfft's modes m = 0..points//2, float64."""
    return 2 * math.pi / length * torch.arange(points // 2 + 1, dtype=torch.float64)


def fourier_shift(fields: Tensor, distance: Tensor, grid: Grid) -> Tensor:
    """u(x) -> u(x - distance); distance broadcasts against fields[..., 0], in units of length."""
    points = fields.shape[-1]
    k = wavenumbers(points, grid.lengths[-1]).to(fields)
    phase = torch.exp(-1j * (distance[..., None] * k))
    spectrum = torch.fft.rfft(fields) * phase
    return torch.fft.irfft(spectrum, n=points)


def resample(fields: Tensor, points: int) -> Tensor:
    """Trigonometric interpolation (..., X) -> (..., points) between cell-centred grids.

    The cell centres of the two grids are offset by half the difference of their spacings;
    the phase is corrected for it. Down-sampling drops modes and does not alias.
    """
    before = fields.shape[-1]
    if points == before:
        return fields
    spectrum = torch.fft.rfft(fields)
    kept = min(before, points) // 2 + 1
    modes = torch.arange(kept, device=fields.device, dtype=torch.float64)
    offset = 0.5 / points - 0.5 / before  # in fractions of the domain
    phase = torch.exp(2j * math.pi * modes * offset).to(spectrum)
    out = spectrum.new_zeros(*fields.shape[:-1], points // 2 + 1)
    out[..., :kept] = spectrum[..., :kept] * phase
    if min(before, points) % 2 == 0:
        # a Nyquist mode stands for both signs of its frequency
        out[..., kept - 1] = out[..., kept - 1].real * (0.5 if points > before else 1.0)
    return torch.fft.irfft(out * (points / before), n=points)


def energy_spectrum(fields: Tensor) -> Tensor:
    """Share of mean(u^2) in each mode, (..., X) -> (..., X//2 + 1); sums to mean(u^2)."""
    points = fields.shape[-1]
    spectrum = torch.fft.rfft(fields, norm="forward").abs().square()
    weight = torch.full((points // 2 + 1,), 2.0, device=fields.device, dtype=spectrum.dtype)
    weight[0] = 1.0
    if points % 2 == 0:
        weight[-1] = 1.0
    return spectrum * weight
