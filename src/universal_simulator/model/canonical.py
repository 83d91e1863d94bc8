"""Canonical frames: exact symmetries of the equation, taken out before a model sees the field.

A symmetry maps solutions to solutions, so a model need only know one representative of
each orbit. The representative is chosen from one field, the first of a window or segment:

* `galilean` (Burgers): ride with the conserved mean c = <u>.
      v(x, t) = u(x + c t, t) - c
* `amplitude_time` (Burgers): measure the field in units of a, the root mean square of
  the fluctuation, and time in units of 1/a.
      v(x, t) = u(x, t / a) / a,   nu' = nu / a,   dt' = a dt

Any member of the model contract can be given a frame; an equation that does not declare
the symmetry refuses it. `to_canonical` and `from_canonical` are inverse to each other up
to round-off for fields without energy in the Nyquist mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.model.contract import Conditions
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import fourier_shift

#: an initial fluctuation below this share of the rms is left unscaled: there is no unit in it
QUIET = 1e-3


@dataclass(frozen=True)
class FrameState:
    """The representative chosen for each sample: velocity (B,), amplitude (B,)."""

    velocity: Tensor
    amplitude: Tensor


class CanonicalFrame:
    """The chosen symmetries of one equation on one grid."""

    def __init__(self, symmetries: Sequence[str], equation: Equation, grid: Grid) -> None:
        equation.require_symmetries(symmetries, "model.canonical_frame")
        self.symmetries = tuple(symmetries)
        self.grid = grid

    def of(self, initial: Tensor) -> FrameState:
        """Frame of each sample from its first frame (B, C, X)."""
        mean = initial.mean(dim=-1)
        velocity = torch.zeros_like(mean[:, 0])
        amplitude = torch.ones_like(velocity)
        if "galilean" in self.symmetries:
            velocity = mean[:, 0]
        if "amplitude_time" in self.symmetries:
            fluctuation = (initial - mean[..., None]).square().mean(dim=(-2, -1)).sqrt()
            rms = initial.square().mean(dim=(-2, -1)).sqrt()
            amplitude = torch.where(fluctuation > QUIET * rms, fluctuation, amplitude)
        return FrameState(velocity, amplitude)

    def conditions(self, state: FrameState, parameters: Tensor, dt: float) -> Conditions:
        """Parameters (B, P) and step as they read in the frame."""
        amplitude = state.amplitude
        return Conditions(parameters / amplitude[:, None], dt * amplitude)

    def to_canonical(self, state: FrameState, fields: Tensor, times_s: Tensor) -> Tensor:
        """(B, T, C, X) at physical times (B, T) since the first frame -> the frame's fields."""
        moved = self._moved(fields, state.velocity[:, None] * times_s)
        return (moved - _spread(state.velocity)) / _spread(state.amplitude)

    def from_canonical(self, state: FrameState, fields: Tensor, times_s: Tensor) -> Tensor:
        """Inverse of `to_canonical`."""
        scaled = fields * _spread(state.amplitude) + _spread(state.velocity)
        return self._moved(scaled, -state.velocity[:, None] * times_s)

    def _moved(self, fields: Tensor, distance: Tensor) -> Tensor:
        """u(x) -> u(x + distance), distance (B, T)."""
        if "galilean" not in self.symmetries:
            return fields
        return fourier_shift(fields, -distance[..., None], self.grid)


def _spread(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None, None]
