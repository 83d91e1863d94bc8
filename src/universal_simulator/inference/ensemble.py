"""Ensembles: members are rollouts of the corrected model, each under noise of its own and, where the model
says so, in a symmetric representation of its own.

The noise of a trajectory is drawn from the seed and its first frame (`inference.noise`), member by
member: two ensembles of one seed share their first members.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.inference.member_representations import (
    member_representations,
    represented,
    restored,
)
from universal_simulator.inference.noise import generator_of
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.rollout import num_segments, rollout_fields
from universal_simulator.model.surrogate import Surrogate

#: rollouts carried through the model together: bounds the memory
ROLLOUTS_AT_ONCE = 256


class StochasticPredictor(SurrogatePredictor):
    """A surrogate with a corrector: single rollouts are the operator's, members are sampled."""

    def __init__(
        self,
        surrogate: Surrogate,
        guards: GuardsConfig,
        *,
        members: int,
        frame_spacing_s: float | None = None,
    ) -> None:
        super().__init__(surrogate, guards, frame_spacing_s=frame_spacing_s)
        if members < 2:
            raise ValueError(f"an ensemble needs at least 2 members, got {members}")
        self.members = members

    def rollout_members(self, initial: Tensor, parameters: Tensor, steps: int, *, seed: int) -> Tensor:
        """Decoded fields before any guard, (B, M, steps, C, X)."""
        taken = steps * self.substeps
        noise = trajectory_noise(self.surrogate, initial, taken, self.members, seed=seed).flatten(0, 1)
        views = member_representations(self.surrogate, initial, self.members, seed=seed)
        repeated = initial.repeat_interleave(self.members, 0)
        conditions = parameters.repeat_interleave(self.members, 0)
        parts = []
        for start in range(0, len(repeated), ROLLOUTS_AT_ONCE):
            rows = slice(start, start + ROLLOUTS_AT_ONCE)
            fields = rollout_fields(
                self.surrogate,
                represented(views[rows], repeated[rows]),
                conditions[rows],
                steps=taken,
                dt_s=self.dt_s,
                noise=noise[rows],
            )[:, self.substeps - 1 :: self.substeps]
            parts.append(restored(views[rows], fields))
        return torch.cat(parts).unflatten(0, (len(initial), self.members))


def predictor_of(
    surrogate: Surrogate, guards: GuardsConfig, *, members: int, frame_spacing_s: float | None = None
) -> SurrogatePredictor:
    """How this model is asked: with `members` where it can sample, as it is where it cannot."""
    if surrogate.corrector is None or members < 2:
        return SurrogatePredictor(surrogate, guards, frame_spacing_s=frame_spacing_s)
    return StochasticPredictor(surrogate, guards, members=members, frame_spacing_s=frame_spacing_s)


def trajectory_noise(surrogate: Surrogate, initial: Tensor, steps: int, members: int, *, seed: int) -> Tensor:
    """N(0, 1) of shape (B, M, S, N, D): S segments of a rollout of `steps`."""
    shape = surrogate.member.token_shape()
    if shape is None:
        raise ValueError("only a member that carries latent tokens has members' noise")
    size = (num_segments(surrogate, steps), *shape)
    rows = []
    for field in initial:
        generator = generator_of(seed, field)
        rows.append(torch.stack([torch.randn(size, generator=generator) for _ in range(members)]))
    return torch.stack(rows).to(initial)
