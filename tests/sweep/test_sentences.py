"""What a sweep says in words: what changed, what the champion is worth, what a forecast came to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.records import evaluation, run_record
from universal_simulator.cli.sweep import explain
from universal_simulator.configuration import load_config
from universal_simulator.run_record import RunRecord
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.rounds import choose_champion
from universal_simulator.sweep.verdicts import changed

R = "nu=0.05"


def configured(name: str, *words: str) -> RunRecord:
    record = run_record(f"{name}-s0", name, 0, {})
    assert record.training is not None
    config = load_config(name, words, profile="smoke").config.model_dump(mode="json")
    result = record.training.result.model_copy(update={"effective_config": config})
    return record.model_copy(update={"training": record.training.model_copy(update={"result": result})})


def test_what_changed_is_what_the_headline_reads() -> None:
    member, baseline = configured("sweep_round_a_lr3e4_w5"), configured("rerun_txxoc8a8")
    told = changed(member, baseline).split("; ")
    assert any(part.startswith("operator.learning_rate ") for part in told)
    assert not any("diff_residual" in part or "consistency" in part or "ttc" in part for part in told)
    assert told[-1].endswith("settings of the stochastic stages, which the headline does not read")
    words = ("evaluation.headline=ensemble_mean", "evaluation.ensemble_groups=null")
    told = changed(configured("sweep_round_a_lr3e4_w5", *words), configured("rerun_txxoc8a8", *words)).split(
        "; "
    )
    assert any(part.startswith("diff_residual.learning_rate ") for part in told)
    assert changed(baseline, baseline) == "nothing"


@pytest.mark.parametrize(
    ("seeds", "said"), [(("a", "b", "c"), "mean over 3 baseline seeds is 0.0900 (44% lower)"), (("a",), "")]
)
def test_the_champion_stands_beside_the_mean_of_the_baselines_seeds(
    seeds: tuple[str, ...], said: str
) -> None:
    records = {
        name: evaluation(name, value) for name, value in (("a", 0.11), ("b", 0.08), ("c", 0.08), ("x", 0.05))
    }
    passing = {"x": [GateResult("improvement", R, "pass", "better")]}
    verdict = choose_champion("a", ["x"], passing, records, headline=R, seeds=seeds)
    assert "0.0500 against 0.1100 of the baseline (55% lower" in verdict.sentence
    assert said in verdict.sentence
    assert ("baseline seeds" in verdict.sentence) == bool(said)


def test_a_forecast_that_was_exceeded_is_no_failure_and_the_page_tells_wall_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run_sweep("smoke", tmp_path, executor=FakeExecutor(member=0.03))
    page = report_path(tmp_path).read_text()
    assert 'class="not_evaluable">exceeded</td>' in page
    assert "more than forecast" in page
    assert "s from the first event to the last" in page
    explain(tmp_path, None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {run.run_id for run in state.runs}
    member = next(run.run_id for run in state.runs if run.role == "member")
    assert len(told[member]["verdict"]) == 3
    assert {gate["answer"] for gate in told[member]["gates"]["small_eval"]}
