"""Generator, reader, splits and windows: resumable, audited, refusing what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import find
from universal_simulator.data import generator, pdebench
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.generator import generate
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.data.splits import SPLITS, calibration_halves
from universal_simulator.data.windows import StreamingWindowSource, WindowSource
from universal_simulator.errors import DataError, IntegrityError, LeakageError
from universal_simulator.experiment import ensure_dataset


def test_killed_generation_goes_on_to_the_same_content(tmp_path: Path, smoke_data: Dataset) -> None:
    path = tmp_path / "data" / "burgers_smoke.hdf5"
    code = f"from pathlib import Path; from universal_simulator.experiment import ensure_dataset; ensure_dataset('burgers_smoke', Path({str(path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code])
    partial = path.with_name(path.name + ".partial")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not partial.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists()
    assert ensure_dataset("burgers_smoke", path).identity == smoke_data.identity


def test_chunks_solved_side_by_side_are_those_solved_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = validate(
        DatasetSpec,
        {
            **read_mapping(find("configs/data", "burgers_smoke")),
            "frames": 5,
            "groups": {"train": 5, "calibration": 2, "validation": 1, "selection": 1, "test": 1},
        },
        "spec",
    )
    monkeypatch.setattr(generator, "CHUNK_GROUPS", 3)
    found, told = [], list[int]()
    solve = generator._solve
    wanted, entered, together = 1, itertools.count(1), threading.Event()

    def solving(*words: Any) -> Any:
        """As many as are wanted are at it at once, or this waits in vain."""
        if next(entered) >= wanted:
            together.set()
        assert together.wait(60), f"never {wanted} side by side"
        return solve(*words)

    monkeypatch.setattr(generator, "_solve", solving)
    for at_once in (1, 3):
        monkeypatch.setattr(generator, "MOST_AT_ONCE", at_once)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3 * torch.get_num_threads())))
        told.clear()
        wanted, entered = at_once, itertools.count(1)
        together.clear()
        made = generator.generate(spec, tmp_path / f"{at_once}.hdf5", progress=lambda d, _: told.append(d))
        found.append(made.identity)
        assert told == [3, 6, 9, 10], "written in their order"
    assert found[0] == found[1]


def test_finished_file_of_another_specification_is_refused(smoke_data: Dataset) -> None:
    with pytest.raises(DataError, match="another data set"):
        ensure_dataset("burgers_embedded", smoke_data.path)


def test_frames_are_the_solution_of_their_first_frame(smoke_data: Dataset) -> None:
    from universal_simulator.physics.reference import solve

    truth = smoke_data.load("validation")
    found = solve(
        truth.equation,
        truth.fields[:, 0],
        truth.parameters,
        truth.times_s,
        truth.grid,
        method="spectral",
        points=256,
    )
    error = (found - truth.fields).square().mean(-1).sqrt() / truth.fields.square().mean(-1).sqrt()
    assert float(error[:, 1:].median()) < 1e-3


#: two chunks of a chaotic equation under two parameter values
CHAOTIC = DatasetSpec.model_validate(
    {
        "name": "chaotic",
        "equation": "kuramoto_sivashinsky",
        "parameter_values": [1.0, 0.8],
        "groups": {"train": 30, "calibration": 2, "validation": 2, "selection": 2, "test": 2},
        "grid_points": 32,
        "solver_refinement": [1, 2],
        "frames": 9,
        "frame_spacing_s": 0.5,
        "domain_length": 22.0,
        "spin_up_s": 30.0,
    }
)


def test_interrupted_spin_up_goes_on_to_the_same_content(tmp_path: Path) -> None:
    whole = generate(CHAOTIC, tmp_path / "whole.hdf5")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(CHAOTIC, tmp_path / "parts.hdf5", progress=interrupt)
    steps: list[tuple[int, int]] = []
    parts = generate(CHAOTIC, tmp_path / "parts.hdf5", progress=lambda *step: steps.append(step))
    assert steps == [(38, 38)], "the first chunk is not made again"
    assert parts.identity == whole.identity
    whole.audit()
    whole.verify()
    assert whole.equation.name == "kuramoto_sivashinsky"
    assert whole.info.regimes == ("nu=0.8", "nu=1")
    assert whole.info.groups == 2 * 38, "after the spin-up each value has states of its own"
    assert whole.grid.lengths[0] == pytest.approx(22.0)


def test_frame_0_is_spun_up_and_is_what_the_rest_follows_from(tmp_path: Path) -> None:
    from universal_simulator.physics.reference import solve

    truth = generate(CHAOTIC, tmp_path / "chaotic.hdf5").load("train")
    cold_spec = CHAOTIC.model_copy(update={"spin_up_s": 0.0})
    cold = generate(cold_spec, tmp_path / "cold.hdf5").load("train", num_frames=2)
    smooth = torch.fft.rfft(cold.fields[:, 0, 0]).abs()[:, 5:].amax()
    assert float(smooth) < 1e-4 < float(torch.fft.rfft(truth.fields[:, 0, 0]).abs()[:, 5:].amax())
    rows = truth.regimes()["nu=1"]
    part = truth.subset(rows)
    found = solve(
        part.equation,
        part.fields[:, 0].double(),
        part.parameters,
        part.times_s,
        part.grid,
        method="spectral",
    )
    assert torch.equal(found.float(), part.fields), "to the last bit: frame 0 is rounded before it goes on"


def test_a_file_from_before_a_field_of_the_specification_is_still_the_same(tmp_path: Path) -> None:
    spec = CHAOTIC.model_copy(update={"spin_up_s": 0.0})
    path = tmp_path / "cold.hdf5"
    identity = generate(spec, path).identity
    with h5py.File(path, "r+") as file:
        stored = json.loads(file.attrs["specification"])
        del stored["spin_up_s"]
        file.attrs["specification"] = json.dumps(stored)
    assert generate(spec, path).identity == identity
    for other in ({"spin_up_s": 1.0}, {"seed": 1}):
        with pytest.raises(DataError, match="another data set"):
            generate(spec.model_copy(update=other), path)
    with h5py.File(path, "r+") as file:
        file.attrs["specification"] = "no json"
    with pytest.raises(DataError, match="another data set"):
        generate(spec, path)


def test_a_grid_too_coarse_for_the_chaos_is_refused(tmp_path: Path) -> None:
    # every mode that eight points keep is unstable, so nothing takes the energy out again
    coarse = {"grid_points": 8, "domain_length": 30.0, "solver_refinement": (1, 1), "spin_up_s": 200.0}
    with pytest.raises(DataError, match="not finite"):
        generate(CHAOTIC.model_copy(update=coarse), tmp_path / "coarse.hdf5")


def test_the_stored_equation_is_believed_before_the_name(tmp_path: Path) -> None:
    path = tmp_path / "chaos_nu0.3.hdf5"
    _write(path, equation="kuramoto_sivashinsky")
    assert open_dataset(path).equation.name == "kuramoto_sivashinsky"
    _write(path, equation="kuramoto_sivashinsky", parameter=None)
    with pytest.raises(DataError, match="no 'parameter' dataset"):
        open_dataset(path)
    given = open_dataset(path, parameter=1.0)
    assert given.equation.name == "kuramoto_sivashinsky"
    assert given.header.parameters.tolist() == [[1.0]] * 3


def test_splits_hold_every_regime_and_share_no_group(smoke_data: Dataset) -> None:
    smoke_data.audit()
    smoke_data.verify()
    for name in SPLITS:
        part = smoke_data.load(name, num_frames=2)
        counts = [len(rows) for rows in part.regimes().values()]
        assert len(counts) == 2
        assert counts[0] == counts[1]


@pytest.mark.parametrize("other_viscosity", [False, True])
def test_planted_test_trajectory_in_train_is_caught(
    tmp_path: Path, smoke_data: Dataset, other_viscosity: bool
) -> None:
    path = tmp_path / "leaky.hdf5"
    shutil.copy(smoke_data.path, path)
    test_row = smoke_data.rows("test")[0]
    train_row = smoke_data.rows("train")[1 if other_viscosity else 0]
    with h5py.File(path, "r+") as file:
        file["tensor"][train_row, 0] = file["tensor"][test_row, 0]
        assert (file["parameter"][train_row] != file["parameter"][test_row]) == other_viscosity
    with pytest.raises(LeakageError, match="train and test"):
        open_dataset(path).audit()
    with pytest.raises(IntegrityError, match="changed"):
        open_dataset(path).verify()


def test_calibration_has_two_halves_without_a_shared_group(smoke_data: Dataset) -> None:
    first, second = (smoke_data.load(f"calibration_{half}") for half in ("uncertainty", "rewards"))
    whole = smoke_data.load("calibration")
    assert set(first.groups).isdisjoint(second.groups)
    assert sorted([*first.groups, *second.groups]) == sorted(whole.groups)
    assert len(set(first.groups)) == len(set(second.groups)) == 4
    assert list(first.regimes()) == list(second.regimes()) == list(whole.regimes())
    assert smoke_data.load("calibration_uncertainty", max_groups=1).groups[0] in first.groups
    ours, theirs = calibration_halves(["c", "a", "b", "a"])
    assert (ours, theirs) == ({"a", "b"}, {"c"})
    with pytest.raises(DataError, match="at least 2"):
        calibration_halves(["a", "a"])


def test_windows_are_slices_of_the_file(smoke_data: Dataset) -> None:
    train = smoke_data.load("train", time_stride=2)
    source = WindowSource(train)
    windows = source.sample(torch.Generator().manual_seed(3), batch_size=64, num_steps=5, start_fraction=0.4)
    for i in range(64):
        row, start = int(windows.rows[i]), int(windows.start_frames[i])
        assert torch.equal(windows.fields[i], train.fields[row, start : start + 6])
        assert torch.equal(windows.parameters[i], train.parameters[row])
    assert 0.25 < float((windows.start_frames == 0).double().mean()) < 0.6


def test_streaming_draws_the_same_windows(smoke_data: Dataset) -> None:
    resident = WindowSource(smoke_data.load("train", time_stride=2))
    streaming = StreamingWindowSource(smoke_data, split="train", time_stride=2, max_groups=None)
    draws = [
        s.sample(torch.Generator().manual_seed(3), batch_size=16, num_steps=5, start_fraction=0.4)
        for s in (resident, streaming)
    ]
    assert torch.equal(draws[0].fields, draws[1].fields)
    assert torch.equal(draws[0].parameters, draws[1].parameters)


def test_published_files_are_read_as_they_are(sample_file: Path) -> None:
    dataset = open_dataset(sample_file, points=256)
    assert dataset.info.frames == 201
    assert dataset.info.regimes == ("nu=0.01",)
    assert dataset.load("all", num_frames=3).fields.shape == (16, 3, 1, 256)


def _write(path: Path, *, equation: str = "burgers", **changes: object) -> None:
    content: dict[str, object] = {
        "tensor": np.zeros((3, 5, 8), "f4"),
        "x-coordinate": (np.arange(8) + 0.5) / 8,
        "t-coordinate": np.arange(6) * 0.1,
        "parameter": np.full(3, 0.1),
    } | changes
    with h5py.File(path, "w") as file:
        file.attrs["equation"] = equation
        for name, value in content.items():
            if value is not None:
                file[name] = value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor": None}, "no dataset 'tensor'"),
        ({"tensor": np.zeros((3, 5), "f4")}, "3 or 4 axes"),
        ({"tensor": np.zeros((3, 5, 8), "S4")}, "numeric"),
        ({"x-coordinate": np.arange(7.0)}, "does not fit"),
        ({"x-coordinate": np.zeros(8)}, "evenly spaced"),
        ({"t-coordinate": np.array([0, 1, 2, np.nan, 4, 5])}, "evenly spaced"),
        ({"parameter": np.full(2, 0.1)}, "3 finite values"),
        ({"parameter": None}, "--nu"),
        ({"tensor": np.zeros((0, 5, 8), "f4")}, "N >= 1"),
    ],
)
def test_faulty_layout_is_one_clear_error(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "odd.hdf5"
    _write(path, **changes)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


@pytest.mark.parametrize("content", [b"", b"not hdf5 at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 64])
def test_foreign_bytes_are_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.hdf5"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.hdf5"):
        open_dataset(path)


def test_truncated_and_nan_files_are_refused(tmp_path: Path, smoke_data: Dataset) -> None:
    short = tmp_path / "short.hdf5"
    short.write_bytes(smoke_data.path.read_bytes()[:200_000])
    with pytest.raises(DataError, match="damaged"):
        open_dataset(short)
    poisoned = tmp_path / "nan.hdf5"
    tensor = np.ones((3, 5, 8), "f4")
    tensor[1, 2, 3] = np.nan
    _write(poisoned, tensor=tensor)
    with pytest.raises(DataError, match=r"trajectories \[1\]"):
        pdebench.read_rows(poisoned, np.arange(3), slice(None))
