"""The control of equal inference: operators alone, started from perturbed initial conditions.

    u_m(0) = u(0) + a rms(u(0)) e_m,      e_m ~ N(0, 1) in the modes 1 .. `MODES`, of rms 1

as weather centres made ensembles before they had stochastic models. It needs no training beyond the
operator's; the amplitude a is chosen by CRPS on validation. Whatever a corrector claims must be more
than this gives for the same operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.inference.noise import generator_of
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.surrogate import Surrogate

#: modes that are perturbed, at most half of those of the grid: what a codec can carry
MODES = 16


class PerturbedOperator(SurrogatePredictor):
    """`members` rollouts of the operator from perturbed first frames; single rollouts are unperturbed."""

    def __init__(self, surrogate: Surrogate, guards: GuardsConfig, *, members: int, amplitude: float) -> None:
        super().__init__(surrogate, guards)
        if members < 2:
            raise ValueError(f"an ensemble needs at least 2 members, got {members}")
        if not amplitude > 0:
            raise ValueError(f"an amplitude of {amplitude} perturbs nothing; give one above 0")
        self.members = members
        self.amplitude = amplitude

    def rollout_members(self, initial: Tensor, parameters: Tensor, steps: int, *, seed: int) -> Tensor:
        """Decoded fields before any guard, (B, M, steps, C, X)."""
        size = initial.square().mean(dim=-1, keepdim=True).sqrt()
        noise = torch.stack([_smooth(field, self.members, seed) for field in initial])
        started = initial[:, None] + self.amplitude * size[:, None] * noise.to(initial)
        repeated = parameters.repeat_interleave(self.members, 0)
        return self.rollout(started.flatten(0, 1), repeated, steps).unflatten(0, (-1, self.members))


def _smooth(field: Tensor, members: int, seed: int) -> Tensor:
    """Band-limited noise of zero mean and rms 1 like `field` (C, X), (M, C, X), member by member."""
    points = field.shape[-1]
    modes = min(MODES, points // 4)
    generator = generator_of(seed, field)
    drawn = torch.stack(
        [torch.randn(*field.shape[:-1], modes, 2, generator=generator) for _ in range(members)]
    )
    spectrum = torch.zeros(*drawn.shape[:-2], points // 2 + 1, dtype=torch.complex64)
    spectrum[..., 1 : modes + 1] = torch.view_as_complex(drawn)
    noise = torch.fft.irfft(spectrum, n=points)
    return noise / noise.square().mean(dim=-1, keepdim=True).sqrt()
