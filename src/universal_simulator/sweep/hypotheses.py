"""A round's numeric forecast, held against what its best member came to and against the noise."""

from __future__ import annotations

from typing import Any

from universal_simulator.run_record import EvaluationRecord
from universal_simulator.sweep.gates import paired_interval
from universal_simulator.sweep.plan import Round
from universal_simulator.sweep.round_report import CANDIDATES
from universal_simulator.sweep.rounds import headline_value, score_forecast
from universal_simulator.sweep.state import SweepState


def scored_forecasts(state: SweepState) -> list[dict[str, Any]]:
    """One line a round that has something to be compared with: answer in words, its colour, the sentence."""
    found = [_scored(state, round_) for round_ in state.plan.rounds]
    return [line for line in found if line is not None]


def _scored(state: SweepState, round_: Round) -> dict[str, Any] | None:
    """The best member, judged on full-eval where one got there, against what the round started from: the mean
    of the baseline's seeds, or the champion of that moment.

    A reduction that the improvement gate of the same run and suite calls noise is no forecast come true.
    """
    regime = state.plan.headline_regime
    suites = {suite: state.evaluations(suite) for suite in ("full_eval", "small_eval")}
    members = [r.run_id for r in state.runs if r.role in CANDIDATES and r.round == round_.name]
    opened = [e for e in state.journal.of("round_opened") if e.data["round"] == round_.name]
    base = [event.data["base"] for event in opened]
    suite = next((s for s, e in suites.items() if any(run in e for run in members)), "small_eval")
    found = suites[suite]
    compared = [run for run in (base if round_.kind != "members" else state.baselines()) if run in found]
    if not compared:
        return None
    seeds = [headline_value(found[run], regime) for run in compared]
    scored = sorted((headline_value(found[run], regime), run) for run in members if run in found)
    answer, text = score_forecast(round_, scored[0][0] if scored else None, sum(seeds) / len(seeds))
    words, colour = answer.replace("_", " "), str(answer)
    if text.endswith("more than forecast"):
        words, colour = "exceeded", "not_evaluable"
    if scored:
        relative = round_.forecast.relative_reduction is not None
        against = f"the mean of {len(seeds)} seeds" if round_.kind == "members" else base[0]
        text += f" ({scored[0][1]}, {suite.replace('_', '-')}{f', against {against}' if relative else ''})"
        told = _noise(state, found, scored[0][1], compared[0], suite) if relative else None
        if told is not None:
            text += f"; {told[1]}"
            if told[0] and words in ("pass", "exceeded"):
                words, colour = "within noise", "within_noise"
    return {
        "round": round_.name,
        "hypothesis": round_.hypothesis,
        "words": words,
        "colour": colour,
        "text": text,
    }


def _noise(
    state: SweepState, found: dict[str, EvaluationRecord], run: str, reference: str, suite: str
) -> tuple[bool, str] | None:
    """Whether the gain over what the gates compare with is noise, and that gain in words; None without a gate."""
    later = [e.data["gates"] for e in state.journal.of("round_gates") if e.data["suite"] == suite]
    gates = next((told[run] for told in (state.gates(suite), *later) if run in told), ())
    gate = next((g for g in gates if g["name"] == "improvement" and g["value"] is not None), None)
    if gate is None or not gate["reference"]:
        return None
    regime, gain = state.plan.headline_regime, gate["reference"] - gate["value"]
    paired = paired_interval(found[run].result.regimes[regime], found[reference].result.regimes[regime])
    noise = gate["answer"] != "pass" and (
        paired is None or paired[0] <= 0 or (gate["noise"] is not None and gain <= gate["noise"])
    )
    end = f"{gate['answer'].replace('_', ' ')}{', not beyond noise' if noise else ''}"
    return (
        noise,
        f"{gain / gate['reference']:.1%} lower than {reference}, which its improvement gate compares with: {end}",
    )
