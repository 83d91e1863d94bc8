"""From windows of physical fields to training batches in the model's canonical frame."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.data.windows import WindowSource
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.losses import TrainingBatch


class CanonicalBatches:
    """Draws windows and moves each into the frame of its own trajectory's first frame.

    initial: (B, C, X) first frames of all training trajectories, in the source's row order.
    """

    def __init__(
        self, source: WindowSource, surrogate: Surrogate, *, initial: Tensor, start_fraction: float
    ) -> None:
        self.source = source
        self.surrogate = surrogate
        self.frames = surrogate.frame_of(initial)
        self.start_fraction = start_fraction

    def __call__(self, generator: torch.Generator, batch_size: int, num_steps: int) -> TrainingBatch:
        windows = self.source.sample(
            generator, batch_size=batch_size, num_steps=num_steps, start_fraction=self.start_fraction
        )
        frame = self.frames.subset(windows.rows)
        steps = windows.start_frames[:, None] + torch.arange(num_steps + 1, device=windows.fields.device)
        times = steps.to(windows.fields) * self.surrogate.architecture.dt_s
        truth = self.surrogate.frame.to_canonical(frame, windows.fields, times)
        rms = windows.fields.square().mean(dim=(-2, -1)).sqrt()
        return TrainingBatch(
            truth=truth,
            denominators=(rms / frame.amplitude[:, None]).clamp_min(1e-6),
            conditions=self.surrogate.conditions(frame, windows.parameters),
        )
