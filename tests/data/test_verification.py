"""Data changed in place are noticed, and asking twice costs one read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import pytest

from universal_simulator.data import pdebench, verification
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.errors import IntegrityError
from universal_simulator.experiment import ensure_dataset


@pytest.fixture
def copy(tmp_path: Path, smoke_data: Dataset) -> Path:
    path = tmp_path / smoke_data.path.name
    shutil.copy(smoke_data.path, path)
    return path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "SMALL_BYTES", 0)


def flip(path: Path, *, keep_time: bool, share: float = 0.5) -> None:
    """One bit of one trajectory, at a byte of the file that the sample looks at."""
    with h5py.File(path) as file:
        start, size = file["tensor"].id.get_offset(), file["tensor"].id.get_storage_size()
    status = path.stat()
    last = status.st_size - verification.BLOCK_BYTES
    index = round(share * (verification.SAMPLED_BLOCKS - 1))
    position = last * index // (verification.SAMPLED_BLOCKS - 1)
    assert start < position < start + size
    with open(path, "r+b") as raw:
        raw.seek(position)
        byte = raw.read(1)[0]
        raw.seek(position)
        raw.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_flipped_bit_is_refused_wherever_data_are_taken_up(copy: Path, keep_time: bool) -> None:
    open_dataset(copy).require_unchanged()
    flip(copy, keep_time=keep_time)
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        open_dataset(copy).require_unchanged()
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        ensure_dataset("burgers_smoke", copy)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("keep_time", [False, True])
def test_a_large_file_is_read_once_and_its_change_is_still_noticed(
    copy: Path, keep_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    whole = pdebench.content_identity
    monkeypatch.setattr(pdebench, "content_identity", lambda path: reads.append(path) or whole(path))
    for _ in range(3):
        open_dataset(copy).require_unchanged()
    assert len(reads) == 1
    flip(copy, keep_time=keep_time)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="was changed after it was written"):
            open_dataset(copy).require_unchanged()


@pytest.mark.usefixtures("large")
def test_a_touched_file_is_read_again_and_an_unreadable_note_is_none(copy: Path) -> None:
    open_dataset(copy).require_unchanged()
    first = verification.note_path(copy).read_bytes()
    os.utime(copy)
    open_dataset(copy).require_unchanged()
    assert verification.note_path(copy).read_bytes() != first
    verification.note_path(copy).write_text("{}")
    open_dataset(copy).require_unchanged()
    assert verification.note_path(copy).stat().st_size > 10


@pytest.mark.usefixtures("large")
def test_a_file_without_an_identity_gets_it_from_its_content(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        stored = file.attrs["identity"]
        del file.attrs["identity"]
    assert open_dataset(copy).identity == stored
    flip(copy, keep_time=False)
    assert open_dataset(copy).identity != stored
