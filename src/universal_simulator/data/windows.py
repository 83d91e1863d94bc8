"""Training windows: a whole batch drawn with one gather, no Python per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.data import pdebench
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset


@dataclass(frozen=True)
class Windows:
    """fields (B, K+1, C, X), parameters (B, P), rows (B,) in the source, start_frames (B,)."""

    fields: Tensor
    parameters: Tensor
    rows: Tensor
    start_frames: Tensor


class WindowSource:
    """Trajectories held in memory (on their device)."""

    def __init__(self, trajectories: Trajectories) -> None:
        self.trajectories = trajectories
        self.num_rows, self.num_frames = trajectories.fields.shape[:2]

    def sample(
        self, generator: torch.Generator, *, batch_size: int, num_steps: int, start_fraction: float
    ) -> Windows:
        """Uniform trajectories; `start_fraction` of the windows start at frame 0, the rest anywhere.

        `generator` is a CPU generator: the draw is the same on every device.
        """
        latest = self.num_frames - num_steps
        if latest < 1:
            raise ValueError(f"{self.num_frames} frames cannot hold windows of {num_steps + 1}")
        rows = torch.randint(self.num_rows, (batch_size,), generator=generator)
        starts = torch.randint(latest, (batch_size,), generator=generator)
        at_start = torch.rand(batch_size, generator=generator) < start_fraction
        starts = torch.where(at_start, torch.zeros_like(starts), starts)
        return self._gather(rows, starts, num_steps)

    def _gather(self, rows: Tensor, starts: Tensor, num_steps: int) -> Windows:
        fields = self.trajectories.fields
        rows, starts = rows.to(fields.device), starts.to(fields.device)
        frames = starts[:, None] + torch.arange(num_steps + 1, device=fields.device)
        return Windows(fields[rows[:, None], frames], self.trajectories.parameters[rows], rows, starts)


class StreamingWindowSource(WindowSource):
    """The same draws from a file that does not fit in memory, which stays open while it is used."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        split: str,
        time_stride: int,
        max_groups: int | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.file_rows = dataset.rows(split, max_groups=max_groups)
        self.time_stride = time_stride
        self.device = torch.device(device)
        self.num_rows = len(self.file_rows)
        self.num_frames = len(range(0, dataset.header.shape[1], time_stride))
        parameters = dataset.header.parameters[self.file_rows]
        self.parameters = torch.from_numpy(parameters).float().to(self.device)
        self.reader = pdebench.WindowReader(dataset.path, stride_x=dataset.stride_x)

    def _gather(self, rows: Tensor, starts: Tensor, num_steps: int) -> Windows:
        fields = self.reader.read(
            self.file_rows[rows.numpy()],
            starts.numpy() * self.time_stride,
            count=num_steps + 1,
            stride=self.time_stride,
        )
        rows, starts = rows.to(self.device), starts.to(self.device)
        return Windows(torch.from_numpy(fields).to(self.device), self.parameters[rows], rows, starts)
