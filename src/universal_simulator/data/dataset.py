"""A data file with its splits: what it holds, who it is, and its trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from universal_simulator.data import pdebench, verification
from universal_simulator.data.batch import Trajectories, group_hash
from universal_simulator.data.regimes import RegimeRule
from universal_simulator.data.splits import (
    CALIBRATION_HALVES,
    SPLITS,
    audit,
    calibration_halves,
    split_by_group,
)
from universal_simulator.errors import DataError, IntegrityError
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation

#: PDEBench's published code tests on the first tenth of a file, whatever its splits
OFFICIAL_TEST = "first tenth"


@dataclass(frozen=True)
class DatasetInfo:
    path: str
    equation: str
    trajectories: int
    groups: int
    frames: int
    frame_spacing_s: float
    points: int
    regimes: tuple[str, ...]
    #: empty where there are too few groups for splits: the file is good for evaluation only
    groups_per_split: dict[str, int]
    identity: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Dataset:
    """Opened by `open_dataset`; reads fields only when asked, and only the rows asked for."""

    def __init__(self, header: pdebench.FileHeader, *, points: int | None = None) -> None:
        self.header = header
        self.path = header.path
        self.equation: Equation = header.equation
        file_points = header.shape[2]
        if points is not None and (points > file_points or file_points % points):
            raise DataError(f"{header.path} has {file_points} points; {points} does not divide them")
        self.stride_x = file_points // (points or file_points)
        length = float((header.x[1] - header.x[0]) * file_points)
        # sub-sampling keeps every stride-th cell, whose coarse cell is centred on it
        spacing = length / (file_points // self.stride_x)
        self.grid = Grid((length,), (file_points // self.stride_x,), (float(header.x[0]) - spacing / 2,))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        first = pdebench.read_rows(self.path, np.arange(self.header.shape[0]), slice(0, 1))
        return tuple(group_hash(row) for row in first)

    @cached_property
    def split_of_row(self) -> np.ndarray:
        if self.header.split is None:
            return split_by_group(self.groups, source=self.path)
        split = self.header.split.astype(int)
        if not ((split >= 0) & (split < len(SPLITS))).all():
            raise DataError(f"{self.path}: 'split' must hold 0..{len(SPLITS) - 1} ({', '.join(SPLITS)})")
        return split

    @cached_property
    def regime_rule(self) -> RegimeRule:
        return RegimeRule.of(self.header.parameters)

    @cached_property
    def identity(self) -> str:
        """Stored content hash, or computed where the file brings none."""
        return self.header.identity or verification.current_identity(self.path)

    def require_unchanged(self) -> None:
        """IntegrityError where the content no longer is what the file says of itself; cheap when asked again."""
        if self.header.identity:
            verification.require_identity(self.path, self.header.identity)

    def verify(self) -> None:
        """Re-read everything, whatever was noted: values must be finite, the content what a stored identity says."""
        found = pdebench.content_identity(self.path)
        if self.header.identity and found != self.header.identity:
            raise IntegrityError(
                f"{self.path} was changed after it was written (content hash); generate it again"
            )

    def audit(self) -> None:
        """Raise LeakageError if an initial condition appears in two splits."""
        audit(
            {
                name: [self.groups[row] for row in np.flatnonzero(self.split_of_row == index)]
                for index, name in enumerate(SPLITS)
            }
        )

    def rows(self, split: str, *, max_groups: int | None = None) -> np.ndarray:
        """Row indices of a split in file order; at most the first `max_groups` groups.

        split: one of SPLITS, one of CALIBRATION_HALVES, OFFICIAL_TEST, or `all`.
        """
        if split == "all":
            rows = np.arange(self.header.shape[0])
        elif split == OFFICIAL_TEST:
            rows = np.arange(max(1, self.header.shape[0] // 10))
        elif split in CALIBRATION_HALVES:
            whole = self.rows("calibration")
            halves = calibration_halves([self.groups[row] for row in whole], source=self.path)
            half = halves[CALIBRATION_HALVES.index(split)]
            rows = np.array([row for row in whole if self.groups[row] in half], dtype=int)
        else:
            rows = np.flatnonzero(self.split_of_row == SPLITS.index(split))
        if max_groups is None:
            return rows
        kept = set(list(dict.fromkeys(self.groups[row] for row in rows))[:max_groups])
        return np.array([row for row in rows if self.groups[row] in kept], dtype=int)

    def load(
        self,
        split: str,
        *,
        time_stride: int = 1,
        first_frame: int = 0,
        num_frames: int | None = None,
        max_groups: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Trajectories:
        """The trajectories of a split (or `all`) in memory: every `time_stride`-th frame."""
        rows = self.rows(split, max_groups=max_groups)
        if not len(rows):
            raise DataError(f"{self.path}: split {split!r} is empty")
        stop = None if num_frames is None else first_frame + time_stride * (num_frames - 1) + 1
        frames = slice(first_frame, stop, time_stride)
        times = self.header.times[frames]
        if len(times) < 2 or (num_frames is not None and len(times) < num_frames):
            raise DataError(
                f"{self.path}: {self.header.shape[1]} frames do not hold {num_frames or 2} frames "
                f"from {first_frame} in steps of {time_stride}"
            )
        fields = pdebench.read_rows(self.path, rows, frames, self.stride_x)
        return Trajectories(
            fields=torch.from_numpy(fields).to(device),
            times_s=torch.from_numpy(times - times[0]),
            parameters=torch.from_numpy(self.header.parameters[rows]).float().to(device),
            groups=tuple(self.groups[row] for row in rows),
            grid=self.grid,
            equation=self.equation,
            regime_rule=self.regime_rule,
        )

    @property
    def info(self) -> DatasetInfo:
        count, frames, _ = self.header.shape
        per_split: Mapping[str, int] = {}
        if self.header.split is not None or len(set(self.groups)) >= len(SPLITS):
            per_split = {
                name: len({self.groups[row] for row in np.flatnonzero(self.split_of_row == index)})
                for index, name in enumerate(SPLITS)
            }
        return DatasetInfo(
            path=str(self.path),
            equation=self.equation.name,
            trajectories=count,
            groups=len(set(self.groups)),
            frames=frames,
            frame_spacing_s=float(self.header.times[1] - self.header.times[0]),
            points=self.grid.points[0],
            regimes=tuple(self.regime_rule.rows(torch.from_numpy(self.header.parameters), self.equation)),
            groups_per_split=dict(per_split),
            identity=self.identity,
        )


def open_dataset(path: Path | str, *, parameter: float | None = None, points: int | None = None) -> Dataset:
    """Open and validate a data file. `points` sub-samples the grid as PDEBench does (every k-th cell)."""
    return Dataset(pdebench.read_header(Path(path), parameter=parameter), points=points)
