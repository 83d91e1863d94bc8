"""`reports/sweep.html`: who won, why each run was kept or rejected, at what cost."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from universal_simulator.run_record import EvaluationRecord, Metric, RunRecord, write_atomically
from universal_simulator.sweep.baseline_scores import EVENT as SCORED
from universal_simulator.sweep.compute import compute_matches, compute_rows, rule_sentence
from universal_simulator.sweep.early_stop import STOPPED_EARLY
from universal_simulator.sweep.fates import fate, outcome, round_sentences
from universal_simulator.sweep.forecast import outcomes
from universal_simulator.sweep.gates import (
    answer_words,
    crossed,
    ensemble_conditions,
    paired_interval,
    seed_spread,
    telling,
)
from universal_simulator.sweep.hypotheses import scored_forecasts
from universal_simulator.sweep.round_report import later_rounds, placebo_sentence
from universal_simulator.sweep.rounds import (
    headline_value,
    rung,
    tier_results,
)
from universal_simulator.sweep.state import Run, SweepState
from universal_simulator.sweep.students import students_sentence
from universal_simulator.sweep.verdicts import verdict

#: a page shows so many runs at most; the leaderboard has them all
PAGE_RUNS = 100


def report_path(folder: Path) -> Path:
    return folder / "reports" / "sweep.html"


def write_sweep_report(state: SweepState) -> Path:
    path = report_path(state.folder)
    write_atomically(path, _template().render(**_context(state)))
    return path


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("universal_simulator.sweep"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["number"] = _number
    return environment.get_template("sweep.html")


def _context(state: SweepState) -> dict[str, Any]:
    records = state.records()
    champion = state.decision("champion")
    small, full = state.evaluations("small_eval"), state.evaluations("full_eval")
    regimes = sorted({regime for e in small.values() for regime in e.result.regimes})
    promoted = {
        item["run_id"]: item["reason"]
        for item in (state.decision("promotions") or {"promoted": []})["promoted"]
    }
    shown, compute = _shown(state, promoted), compute_rows(state)
    names = {run.run_id for run in shown}
    return {
        "plan": state.plan,
        "num_runs": len(state.runs),
        "later_rounds": later_rounds(state),
        "placebos": placebo_sentence(state),
        "champion": champion,
        "outcome": outcome(state),
        "round_sentences": list(round_sentences(state).values()),
        "fates": {run.run_id: fate(state, run.run_id) for run in shown},
        "students": students_sentence(records),
        "scored": [event.data for event in state.journal.of(SCORED)][-1:],
        "rung": rung(state.plan, headline_value(full[champion["champion"]], state.plan.headline_regime))
        if champion and champion["champion"] in full
        else None,
        "regimes": regimes,
        "rows": [{"run": run} for run in shown],
        "tables": {regime: _tables(state, shown, regime) for regime in regimes},
        "gates": {
            suite: {
                run: [_shown_gate(g) for g in telling(gates)] for run, gates in state.gates(suite).items()
            }
            for suite in ("small_eval", "full_eval")
        },
        "tiers": tier_results(state.plan, records[champion["champion"]], records[champion["baseline"]])
        if champion
        else [],
        "forecasts": scored_forecasts(state),
        "verdicts": {run.run_id: verdict(state, run.run_id) for run in shown},
        "healed": [e.data for e in state.journal.of("run_healed")],
        "outcomes": outcomes(state),
        "stalls": [e.data for e in state.journal.of("job_stalled")],
        "ablations": _ablations(state),
        "seeds": _seeds(state),
        "charts": {
            regime: _bars(state, shown, regime, champion["champion"] if champion else None)
            for regime in regimes
        },
        "seconds": state.seconds_spent,
        "wall_s": _wall_s(state),
        "compute": [row for row in compute if row.run_id in names],
        "compute_rule": rule_sentence(compute),
        "compute_matches": compute_matches(state),
        "openings": [event.data for event in state.journal.of("test_opened")],
        "unopened": _unopened(state, champion),
        "test": {run: e for run, e in state.evaluations("test").items()},
        "failed": [
            e.data for e in state.journal.of("job_given_up") if not e.data["log"].startswith(STOPPED_EARLY)
        ],
    }


def _shown_gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """A gate with its answer in words and the colour of them."""
    return {
        **gate,
        "words": answer_words(gate),
        "colour": "within_noise" if crossed(gate) else gate["answer"],
    }


def _unopened(state: SweepState, champion: Mapping[str, Any] | None) -> str | None:
    """Why the champion of now has no figure on the sealed split although others have, or None."""
    openings = state.journal.of("test_opened")
    if champion is None or not openings or any(champion["champion"] in e.data["runs"] for e in openings):
        return None
    return (
        f"{champion['champion']} became champion afterwards and was not judged on it: the plan allows "
        f"{state.plan.test_openings} (test_openings)."
    )


def _shown(state: SweepState, promoted: Mapping[str, str]) -> list[Run]:
    """All runs, or of very many those that are compared with, decided about or best on small-eval."""
    runs, small = state.runs, state.evaluations("small_eval")
    if len(runs) <= PAGE_RUNS:
        return runs
    champions = {event.data["champion"] for event in state.journal.of("champion")}
    told = {r.run_id for r in runs if r.role != "member" or r.run_id in promoted or r.run_id in champions}
    others = {run: e for run, e in small.items() if run not in told}
    ranked = sorted((headline_value(e, state.plan.headline_regime), run) for run, e in others.items())
    told |= {run for _, run in ranked[: max(0, PAGE_RUNS - len(told))]}
    return [run for run in runs if run.run_id in told]


def _status(state: SweepState, run_id: str, record: RunRecord | None) -> str:
    job = f"train:{run_id}"
    if state.failed(job):
        return "stopped early" if state.last_words(job).startswith(STOPPED_EARLY) else "failed"
    return record.status if record else "not started"


def _tables(state: SweepState, shown: Sequence[Run], regime: str) -> list[dict[str, Any]]:
    """One table a suite, so that rows of different protocols never stand in one column.

    Small-eval's has a line for every run, with its status where it has no figures.
    """
    tables = []
    records = state.records()
    for suite in ("full_eval", "small_eval"):
        found = {run: e for run, e in state.evaluations(suite).items() if regime in e.result.regimes}
        runs = [run for run in shown if run.run_id in found or suite == "small_eval"]
        if runs and (found or suite == "small_eval"):
            protocol = next(iter(found.values())).result.protocol if found else None
            tables.append(
                {
                    "suite": suite.replace("_", "-"),
                    "protocol": protocol,
                    "rows": [_row(state, run, records.get(run.run_id), found, regime) for run in runs],
                    "references": _references(found).get(regime, {}),
                }
            )
    return tables


def _row(
    state: SweepState, run: Run, record: RunRecord | None, found: Mapping[str, EvaluationRecord], regime: str
) -> dict[str, Any]:
    evaluation = found.get(run.run_id)
    result = evaluation.result.regimes[regime] if evaluation else None
    conditions = ensemble_conditions(result) if result else None
    members = evaluation.result.predictor.members if evaluation else 1
    return {
        "run": run,
        "status": _status(state, run.run_id, record),
        "params": record.training.result.params if record and record.training else None,
        "metrics": result.metrics if result else None,
        "ensemble": f" ({members} x {conditions})" if conditions is not None else "",
    }


def _references(evaluations: Mapping[str, EvaluationRecord]) -> dict[str, dict[str, Metric]]:
    for evaluation in evaluations.values():
        return {
            regime: {name: rows[name]["nrmse"] for name in sorted(rows, key=_natural)}
            for regime, rows in evaluation.result.references.items()
        }
    return {}


def _natural(name: str) -> tuple[str, int]:
    """classical_64 before classical_128."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, 0)


def _wall_s(state: SweepState) -> float:
    """From the journal's first event to its last, pauses between sittings included."""
    first, last = (datetime.fromisoformat(state.journal.events[end].at) for end in (0, -1))
    return (last - first).total_seconds()


def _seeds(state: SweepState) -> list[dict[str, Any]]:
    """Mean and coefficient of variation of the baseline's nrmse over its seeds."""
    out = []
    for suite in ("small_eval", "full_eval"):
        evaluations = [e for run, e in state.evaluations(suite).items() if run in state.baselines()]
        for regime in evaluations[0].result.regimes if evaluations else ():
            values = [headline_value(e, regime) for e in evaluations]
            spread = seed_spread(evaluations, regime)
            mean = sum(values) / len(values)
            out.append(
                {
                    "suite": suite,
                    "regime": regime,
                    "values": values,
                    "mean": mean,
                    "cv": None if spread is None else spread / mean,
                }
            )
    return out


def _ablations(state: SweepState) -> list[dict[str, Any]]:
    """Each ablated run beside the whole one, same protocol, with the paired interval of the loss."""
    suites = {suite: state.evaluations(suite) for suite in ("full_eval", "small_eval")}
    run_of: dict[str, str] = {}
    for run in state.runs:
        run_of.setdefault(run.config, run.run_id)
    out = []
    for reference in state.plan.references:
        ablated, whole = run_of.get(reference.config), run_of.get(reference.ablates or "")
        shared = [s for s, e in suites.items() if ablated in e and whole in e]
        if not shared or ablated is None or whole is None:
            continue
        ours, theirs = suites[shared[0]][whole].result, suites[shared[0]][ablated].result
        for regime in ours.regimes:
            loss = paired_interval(ours.regimes[regime], theirs.regimes[regime])
            out.append(
                {
                    "run": ablated,
                    "whole": whole,
                    "suite": shared[0],
                    "regime": regime,
                    "with": ours.regimes[regime].metrics["nrmse"],
                    "without": theirs.regimes[regime].metrics["nrmse"],
                    "loss": loss,
                }
            )
    return out


def _bars(state: SweepState, shown: Sequence[Run], regime: str, champion: str | None) -> Markup:
    """Horizontal bars of nrmse with intervals (small-eval: the one suite every run has), log scale."""
    rows: list[tuple[str, float, float, float]] = []
    for run in shown:
        record = state.record(run.run_id)
        evaluation = record.evaluations.get("small_eval") if record else None
        metric = (
            evaluation.result.regimes[regime].metrics["nrmse"]
            if evaluation and regime in evaluation.result.regimes
            else None
        )
        if metric and metric.value:
            low, high = metric.low or metric.value, metric.high or metric.value
            rows.append((run.run_id, metric.value, low, high))
    if not rows:
        return Markup("")
    start = math.log10(min(low for _, _, low, _ in rows) / 1.3)
    end = math.log10(max(high for _, _, _, high in rows) * 1.3)

    def x(value: float) -> float:
        return 330 + 420 * (math.log10(value) - start) / (end - start)

    parts = [
        f'<svg viewBox="0 0 820 {22 * len(rows) + 8}" role="img" aria-label="nRMSE of every run, {escape(regime)}">'
    ]
    for index, (run_id, value, low, high) in enumerate(rows):
        y = 16 + 22 * index
        colour = "#b5541c" if run_id == champion else "#1f4e79"
        parts.append(
            f'<text x="322" y="{y + 4}" text-anchor="end" font-size="11">{escape(run_id.rsplit("-", 1)[0])}</text>'
        )
        parts.append(
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x(high) + 6:.1f}" y="{y + 4}" font-size="11" fill="#555">{value:.4f}</text>')
    return Markup("".join(parts) + "</svg>")


def _number(value: Any, digits: int = 4) -> str:
    if value is None:
        return "-"
    if isinstance(value, Metric):
        if not value.applicable:
            return "n/a"
        value = value.value
        if value is None:
            return "missing"
    return f"{value:.{digits}g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.{digits}f}"
