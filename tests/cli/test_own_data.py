"""A data file of one's own as a config's data, and what happens when it is changed in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest

from tests.cli.conftest import Here
from tests.training.tiny_runs import DETERMINISTIC, TINY
from universal_simulator import experiment
from universal_simulator.configuration import load_config
from universal_simulator.data.dataset import Dataset
from universal_simulator.run_record import RunFolder


@pytest.fixture
def own_file(tmp_path: Path, smoke_data: Dataset) -> Path:
    path = tmp_path / "elsewhere" / "mine.hdf5"
    path.parent.mkdir()
    shutil.copy(smoke_data.path, path)
    return path


@pytest.mark.usefixtures("without_pages")
def test_a_configs_own_file_is_what_it_trains_on(tmp_path: Path, own_file: Path) -> None:
    """The profile names a data set of its own, which must not win."""
    config = tmp_path / "mine.yaml"
    config.write_text(f"extends: rerun_txxoc8a8\ndata: {{dataset: {own_file}, time_stride: 4}}\n")
    words = [DETERMINISTIC, *(word for word in TINY if word != "evaluation.steps=8")]
    loaded = load_config(config, words, profile="smoke")
    record = experiment.run(loaded, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists(), "nothing was generated"
    stored = json.loads(RunFolder(tmp_path / "run", record.run_id).config.read_text())
    assert stored["data"] == str(own_file)
    with h5py.File(own_file) as file:
        assert record.training is not None
        assert record.training.result.data_identity == file.attrs["identity"]
        frames = -(-file["tensor"].shape[1] // 4)
    assert record.evaluations["small_eval"].result.protocol.steps == frames - 1


def test_a_moved_file_is_the_same_run_and_a_renamed_one_is_not(own_file: Path) -> None:
    def hashed(path: str) -> str:
        return load_config("rerun_txxoc8a8", [f"data.file={path}"], profile="smoke").hash

    assert hashed("/a/mine.hdf5") == hashed("b/mine.hdf5")
    assert hashed("/a/mine.hdf5") != hashed("/a/yours.hdf5")


def test_data_generate_takes_a_file_as_it_is_and_refuses_a_changed_one(own_file: Path, here: Here) -> None:
    words = ("data", "generate", str(own_file), "--folder", str(own_file.parent / "new"), "--json")
    answer = here(*words)
    assert answer.code == 0, answer.err
    with h5py.File(own_file) as file:
        told = json.loads(answer.out)
        assert (told["path"], told["identity"]) == (str(own_file), file.attrs["identity"])
    flip(own_file)
    answer = here(*words)
    assert answer.code == 1
    assert "was changed after it was written" in answer.err


@pytest.mark.usefixtures("without_pages")
def test_evaluate_refuses_data_that_were_changed_in_place(tmp_path: Path, own_file: Path, here: Here) -> None:
    words = [f"data.file={own_file}", DETERMINISTIC, *TINY]
    loaded = load_config("rerun_txxoc8a8", words, profile="smoke")
    record = experiment.run(loaded, tmp_path / "run")
    folder = RunFolder(tmp_path / "run", record.run_id)
    flip(own_file)
    answer = here("evaluate", str(folder.path), "--suite", "full")
    assert answer.code == 1
    assert "mine.hdf5 was changed after it was written" in answer.err
    with h5py.File(own_file, "r+") as file:
        del file.attrs["identity"]
    answer = here("evaluate", str(folder.path), "--suite", "full")
    assert answer.code == 1
    assert "holds other data than" in answer.err


def flip(path: Path) -> None:
    """One bit in the middle of the trajectories."""
    with h5py.File(path) as file:
        position = file["tensor"].id.get_offset() + file["tensor"].id.get_storage_size() // 2
    with open(path, "r+b") as raw:
        raw.seek(position)
        byte = raw.read(1)[0]
        raw.seek(position)
        raw.write(bytes([byte ^ 1]))
