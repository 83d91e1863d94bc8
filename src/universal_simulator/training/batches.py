"""From windows of physical fields to training batches in the model's canonical frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from universal_simulator.data.windows import WindowSource
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.augmentation import Augmentation
from universal_simulator.training.losses import TrainingBatch

#: a field that dies within its window would weigh without bound and drown the rest of its batch:
#: errors are relative to the frame's rms, but not to less than this share of the window's first
DENOMINATOR_FLOOR = 0.05


class CanonicalBatches:
    """Draws windows and moves each into the frame of its own first field."""

    def __init__(
        self,
        source: WindowSource,
        surrogate: Surrogate,
        *,
        start_fraction: float,
        augmentation: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.surrogate = surrogate
        self.start_fraction = start_fraction
        self.augment = Augmentation(augmentation, surrogate.equation, surrogate.grid)

    def __call__(self, generator: torch.Generator, batch_size: int, num_steps: int) -> TrainingBatch:
        windows = self.source.sample(
            generator, batch_size=batch_size, num_steps=num_steps, start_fraction=self.start_fraction
        )
        fields = self.augment(windows.fields, generator)
        frame = self.surrogate.frame_of(fields[:, 0])
        times = torch.arange(num_steps + 1, device=fields.device) * self.surrogate.architecture.dt_s
        truth = self.surrogate.frame.to_canonical(frame, fields, times.to(fields).expand(batch_size, -1))
        rms = fields.square().mean(dim=(-2, -1)).sqrt()
        rms = torch.maximum(rms, DENOMINATOR_FLOOR * rms[:, :1])
        return TrainingBatch(
            truth=truth,
            denominators=(rms / frame.amplitude[:, None]).clamp_min(1e-12),
            conditions=self.surrogate.conditions(frame, windows.parameters),
        )
