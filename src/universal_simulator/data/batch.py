"""Trajectories in physical units, validated once at the door."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from universal_simulator.data.regimes import RegimeRule
from universal_simulator.errors import DataError
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation


@dataclass(frozen=True)
class Trajectories:
    """fields (B, T, C, X), times_s (T,), parameters (B, P), one group hash per trajectory."""

    fields: Tensor
    times_s: Tensor
    parameters: Tensor
    groups: tuple[str, ...]
    grid: Grid
    equation: Equation
    #: of the data set they come from; None: of these trajectories alone
    regime_rule: RegimeRule | None = None

    def __post_init__(self) -> None:
        batch, frames = self.fields.shape[:2]
        expected = (len(self.equation.fields), *self.grid.points)
        if tuple(self.fields.shape[2:]) != expected:
            raise DataError(
                f"fields are {tuple(self.fields.shape)}, expected (B, T, {', '.join(map(str, expected))})"
            )
        if self.times_s.shape != (frames,) or len(self.groups) != batch:
            raise DataError(
                f"{frames} frames and {batch} trajectories need as many times and groups, "
                f"got {tuple(self.times_s.shape)} and {len(self.groups)}"
            )
        if self.parameters.shape != (batch, len(self.equation.parameters)):
            raise DataError(
                f"parameters are {tuple(self.parameters.shape)}, expected "
                f"({batch}, {len(self.equation.parameters)})"
            )

    def __len__(self) -> int:
        return self.fields.shape[0]

    @property
    def frame_spacing_s(self) -> float:
        return float(self.times_s[1] - self.times_s[0])

    def subset(self, rows: Tensor) -> Trajectories:
        groups = tuple(self.groups[i] for i in rows.tolist())
        return replace(self, fields=self.fields[rows], parameters=self.parameters[rows], groups=groups)

    def to(self, device: torch.device | str) -> Trajectories:
        """Fields and parameters on `device`; times stay on the CPU, where solvers count steps."""
        return replace(self, fields=self.fields.to(device), parameters=self.parameters.to(device))

    def rows_of_first_groups(self, count: int) -> Tensor:
        """Rows of the first `count` initial conditions, in order."""
        kept = set(list(dict.fromkeys(self.groups))[:count])
        return torch.tensor([row for row, group in enumerate(self.groups) if group in kept])

    def of_first_groups(self, count: int) -> Trajectories:
        """The trajectories of the first `count` initial conditions, in order."""
        return self.subset(self.rows_of_first_groups(count))

    def regimes(self) -> dict[str, Tensor]:
        """Rows of each parameter regime, by label such as `nu=0.01`, ascending (`data/regimes.py`)."""
        rule = self.regime_rule or RegimeRule.of(self.parameters.cpu().numpy())
        return rule.rows(self.parameters, self.equation)


#: of a group's hash, kept with a model to recognise what it has seen
GROUP_DIGITS = 16


def group_hash(first_frame: np.ndarray) -> str:
    """Identity of an initial condition: SHA-256 of its float32 values."""
    values = np.ascontiguousarray(first_frame, dtype="<f4")
    return hashlib.sha256(values.tobytes()).hexdigest()[:32]
