"""What an evaluation with test-time compute tells: the bound first, equal seconds, and a reward that knows nothing."""

from __future__ import annotations

import re

import pytest
import torch

from tests.inference.test_search import knowing, predictor, world
from tests.sweep.records import protocol
from universal_simulator.cli.model import _print
from universal_simulator.evaluation.report import search_section, with_searches
from universal_simulator.evaluation.search_diagnostics import Diagnosis, diagnose, with_diagnoses
from universal_simulator.evaluation.search_summary import ORDER, RIVALS, search_lines, search_name
from universal_simulator.inference.rewards import Question
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Metric,
    Predictor,
    RegimeResult,
    RunRecord,
)

LABEL = "nu=0.05"
PAGE = "<html><h1>run</h1>\n<!-- test-time compute -->\nstale section\n<!-- /test-time compute -->\n<h2>Identity</h2>"


def record_of(found: Diagnosis, *, groups: int) -> EvaluationRecord:
    plain = RegimeResult(
        parameters={"nu": 0.05},
        metrics={"nrmse": Metric(value=0.1, low=0.05, high=0.2)},
        groups=tuple(f"group{index}" for index in range(groups)),
        per_group={},
    )
    regimes, observed = with_diagnoses({LABEL: plain}, {LABEL: found})
    asked = protocol("selection", groups=groups, steps=10, points=32)
    about = Predictor(model_hash="m", weights="ema", guards=(), test_time_compute=True)
    result = EvaluationResult(protocol=asked, predictor=about, regimes=regimes)
    return EvaluationRecord(suite="full_eval_ttc", run_id="r", result=result, observation={"ttc": observed})


@pytest.fixture(scope="module")
def honest() -> Diagnosis:
    truth = world(6)
    asked = predictor(knowing(truth), combine="pick", beam=2)
    return diagnose(asked, truth, bootstrap_samples=50, noise_seed=0)[LABEL]


@pytest.fixture(scope="module")
def random() -> Diagnosis:
    truth = world(6)
    asked = predictor(knowing(truth, lies=True), combine="pick", beam=2)
    return diagnose(asked, truth, bootstrap_samples=50, noise_seed=0)[LABEL]


def test_the_bound_comes_first_and_gains_at_equal_seconds_stand_among_the_others(honest: Diagnosis) -> None:
    lines = search_lines(record_of(honest, groups=6), LABEL)
    assert lines[0].name == "ttc_oracle_gain"
    assert lines[1].name == "ttc_answer_gain"
    assert lines[1].note == "100% of the bound", "a reward that has seen the truth"
    assert re.fullmatch(r"\S+ \(\S+ to \S+\)", lines[0].value), "with its interval"
    names = [line.name for line in lines]
    assert {f"ttc_gain_over_{rival}_equal_seconds" for rival in RIVALS} <= set(names)
    assert "ttc_gain_equal_seconds" in names
    assert set(honest.metrics) <= set(ORDER), "no diagnostic is left out"
    assert search_name(record_of(honest, groups=6), LABEL) == "TTC (learned)"


def test_cheat_a_random_reward_is_marked_uninformed_wherever_it_is_told(
    random: Diagnosis, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(random, groups=6)
    verdict = record.result.regimes[LABEL].metrics["ttc_reward_informs"]
    assert verdict.value == 0
    assert "no better than a random reward" in verdict.reason
    page = with_searches(
        PAGE, RunRecord(run_id="r", status="finished", evaluations={"full_eval_ttc": record})
    )
    assert "TTC (learned), uninformed" in page
    assert page.startswith("<html><h1>run</h1>")
    assert page.endswith("<h2>Identity</h2>")
    assert "stale section" not in page
    assert page.index("ttc_oracle_gain") < page.index("ttc_gain_over_representations")
    _print(record)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].strip() == "TTC (learned), uninformed"
    assert lines[2].split()[0] == "ttc_oracle_gain"
    assert sum("equal_seconds" in line for line in lines) == 4
    assert sum(line.split()[0] == "ttc_oracle_gain" for line in lines) == 1, "each figure once"
    assert any(line.split() == ["nrmse", "0.1", "(0.05", "to", "0.2)"] for line in lines)


def test_a_page_without_searches_says_nothing_and_one_from_before_stays_as_it_is() -> None:
    empty = RunRecord(run_id="r", status="finished")
    assert "<h2>" not in search_section(empty)
    assert "stale section" not in with_searches(PAGE, empty)
    assert with_searches("<html>before</html>", empty) == "<html>before</html>"


def test_diagnoses_of_fewer_initial_conditions_say_so(honest: Diagnosis) -> None:
    metrics = record_of(honest, groups=7).result.regimes[LABEL].metrics
    assert metrics["ttc_oracle_gain"].reason.endswith("on the first 6 initial conditions")
    assert not metrics["nrmse"].reason


def test_rewards_that_are_not_finite_are_counted_apart_from_candidates_that_are_not() -> None:
    def half_blind(question: Question) -> torch.Tensor:
        cost = torch.ones(question.fields.shape[:2])
        cost[:, 4] = torch.nan
        return torch.where(question.finite(), cost, torch.inf)

    asked = predictor(half_blind)
    truth = world(2)
    asked.rollout(truth.fields[:, 0], truth.parameters, 10)
    assert asked.accounts.reward_nans.tolist() == [3, 3], "one candidate in each of three segments"
    assert asked.accounts.dropped.tolist() == [0, 0]
