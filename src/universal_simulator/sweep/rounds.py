"""From gates to decisions: promotion, champion, ladder, tiers, forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from universal_simulator.run_record import EvaluationRecord, RunRecord
from universal_simulator.sweep.gates import (
    HARD_ABORT,
    OF_ENSEMBLES,
    Answer,
    GateResult,
    crossings,
    improvement_gate,
    limit_gate,
    no_regression_gate,
    paired_interval,
    ratio_gate,
)
from universal_simulator.sweep.plan import Criterion, Gates, Plan, Round

Evaluations = Mapping[str, EvaluationRecord]


def gate_results(
    gates: Gates,
    candidate: EvaluationRecord,
    reference: EvaluationRecord,
    *,
    headline: str,
    baseline_seeds: Sequence[EvaluationRecord],
    hard: bool = False,
    seed_cv: float | None = None,
) -> list[GateResult]:
    """All gates of one candidate on every regime; improvement decides on the headline one."""
    results = []
    for regime in reference.result.regimes:
        if regime == headline:
            results.append(
                improvement_gate(
                    gates.improvement,
                    candidate,
                    reference,
                    regime,
                    baseline_seeds=baseline_seeds,
                    seed_cv=seed_cv,
                )
            )
        else:
            results.append(no_regression_gate(candidate, reference, regime))
        for metric, rule in sorted(gates.small_eval.items()):
            results.append(ratio_gate(metric, rule, candidate, reference, regime))
        for metric, limit in sorted(gates.limits.items()):
            results.append(limit_gate(metric, limit, candidate, regime, headline=regime == headline))
        for metric, rule in sorted(gates.hard_abort.items()) if hard else ():
            result = ratio_gate(metric, rule, candidate, reference, regime)
            results.append(GateResult(**{**result.as_dict(), "name": f"{HARD_ABORT}{metric}"}))
    if headline not in reference.result.regimes:
        results.append(
            GateResult("improvement", headline, "not_evaluable", "the headline regime was not evaluated")
        )
    return results


def physics_failures(gates: Gates, candidate: EvaluationRecord, reference: EvaluationRecord) -> list[str]:
    """What of the plan's physics gates fails, in sentences; calibration (ece) is no physics."""
    return [
        f"{metric} ({regime}): {result.sentence}"
        for regime in reference.result.regimes
        for metric, rule in sorted(gates.small_eval.items())
        if metric != "ece"
        and (result := ratio_gate(metric, rule, candidate, reference, regime)).answer == "fail"
    ]


def passes(results: Sequence[GateResult], *, forced: bool) -> bool:
    """No gate blocks; a forced member is excused from the improvement gate only."""
    return bool(results) and not any(r.blocks and not (forced and r.name == "improvement") for r in results)


@dataclass(frozen=True)
class Promotion:
    round: str
    run_id: str
    reason: str


def promotions(
    round_: Round,
    runs: Mapping[str, str],
    results: Mapping[str, Sequence[GateResult]],
    evaluations: Evaluations,
    *,
    headline: str,
) -> list[Promotion]:
    """`runs`: key of a member -> run id. Top members among the passing ones, plus forced members.

    A forced member is excused from the improvement gate; it may not regress elsewhere, nor break physics.
    """
    chosen: list[Promotion] = []
    passing = []
    for member in round_.members:
        run_id = runs.get(member.key)
        if run_id is None or run_id not in evaluations:
            continue
        if member.forced:
            if passes(results.get(run_id, ()), forced=True):
                chosen.append(Promotion(round_.name, run_id, "forced by the plan"))
        elif passes(results.get(run_id, ()), forced=False):
            passing.append((headline_value(evaluations[run_id], headline), run_id))
    for value, run_id in sorted(passing)[: round_.promote]:
        chosen.append(Promotion(round_.name, run_id, f"best passing member, nrmse {value:.4g}"))
    return chosen


def headline_value(record: EvaluationRecord, regime: str) -> float:
    """nrmse on the headline regime; infinity where it is missing."""
    result = record.result.regimes.get(regime)
    value = result.metrics["nrmse"].value if result and "nrmse" in result.metrics else None
    return float("inf") if value is None else value


@dataclass(frozen=True)
class Verdict:
    """Who leads after full-eval, and why."""

    champion: str
    beat_baseline: bool
    sentence: str


def choose_champion(
    baseline: str,
    candidates: Sequence[str],
    results: Mapping[str, Sequence[GateResult]],
    evaluations: Evaluations,
    *,
    headline: str,
    refused: Sequence[str] = (),
    seeds: Sequence[str] = (),
) -> Verdict:
    """Best full-eval among those that pass every gate against the baseline; else the baseline.

    refused: candidates whose full-eval a ceiling refused; they are named, and win nothing. seeds: runs of
    the baseline's config; their mean is told beside the one that the gates compare with.
    """
    unknown = f" Not evaluated: ceiling: {', '.join(refused)}." if refused else ""
    standing = sorted(
        (headline_value(evaluations[run], headline), run) for run in candidates if run in evaluations
    )
    passing = [item for item in standing if passes(results.get(item[1], ()), forced=False)]
    reference = headline_value(evaluations[baseline], headline)
    if not passing:
        text = (
            f"Nothing beat the baseline beyond noise with its physics intact: {baseline} stays "
            f"champion at nRMSE {reference:.4f} ({headline})."
        )
        return Verdict(baseline, False, text + _closest(standing, baseline, evaluations, headline) + unknown)
    value, run = passing[0]
    excused = "".join(
        f"; {words}" for words in crossings([gate.as_dict() for gate in results[run]], evaluations[run])
    )
    text = (
        f"{run} is champion: nRMSE {value:.4f} against {reference:.4f} of the baseline "
        f"({1 - value / reference:.0%} lower, {headline}, full-eval), every gate passed{excused}."
        + _beside_seeds(value, seeds, evaluations, headline)
    )
    return Verdict(run, True, text + _equals(passing, evaluations, headline) + unknown)


def _beside_seeds(value: float, seeds: Sequence[str], evaluations: Evaluations, headline: str) -> str:
    """One seed may be a lucky or an unlucky one."""
    values = [headline_value(evaluations[run], headline) for run in seeds if run in evaluations]
    if len(values) < 2:
        return ""
    mean = sum(values) / len(values)
    return f" The mean over {len(values)} baseline seeds is {mean:.4f} ({1 - value / mean:.0%} lower)."


def indistinguishable(ours: EvaluationRecord, theirs: EvaluationRecord, regime: str) -> bool:
    """The paired 95 % interval of the difference in nrmse holds zero: neither is better."""
    sides = (record.result.regimes.get(regime) for record in (ours, theirs))
    first, second = sides
    interval = paired_interval(first, second) if first and second else None
    return interval is not None and interval[0] <= 0 <= interval[1]


def _closest(
    standing: Sequence[tuple[float, str]], baseline: str, evaluations: Evaluations, headline: str
) -> str:
    """What the best candidate was worth that did not pass."""
    if not standing:
        return ""
    value, run = standing[0]
    alike = indistinguishable(evaluations[run], evaluations[baseline], headline)
    said = (
        "indistinguishable from it (the paired 95 % interval holds zero)" if alike else "stopped by its gates"
    )
    return f" The best candidate, {run} at {value:.4f}, is {said}."


def _equals(passing: Sequence[tuple[float, str]], evaluations: Evaluations, headline: str) -> str:
    """Which passing candidates cannot be told apart from the first."""
    first = evaluations[passing[0][1]]
    alike = [run for _, run in passing[1:] if indistinguishable(evaluations[run], first, headline)]
    if not alike:
        return ""
    return (
        f" Indistinguishable from it (the paired 95 % interval holds zero): {', '.join(alike)}; "
        "the lower mean decided."
    )


@dataclass(frozen=True)
class CriterionResult:
    tier: str
    text: str
    answer: Answer
    value: float | None
    threshold: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tier_results(
    plan: Plan, champion: RunRecord, baseline: RunRecord, *, suite: str = "full_eval"
) -> list[CriterionResult]:
    """Each criterion of each tier on its own line; tiers need not nest.

    What the plan declares not applicable as a small-eval gate is so in its tiers as well.
    """
    declared = {metric: rule.not_applicable for metric, rule in plan.gates.small_eval.items()}

    def told(criterion: Criterion) -> Criterion:
        reason = criterion.not_applicable or declared.get(criterion.metric)
        return criterion.model_copy(update={"not_applicable": reason})

    return [
        _criterion(tier.name, told(criterion), champion, baseline, plan.headline_regime, suite)
        for tier in plan.tiers
        for criterion in tier.criteria
    ]


def _criterion(
    tier: str, criterion: Criterion, champion: RunRecord, baseline: RunRecord, regime: str, suite: str
) -> CriterionResult:
    limits = {
        "<=": (criterion.at_most, 1.0),
        "<": (criterion.below, 1.0),
        ">=": (criterion.at_least, 1.0),
        "<= baseline x": (criterion.at_most_ratio, None),
        "< baseline x": (criterion.below_ratio, None),
    }
    sign, (limit, absolute) = next(item for item in limits.items() if item[1][0] is not None)
    text = f"{criterion.metric} {sign} {limit:g}"
    if criterion.not_applicable:
        return CriterionResult(tier, f"{text}: {criterion.not_applicable}", "not_applicable", None, None)
    assert limit is not None
    value = record_value(champion, criterion.metric, regime, suite)
    threshold: float | None = limit
    reference: float | None = None
    if absolute is None:
        reference = record_value(baseline, criterion.metric, regime, suite)
        threshold = None if reference is None else max(limit * reference, criterion.absolute)
    if value is None or threshold is None:
        return CriterionResult(tier, text, "not_evaluable", value, threshold)
    if absolute is None and champion.run_id == baseline.run_id:
        return CriterionResult(tier, f"{text}: the champion is the baseline", "fail", value, threshold)
    if reference is not None and max(value, reference) <= criterion.absolute:
        why = f"both are noise below {criterion.absolute:g}"
        why = why if criterion.metric in OF_ENSEMBLES else "exact by construction"
        return CriterionResult(tier, f"{text}: {why}", "pass", value, threshold)
    met = (
        value >= threshold
        if sign == ">="
        else value < threshold
        if sign.startswith("< ") or sign == "<"
        else value <= threshold
    )
    return CriterionResult(tier, text, "pass" if met else "fail", value, threshold)


def record_value(record: RunRecord, metric: str, regime: str, suite: str) -> float | None:
    if metric == "wall_clock":
        return record.wall_clock_s()
    evaluation = record.evaluations.get(suite)
    if evaluation is None or regime not in evaluation.result.regimes:
        return None
    found = evaluation.result.regimes[regime].metrics.get(metric)
    return None if found is None else found.value


def rung(plan: Plan, value: float) -> str:
    """The highest step of the ladder that `value` reaches."""
    reached = [r for r in plan.ladder if value < r.below]
    return min(reached, key=lambda r: r.below).name if reached else "below the ladder"


def score_forecast(round_: Round, best: float | None, baseline: float) -> tuple[Answer, str]:
    """The round's numeric forecast against its best member on the headline metric."""
    forecast = round_.forecast
    if best is None:
        return "not_evaluable", "no member finished"
    gain = 1 - best / baseline
    if forecast.relative_reduction is not None:
        low, high = forecast.relative_reduction
        answer: Answer = "pass" if low <= gain <= high else "fail"
        side = (
            "as forecast"
            if answer == "pass"
            else "less than forecast"
            if gain < low
            else "more than forecast"
        )
        return answer, f"forecast {low:.0%} to {high:.0%} lower, measured {gain:.1%} lower: {side}"
    assert forecast.below is not None
    met = best < forecast.below
    return ("pass" if met else "fail"), f"forecast below {forecast.below:g}, measured {best:.4g}"
