"""Those who know nothing, the classical solver, and the cache of both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import open_dataset
from universal_simulator.errors import IntegrityError
from universal_simulator.evaluation import references as room
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.protocols import protocol_of, rollout_frames
from universal_simulator.evaluation.references import (
    LateReferences,
    Rows,
    cached_reference_rows,
    reference_rows,
)
from universal_simulator.evaluation.trivial import best_trivial, trivial_predictions
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS, KURAMOTO_SIVASHINSKY
from universal_simulator.run_record import Metric

CHOICES = {"classical_points": (32,), "bootstrap_samples": 50, "method": "finite_volume"}


def nrmse(rows: dict[str, dict[str, Metric]], name: str) -> float:
    value = rows[name]["nrmse"].value
    assert value is not None
    return value


def test_order_of_those_who_know_nothing(references: Rows) -> None:
    for rows in references.values():
        assert nrmse(rows, "classical_32") < nrmse(rows, "linearised") < nrmse(rows, "persistence")
        assert "classical_128" not in rows, "finer than the truth's own grid"
        name, value = best_trivial(rows)
        assert value == min(nrmse(rows, n) for n in ("persistence", "spatial_mean", "linearised"))
        assert value == nrmse(rows, name)


def test_linearised_equation_is_exact_for_one_small_wave() -> None:
    grid = Grid((1.0,), (64,))
    x, nu, mean, small = grid.coordinates(), 0.02, 0.7, 1e-6
    initial = (mean + small * torch.sin(2 * math.pi * x))[None, None]
    times = torch.tensor([0.0, 0.3, 1.1], dtype=torch.float64)
    found = trivial_predictions(BURGERS, initial, torch.tensor([[nu]]), times, grid)["linearised"]
    for row, t in enumerate(times.tolist()):
        decay = math.exp(-nu / math.pi * (2 * math.pi) ** 2 * t)
        wave = mean + small * decay * torch.sin(2 * math.pi * (x - mean * t))
        assert torch.allclose(found[0, row, 0], wave, atol=1e-9 * small + 1e-13)


def test_a_linear_equation_has_no_linearised_predictor() -> None:
    grid, initial = Grid((1.0,), (16,)), torch.ones(1, 1, 16)
    found = trivial_predictions(ADVECTION, initial, torch.ones(1, 1), torch.ones(2), grid)
    assert set(found) == {"persistence", "spatial_mean"}


def test_a_linearisation_that_explodes_is_not_offered() -> None:
    grid, initial = Grid((22.0,), (16,)), torch.ones(1, 1, 16)
    found = trivial_predictions(KURAMOTO_SIVASHINSKY, initial, torch.ones(1, 1), torch.ones(2), grid)
    assert set(found) == {"persistence", "spatial_mean"}


def test_genuine_samples_score_as_published(sample_file: Path) -> None:
    for nu, persistence, mean, linear in ((0.001, 1.80, 0.41, 1.2), (0.01, 2.05, 0.35, 0.43)):
        path = sample_file.with_name(sample_file.name.replace("0.01", f"{nu:g}"))
        truth = open_dataset(path, points=256).load("all", time_stride=2)
        ((_, rows),) = reference_rows(truth, **{**CHOICES, "classical_points": ()})[0].items()  # type: ignore[arg-type]
        assert nrmse(rows, "persistence") == pytest.approx(persistence, rel=0.08)
        assert nrmse(rows, "spatial_mean") == pytest.approx(mean, rel=0.05)
        assert nrmse(rows, "linearised") == pytest.approx(linear, rel=0.15)
        assert best_trivial(rows)[0] == "spatial_mean"


def test_cache_is_reused_only_for_equal_inputs(
    truth: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocol_of(rollout_frames(time_stride=2), truth, dataset_identity="d", split="validation")
    calls = []
    compute: Callable[..., tuple[Rows, dict[str, float]]] = room.reference_rows
    monkeypatch.setattr(room, "reference_rows", lambda *a, **k: calls.append(1) or compute(*a, **k))
    first = cached_reference_rows(tmp_path, protocol, truth, **CHOICES)  # type: ignore[arg-type]
    again = cached_reference_rows(tmp_path, protocol, truth, **CHOICES)  # type: ignore[arg-type]
    assert again == first
    assert len(calls) == 1
    assert set(first[1]) == {f"{label}/classical_32" for label in truth.regimes()}
    cached_reference_rows(tmp_path, protocol, truth, **{**CHOICES, "bootstrap_samples": 60})  # type: ignore[arg-type]
    assert len(calls) == 2


def test_references_are_asked_for_once_and_after_the_first_rollout(truth: Trajectories) -> None:
    """So evaluations that begin together do not solve the same ones twice."""
    told: list[str] = []

    class Persistent:
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            told.append("rollout")
            return initial[:, None].expand(-1, steps, -1, -1)

        def guard(self, fields: Tensor, initial: Tensor, parameters: Tensor) -> Tensor:
            return fields

        def step(self, fields: Tensor, parameters: Tensor) -> Tensor:
            return fields

        def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor:
            return fields

    def make() -> tuple[Rows, dict[str, float]]:
        told.append("references")
        return reference_rows(truth, **{**CHOICES, "classical_points": ()})  # type: ignore[arg-type]

    late = LateReferences(make)
    results, _ = Evaluator(truth, late, batch_size=64, bootstrap_samples=20).run(Persistent())
    assert told == ["rollout", "references", *["rollout"] * (len(results) - 1)]
    assert late.seconds > 0
    for label, found in results.items():
        assert found.metrics["trivial_ratio"].value == pytest.approx(
            (found.metrics["nrmse"].value or 0) / best_trivial(late()[label])[1]
        )


def test_references_of_another_protocol_are_refused(truth: Trajectories, tmp_path: Path) -> None:
    protocol = protocol_of(rollout_frames(time_stride=2), truth, dataset_identity="d", split="validation")
    cached_reference_rows(tmp_path, protocol, truth, **CHOICES)  # type: ignore[arg-type]
    path = tmp_path / "references" / f"{protocol.hash}.json"
    stored = json.loads(path.read_text())
    stored["protocol"]["split"] = "selection"
    path.write_text(json.dumps(stored))
    with pytest.raises(IntegrityError, match="not of the one"):
        cached_reference_rows(tmp_path, protocol, truth, **CHOICES)  # type: ignore[arg-type]
