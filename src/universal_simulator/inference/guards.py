"""Exact projections onto what the equation declares; applied to decoded fields only."""

from __future__ import annotations

from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.physics.equations import Equation


class Guards:
    """The guards that are both switched on and declared, in the order they act."""

    def __init__(self, equation: Equation, config: GuardsConfig) -> None:
        names = []
        if config.positivity and equation.non_negative:
            names.append("positivity")
        if config.mass_projection and "integral" in equation.conserved:
            names.append("mass_projection")
        self.names: tuple[str, ...] = tuple(names)

    def apply(self, fields: Tensor, initial: Tensor) -> Tensor:
        """fields (B, T, C, X) that started from initial (B, C, X) -> guarded fields."""
        for name in self.names:
            fields = project_mass(fields, initial) if name == "mass_projection" else fields.clamp_min(0)
        return fields


def project_mass(fields: Tensor, initial: Tensor) -> Tensor:
    """Nearest field (least squares) whose mean equals the initial one: u - <u> + <u(0)>."""
    mean = initial.mean(dim=-1, keepdim=True)[:, None]
    return fields - fields.mean(dim=-1, keepdim=True) + mean
