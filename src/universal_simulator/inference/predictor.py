"""A surrogate with its guards, as the evaluation asks for it."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.inference.guards import Guards
from universal_simulator.inference.rollout import reconstruct, rollout_fields
from universal_simulator.model.surrogate import Surrogate


class SurrogatePredictor:
    """Deterministic, purely neural predictor. All fields physical, (B, [T,] C, X)."""

    def __init__(self, surrogate: Surrogate, guards: GuardsConfig) -> None:
        self.surrogate = surrogate.eval()
        self.guards = Guards(surrogate.equation, guards)

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        """Decoded fields before any guard, (B, steps, C, X)."""
        return rollout_fields(self.surrogate, initial, parameters, steps=steps)

    def guard(self, fields: Tensor, initial: Tensor) -> Tensor:
        return self.guards.apply(fields, initial)

    def step(self, fields: Tensor, parameters: Tensor) -> Tensor:
        """One step from each given frame (B, C, X)."""
        return self.rollout(fields, parameters, 1)[:, 0]

    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor:
        return reconstruct(self.surrogate, fields, parameters)

    def boundary_query(
        self, fields: Tensor, parameters: Tensor, distance: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decoded u at 0 + d, 0, L, L - d after one step, each (B, C): the seam from both sides."""
        surrogate = self.surrogate
        length = surrogate.grid.lengths[0]
        with torch.inference_mode():
            frame = surrogate.frame_of(fields)
            conditions = surrogate.conditions(frame, parameters)
            start = fields.new_zeros(fields.shape[0], 1)
            canonical = surrogate.frame.to_canonical(frame, fields[:, None], start)[:, 0]
            state = surrogate.member.encode(surrogate.normalise(canonical), conditions)
            state = surrogate.member.advance(state, conditions)
            positions = fields.new_tensor([distance, 0.0, length, length - distance])
            values = surrogate.denormalise(surrogate.member.decode(state, conditions, positions))
        physical = values * frame.amplitude[:, None, None] + frame.velocity[:, None, None]
        inside_left, left, right, inside_right = physical.unbind(-1)
        return inside_left, left, right, inside_right
