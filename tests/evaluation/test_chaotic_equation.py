"""A chaotic equation through the whole evaluation: what applies, what does not, what it scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.references import Rows, reference_rows
from universal_simulator.evaluation.trivial import best_trivial
from universal_simulator.experiment import ensure_dataset
from universal_simulator.physics.reference import classical_method


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Trajectories:
    folder: Path = tmp_path_factory.mktemp("data")
    dataset = ensure_dataset("kuramoto_sivashinsky_smoke", folder / "kuramoto_sivashinsky_smoke.hdf5")
    return dataset.load("validation", time_stride=2)


@pytest.fixture(scope="module")
def rows(chaos: Trajectories) -> Rows:
    method = classical_method(chaos.equation)
    return reference_rows(chaos, classical_points=(24, 64, 128), bootstrap_samples=50, method=method)[0]


def test_classical_solver_beside_those_who_know_nothing(rows: Rows) -> None:
    (found,) = rows.values()
    value = {name: metrics["nrmse"].value for name, metrics in found.items()}
    assert set(value) == {"persistence", "spatial_mean", "classical_24", "classical_64"}
    # the mean of a field without mean is zero: it misses by the whole field, persistence by two
    assert value["spatial_mean"] == pytest.approx(1.0)
    assert 1.2 < value["persistence"] < 1.6  # type: ignore[operator]
    assert best_trivial(found) == ("spatial_mean", value["spatial_mean"])
    assert value["classical_64"] < 1e-4  # type: ignore[operator]
    assert 0.05 < value["classical_24"] < 1.0, "64 s of chaos make a coarse grid's error large"  # type: ignore[operator]


def test_every_metric_applies_or_says_why_not(
    chaos: Trajectories, rows: Rows, solver: Callable[..., Any]
) -> None:
    evaluator = Evaluator(chaos, rows, batch_size=8, bootstrap_samples=50)
    ((label, result),) = evaluator.run(solver(chaos))[0].items()
    metrics = result.metrics
    assert label == "nu=1"
    residual, reference = metrics["pde_residual"], metrics["conservation_gap_reference"]
    assert residual.applicable
    assert residual.value is not None
    assert residual.value < 1e-5
    assert "reference data itself" in residual.reason
    assert reference.value is not None
    assert reference.value < 1e-6
    assert not metrics["dissipation_violation_energy"].applicable
    assert metrics["horizon"].value == 64
    late = Evaluator(chaos, rows, batch_size=8, bootstrap_samples=50).run(solver(chaos, late=3))[0][label]
    assert late.metrics["horizon"].value < 10  # type: ignore[operator]
