"""Families of random initial conditions: PDEBench's, and a smooth one for chaotic equations.

PDEBench's 1-D Burgers and advection files (`SineFamily`): four sine slots k = 1..4 with amplitude U(0, 1) and random phase. Two draws with
replacement choose slots; a slot drawn twice doubles its wavenumber (so up to 8), and a
slot never drawn keeps wavenumber zero: it adds the constant amplitude * sin(phase), which
is why the mean is not zero. One in ten takes the absolute value with a random sign, one in
ten is windowed by a tanh box of edge width 0.01.

Kuramoto-Sivashinsky (`SmoothFamily`): four Fourier modes with normal coefficients and zero
mean, which is conserved. The equation forgets all else during the spin-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS = 4
EDGE_WIDTH = 0.01
SHARE_ABSOLUTE = 0.1
SHARE_WINDOWED = 0.1


@dataclass(frozen=True)
class SineFamily:
    """Drawn coefficients of B initial conditions; call it at positions to sample them."""

    amplitude: Tensor
    phase: Tensor
    wavenumber: Tensor
    absolute: Tensor
    sign: Tensor
    windowed: Tensor
    window: Tensor

    def __call__(self, fractions: Tensor) -> Tensor:
        """(B, X) at positions given in fractions of the domain (X,), float64."""
        angle = 2 * math.pi * self.wavenumber[..., None] * fractions + self.phase[..., None]
        u = (self.amplitude[..., None] * torch.sin(angle)).sum(dim=1)
        u = torch.where(self.absolute[:, None], u.abs() * self.sign[:, None], u)
        left, right = self.window[:, :1], self.window[:, 1:]
        box = 0.5 * (
            torch.tanh((fractions - left) / EDGE_WIDTH) - torch.tanh((fractions - right) / EDGE_WIDTH)
        )
        return torch.where(self.windowed[:, None], u * box, u)


def draw_sine_family(count: int, generator: torch.Generator) -> SineFamily:
    """Draw `count` members; the same generator state gives the same members on any grid."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    amplitude = uniform(count, SLOTS)
    phase = 2 * math.pi * uniform(count, SLOTS)
    drawn = torch.randint(0, SLOTS, (count, 2), generator=generator)
    times_drawn = torch.zeros(count, SLOTS, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(count, 2, dtype=torch.float64)
    )
    choice = uniform(count, 3)
    return SineFamily(
        amplitude=amplitude,
        phase=phase,
        wavenumber=times_drawn * torch.arange(1, SLOTS + 1),
        absolute=choice[:, 0] < SHARE_ABSOLUTE,
        sign=torch.where(choice[:, 1] < 0.5, -1.0, 1.0).double(),
        windowed=choice[:, 2] < SHARE_WINDOWED,
        window=torch.stack([0.1 + 0.35 * uniform(count), 0.55 + 0.35 * uniform(count)], dim=1),
    )


@dataclass(frozen=True)
class SmoothFamily:
    """u = sum over modes m = 1..M of a_m cos(2 pi m x / L) + b_m sin(2 pi m x / L), in m/s.

    cosine, sine (B, M); call it at positions to sample it.
    """

    cosine: Tensor
    sine: Tensor

    def __call__(self, fractions: Tensor) -> Tensor:
        """(B, X) at positions given in fractions of the domain (X,), float64."""
        modes = torch.arange(1, self.cosine.shape[-1] + 1, dtype=torch.float64)
        angle = 2 * math.pi * modes[:, None] * fractions
        return self.cosine @ torch.cos(angle) + self.sine @ torch.sin(angle)


def draw_smooth_family(count: int, generator: torch.Generator, *, modes: int = 4) -> SmoothFamily:
    """Draw `count` members of zero mean and expected rms 1 m/s, the energy even over `modes` modes."""
    cosine, sine = torch.randn(2, count, modes, generator=generator, dtype=torch.float64) / math.sqrt(modes)
    return SmoothFamily(cosine, sine)
