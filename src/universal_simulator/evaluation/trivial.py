"""Predictors that know nothing: every neural number stands beside the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, exp, fft

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import fourier_shift, wavenumbers
from universal_simulator.run_record import Metric

TRIVIAL = ("persistence", "spatial_mean", "linearised")


def trivial_predictions(
    equation: Equation, initial: Tensor, parameters: Tensor, times_s: Tensor, grid: Grid
) -> dict[str, Tensor]:
    """name -> (B, T, C, X) at times_s (T,) after the initial frame (B, C, X).

    persistence: u(0). spatial_mean: its mean. linearised (Burgers): the heat equation and
    advection by the mean, exact in Fourier space. A linear equation has no linearised
    predictor (it would be the solution), nor has one whose terms are not declared. Neither has
    Kuramoto-Sivashinsky: linearised about its mean, every mode below 1 / sqrt(nu) grows without
    bound (by e in 4 nu s), and only the flux, which was left out, would stop it.
    """
    held = initial[:, None].expand(-1, len(times_s), -1, -1)
    out = {"persistence": held, "spatial_mean": held.mean(dim=-1, keepdim=True).expand_as(held)}
    if equation.name == "burgers":
        out["linearised"] = _linearised_burgers(initial, parameters, times_s, grid)
    return out


def best_trivial(rows: Mapping[str, Mapping[str, Metric]]) -> tuple[str, float]:
    """Name and nrmse of the best predictor that knows nothing; ("none", NaN) where none has a value."""
    scored = [
        (value, name) for name in TRIVIAL if name in rows and (value := rows[name]["nrmse"].value) is not None
    ]
    value, name = min(scored, default=(math.nan, "none"))
    return name, value


def _linearised_burgers(initial: Tensor, parameters: Tensor, times_s: Tensor, grid: Grid) -> Tensor:
    """u_t + <u(0)> u_x = (nu/pi) u_xx: each mode decays and rides with the mean."""
    k = wavenumbers(initial.shape[-1], grid.lengths[0]).to(initial)
    times = times_s.to(initial)[None, :, None]
    rate = parameters[:, :1].to(initial) / math.pi * k.square()
    spectrum = fft.rfft(initial)[:, None] * exp(-times * rate[:, None])[:, :, None]
    diffused = fft.irfft(spectrum, n=initial.shape[-1])
    return fourier_shift(diffused, initial.mean(dim=-1)[:, None] * times, grid)
