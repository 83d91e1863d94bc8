"""PDEBench's protocol on a file of its own: clean splits and the published conventions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.tiny_runs import tiny
from universal_simulator import assessment, experiment
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.generator import generate
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.errors import UserError
from universal_simulator.run_record import RunFolder


def data(folder: Path, seed: int) -> Dataset:
    spec = DatasetSpec.model_validate(
        {
            "name": f"pde{seed}",
            "equation": "burgers",
            "parameter_values": [0.1],
            "groups": {"train": 14, "calibration": 2, "validation": 2, "selection": 2, "test": 2},
            "grid_points": 256,
            "solver": "spectral",
            "solver_refinement": [1],
            "frames": 201,
            "frame_spacing_s": 0.01,
            "seed": seed,
        }
    )
    return generate(spec, folder / f"{seed}.hdf5")


def test_pdebench_suites_predict_frames_ten_to_forty_of_the_right_rows(tmp_path: Path) -> None:
    own, other = data(tmp_path, 1), data(tmp_path, 2)
    record = experiment.run(tiny(own), tmp_path / "run")
    files = RunFolder(tmp_path / "run", record.run_id)
    clean = assessment.evaluate(files.path, suite="pdebench", data_file=own.path).result.protocol
    assert (clean.split, clean.num_groups, clean.steps, clean.points) == ("selection", 2, 31, 256)
    official = assessment.evaluate(files.path, suite="pdebench-official", data_file=other.path)
    protocol = official.result.protocol
    assert (protocol.split, protocol.num_groups, protocol.first_frame) == ("first tenth", 2, 45)
    metrics = official.result.regimes["nu=0.1"].metrics
    assert metrics["pdebench_rmse_conserved"].value is not None
    assert files.evaluation("pdebench_official").is_file()
    with pytest.raises(UserError, match="training trajectories"):
        assessment.evaluate(files.path, suite="pdebench-official", data_file=own.path)
    with pytest.raises(UserError, match="needs --data"):
        assessment.evaluate(files.path, suite="pdebench")
