"""Three lines per run, composed from its figures: what changed, why it helped or hurt, what next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from universal_simulator.configuration.documents import flatten
from universal_simulator.run_record import EvaluationRecord, RunFolder, RunRecord
from universal_simulator.sweep.early_stop import STOPPED_EARLY
from universal_simulator.sweep.rounds import indistinguishable
from universal_simulator.sweep.state import REFERENCE_ROLES, Run, SweepState

#: they change nothing of the headline's nrmse
_SILENT = ("name", "tags", "seed", "tracking.", "ttc.", "steady_prior.")
#: nor do these where the headline is deterministic: counted, not listed
_STOCHASTIC = (
    "training.diff_residual.",
    "training.consistency_distill.",
    "model.corrector.",
    "model.member_representations",
)


def verdict(state: SweepState, run_id: str) -> list[str]:
    record = state.record(run_id)
    if record is None or record.training is None:
        job = f"train:{run_id}"
        reason = record.failure if record and record.failure else "it has not finished"
        if state.failed_for_good(job) and state.last_words(job).startswith(STOPPED_EARLY):
            return [
                f"changed: {_words(state, run_id)}",
                f"why: {state.last_words(job)}",
                "next: another change",
            ]
        return [f"changed: unknown, {reason}", "why: no figures", "next: mend the failure and run it again"]
    baseline = next((r for r in map(state.record, state.baselines()) if r and r.training), None)
    if baseline is None or run_id in state.baselines():
        return _baseline_lines(state, run_id)
    return [
        "changed: " + changed(record, baseline),
        "why: " + _why(state, record, baseline),
        "next: " + _next(state, record, baseline),
    ]


def _words(state: SweepState, run_id: str) -> str:
    """What of a run is known without its record."""
    run = state.run(run_id)
    return "unknown" if run is None else " ".join([run.config, *run.overrides])


def changed(record: RunRecord, baseline: RunRecord) -> str:
    """Effective values that differ from the baseline's."""
    assert record.training is not None
    assert baseline.training is not None
    ours = flatten(record.training.result.effective_config)
    theirs = flatten(baseline.training.result.effective_config)
    different = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not key.startswith(_SILENT)
    ]
    unread = [
        key
        for key in different
        if key.startswith(_STOCHASTIC) and ours.get("evaluation.headline") == "deterministic"
    ]
    parts = [
        f"{key.removeprefix('training.').removeprefix('model.options.')} {_short(theirs.get(key))} -> {_short(ours.get(key))}"
        for key in different
        if key not in unread
    ]
    if unread:
        parts.append(f"{len(unread)} settings of the stochastic stages, which the headline does not read")
    return "; ".join(parts) or "nothing"


def _why(state: SweepState, record: RunRecord, baseline: RunRecord) -> str:
    suite = "full_eval" if "full_eval" in record.evaluations else "small_eval"
    ours, theirs = (r.evaluations.get(suite) for r in (record, baseline))
    if ours is None or theirs is None:
        return "it was not evaluated"
    assert record.training is not None
    assert baseline.training is not None
    regime = state.plan.headline_regime
    gain = 1 - _value(ours, regime, "nrmse") / _value(theirs, regime, "nrmse")
    effect = "helped" if gain > 0 else "hurt"
    if indistinguishable(ours, theirs, regime):
        effect = "indistinguishable from the baseline (the paired 95 % interval holds zero)"
    flops = record.training.result.compared_flops / baseline.training.result.compared_flops
    return (
        f"{effect}: nrmse {_value(ours, regime, 'nrmse'):.4f} against "
        f"{_value(theirs, regime, 'nrmse'):.4f} ({gain:+.0%} gain, {regime}, {suite}) at {flops:.1f} x the "
        f"training FLOPs; one step {_value(ours, regime, 'nrmse_step'):.4f} against "
        f"{_value(theirs, regime, 'nrmse_step'):.4f}, codec floor {_value(ours, regime, 'reconstruction'):.4f} against "
        f"{_value(theirs, regime, 'reconstruction'):.4f}"
    )


def _next(state: SweepState, record: RunRecord, baseline: RunRecord) -> str:
    suite = "full_eval" if "full_eval" in record.evaluations else "small_eval"
    evaluation, run = record.evaluations.get(suite), state.run(record.run_id)
    if evaluation is None or run is None:
        return "evaluate it"
    if run.role in REFERENCE_ROLES:
        return "nothing to change: it shows what candidates are worth"
    regime = state.plan.headline_regime
    total, floor, step = (
        _value(evaluation, regime, name) for name in ("nrmse", "reconstruction", "nrmse_step")
    )
    if floor > total / 3:
        told = (
            f"the codec is the floor ({floor / total:.0%} of the nrmse): more tokens or a wider decoder first"
        )
    elif rates := _rates(state, run, record, baseline):
        told = rates
    elif step < total / 3:
        told = (
            f"one step errs by {step / total:.0%} of the rollout, which drifts: longer rollouts in training"
        )
    else:
        told = f"single steps limit it ({step / total:.0%} of the nrmse): a larger operator or a better optimised one"
    late = [
        late_gain(RunFolder(state.folder, item.run_id).metrics_log("operator")) for item in (record, baseline)
    ]
    if late[0] is None:
        return told
    beside = "" if late[1] is None else f" (the baseline's {late[1]:.0%})"
    return f"{told}; the last quarter of its operator stage lowered the validation error by {late[0]:.0%}{beside}"


def _rates(state: SweepState, run: Run, record: RunRecord, baseline: RunRecord) -> str | None:
    """Which way the learning rate wants to go, where the round tried several and this run changed no model."""

    def config(item: RunRecord) -> dict[str, Any]:
        return flatten(item.training.result.effective_config) if item.training else {}

    key, regime = "training.operator.learning_rate", state.plan.headline_regime
    ours, theirs = config(record), config(baseline)
    models = [{k: v for k, v in c.items() if k.startswith("model.options.")} for c in (ours, theirs)]
    if key not in ours or ours[key] == theirs.get(key) or models[0] != models[1]:
        return None
    tried = {}
    for other in state.runs:
        peer = state.record(other.run_id) if other.round == run.round and other.role == run.role else None
        if peer is not None and peer.training is not None and "small_eval" in peer.evaluations:
            tried[float(config(peer).get(key, "nan"))] = _value(
                peer.evaluations["small_eval"], regime, "nrmse"
            )
    if len(tried) < 2:
        return None
    listed = ", ".join(f"{rate:.3g}: {value:.4f}" for rate, value in sorted(tried.items()))
    best, rates = min(tried, key=lambda rate: tried[rate]), sorted(tried)
    way = (
        "higher still"
        if best == rates[-1]
        else "lower still"
        if best == rates[0]
        else "between its neighbours"
    )
    side = "too low" if ours[key] < best else "too high" if ours[key] > best else "the best"
    return f"of the rates of round {run.round} ({listed}) this one is {side}: try {way if side == 'the best' else f'{best:.3g}, or {way}'}"


def late_gain(log: Path) -> float | None:
    """Share by which the last quarter of a stage lowered its validation error; None where no curve is kept.

    Whichever weights were better counts at each validation. Negative: it rose.
    """
    if not log.exists():
        return None
    curve: dict[int, float] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue  # a torn last line of a killed run
        found = [values[k] for k in ("validation_raw", "validation_ema") if isinstance(values.get(k), float)]
        if found:
            curve[int(values["step"])] = min(found)
    end = max(curve, default=0)
    before = [step for step in curve if step <= 0.76 * end]
    if not before or not curve[max(before)] > 0:
        return None
    return 1 - curve[end] / curve[max(before)]


def _baseline_lines(state: SweepState, run_id: str) -> list[str]:
    seeds = [r for r in map(state.record, state.baselines()) if r and "small_eval" in r.evaluations]
    values = [_value(r.evaluations["small_eval"], state.plan.headline_regime, "nrmse") for r in seeds]
    listed = ", ".join(f"{v:.4f}" for v in values)
    return [
        "changed: nothing, this is the baseline",
        f"why: its seeds score {listed} (small-eval): that spread is the noise every gain must exceed",
        "next: it is what the rounds are measured against",
    ]


def _value(evaluation: EvaluationRecord, regime: str, name: str) -> float:
    value = evaluation.result.regimes[regime].metrics[name].value
    return float("nan") if value is None else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
