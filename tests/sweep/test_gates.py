"""Gates cannot pass by being skipped, and noise is not progress."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.sweep.records import REGIMES, evaluation, run_record
from universal_simulator.run_record import Draws, EvaluationRecord, Metric, RunRecord
from universal_simulator.sweep.gates import (
    answer_words,
    crossed,
    improvement_gate,
    limit_gate,
    no_regression_gate,
    paired_interval,
    ratio_gate,
    seed_spread,
    telling,
)
from universal_simulator.sweep.plan import Gates, Improvement, Limit, Ratio, load_plan
from universal_simulator.sweep.rounds import (
    choose_champion,
    gate_results,
    passes,
    promotions,
    rung,
    score_forecast,
    tier_results,
)

RULE = Improvement()
R = REGIMES[0]
SEEDS = [evaluation(f"base-{i}", value) for i, value in enumerate((0.100, 0.104, 0.096))]


def improvement(
    candidate: EvaluationRecord, rule: Improvement = RULE, seeds: list[EvaluationRecord] = SEEDS
) -> str:
    return improvement_gate(rule, candidate, SEEDS[0], R, baseline_seeds=seeds).answer


@pytest.mark.parametrize(
    ("nrmse", "answer"), [(0.05, "pass"), (0.0889, "pass"), (0.0895, "fail"), (0.1, "fail"), (0.2, "fail")]
)
def test_improvement_is_relative(nrmse: float, answer: str) -> None:
    assert improvement(evaluation("x", nrmse)) == answer


def test_improvement_must_exceed_the_seed_spread() -> None:
    noisy = [evaluation(f"base-{i}", value) for i, value in enumerate((0.100, 0.130, 0.070))]
    assert improvement(evaluation("x", 0.08), seeds=noisy) == "fail"
    assert improvement(evaluation("x", 0.06), seeds=noisy) == "pass"


def test_improvement_must_exceed_the_paired_interval() -> None:
    candidate = evaluation("x", 0.085)
    values = list(candidate.result.regimes[R].per_group["nrmse"])
    values = [0.085 * (8 if i == 0 else 32 / 39) for i in range(len(values))]
    regime = candidate.result.regimes[R].model_copy(update={"per_group": {"nrmse": tuple(values)}})
    result = candidate.result.model_copy(update={"regimes": {**candidate.result.regimes, R: regime}})
    assert improvement(candidate.model_copy(update={"result": result})) == "fail"


@pytest.mark.parametrize(
    ("candidate", "seeds", "reason"),
    [
        (evaluation("base-0", 0.01), SEEDS, "compared with itself"),
        (evaluation("x", 0.01, steps=32), SEEDS, "protocols differ"),
        (evaluation("x", 0.01, drop="nrmse"), SEEDS, "has no nrmse"),
        (evaluation("x", 0.01), SEEDS[:2], ">= 3 baseline seeds"),
    ],
)
def test_what_cannot_be_compared_blocks(
    candidate: EvaluationRecord, seeds: list[EvaluationRecord], reason: str
) -> None:
    result = improvement_gate(RULE, candidate, SEEDS[0], R, baseline_seeds=seeds)
    assert result.answer == "not_evaluable"
    assert result.blocks
    assert reason in result.sentence


def test_literal_rule_can_be_chosen() -> None:
    literal = Improvement(rule="literal")
    assert improvement(evaluation("x", 0.0895), literal) == "pass"
    assert improvement(evaluation("x", 0.0905), literal) == "fail"


@pytest.mark.parametrize(
    ("ours", "theirs", "answer"),
    [(0.009, 0.01, "pass"), (0.011, 0.01, "fail"), (1e-8, 1e-9, "pass"), (1e-3, 1e-9, "fail")],
)
def test_ratio_gate_and_its_absolute_floor(ours: float, theirs: float, answer: str) -> None:
    rule = Ratio(max_ratio=1.0, absolute=1e-6)
    result = ratio_gate(
        "conservation_gap", rule, evaluation("x", 0.1, gap=ours), evaluation("b", 0.1, gap=theirs), R
    )
    assert result.answer == answer
    assert ("exact by construction" in result.sentence) == (ours < 1e-6)


def test_missing_metric_blocks_and_declared_absence_does_not() -> None:
    rule = Ratio(max_ratio=1.0)
    missing = ratio_gate("conservation_gap", rule, evaluation("x", 0.1, drop="conservation_gap"), SEEDS[0], R)
    assert missing.answer == "not_evaluable"
    assert missing.blocks
    declared = ratio_gate(
        "ece", Ratio(max_ratio=1.25, not_applicable="no ensemble"), evaluation("x", 0.1), SEEDS[0], R
    )
    assert declared.answer == "not_applicable"
    assert not declared.blocks


def with_ece(run: str, value: float | None, name: str = "ece") -> EvaluationRecord:
    record = evaluation(run, 0.1)
    metric = Metric(value=value, applicable=value is not None, reason="" if value else "deterministic")
    regime = record.result.regimes[R]
    regimes = {R: regime.model_copy(update={"metrics": {**regime.metrics, name: metric}})}
    return record.model_copy(update={"result": record.result.model_copy(update={"regimes": regimes})})


@pytest.mark.parametrize(
    ("ours", "theirs", "answer", "words"),
    [
        (0.05, 0.045, "pass", "within 1.25 x"),
        (0.06, 0.045, "fail", "above 1.25 x"),
        (0.019, 0.002, "pass", "noise below 0.02"),
        (0.021, 0.002, "fail", "above"),
        (None, 0.045, "not_evaluable", "deterministic"),
        (0.05, None, "not_evaluable", "deterministic"),
    ],
)
def test_a_live_ece_gate_reads_members_and_is_not_skipped_without(
    ours: float | None, theirs: float | None, answer: str, words: str
) -> None:
    rule = Ratio(max_ratio=1.25, absolute=0.02)
    result = ratio_gate("ece", rule, with_ece("x", ours), with_ece("b", theirs), R)
    assert result.answer == answer, result.sentence
    assert words in result.sentence
    assert result.blocks == (answer != "pass")


def drawn(run: str, value: float, *, width: float, groups: int = 12, keep: bool = True) -> EvaluationRecord:
    record = with_ece(run, value)
    around = tuple(value + width * (index / 99 - 0.5) for index in range(100))
    regime = record.result.regimes[R].model_copy(
        update={"draws": {"ece": Draws(groups=groups, values=around)} if keep else {}}
    )
    return record.model_copy(update={"result": record.result.model_copy(update={"regimes": {R: regime}})})


@pytest.mark.parametrize(
    ("theirs", "ours", "answer", "words"),
    [
        (drawn("b", 0.04, width=0.0), drawn("x", 0.06, width=0.01), "fail", "beyond noise"),
        (drawn("b", 0.04, width=0.0), drawn("x", 0.06, width=0.05), "pass", "within noise"),
        # what both share is no noise of their difference
        (drawn("b", 0.04, width=0.04), drawn("x", 0.06, width=0.05), "fail", "beyond noise"),
        (drawn("b", 0.001, width=0.0), drawn("x", 0.03, width=0.01), "fail", "beyond noise"),
        (drawn("b", 0.04, width=0.0), drawn("x", 0.5, width=0.1, groups=2), "not_evaluable", "no resamples"),
        (
            drawn("b", 0.04, width=0.0),
            drawn("x", 0.5, width=0.1, keep=False),
            "not_evaluable",
            "no resamples",
        ),
        (
            drawn("b", 0.04, width=0.0, groups=2),
            drawn("x", 0.06, width=0.0, groups=2),
            "pass",
            "2 initial conditions is noise",
        ),
    ],
)
def test_an_ece_fails_only_where_the_paired_interval_says_more_than_noise(
    theirs: EvaluationRecord, ours: EvaluationRecord, answer: str, words: str
) -> None:
    result = ratio_gate("ece", Ratio(max_ratio=1.25, absolute=0.02, beyond_noise=True), ours, theirs, R)
    assert result.answer == answer, result.sentence
    assert words in result.sentence
    assert result.within_noise == (answer == "pass"), "a pass across the line is told from a plain one"
    shown = {"pass": "above the line, within noise", "fail": "fail", "not_evaluable": "not evaluable"}
    assert answer_words(result.as_dict()) == shown[answer]
    before = {key: value for key, value in result.as_dict().items() if key != "within_noise"}
    assert crossed(before) == result.within_noise, "journals from before kept the margin alone"


def test_the_champions_sentence_names_what_only_noise_excuses() -> None:
    """ "every gate passed" alone would hide that an ece lies beyond the plan's line and its hard abort's."""
    gates = load_plan("sota").gates
    champion, baseline = drawn("x", 0.08, width=0.3), drawn("b", 0.04, width=0.0)
    aborts = {"hard_abort": {"ece": gates.hard_abort["ece"]}, "small_eval": {"ece": gates.small_eval["ece"]}}
    results = gate_results(
        gates.model_copy(
            update={**aborts, "limits": {}, "improvement": Improvement(rule="literal", literal=0.0)}
        ),
        champion,
        baseline,
        headline=R,
        baseline_seeds=[],
        hard=True,
    )
    records = {"x": champion, "b": baseline}
    told = choose_champion("b", ["x"], {"x": results}, records, headline=R)
    assert told.beat_baseline
    said = "above the plan's line and its hard abort's, called noise on 12 conditions."
    assert f"every gate passed; ece 2.0x the baseline's ({R}), {said}" in told.sentence
    assert [g["name"] for g in telling([r.as_dict() for r in results]) if crossed(g)] == [
        "ece",
        "hard_abort_ece",
    ]


def skilled(value: float, low: float, high: float) -> EvaluationRecord:
    record = evaluation("x", 0.1)
    metric = Metric(value=value, low=low, high=high, better="higher")
    regime = record.result.regimes[R]
    regimes = {R: regime.model_copy(update={"metrics": {**regime.metrics, "crps_skill": metric}})}
    return record.model_copy(update={"result": record.result.model_copy(update={"regimes": regimes})})


@pytest.mark.parametrize(
    ("record", "headline", "elsewhere"),
    [
        (skilled(0.1, 0.05, 0.2), "pass", "pass"),
        (skilled(0.05, -0.01, 0.1), "pass", "pass"),
        (skilled(-0.01, -0.03, 0.01), "fail", "pass"),
        (skilled(-0.3, -0.4, -0.2), "fail", "fail"),
    ],
)
def test_skill_must_be_there_on_the_headline_regime_and_not_surely_missing_elsewhere(
    record: EvaluationRecord, headline: str, elsewhere: str
) -> None:
    rule = load_plan("sota").gates.limits["crps_skill"]
    assert limit_gate("crps_skill", rule, record, R, headline=True).answer == headline
    found = limit_gate("crps_skill", rule, record, R)
    assert found.answer == elsewhere
    value = record.result.regimes[R].metrics["crps_skill"].value
    assert value is not None
    assert found.within_noise == (elsewhere == "pass" and value <= 0)


def test_a_limit_on_ensembles_is_skipped_by_the_plan_alone() -> None:
    rule = Limit(above=0.0)
    assert limit_gate("crps_skill", rule, evaluation("x", 0.1, drop="crps_skill"), R).blocks
    declared = Limit(above=0.0, not_applicable="no stochastic stages")
    assert (
        limit_gate("crps_skill", declared, evaluation("x", 0.1, drop="crps_skill"), R).answer
        == "not_applicable"
    )


@pytest.mark.parametrize(
    "wrong", [{"at_most": 1, "above": 0}, {}, {"at_most": 1, "beyond_noise": True}], ids=str
)
def test_a_limit_has_one_bound(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limit(**wrong)


def test_only_metrics_with_resamples_can_be_asked_for_noise() -> None:
    rules = {"bc_violation": Ratio(max_ratio=1.0, beyond_noise=True)}
    with pytest.raises(ValidationError, match="resamples are kept of ece alone"):
        Gates(small_eval=rules, hard_abort={})


def test_every_plan_binds_the_ece_to_the_floor_of_the_definitions() -> None:
    for name in ("smoke", "smoke_iterate", "sota", "sota_embedded", "sota_smoke", "sota_standard"):
        gates = load_plan(name).gates
        for rules in (gates.small_eval, gates.hard_abort):
            assert rules["ece"].absolute == 0.02
            assert rules["ece"].beyond_noise
        assert "crps_skill" in gates.limits


def test_limits_hold_whatever_the_reference_does() -> None:
    """An untrained codec is stopped even beside a baseline whose codec is no better."""
    rule = Limit(at_most=0.0117)
    assert limit_gate("reconstruction", rule, evaluation("x", 0.1), R).answer == "pass"
    assert limit_gate("reconstruction", rule, evaluation("x", 0.4), R).answer == "fail"
    assert limit_gate("reconstruction", rule, evaluation("x", 0.1, drop="reconstruction"), R).blocks
    results = gate_results(
        load_plan("sota").gates,
        evaluation("x", 0.4),
        evaluation("y", 0.9),
        headline=R,
        baseline_seeds=[evaluation(f"base-{i}", 0.9) for i in range(3)],
    )
    assert not passes(results, forced=True)


def test_regression_elsewhere_blocks() -> None:
    assert no_regression_gate(evaluation("x", 0.12), SEEDS[0], R).answer == "fail"
    assert no_regression_gate(evaluation("x", 0.09), SEEDS[0], R).answer == "pass"


def test_paired_interval_needs_the_same_groups() -> None:
    one, other = (evaluation(name, 0.1).result.regimes[R] for name in "ab")
    assert paired_interval(one, other.model_copy(update={"groups": other.groups[::-1]})) is None
    assert paired_interval(one, other) == (0.0, 0.0)


def test_seed_spread_is_the_sample_deviation_of_one_protocol() -> None:
    assert seed_spread(SEEDS, R) == pytest.approx(0.004)
    assert seed_spread([*SEEDS[:2], evaluation("base-2", 0.1, steps=32)], R) is None


def results_of(candidate: EvaluationRecord) -> list[object]:
    plan = load_plan("smoke")
    return gate_results(plan.gates, candidate, SEEDS[0], headline=R, baseline_seeds=SEEDS)  # type: ignore[return-value]


def test_promotion_takes_the_best_passing_and_the_forced() -> None:
    plan = load_plan("sota")
    round_a, aggressive = plan.rounds[0], plan.rounds[2]
    names = [m.config for m in round_a.members]
    records = {
        "a": evaluation("a", 0.05, gap=0.02),
        "b": evaluation("b", 0.06),
        "c": evaluation("c", 0.07),
        "forced": evaluation("forced", 0.1),
        "leaky": evaluation("leaky", 0.05, gap=5.0),
    }
    gates = {name: results_of(record) for name, record in records.items()}
    chosen = promotions(round_a, dict(zip(names, "abc", strict=True)), gates, records, headline=R)  # type: ignore[arg-type]
    assert [p.run_id for p in chosen] == ["b"]
    for run, expected in (("forced", ["forced"]), ("leaky", [])):
        chosen = promotions(aggressive, {aggressive.members[0].config: run}, gates, records, headline=R)  # type: ignore[arg-type]
        assert [p.run_id for p in chosen] == expected
    assert promotions(round_a, {names[0]: "a"}, gates, records, headline=R) == []  # type: ignore[arg-type]


def test_forced_members_are_excused_from_the_improvement_gate_only() -> None:
    assert passes(results_of(evaluation("x", 0.1)), forced=True)  # type: ignore[arg-type]
    assert not passes(results_of(evaluation("x", 0.1)), forced=False)  # type: ignore[arg-type]
    worse_elsewhere = results_of(evaluation("x", 0.2))
    assert not passes(worse_elsewhere, forced=True)  # type: ignore[arg-type]
    assert not passes(results_of(evaluation("x", 0.05, gap=0.02)), forced=True)  # type: ignore[arg-type]
    assert not passes([], forced=True)


def test_nothing_beats_the_baseline_is_an_outcome() -> None:
    records = {"base-0": SEEDS[0], "x": evaluation("x", 0.099)}
    verdict = choose_champion("base-0", ["x"], {"x": results_of(records["x"])}, records, headline=R)  # type: ignore[arg-type, dict-item]
    assert verdict.champion == "base-0"
    assert not verdict.beat_baseline
    assert choose_champion("base-0", [], {}, {"base-0": SEEDS[0]}, headline=R).champion == "base-0"


def test_candidates_that_cannot_be_told_apart_are_called_so() -> None:
    """A paired interval that holds zero is an outcome, in the champion's sentence as well."""
    even = evaluation("even", 0.0501)
    flat = tuple(
        v + (0.004 if i % 2 else -0.004) for i, v in enumerate(even.result.regimes[R].per_group["nrmse"])
    )
    regimes = {
        name: result.model_copy(update={"per_group": {"nrmse": flat}})
        for name, result in even.result.regimes.items()
    }
    even = even.model_copy(update={"result": even.result.model_copy(update={"regimes": regimes})})
    records = {
        "base-0": SEEDS[0],
        "best": evaluation("best", 0.05),
        "even": even,
        "far": evaluation("far", 0.06),
    }
    gates = {name: results_of(record) for name, record in records.items() if name != "base-0"}
    verdict = choose_champion("base-0", ["best", "even", "far"], gates, records, headline=R)  # type: ignore[arg-type]
    assert verdict.champion == "best"
    assert "Indistinguishable from it" in verdict.sentence
    assert "even;" in verdict.sentence
    assert "far" not in verdict.sentence
    alone = choose_champion("base-0", ["far"], {"far": []}, records, headline=R)
    assert "far at 0.0600, is stopped by its gates" in alone.sentence


def test_a_hard_abort_is_shown_only_where_it_says_more_than_its_gate() -> None:
    def shown(gap: float) -> set[str]:
        gates = gate_results(
            load_plan("sota").gates,
            evaluation("x", 0.05, gap=gap),
            SEEDS[0],
            headline=R,
            baseline_seeds=SEEDS,
            hard=True,
        )
        return {gate["name"] for gate in telling([g.as_dict() for g in gates]) if "abort" in gate["name"]}

    assert shown(0.01) == set()
    assert shown(0.015) == {"hard_abort_conservation_gap"}  # the gate failed, the abort did not
    assert shown(0.05) == {"hard_abort_conservation_gap"}  # both failed


def _with_eces(ours: float, theirs: float) -> tuple[RunRecord, RunRecord]:
    sides = with_ece("c", ours), with_ece("b", theirs)
    first, second = (
        run_record(e.run_id, e.run_id, 0, {"full_eval": e.model_copy(update={"suite": "full_eval"})})
        for e in sides
    )
    return first, second


def test_ladder_tiers_and_forecasts() -> None:
    plan = load_plan("sota").model_copy(update={"headline_regime": R})
    assert rung(plan, 0.034) == "SOTA reached"
    assert rung(plan, 0.06) == "new baseline"
    assert rung(plan, 0.09) == "below the ladder"
    baseline = run_record("b", "b", 0, {"full_eval": evaluation("b", 0.1, suite="full_eval")})
    champion = run_record("c", "c", 0, {"full_eval": evaluation("c", 0.04, suite="full_eval", gap=0.004)})
    answers = {(c.tier, c.text.split(":")[0]): c.answer for c in tier_results(plan, champion, baseline)}
    assert answers == {
        ("minimum", "nrmse <= 0.07"): "pass",
        ("minimum", "conservation_gap <= baseline x 1"): "pass",
        ("minimum", "wall_clock <= baseline x 2"): "pass",
        ("target", "nrmse <= 0.05"): "pass",
        ("target", "conservation_gap <= baseline x 0.5"): "pass",
        ("target", "ece <= baseline x 1"): "pass",
        ("stretch", "nrmse < 0.035"): "fail",
        ("stretch", "conservation_gap < baseline x 0.3"): "fail",
        ("stretch", "bc_violation < baseline x 0.5"): "pass",
        ("stretch", "ece <= baseline x 1"): "pass",
        ("stretch", "horizon >= 64"): "pass",
    }
    floor = {
        (ours, theirs): tier_results(plan, *_with_eces(ours, theirs))
        for ours, theirs in ((0.019, 0.004), (0.021, 0.004))
    }
    eces = {key: {c.answer for c in found if c.text.startswith("ece")} for key, found in floor.items()}
    assert eces == {(0.019, 0.004): {"pass"}, (0.021, 0.004): {"fail"}}, "below its floor an ece is noise"
    without = {"ece": Ratio(max_ratio=1.0, not_applicable="no stochastic stages")}
    gates = plan.gates.model_copy(update={"small_eval": plan.gates.small_eval | without})
    short = plan.model_copy(update={"gates": gates})
    declared = {c.answer for c in tier_results(short, champion, baseline) if c.text.startswith("ece")}
    assert declared == {"not_applicable"}, "what the plan declares of its gates holds in its tiers"
    assert score_forecast(plan.rounds[0], 0.07, 0.1)[0] == "pass"
    assert score_forecast(plan.rounds[0], 0.09, 0.1)[0] == "fail"
    assert score_forecast(plan.rounds[0], None, 0.1)[0] == "not_evaluable"
    assert score_forecast(plan.rounds[2], 0.049, 0.1)[0] == "pass"


@pytest.mark.parametrize(
    ("ours", "theirs", "answer"),
    [(None, None, "not_applicable"), (None, 0.01, "not_evaluable"), (0.01, None, "not_evaluable")],
)
def test_what_one_side_alone_calls_not_applicable_blocks(
    ours: float | None, theirs: float | None, answer: str
) -> None:
    name = "conservation_gap"
    sides = with_ece("x", ours, name), with_ece("b", theirs, name)
    result = ratio_gate(name, Ratio(max_ratio=1.0), *sides, R)
    assert result.answer == answer
    assert result.blocks == (answer == "not_evaluable")
    assert ("of one side only" in result.sentence) == result.blocks
