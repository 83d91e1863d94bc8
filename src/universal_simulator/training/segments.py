"""The operator's own segments, with what it missed: what the stochastic stages are trained on.

The codec and the operator are held still there, so a segment need not be rolled out more than
once: a stage rolls out `latent_cache_windows` windows when it begins and draws from these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.inference.counting import operations
from universal_simulator.inference.rollout import repeat_conditions
from universal_simulator.model.contract import Conditions
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.batches import CanonicalBatches
from universal_simulator.training.losses import TrainingBatch

#: windows rolled out together when a cache is filled
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class Residuals:
    """Samples (S, ...) for the corrector: z_0, z_k, k, conditions and r_k = y_k - z_k."""

    start: Tensor
    states: Tensor
    steps: Tensor
    conditions: Conditions
    residual: Tensor


@dataclass(frozen=True)
class Segments:
    """start z_0 (B, N, D); states z_1..z_K and residuals r_1..r_K (B, K, N, D)."""

    start: Tensor
    states: Tensor
    residual: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.start)

    @property
    def device(self) -> torch.device:
        return self.start.device

    def rows(self, chosen: Tensor | slice) -> Segments:
        conditions = Conditions(self.conditions.parameters[chosen], self.conditions.dt[chosen])
        return Segments(self.start[chosen], self.states[chosen], self.residual[chosen], conditions)

    def split(self, size: int) -> Iterator[Segments]:
        """Parts of at most `size` windows, in order; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, dtype: torch.dtype) -> Segments:
        """In another precision; conditions keep theirs."""
        return Segments(self.start.to(dtype), self.states.to(dtype), self.residual.to(dtype), self.conditions)

    def drawn(self, count: int) -> Residuals:
        """`count` of the K steps of every window, without replacement; all of them where K is fewer."""
        size, steps = self.states.shape[:2]
        count, device = min(count, steps), self.states.device
        chosen = torch.rand(size, steps, device=device).argsort(dim=1)[:, :count]
        rows = torch.arange(size, device=device)[:, None]
        return Residuals(
            start=self.start.repeat_interleave(count, 0),
            states=self.states[rows, chosen].flatten(0, 1),
            steps=(chosen + 1).flatten(),
            conditions=repeat_conditions(self.conditions, count),
            residual=self.residual[rows, chosen].flatten(0, 1),
        )


@torch.no_grad()
def segments(surrogate: Surrogate, batch: TrainingBatch) -> Segments:
    """The operator's own rollouts over windows of K + 1 frames, against the latents of the truth."""
    member = surrogate.member.eval()
    size, frames = batch.truth.shape[:2]
    normalised = surrogate.normalise(batch.truth)
    repeated = repeat_conditions(batch.conditions, frames)
    targets = member.encode(normalised.flatten(0, 1), repeated).unflatten(0, (size, frames))
    states = [targets[:, 0]]
    for _ in range(frames - 1):
        states.append(member.advance(states[-1], batch.conditions))
    rolled = torch.stack(states[1:], dim=1)
    return Segments(targets[:, 0], rolled, targets[:, 1:] - rolled, batch.conditions)


def segment_operations(surrogate: Surrogate, batch: TrainingBatch) -> float:
    """Floating-point operations of `segments` on this batch."""
    return operations(lambda size: segments(surrogate, next(batch.split(size))), len(batch))


class SegmentSource:
    """Draws segments: anew each time (`cached` 0), or from `cached` windows rolled out once.

    generator: what the cached windows are drawn with. `flops`: spent on filling the cache.
    """

    def __init__(
        self,
        batches: CanonicalBatches,
        surrogate: Surrogate,
        *,
        cached: int,
        dtype: torch.dtype,
        steps: int,
        generator: torch.Generator,
    ) -> None:
        self.batches = batches
        self.surrogate = surrogate
        self.cache: Segments | None = None
        self.flops = 0.0
        if cached:
            parts, counted = [], dict[int, float]()
            for start in range(0, cached, WINDOWS_AT_ONCE):
                size = min(WINDOWS_AT_ONCE, cached - start)
                batch = batches(generator, size, steps)
                parts.append(segments(surrogate, batch))
                if size not in counted:
                    counted[size] = segment_operations(surrogate, batch)
                self.flops += counted[size]
            self.cache = joined(parts).to(dtype)

    def __call__(self, generator: torch.Generator, batch_size: int, num_steps: int) -> Segments:
        if self.cache is None:
            return segments(self.surrogate, self.batches(generator, batch_size, num_steps))
        chosen = torch.randint(len(self.cache), (batch_size,), generator=generator)
        return self.cache.rows(chosen.to(self.cache.device)).to(torch.float32)


def joined(parts: list[Segments]) -> Segments:
    conditions = Conditions(
        torch.cat([part.conditions.parameters for part in parts]),
        torch.cat([part.conditions.dt for part in parts]),
    )
    return Segments(
        torch.cat([part.start for part in parts]),
        torch.cat([part.states for part in parts]),
        torch.cat([part.residual for part in parts]),
        conditions,
    )
