"""Three lines per run, composed from its figures: what changed, why it helped or hurt, what next."""

from __future__ import annotations

from typing import Any

from universal_simulator.configuration.documents import flatten
from universal_simulator.run_record import EvaluationRecord, RunRecord
from universal_simulator.sweep.early_stop import STOPPED_EARLY
from universal_simulator.sweep.rounds import indistinguishable
from universal_simulator.sweep.state import SweepState

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
    validation = record.training.result.validation
    still = validation["best_step"] == record.training.result.optimiser_steps
    return (
        f"{effect}: nrmse {_value(ours, regime, 'nrmse'):.4f} against "
        f"{_value(theirs, regime, 'nrmse'):.4f} ({gain:+.0%} gain, {regime}, {suite}) at {flops:.1f} x the "
        f"training FLOPs; one step {_value(ours, regime, 'nrmse_step'):.4f} against "
        f"{_value(theirs, regime, 'nrmse_step'):.4f}, codec floor {_value(ours, regime, 'reconstruction'):.4f} against "
        f"{_value(theirs, regime, 'reconstruction'):.4f}; best at its {'last' if still else 'earlier'} validation"
    )


def _next(state: SweepState, record: RunRecord, baseline: RunRecord) -> str:
    suite = "full_eval" if "full_eval" in record.evaluations else "small_eval"
    evaluation = record.evaluations.get(suite)
    assert record.training
    if evaluation is None:
        return "evaluate it"
    regime = state.plan.headline_regime
    total, floor = _value(evaluation, regime, "nrmse"), _value(evaluation, regime, "reconstruction")
    if floor > total / 3:
        return "the codec is the floor: more tokens or a wider decoder before anything else"
    if record.training.result.validation["best_step"] == record.training.result.optimiser_steps:
        return "still improving when it stopped: train longer before changing anything else"
    if _value(evaluation, regime, "nrmse_step") < total / 3:
        return "single steps are good, rollouts drift: longer rollouts in training"
    return "single steps limit it: a larger operator or a better optimised one"


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
