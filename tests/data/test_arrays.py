"""A user's own array enters, trains and is evaluated; what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.training.tiny_runs import DETERMINISTIC, TINY
from universal_simulator import assessment, experiment
from universal_simulator.cli.data import import_
from universal_simulator.configuration import load_config
from universal_simulator.data.arrays import import_array
from universal_simulator.data.dataset import open_dataset
from universal_simulator.errors import UserError, UsimError
from universal_simulator.run_record import RunFolder


def waves(trajectories: int = 24, frames: int = 21, points: int = 32) -> np.ndarray:
    """Two fields, each a decaying travelling wave of its own: (N, T, 2, X)."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (trajectories, 1, 2, 1))
    t, x = 0.05 * np.arange(frames)[None, :, None, None], (np.arange(points) + 0.5) / points
    speed = np.array([1.0, -0.5])[None, None, :, None]
    return np.exp(-0.3 * t) * np.sin(2 * np.pi * (x - speed * t) + phase) + 1.5


GIVEN: dict[str, Any] = {"dt_s": 0.05, "dx": 1 / 32, "fields": ("h", "v")}


def test_axes_in_any_order_and_any_container_give_the_same_data(tmp_path: Path) -> None:
    array = waves()
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", other=np.zeros(3), mine=array.transpose(3, 0, 2, 1))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["mine"] = array.transpose(1, 0, 2, 3)
    names = ("trajectory", "time", "field", "x")
    first = import_array(tmp_path / "a.npy", tmp_path / "a.hdf5", axes=names, **GIVEN)
    second = import_array(
        tmp_path / "b.npz",
        tmp_path / "b.hdf5",
        axes=("x", "trajectory", "field", "time"),
        key="mine",
        **GIVEN,
    )
    third = import_array(
        tmp_path / "c.h5", tmp_path / "c.hdf5", axes=("time", "trajectory", "field", "x"), key="mine", **GIVEN
    )
    assert first.identity == second.identity == third.identity
    loaded = first.load("all")
    assert np.array_equal(loaded.fields.numpy(), array.astype(np.float32))
    assert loaded.frame_spacing_s == pytest.approx(0.05)
    assert loaded.grid.lengths == pytest.approx((1.0,))
    first.verify()
    first.audit()


def test_an_import_is_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", waves())
    out = tmp_path / "a.hdf5"
    import_(tmp_path / "a.npy", out, "trajectory,time,field,x", 0.05, 1 / 32, fields="h,v", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(out)
    assert told["identity"] == open_dataset(out).identity


@pytest.mark.parametrize("parameter", [None, "depth"])
def test_undeclared_physics_trains_and_what_is_not_declared_is_not_applicable(
    tmp_path: Path, parameter: str | None
) -> None:
    np.save(tmp_path / "mine.npy", waves())
    values = None if parameter is None else np.repeat([1.0, 2.0], 12)
    data = import_array(
        tmp_path / "mine.npy",
        tmp_path / "mine.hdf5",
        axes=("trajectory", "time", "field", "x"),
        parameter=parameter,
        values=values,
        **GIVEN,
    )
    words = [f"data.file={data.path}", *TINY, "model.canonical_frame=[]", "training.augmentation=[]"]
    if parameter is not None:
        words.append(DETERMINISTIC)  # ensembles are asked once, of the kind that has no parameter either
    loaded = load_config("rerun_txxoc8a8", words, profile="smoke")
    record = experiment.run(loaded, tmp_path / "run")
    folder = RunFolder(tmp_path / "run", record.run_id).path
    full = assessment.evaluate(folder, suite="full")
    for result in full.result.regimes.values():
        assert result.metrics["nrmse"].value is not None
        assert not result.metrics["conservation_gap"].applicable
        assert not result.metrics["bc_violation"].applicable
    if parameter is None:
        assert set(full.result.regimes) == {"all"}
    page = RunFolder(tmp_path / "run", record.run_id).report("html").read_text()
    assert "undeclared declares nothing conserved" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"axes": ("trajectory", "time", "x")}, "names 3 axes"),
        ({"axes": ("trajectory", "time", "channel", "x")}, "name each axis once"),
        ({"axes": ("trajectory", "field", "x", "x")}, "name each axis once"),
        ({"fields": ("h",)}, "2 fields, 1 names"),
        ({"dt_s": 0.0}, "--dt"),
        ({"dx": float("nan")}, "--dx"),
        ({"parameter": "depth"}, "belong together"),
        ({"parameter": "depth", "values": np.ones(3)}, "one number per trajectory"),
        ({"parameter": "depth", "values": float("inf")}, "finite"),
    ],
)
def test_wrong_words_about_an_array_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    np.save(tmp_path / "a.npy", waves())
    given = {"axes": ("trajectory", "time", "field", "x"), **GIVEN} | change
    with pytest.raises(UserError, match=words):
        import_array(tmp_path / "a.npy", tmp_path / "a.hdf5", **given)
    assert not (tmp_path / "a.hdf5").exists()


def test_hostile_arrays_are_refused(tmp_path: Path) -> None:
    names = ("trajectory", "time", "field", "x")
    poisoned = waves()
    poisoned[5, 0, 1, 3] = np.nan
    np.save(tmp_path / "nan.npy", poisoned)
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.full((24, 21, 2, 32), "x"))
    np.save(tmp_path / "few.npy", waves(trajectories=3))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "mine.mat").write_bytes(b"x")
    for name, words in (
        ("nan.npy", r"\[5\] hold NaN"),
        ("pickle.npy", "cannot be read"),
        ("words.npy", "real numbers"),
        ("few.npy", "distinct initial conditions"),
        ("empty.npy", "cannot be read"),
        ("torn.npz", "cannot be read"),
        ("mine.mat", "expected a file ending"),
        ("absent.npy", "cannot be read"),
    ):
        with pytest.raises(UsimError, match=words):
            import_array(tmp_path / name, tmp_path / "out.hdf5", axes=names, key="x", **GIVEN)
        assert not (tmp_path / "out.hdf5").exists(), name
