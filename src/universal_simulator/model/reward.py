"""The learned reward: how far a candidate is from the truth, read in latent space.

A segment starts from z_0; its candidates are c_i, their reference (mean) c. With
delta_i = E(c_i) - E(c) the encodings relative to the reference's, in units of the model's latents,

    log error_i = 1/2 log( sum_d a_d mean_tokens (delta_i - r)_d^2 + v )

r (N, D): where the truth is expected to lie from the reference; v: what no candidate reaches; a (D):
how much each latent number weighs. r and v come from one network of (z_0, E(c) - z_0, rms_i delta_i).
The form knows what a distance is, so a few hundred candidate sets suffice; with r = 0 it prefers
what is near the reference, with r informative it prefers what lies on the truth's side.

B sets, n candidates, N tokens, D numbers per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from universal_simulator.configuration.schema import CorrectorOptions
from universal_simulator.model.conditioning import ConditionEmbedding
from universal_simulator.model.contract import Conditions
from universal_simulator.model.latent_generator import CHANNELS, TokenNetwork

NETWORK = CorrectorOptions(hidden=32, layers=1, heads=4, group_size=8)
#: mean squares below this share of a unit are not told apart
FLOOR = 1e-5
SMALLEST_UNIT = 1e-6


class RewardEntry(BaseModel):
    """On what it was trained: part of the architecture, under the model's hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: 95th percentile of the plain rollout's predicted relative error over the training sets
    plain_p95: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sets: Annotated[int, Field(ge=1)]
    #: beginnings of the hashes of the initial conditions; nothing is ever evaluated on them
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """start z_0 and reference E(c) (B, N, D), deviations E(c_i) - E(c) (B, n, N, D)."""

    start: Tensor
    reference: Tensor
    deviations: Tensor
    conditions: Conditions

    def rows(self, index: Tensor) -> Seen:
        conditions = Conditions(self.conditions.parameters[index], self.conditions.dt[index])
        return Seen(self.start[index], self.reference[index], self.deviations[index], conditions)


class LearnedReward(nn.Module):
    """Predicted log relative error of candidates; its negative is the reward."""

    latent_unit: Tensor
    deviation_unit: Tensor

    def __init__(self, *, num_parameters: int, tokens: int, latent_dim: int) -> None:
        super().__init__()
        self.condition = ConditionEmbedding(num_parameters, CHANNELS)
        self.network = TokenNetwork(3 * latent_dim, 2 * latent_dim, NETWORK, tokens)
        self.log_weight = nn.Parameter(torch.zeros(latent_dim))
        self.level = nn.Parameter(torch.zeros(()))
        self.register_buffer("latent_unit", torch.ones(latent_dim))
        self.register_buffer("deviation_unit", torch.ones(latent_dim))

    @torch.no_grad()
    def fit_units(self, seen: Seen) -> None:
        """Root mean squares of training sets, per latent number."""
        latent = torch.cat([seen.start, seen.reference]).square().mean(dim=(0, 1)).sqrt()
        self.latent_unit.copy_(latent.clamp_min(SMALLEST_UNIT))
        deviation = seen.deviations.square().mean(dim=(0, 1, 2)).sqrt()
        self.deviation_unit.copy_(deviation.clamp_min(SMALLEST_UNIT))
        self.condition.fit(seen.conditions)

    def forward(self, seen: Seen) -> Tensor:
        """Log error (B, n)."""
        start, reference = seen.start, seen.reference
        relative = seen.deviations / self.deviation_unit
        inputs = torch.cat(
            [
                start / self.latent_unit,
                (reference - start) / self.latent_unit,
                (relative.square().mean(dim=1) + FLOOR).log(),
            ],
            dim=-1,
        )
        offset, remainder = self.network(inputs, self.condition(seen.conditions)).chunk(2, dim=-1)
        distance = (relative - offset[:, None]).square().mean(dim=2) @ self.log_weight.exp()
        unreached = remainder.mean(dim=(1, 2)).clamp(-20.0, 20.0).exp()
        return 0.5 * (distance / len(self.log_weight) + unreached[:, None]).log() + self.level
