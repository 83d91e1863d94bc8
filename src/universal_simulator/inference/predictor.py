"""A surrogate with its guards, as the evaluation asks for it."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.inference.guards import Guards
from universal_simulator.inference.rollout import decode_at, reconstruct, rollout_fields
from universal_simulator.model.contract import GridStepper
from universal_simulator.model.surrogate import Surrogate


class SurrogatePredictor:
    """Deterministic, purely neural predictor. All fields physical, (B, [T,] C, X).

    frame_spacing_s: what one rollout step of the protocol means. Where it is a multiple of
    the step the model was trained on, or near one, the model takes that many equal substeps.
    """

    def __init__(
        self, surrogate: Surrogate, guards: GuardsConfig, *, frame_spacing_s: float | None = None
    ) -> None:
        self.surrogate = surrogate.eval()
        trained = surrogate.architecture.dt_s
        spacing = frame_spacing_s or trained
        self.substeps = max(1, round(spacing / trained))
        self.dt_s = trained if abs(spacing - trained) < 1e-9 else spacing / self.substeps
        self.guards = Guards(
            surrogate.equation, guards, grid=surrogate.grid, frame_spacing_s=self.dt_s * self.substeps
        )

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        """Decoded fields before any guard, (B, steps, C, X)."""
        fields = rollout_fields(
            self.surrogate, initial, parameters, steps=steps * self.substeps, dt_s=self.dt_s
        )
        return fields[:, self.substeps - 1 :: self.substeps]

    def guard(self, fields: Tensor, initial: Tensor, parameters: Tensor) -> Tensor:
        """Of the whole rollout (B, T, C, X) from initial (B, C, X)."""
        return self.guards.apply(fields, initial, parameters)

    def step(self, fields: Tensor, parameters: Tensor) -> Tensor:
        """One step from each given frame (B, C, X)."""
        return self.rollout(fields, parameters, 1)[:, 0]

    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor:
        return reconstruct(self.surrogate, fields, parameters)

    def boundary_query(self, fields: Tensor, parameters: Tensor, distance: float) -> Tensor | None:
        """Decoded u at -d, 0, d, L - d, L, L + d after one step, (B, C, 6): both ends of the seam.

        None for a member that carries the grid itself: between its points there is only an
        interpolant, periodic whatever the member did, so its seam is judged on the grid.
        """
        if isinstance(self.surrogate.member, GridStepper):
            return None
        length = self.surrogate.grid.lengths[0]
        positions = [-distance, 0.0, distance, length - distance, length, length + distance]
        with torch.inference_mode():
            return decode_at(
                self.surrogate, fields, parameters, fields.new_tensor(positions, dtype=torch.float64)
            )
