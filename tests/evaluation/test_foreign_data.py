"""Data of another equation, grid, length or parameter range: refused in words, whatever command meets them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.model.small_models import architecture
from tests.training.tiny_runs import DETERMINISTIC, TINY
from universal_simulator import assessment, cli, experiment
from universal_simulator.configuration import load_config
from universal_simulator.data.dataset import open_dataset
from universal_simulator.errors import DataError
from universal_simulator.evaluation.refusals import refuse_foreign
from universal_simulator.model.surrogate import Surrogate, save_surrogate
from universal_simulator.run_record import RunFolder


def data_file(folder: Path, **other: object) -> Path:
    """Twelve trajectories of what the model of `model_file` knows, but for what is `other`."""
    given: dict[str, object] = {"equation": "burgers", "points": 64, "length": 1.0, "values": [0.01, 0.1]}
    assert given.keys() >= other.keys()
    given |= other
    points, values = int(str(given["points"])), np.asarray(given["values"], dtype=float)
    x = (np.arange(points) + 0.5) / points
    phases = np.arange(12)[:, None, None] / 12
    path = folder / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = (1.0 + np.sin(2 * np.pi * (x + phases)) * np.ones((1, 9, 1))).astype("f4")
        file["x-coordinate"] = x * float(str(given["length"]))
        file["t-coordinate"] = np.arange(10) * 0.01
        file["parameter"] = np.resize(values, 12)
        file.attrs["equation"] = given["equation"]
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, of Burgers on 64 points and 1 m, at nu from .01 to .1."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_surrogate(Surrogate(architecture(latent_tokens=8, latent_dim=8)), path)
    return path


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"equation": "advection"}, "holds 'advection', the model was trained on 'burgers'"),
        ({"points": 32}, r"has (32,) points, the model was trained on (64,)"),
        ({"length": 2.0}, "is 2 m long, the model was trained on 1 m"),
        ({"values": [0.01, 0.5]}, "nu 0.01 to 0.5 leaves the trained range 0.01 to 0.1"),
        ({"values": [0.001]}, "nu 0.001 to 0.001 leaves the trained range 0.01 to 0.1"),
        ({"values": [0.01, 50.0]}, "nu 0.01 to 50 leaves what burgers is known for (0.0001 to 10)"),
        ({"values": [-0.05]}, "nu -0.05 to -0.05 leaves what burgers is known for (0.0001 to 10)"),
        ({"equation": "heat"}, "holds 'heat', an equation with a time known here is burgers or advection"),
    ],
)
def test_evaluate_refuses_data_that_the_model_cannot_know(
    tmp_path: Path,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other: dict[str, object],
    words: str,
) -> None:
    path = data_file(tmp_path, **other)
    monkeypatch.setattr(
        sys, "argv", ["usim", "evaluate", str(model_file), "--data", str(path), "--suite", "full"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr().err
    assert end.value.code == 1, told
    assert words in told
    assert str(path) in told
    assert any(
        cure in told for cure in ("train one on it", "give data within", "`usim data import`", "known for")
    )


def test_what_the_model_knows_is_answered(tmp_path: Path, model_file: Path) -> None:
    """The control of the refusals: the same file without a fault."""
    record = assessment.evaluate(model_file, suite="full", data_file=data_file(tmp_path))
    assert set(record.result.regimes) == {"nu=0.01", "nu=0.1"}


def test_fields_of_other_names_are_refused(tmp_path: Path) -> None:
    """Nobody declared either of them, so only the names can tell them apart."""
    known = architecture(latent_tokens=8, latent_dim=8).model_copy(
        update={"equation": "undeclared", "field_names": ("pressure",), "parameter_names": ()}
    )
    path = data_file(tmp_path, equation="undeclared")
    with h5py.File(path, "r+") as file:
        del file["parameter"]
        file.attrs["field_names"] = json.dumps(["density"])
    model = Surrogate(known.model_copy(update={"parameter_range": ()}))
    with pytest.raises(
        DataError, match=r"holds fields \('density',\) under parameters \(\), the model knows"
    ):
        refuse_foreign(model, open_dataset(path))
    with h5py.File(path, "r+") as file:
        file.attrs["field_names"] = json.dumps(["pressure"])
    refuse_foreign(model, open_dataset(path))


def test_advection_is_generated_trained_and_evaluated(tmp_path: Path) -> None:
    words = [word for word in TINY if "evaluation.classical_points" not in word]
    words += [DETERMINISTIC, "data.dataset=advection_smoke", "model.canonical_frame=[]"]
    words += [
        "training.augmentation=[shift]",
        "evaluation.classical_points=[64]",
        "evaluation.small_groups=4",
    ]
    record = experiment.run(load_config("rerun_txxoc8a8", words, profile="smoke"), tmp_path)
    folder = RunFolder(tmp_path, record.run_id)
    result = assessment.evaluate(folder.path, suite="full").result
    assert set(result.regimes) == set(result.references) == {"beta=0.4", "beta=1"}
    for regime, rows in result.references.items():
        assert set(rows) == {"persistence", "spatial_mean", "classical_64"}
        exact, held = rows["classical_64"]["nrmse"].value, rows["persistence"]["nrmse"].value
        assert exact is not None
        assert held is not None
        assert exact < 1e-5 < 1e-2 < held, "the exact shift is the truth, standing still is not"
        metrics = result.regimes[regime].metrics
        assert metrics["nrmse"].value is not None
        assert math.isfinite(metrics["nrmse"].value)
        assert metrics["conservation_gap"].applicable, "advection declares its integral and energy"
    with pytest.raises(DataError, match="holds 'burgers', the model was trained on 'advection'"):
        assessment.evaluate(folder.path, suite="full", data_file=data_file(tmp_path))
