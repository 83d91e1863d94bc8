"""The three report files: complete, small, self-contained, and safe with hostile names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation import report
from universal_simulator.evaluation.evaluator import Examples, evaluate
from universal_simulator.evaluation.pictures import curve_picture, field_picture
from universal_simulator.evaluation.protocols import protocol_of, rollout_frames
from universal_simulator.evaluation.references import Rows
from universal_simulator.evaluation.report import grouped, metrics_csv, number, page, write_report
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Metric,
    Predictor,
    RunFolder,
    RunRecord,
    read_document,
)

HOSTILE = "<script>alert('x')</script>\"&"
Evaluated = tuple[EvaluationResult, dict[str, Examples]]


@pytest.fixture(scope="module")
def evaluated(truth: Trajectories, references: Rows, solver: Callable[..., object]) -> Evaluated:
    return _evaluated(truth, references, solver(truth))


def _evaluated(truth: Trajectories, references: Rows, predictor: object) -> Evaluated:
    return evaluate(
        predictor,  # type: ignore[arg-type]
        truth,
        protocol=protocol_of(rollout_frames(time_stride=2), truth, dataset_identity="d", split="validation"),
        predictor=Predictor(model_hash="m", weights="ema", guards=("mass_projection",)),
        references=references,
        bootstrap_samples=50,
    )


def record_of(result: EvaluationResult, run_id: str = "run-s0") -> RunRecord:
    evaluation = EvaluationRecord(
        suite="full_eval",
        run_id=run_id,
        result=result,
        observation={"classical_s_per_trajectory": {"nu=0.05/classical_32": 0.002}},
    )
    return RunRecord(run_id=run_id, status="finished", evaluations={"full_eval": evaluation})


def test_all_three_files_are_written_and_small(
    tmp_path: Path, truth: Trajectories, evaluated: Evaluated
) -> None:
    result, examples = evaluated
    folder, record = RunFolder(tmp_path, "run-s0"), record_of(evaluated[0])
    write_report(folder, record, "full_eval", truth=truth, predictions=examples)
    assert read_document(folder.report("json"), RunRecord) == record
    text = folder.report("html").read_text()
    assert len(text) < 400_000
    assert "<script" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text), "nothing is fetched from elsewhere"
    for label, regime in result.regimes.items():
        assert label in text
        assert number(regime.metrics["nrmse"].value) in text
    assert result.protocol.hash in text


@pytest.mark.parametrize(("kilobytes", "finest"), [(20, 120), (90, 96), (120, 76), (160, 60), (900, 44)])
def test_pictures_are_drawn_once_at_the_finest_resolution_that_fits(
    truth: Trajectories,
    evaluated: Evaluated,
    monkeypatch: pytest.MonkeyPatch,
    kilobytes: int,
    finest: int,
) -> None:
    """kilobytes: of one picture at the finest; the second regime's are a little larger than the first's."""
    drawn: list[tuple[str, int]] = []

    def sized(_: object, label: str, *given: object) -> dict[str, str]:
        dpi = int(str(given[-1]))
        drawn.append((label, dpi))
        return dict.fromkeys(
            ("curves", "fields"),
            "x" * int(1000 * kilobytes * (dpi / 120) ** 1.2 * (1 + 0.05 * (len(drawn) > 1))),
        )

    monkeypatch.setattr(report, "_regime_pictures", sized)
    found = report._pictures(record_of(evaluated[0]).evaluations["full_eval"], truth, evaluated[1])
    assert list(found) == list(evaluated[0].regimes)
    assert dict(drawn) == dict.fromkeys(found, finest)
    assert len(drawn) <= len(found) + 1, "one probe, then each regime once"


def test_csv_has_one_row_per_regime_and_metric(evaluated: Evaluated) -> None:
    rows = list(csv.DictReader(io.StringIO(metrics_csv(record_of(evaluated[0])))))
    expected = sum(len(regime.metrics) for regime in evaluated[0].regimes.values())
    assert len(rows) == expected
    headline = next(row for row in rows if row["metric"] == "nrmse")
    assert float(headline["low"]) <= float(headline["value"]) <= float(headline["high"])
    assert next(row for row in rows if row["metric"] == "ece")["applicable"] == "False"


def test_hostile_names_are_escaped(truth: Trajectories, evaluated: Evaluated) -> None:
    result, examples = evaluated
    label = next(iter(result.regimes))
    reference = {HOSTILE: {"nrmse": Metric(value=0.5, low=0.4, high=0.6, reason=HOSTILE)}}
    poisoned = result.model_copy(update={"references": {label: reference}})
    text = page(record_of(poisoned, run_id=HOSTILE), "full_eval", truth=truth, predictions=examples)
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text


def test_a_diverged_predictor_still_gets_its_page(
    truth: Trajectories, references: Rows, solver: Callable[..., object]
) -> None:
    class Diverged(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            return torch.full((len(initial), steps, *initial.shape[1:]), torch.nan)

    result, examples = _evaluated(truth, references, Diverged(truth))
    text = page(record_of(result), "full_eval", truth=truth, predictions=examples)
    assert "100 % of the trajectories diverged" in text
    for regime in result.regimes.values():
        assert regime.metrics["nrmse"].value == 10.0
        assert regime.metrics["horizon"].value == 0


def test_pictures_repeat_byte_for_byte(truth: Trajectories, evaluated: Evaluated) -> None:
    result, examples = evaluated
    label = next(iter(result.regimes))
    once, again = (field_picture(examples[label], truth, dpi=44) for _ in range(2))
    assert once == again
    curves = [curve_picture(result.regimes[label], {}, examples[label], truth, dpi=44) for _ in range(2)]
    assert curves[0] == curves[1]


def test_every_metric_stands_under_exactly_one_heading(evaluated: Evaluated) -> None:
    for regime in evaluated[0].regimes.values():
        headings = grouped(regime.metrics)
        assert sorted(name for rows in headings.values() for name in rows) == sorted(regime.metrics)
        assert "Further" not in headings


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.01234, "0.0123"), (1234.5, "1234"), (3.2e-9, "3.20·10⁻⁹"), (-0.5, "−0.5")],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text


def test_other_models_of_the_same_protocol_stand_on_the_ladder(
    truth: Trajectories, evaluated: Evaluated
) -> None:
    result, examples = evaluated
    record = record_of(result)
    alone = page(record, "full_eval", truth=truth, predictions=examples)
    peers = {"fno_reference": record_of(result, "fno-s0").evaluations["full_eval"]}
    beside = page(record, "full_eval", truth=truth, predictions=examples, peers=peers)
    assert "fno reference" not in alone
    assert "fno reference" in beside
