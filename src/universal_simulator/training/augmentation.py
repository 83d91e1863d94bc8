"""Augmentation: training windows are replaced by other members of their symmetry orbit.

Only what the equation declares is allowed. Each window draws its own element:

* `shift`:       u(x, t) -> u(x - s, t), s uniform over the domain
* `reflection`:  u(x, t) -> -u(L - x, t), with probability one half
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import fourier_shift


class Augmentation:
    """(B, T, C, X) -> (B, T, C, X); draws with the generator it is given, on the CPU."""

    def __init__(self, symmetries: Sequence[str], equation: Equation, grid: Grid) -> None:
        equation.require_symmetries(symmetries, "training.augmentation")
        self.symmetries = tuple(symmetries)
        self.grid = grid

    def __call__(self, fields: Tensor, generator: torch.Generator) -> Tensor:
        size = fields.shape[0]
        if "shift" in self.symmetries:
            distance = self.grid.lengths[-1] * torch.rand(size, generator=generator)
            fields = fourier_shift(fields, distance.to(fields)[:, None, None], self.grid)
        if "reflection" in self.symmetries:
            mirrored = torch.rand(size, generator=generator) < 0.5
            fields = torch.where(mirrored.to(fields.device)[:, None, None, None], -fields.flip(-1), fields)
        return fields
