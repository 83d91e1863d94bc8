"""How the equation's parameters and the time step reach the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from universal_simulator.model.contract import Conditions


class ConditionEmbedding(nn.Module):
    """(parameters, dt) -> (B, E): logarithms, standardised by training statistics, then an MLP.

    Parameters may be of either sign or zero (an advection speed): the logarithm is taken
    where all training values are positive, the plain value otherwise.
    """

    logarithmic: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, num_parameters: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("logarithmic", torch.ones(num_parameters + 1, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(num_parameters + 1))
        self.register_buffer("std", torch.ones(num_parameters + 1))
        self.mlp = nn.Sequential(
            nn.Linear(num_parameters + 1, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()
        )

    @torch.no_grad()
    def fit(self, conditions: Conditions) -> None:
        """Standardise by the conditions of the training split."""
        raw = self._raw(conditions)
        self.logarithmic.copy_((raw > 0).all(0))
        values = self._transform(raw)
        self.mean.copy_(values.mean(0))
        spread = values.std(0, correction=0)
        self.std.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, conditions: Conditions) -> Tensor:
        return self.mlp((self._transform(self._raw(conditions)) - self.mean) / self.std)

    @staticmethod
    def _raw(conditions: Conditions) -> Tensor:
        return torch.cat([conditions.parameters, conditions.dt[:, None]], dim=1)

    def _transform(self, raw: Tensor) -> Tensor:
        return torch.where(self.logarithmic, raw.clamp_min(1e-12).log(), raw)
