"""Gates: pure functions of evaluation records of one protocol.

Each answers pass, fail, not_evaluable (missing or incomparable: blocks promotion) or
not_applicable (declared so, with the reason: shown, does not block).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from universal_simulator.evaluation import bootstrap
from universal_simulator.run_record import EvaluationRecord, Metric, RegimeResult
from universal_simulator.sweep.plan import Improvement, Limit, Ratio

Answer = Literal["pass", "fail", "not_evaluable", "not_applicable"]
BOOTSTRAP_SAMPLES = 4000
#: before the metric in the name of a hard-abort gate
HARD_ABORT = "hard_abort_"
#: what only a stochastic predictor has: a deterministic one cannot skip such a gate, only the plan
#: can declare it not applicable
OF_ENSEMBLES = ("ece", "ece_raw", "crps_skill", "crps_skill_raw")
#: groups below which an interval over them is no judge
NOISE_GROUPS = 8


@dataclass(frozen=True)
class GateResult:
    """One gate on one regime, with everything the answer rests on."""

    name: str
    regime: str
    answer: Answer
    sentence: str
    value: float | None = None
    reference: float | None = None
    threshold: float | None = None
    margin: float | None = None
    noise: float | None = None
    #: a pass that lies on the wrong side of the threshold, by no more than noise
    within_noise: bool = False

    @property
    def blocks(self) -> bool:
        return self.answer in ("fail", "not_evaluable")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def incomparable(candidate: EvaluationRecord, reference: EvaluationRecord) -> str | None:
    """Why two evaluations may not be compared, or None."""
    if candidate.run_id == reference.run_id:
        return "a run is never compared with itself"
    if candidate.result.predictor.model_hash == reference.result.predictor.model_hash:
        return "both evaluations are of the same weights"
    if candidate.result.protocol.hash != reference.result.protocol.hash:
        return (
            f"protocols differ ({candidate.result.protocol.hash[:8]} and "
            f"{reference.result.protocol.hash[:8]})"
        )
    return None


def ratio_gate(
    metric: str, rule: Ratio, candidate: EvaluationRecord, reference: EvaluationRecord, regime: str
) -> GateResult:
    """candidate <= max_ratio * reference, on the metric before any guard."""
    if rule.not_applicable:
        return GateResult(metric, regime, "not_applicable", rule.not_applicable)
    problem = incomparable(candidate, reference)
    if problem:
        return GateResult(metric, regime, "not_evaluable", problem)
    ours, theirs = (_metric(record, regime, metric) for record in (candidate, reference))
    if isinstance(ours, str) or isinstance(theirs, str):
        reasons = [side for side in (ours, theirs) if isinstance(side, str)]
        declared = [reason for reason in reasons if reason.startswith("not applicable")]
        if len(declared) == 2 and metric not in OF_ENSEMBLES:
            return GateResult(metric, regime, "not_applicable", reasons[0])
        # what an equation declares holds for both sides: of one alone it is something missing
        reason = next((r for r in reasons if r not in declared), f"of one side only {reasons[0]}")
        return GateResult(metric, regime, "not_evaluable", reasons[0] if len(declared) == 2 else reason)
    if ours <= rule.absolute and theirs <= rule.absolute:
        why = "both are noise" if metric in OF_ENSEMBLES else "exact by construction: both are"
        return GateResult(
            metric,
            regime,
            "pass",
            f"{why} below {rule.absolute:g}",
            ours,
            theirs,
            rule.absolute,
            rule.absolute - ours,
        )
    threshold = max(rule.max_ratio * theirs, rule.absolute)
    passed = ours <= threshold
    answer: Answer = "pass" if passed else "fail"
    sentence = (
        f"{ours:.4g} against {theirs:.4g} of the reference: "
        f"{'within' if passed else 'above'} {rule.max_ratio:g} x"
    )
    noise = None
    if rule.beyond_noise and not passed:
        regimes = (candidate.result.regimes[regime], reference.result.regimes[regime])
        answer, told, noise = _excess(metric, rule, *regimes, excess=ours - threshold)
        sentence = f"{sentence}, {told}"
    excused = answer == "pass" and not passed
    numbers = (ours, theirs, threshold, threshold - ours, noise)
    return GateResult(metric, regime, answer, sentence, *numbers, within_noise=excused)


def _excess(
    metric: str, rule: Ratio, candidate: RegimeResult, reference: RegimeResult, *, excess: float
) -> tuple[Answer, str, float | None]:
    """Whether what exceeds the threshold exceeds the noise as well; why, and half the interval's width.

    Draws d_s = ours_s - max(ratio theirs_s, absolute) of the same resamples; resampling raises an ece once
    more than its data did, so their quantiles are moved back by mean(d_s) - d.
    """
    ours, theirs = candidate.draws.get(metric), reference.draws.get(metric)
    if (
        ours is None
        or theirs is None
        or (ours.groups, len(ours.values)) != (theirs.groups, len(theirs.values))
    ):
        return "not_evaluable", "and no resamples of both say whether that is noise", None
    if ours.groups < NOISE_GROUPS:
        few = f"which on {ours.groups} initial conditions is noise (at least {NOISE_GROUPS} can tell)"
        return "pass", few, None
    limit = np.maximum(rule.max_ratio * np.asarray(theirs.values), rule.absolute)
    drawn = np.asarray(ours.values) - limit
    low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975]) - (drawn.mean() - excess))
    beyond = low > 0
    told = (
        f"paired 95 % interval of the excess {low:.4g} to {high:.4g} on {ours.groups} initial conditions: "
        f"{'beyond' if beyond else 'within'} noise"
    )
    return "fail" if beyond else "pass", told, (high - low) / 2


def limit_gate(
    metric: str, rule: Limit, candidate: EvaluationRecord, regime: str, *, headline: bool = False
) -> GateResult:
    """candidate <= at_most, or > above: a bound that no reference can move. headline: of that regime."""
    if rule.not_applicable:
        return GateResult(metric, regime, "not_applicable", rule.not_applicable)
    value = _metric(candidate, regime, metric)
    if isinstance(value, str):
        declared = value.startswith("not applicable") and metric not in OF_ENSEMBLES
        return GateResult(metric, regime, "not_applicable" if declared else "not_evaluable", value)
    why = f" ({rule.why})" if rule.why else ""
    if rule.at_most is not None:
        passed, bound, margin = value <= rule.at_most, rule.at_most, rule.at_most - value
        sentence = f"{value:.4g}, at most {bound:g} allowed{why}"
    else:
        assert rule.above is not None, "a limit has one of the two"
        bound, margin = rule.above, value - rule.above
        passed, words = _above(rule, candidate.result.regimes[regime].metrics[metric], headline=headline)
        sentence = f"{value:.4g}{words}, must be above {bound:g}{why}"
    answer: Answer = "pass" if passed else "fail"
    excused = passed and rule.above is not None and value <= rule.above
    return GateResult(metric, regime, answer, sentence, value, None, bound, margin, within_noise=excused)


def _above(rule: Limit, metric: Metric, *, headline: bool) -> tuple[bool, str]:
    """Whether it lies above, and its interval in words where that decides."""
    assert metric.value is not None
    assert rule.above is not None
    if headline or not rule.beyond_noise or metric.low is None or metric.high is None:
        return metric.value > rule.above, ""
    words = f" ({metric.low:.4g} to {metric.high:.4g}, of which some counts off the headline regime)"
    return metric.high > rule.above, words


def improvement_gate(
    rule: Improvement,
    candidate: EvaluationRecord,
    reference: EvaluationRecord,
    regime: str,
    *,
    baseline_seeds: Sequence[EvaluationRecord],
    seed_cv: float | None = None,
) -> GateResult:
    """Relative gain beyond the plan's share, the paired interval and the spread of seeds.

    seed_cv: where the reference is not the baseline, the spread is this share of the reference's value.
    """
    name = "improvement"
    problem = incomparable(candidate, reference)
    ours, theirs = (_metric(record, regime, "nrmse") for record in (candidate, reference))
    for reason in (problem, ours, theirs):
        if isinstance(reason, str):
            return GateResult(name, regime, "not_evaluable", reason)
    assert isinstance(ours, float)
    assert isinstance(theirs, float)
    literal = _literal_line(rule, regime, ours, theirs)
    if rule.rule == "literal":
        return literal
    spread = seed_spread(baseline_seeds, regime) if seed_cv is None else seed_cv * theirs
    paired = paired_interval(candidate.result.regimes[regime], reference.result.regimes[regime])
    if spread is None:
        return GateResult(
            name, regime, "not_evaluable", "the seed spread needs >= 3 baseline seeds of this protocol"
        )
    if paired is None:
        return GateResult(name, regime, "not_evaluable", "the two evaluations do not share their groups")
    gain, (low, high) = theirs - ours, paired
    threshold = theirs * (1 - rule.relative)
    tests = {
        f"gain {gain / theirs:.1%} of the reference (needs {rule.relative:.0%})": ours <= threshold,
        f"paired 95 % interval of the gain {low:.4g} to {high:.4g} excludes zero": low > 0,
        f"gain {gain:.4g} beyond the seed spread {spread:.4g}": gain > spread,
    }
    passed = all(tests.values())
    sentence = "; ".join(f"{text}: {'yes' if ok else 'no'}" for text, ok in tests.items())
    return GateResult(
        name,
        regime,
        "pass" if passed else "fail",
        f"{sentence}; {literal.sentence}",
        ours,
        theirs,
        threshold,
        threshold - ours,
        spread,
    )


def _literal_line(rule: Improvement, regime: str, ours: float, theirs: float) -> GateResult:
    """The plan's own line, computed and shown whatever decides."""
    met = theirs - ours >= rule.literal
    sentence = (
        f"the plan's literal line (nrmse <= {rule.literal_reference - rule.literal:g}, a gain of "
        f"{rule.literal:g}): gain {theirs - ours:.4g}, {'met' if met else 'not met'}"
    )
    threshold = theirs - rule.literal
    answer: Answer = "pass" if met else "fail"
    return GateResult("improvement", regime, answer, sentence, ours, theirs, threshold, threshold - ours)


def no_regression_gate(candidate: EvaluationRecord, reference: EvaluationRecord, regime: str) -> GateResult:
    """Off the headline regime: not worse beyond noise."""
    problem = incomparable(candidate, reference)
    ours, theirs = (_metric(record, regime, "nrmse") for record in (candidate, reference))
    for reason in (problem, ours, theirs):
        if isinstance(reason, str):
            return GateResult("no_regression", regime, "not_evaluable", reason)
    paired = paired_interval(candidate.result.regimes[regime], reference.result.regimes[regime])
    if paired is None:
        return GateResult(
            "no_regression", regime, "not_evaluable", "the two evaluations do not share their groups"
        )
    worse = paired[1] < 0
    sentence = f"{ours:.4g} against {theirs:.4g}; paired 95 % interval of the gain {paired[0]:.4g} to {paired[1]:.4g}"
    return GateResult(
        "no_regression", regime, "fail" if worse else "pass", sentence, float(ours), float(theirs)
    )


def telling(gates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gates as dictionaries, without hard aborts that only repeat the gate of their metric.

    An abort is the looser line of the same ratio: where the stricter one passed (or could not
    be asked for the same reason) it says nothing new, unless only noise excuses it as well. A failing
    gate keeps its abort beside it.
    """
    answers = {(gate["name"], gate["regime"]): gate["answer"] for gate in gates}
    return [
        dict(gate)
        for gate in gates
        if not gate["name"].startswith(HARD_ABORT)
        or gate["answer"] == "fail"
        or crossed(gate)
        or answers.get((gate["name"].removeprefix(HARD_ABORT), gate["regime"])) != gate["answer"]
    ]


def crossed(gate: Mapping[str, Any]) -> bool:
    """Whether a gate as journalled passes across its line, within noise; journals from before kept the margin alone."""
    margin = gate.get("margin")
    before = gate["answer"] == "pass" and margin is not None and margin < 0
    return bool(gate.get("within_noise", before))


def answer_words(gate: Mapping[str, Any]) -> str:
    """The answer as it is shown: a pass that noise alone excuses never looks like a plain one."""
    if not crossed(gate):
        return str(gate["answer"]).replace("_", " ")
    return f"{'above' if gate['value'] > gate['threshold'] else 'below'} the line, within noise"


def ensemble_conditions(regime: RegimeResult) -> int | None:
    """Initial conditions that ensembles were asked for, as far as the record tells."""
    draws = regime.draws.get("ece")
    return None if draws is None else draws.groups


def crossings(
    gates: Sequence[Mapping[str, Any]], candidate: EvaluationRecord, *, against: str = "the baseline's"
) -> list[str]:
    """What the passes within noise come to, in words: how far across the plan's line, on how little."""
    found = {(gate["name"], gate["regime"]): gate for gate in gates if crossed(gate)}
    told = []
    for (name, regime), gate in found.items():
        if name.startswith(HARD_ABORT):
            continue
        value, reference = gate["value"], gate["reference"]
        much = f"{value / reference:.1f}x {against}" if reference else f"{value:.2g}"
        side = "above" if value > gate["threshold"] else "below"
        abort = " and its hard abort's" if (f"{HARD_ABORT}{name}", regime) in found else ""
        conditions = ensemble_conditions(candidate.result.regimes[regime])
        few = "" if conditions is None else f" on {conditions} conditions"
        told.append(f"{name} {much} ({regime}), {side} the plan's line{abort}, called noise{few}")
    return told


def seed_spread(seeds: Sequence[EvaluationRecord], regime: str) -> float | None:
    """Standard deviation of the baseline's nrmse over >= 3 seeds of one protocol."""
    if len({record.result.protocol.hash for record in seeds}) > 1:
        return None
    values = [v for v in (_metric(record, regime, "nrmse") for record in seeds) if isinstance(v, float)]
    return float(np.std(values, ddof=1)) if len(values) >= 3 and len(values) == len(seeds) else None


def paired_interval(candidate: RegimeResult, reference: RegimeResult) -> tuple[float, float] | None:
    """95 % bootstrap interval over groups of (reference - candidate): positive is a gain."""
    if candidate.groups != reference.groups or len(candidate.groups) < 2:
        return None
    ours, theirs = candidate.per_group.get("nrmse"), reference.per_group.get("nrmse")
    if ours is None or theirs is None or not len(ours) == len(theirs) == len(candidate.groups):
        return None
    low, high = bootstrap.paired_interval(np.asarray(ours), np.asarray(theirs), samples=BOOTSTRAP_SAMPLES)
    return None if math.isnan(low) else (low, high)


def _metric(record: EvaluationRecord, regime: str, name: str) -> float | str:
    """The value, or the reason there is none."""
    result = record.result.regimes.get(regime)
    if result is None:
        return f"{record.run_id} has no regime {regime}"
    metric = result.metrics.get(name)
    if metric is None:
        return f"{record.run_id} has no {name}"
    if not metric.applicable:
        return f"not applicable: {metric.reason}"
    if metric.value is None or not math.isfinite(metric.value):
        return f"{name} of {record.run_id} is missing{': ' + metric.reason if metric.reason else ''}"
    return float(metric.value)
