"""Where fields live: the cell grid, its boundary condition, names and units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class BoundaryCondition(Enum):
    PERIODIC = "periodic"
    #: given values at both ends of the line
    DIRICHLET = "dirichlet"
    UNDECLARED = "undeclared"


@dataclass(frozen=True)
class FieldSpec:
    name: str
    unit: str = "1"


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter of an equation; `low` and `high` bound what the solvers are proven for."""

    name: str
    unit: str = "1"
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Grid:
    """Uniform cells; cell i of an axis is centred at origin + (i + 1/2) length / points."""

    lengths: tuple[float, ...]
    points: tuple[int, ...]
    origin: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not len(self.lengths) == len(self.points) == len(self.origin):
            raise ValueError(
                f"lengths {self.lengths}, points {self.points} and origin {self.origin} "
                "must have one entry per axis"
            )
        if any(n < 4 for n in self.points) or any(not 0 < length < math.inf for length in self.lengths):
            raise ValueError(f"need >= 4 points and a positive length per axis, got {self}")

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(length / n for length, n in zip(self.lengths, self.points, strict=True))

    @property
    def domain_size(self) -> float:
        return math.prod(self.lengths)

    def coordinates(self, axis: int = 0) -> Tensor:
        """Cell centres of one axis, float64."""
        step = self.spacing[axis]
        return self.origin[axis] + step * (torch.arange(self.points[axis], dtype=torch.float64) + 0.5)

    def with_points(self, *points: int) -> Grid:
        return Grid(self.lengths, points, self.origin)
