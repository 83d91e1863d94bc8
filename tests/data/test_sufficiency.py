"""What data lack for a run is told before anything is trained, with the file and the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.training.tiny_runs import TINY
from universal_simulator import experiment
from universal_simulator.cli.config import check
from universal_simulator.cli.data import info
from universal_simulator.configuration import LoadedConfig, load_config
from universal_simulator.data.arrays import import_array
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.sufficiency import lacking_frames, require_enough
from universal_simulator.errors import ConfigurationError, DataError
from universal_simulator.run_record import RunFolder, RunRecord, read_document

#: a data file of undeclared physics has no symmetry
PLAIN = ["model.canonical_frame=[]", "training.augmentation=[]", "data.time_stride=2"]


def own(folder: Path, *, trajectories: int = 24, frames: int = 21) -> Dataset:
    rng = np.random.default_rng(0)
    np.save(folder / "a.npy", rng.normal(size=(trajectories, frames, 32)))
    return import_array(
        folder / "a.npy", folder / "own.hdf5", axes=("trajectory", "time", "x"), dt_s=0.1, dx=1 / 32
    )


def configured(dataset: Dataset, *words: str) -> LoadedConfig:
    return load_config("rerun_txxoc8a8", [f"data.file={dataset.path}", *PLAIN, *words], profile="smoke")


def trained_nothing(*_: object, **__: object) -> None:
    pytest.fail("a stage was trained")


@pytest.mark.parametrize(
    ("words", "frames", "missing"),
    [
        ([], 17, ()),
        ([], 16, ("a segment of 8 steps",)),
        ([], 8, ("training on 4 steps of 2 frames each", "a segment of 8 steps")),
        (["training.stages=[codec,operator]"], 9, ()),
        (["training.stages=[codec,operator]", "ttc.enabled=true"], 16, ("model.reencode_every",)),
        (["evaluation.steps=8", "evaluation.first_frame=2"], 18, ("evaluating 8 steps",)),
        (["data.time_stride=1"], 9, ()),
    ],
)
def test_frames_hold_the_longest_window_the_segment_and_the_evaluation(
    words: list[str], frames: int, missing: tuple[str, ...]
) -> None:
    config = load_config("rerun_txxoc8a8", [*PLAIN, *words], profile="smoke").config
    told = lacking_frames(config, frames, stochastic=True)
    assert len(told) == len(missing)
    assert all(part in words for part, words in zip(missing, told, strict=True))


def test_a_file_with_too_few_frames_is_refused_before_training_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "train_stages", trained_nothing)
    loaded = configured(own(tmp_path, frames=8), *TINY)
    with pytest.raises(
        DataError, match=r"own\.hdf5: 8 frames, 9 are needed .*lower training\.rollout_curriculum"
    ):
        experiment.run(loaded, tmp_path / "run")
    (folder,) = (tmp_path / "run" / "artifacts" / "runs").iterdir()
    record = read_document(RunFolder.of_path(folder).summary, RunRecord)
    assert (record.status, record.failure_kind) == ("failed", "DataError")


def test_too_few_trajectories_to_calibrate_on_are_told_where_something_is_calibrated(tmp_path: Path) -> None:
    dataset = own(tmp_path, trajectories=12)
    with pytest.raises(DataError, match=r"own\.hdf5: the calibration split has 1 .*training\.stages"):
        require_enough(configured(dataset).config, dataset, stochastic=True)
    require_enough(configured(dataset).config, dataset, stochastic=False)
    require_enough(configured(dataset, "training.stages=[codec,operator]").config, dataset, stochastic=True)
    with pytest.raises(DataError, match=r"own\.hdf5: the calibration split has 1"):
        dataset.rows("calibration_rewards")


@pytest.mark.parametrize("identified", [True, False])
def test_values_that_are_not_finite_are_found_in_every_split_before_training(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch, identified: bool
) -> None:
    path = tmp_path / "mine.hdf5"
    shutil.copy(smoke_data.path, path)
    row = int(smoke_data.rows("selection")[0])
    with h5py.File(path, "r+") as file:
        file["tensor"][row, -1, 3] = np.nan
        if not identified:
            del file.attrs["identity"]
    monkeypatch.setattr(experiment, "train_stages", trained_nothing)
    loaded = load_config("rerun_txxoc8a8", [f"data.file={path}", *TINY], profile="smoke")
    told = rf"mine\.hdf5: 1 of \d+ trajectories hold NaN or infinite values \(\[{row}\]\)"
    with pytest.raises(DataError, match=told):
        experiment.run(loaded, tmp_path / "run")
    with pytest.raises(DataError, match=told):
        info(path, verify=True)


def test_a_file_of_few_trajectories_is_shown_though_it_has_no_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "burgers_few_nu0.1.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("f4")
        file["x-coordinate"] = (np.arange(8) + 0.5) / 8
        file["t-coordinate"] = np.arange(6) * 0.1
    info(path)
    told = capsys.readouterr().out
    assert "burgers" in told
    assert "for evaluation only" in told
    with pytest.raises(DataError, match=r"few_nu0\.1\.hdf5: 3 distinct"):
        open_dataset(path).audit()


def test_a_config_is_held_against_its_data_file_where_that_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path, frames=8).path
    with pytest.raises(ConfigurationError) as caught:
        check("rerun_txxoc8a8", [f"data.file={path}"], "smoke")
    assert len(caught.value.faults) == 3, "galilean, amplitude_time and reflection"
    words = [f"data.file={path}", *PLAIN]
    with pytest.raises(ConfigurationError, match="8 frames, 9 are needed"):
        check("rerun_txxoc8a8", words, "smoke")
    check("rerun_txxoc8a8", [*words, "training.rollout_curriculum=[1,2,3]"], "smoke")
    assert "not held" not in capsys.readouterr().out
    check("rerun_txxoc8a8", [f"data.file={tmp_path / 'elsewhere.hdf5'}"], "smoke")
    assert "elsewhere.hdf5 is not here" in capsys.readouterr().out
