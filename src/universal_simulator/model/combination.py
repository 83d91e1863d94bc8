"""The learned combination of test-time compute: how far the answer lies from the mean, along what a search knows.

    answer = mean + sum_k a_k D_k,    a = W [1, f],    f standardised and held within four deviations

D_k are directions of one segment's end (`inference/directions.py`), f what can be read of the state. A
ranking can only prefer candidates; signed weights also say on which side of the mean the truth lies.
K directions, F features.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

#: a feature further out than seen in training counts as this many standard deviations
FURTHEST = 4.0
SMALLEST_UNIT = 1e-6


class CombinationEntry(BaseModel):
    """On what it was fitted: part of the architecture, under the model's hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: partial trajectories it was fitted for; another number has other directions
    beam: Annotated[int, Field(ge=1)]
    directions: Annotated[int, Field(ge=1, le=1000)]
    features: Annotated[int, Field(ge=1, le=10_000)]
    sets: Annotated[int, Field(ge=0)]
    #: beginnings of the hashes of the initial conditions; nothing is ever evaluated on them
    groups: tuple[str, ...]


class Combination(nn.Module):
    """Features (B, F) -> weights (B, K) of the directions; zero until it is fitted."""

    centre: Tensor
    unit: Tensor
    weights: Tensor

    def __init__(self, entry: CombinationEntry) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(entry.features, dtype=torch.float64))
        self.register_buffer("unit", torch.ones(entry.features, dtype=torch.float64))
        size = (entry.directions, entry.features + 1)
        self.register_buffer("weights", torch.zeros(size, dtype=torch.float64))

    def lifted(self, features: Tensor) -> Tensor:
        """[1, f] (B, 1 + F)."""
        scaled = ((features.double() - self.centre) / self.unit).clamp(-FURTHEST, FURTHEST)
        return torch.cat([torch.ones_like(scaled[:, :1]), scaled], dim=1)

    def forward(self, features: Tensor) -> Tensor:
        return (self.lifted(features) @ self.weights.T).to(features.dtype)

    @torch.no_grad()
    def fit(self, features: Tensor, directions: Tensor, error: Tensor, *, ridge: float) -> None:
        """Least squares of |error - sum_k a_k D_k| / |error|: features (S, F), directions (S, K, X), error (S, X).

        ridge: added to the normal equations as a share of their own diagonal.
        """
        self.centre.copy_(features.double().mean(dim=0))
        self.unit.copy_(features.double().std(dim=0).clamp_min(SMALLEST_UNIT))
        lifted = self.lifted(features)
        scale = error.double().square().mean(dim=1).sqrt().clamp_min(SMALLEST_UNIT**2)
        sides, target = directions.double() / scale[:, None, None], error.double() / scale[:, None]
        gram = torch.einsum("skx,slx->skl", sides, sides)
        found = torch.einsum("skx,sx->sk", sides, target)
        count, width = sides.shape[1], lifted.shape[1]
        left = torch.einsum("sf,sg,skl->kflg", lifted, lifted, gram).reshape(count * width, count * width)
        right = torch.einsum("sf,sk->kf", lifted, found).reshape(count * width)
        diagonal = torch.diagonal(left)
        damped = left + ridge * torch.diag(diagonal + SMALLEST_UNIT * diagonal.mean())
        self.weights.copy_(torch.linalg.solve(damped, right).reshape(count, width))
