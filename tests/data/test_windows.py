"""Windows read from an open file: one opening, duplicates, strides, several fields, faults."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from universal_simulator.data import pdebench
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.pdebench import WindowReader
from universal_simulator.data.windows import StreamingWindowSource
from universal_simulator.errors import DataError


def write(path: Path, *fields: int) -> np.ndarray:
    tensor = np.random.default_rng(0).normal(size=(7, 30, *fields, 16)).astype("f4")
    with h5py.File(path, "w") as file:
        file["tensor"] = tensor
    return tensor.reshape(7, 30, -1, 16)


@pytest.mark.parametrize("fields", [(), (2,)])
def test_windows_are_the_files_own_values(tmp_path: Path, fields: tuple[int, ...]) -> None:
    tensor = write(tmp_path / "a.hdf5", *fields)
    reader = WindowReader(tmp_path / "a.hdf5", stride_x=2)
    rows, first = np.array([5, 0, 5, 3, 5, 0]), np.array([0, 4, 0, 0, 9, 4])
    found = reader.read(rows, first, count=4, stride=3)
    for values, row, start in zip(found, rows, first, strict=True):
        assert np.array_equal(values, tensor[row, start : start + 10 : 3, :, ::2])


def test_the_file_is_opened_once_and_windows_that_begin_together_are_read_together(
    smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = StreamingWindowSource(smoke_data, split="train", time_stride=2, max_groups=None)
    reads: list[int] = []

    class Counted:
        def __init__(self, tensor: h5py.Dataset) -> None:
            self.tensor, self.shape, self.ndim = tensor, tensor.shape, tensor.ndim

        def __getitem__(self, key: object) -> np.ndarray:
            reads.append(1)
            return self.tensor[key]

    monkeypatch.setattr(source.reader, "_tensor", Counted(source.reader._tensor))
    monkeypatch.setattr(pdebench, "opened", lambda *_: pytest.fail("the file was opened again"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        source.sample(generator, batch_size=40, num_steps=4, start_fraction=1.0)
    assert len(reads) == 3


def test_a_poisoned_window_is_refused_and_a_closed_reader_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    write(path)
    with h5py.File(path, "r+") as file:
        file["tensor"][2, 11, 3] = np.inf
    reader = WindowReader(path)
    reader.read(np.array([2]), np.array([0]), count=5, stride=2)
    with pytest.raises(DataError, match=r"trajectories \[2\]"):
        reader.read(np.array([1, 2]), np.array([0, 9]), count=5, stride=2)
    reader.close()
    with h5py.File(path, "r+") as file:
        file["tensor"][2, 11, 3] = 0.0
