"""Fields on a grid -> latent tokens.

Each token looks at a window of two token spacings around its own centre, so that
neighbours overlap, and the windows are read by trigonometric interpolation: token counts
need not divide the grid, and any grid of the same domain can be encoded. On a line with walls
where the field is zero, windows that reach beyond one read the odd image of the field behind it,
which is as smooth as the field.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_simulator.model.blocks import NeighbourMix
from universal_simulator.model.contract import Problem, interpolation_matrix


class PatchEncoder(nn.Module):
    """(B, C, X) normalised fields -> (B, N, D). periodic=False: fields are zero at both walls."""

    def __init__(
        self, problem: Problem, *, tokens: int, latent_dim: int, hidden: int, periodic: bool = True
    ) -> None:
        super().__init__()
        self.periodic = periodic
        self.tokens = tokens
        self.samples = 2 * math.ceil(problem.points / tokens)
        self.read = nn.Linear(problem.num_fields * self.samples, hidden)
        self.expand = NeighbourMix(hidden, 2 * hidden, periodic=periodic)
        self.contract = nn.Linear(2 * hidden, hidden)
        self.write = nn.Linear(hidden, latent_dim)
        self._windows: dict[tuple[int, torch.device], Tensor] = {}

    def windows(self, fields: Tensor) -> Tensor:
        """Interpolation matrix (X, N * samples) of all windows, made once per grid and device."""
        points = fields.shape[-1]
        key = points, fields.device
        if key not in self._windows:
            centres = (torch.arange(self.tokens, dtype=torch.float64) + 0.5) / self.tokens
            # samples sit at cell centres of the window, so they are grid points where N divides X
            local = (torch.arange(self.samples, dtype=torch.float64) + 0.5) / self.samples - 0.5
            fractions = (centres[:, None] + 2 * local / self.tokens).flatten()
            if self.periodic:
                matrix = interpolation_matrix(fractions % 1.0, points)
            else:
                # the line and its odd image make a circle of twice the length
                circle = interpolation_matrix(fractions / 2 % 1.0, 2 * points)
                matrix = circle[:, :points] - circle[:, points:].flip(-1)
            windows = torch.where(matrix.abs() < 1e-12, 0.0, matrix).T.contiguous()
            self._windows[key] = windows.to(fields.device)
        return self._windows[key].to(fields)

    def forward(self, fields: Tensor) -> Tensor:
        windows = (fields @ self.windows(fields)).unflatten(-1, (self.tokens, self.samples))
        hidden = self.read(windows.movedim(-3, -2).flatten(-2))
        hidden = hidden + self.contract(F.gelu(self.expand(hidden), approximate="tanh"))
        return self.write(hidden)
