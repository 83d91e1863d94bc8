"""Rounds after the written ones as the sweep's page tells them, and what placebos say of the gate."""

from __future__ import annotations

from typing import Any

from universal_simulator.sweep.continuation import false_promotions
from universal_simulator.sweep.plan import Round
from universal_simulator.sweep.rounds import headline_value
from universal_simulator.sweep.state import SweepState

#: runs that a round of any kind may promote
CANDIDATES = ("member", "trial", "refinement")
#: events of a round that its part of the page is made of
KINDS = (
    "round_skipped",
    "round_opened",
    "refinements",
    "placebo",
    "confirmation",
    "inference_scored",
    "round_ended",
)


def later_rounds(state: SweepState) -> list[dict[str, Any]]:
    """One entry for each round of kind search or refine: what it stood on, tried and came to."""
    return [_told(state, round_) for round_ in state.plan.rounds if round_.kind != "members"]


def placebo_sentence(state: SweepState) -> str | None:
    """The running rate of false promotions; None where no round has a placebo."""
    if not any(round_.placebo for round_ in state.plan.rounds):
        return None
    latest = {event.data["run"]: event.data for event in state.journal.of("placebo")}
    return false_promotions([bool(data["void"]) for data in latest.values() if data["judged"]]).sentence


def _told(state: SweepState, round_: Round) -> dict[str, Any]:
    data = {
        kind: event.data
        for kind in KINDS
        for event in state.journal.of(kind)
        if event.data.get("round") == round_.name
    }
    # one that was skipped and opens later was asked again
    skipped = None if "round_opened" in data else data.get("round_skipped")
    ended = data.get("round_ended")
    if skipped is not None:
        outcome, sentence = "skipped", skipped["reason"]
    elif ended is not None:
        outcome, sentence = ended["outcome"], ended["sentence"]
    else:
        outcome, sentence = (
            ("begun", "not ended yet") if "round_opened" in data else ("waiting", "not begun yet")
        )
    values = state.evaluations("small_eval")
    tried = []
    for run in state.runs:
        if run.round == round_.name and run.role in (*CANDIDATES, "placebo", "confirmation"):
            about = state.about(run.run_id)
            found = values.get(run.run_id)
            tried.append(
                {
                    "run": run,
                    "how": about.get("how", ""),
                    "at_bound": ", ".join(about.get("at_bound", ())),
                    "moved": about.get("recentred", False),
                    "nrmse": headline_value(found, state.plan.headline_regime) if found else None,
                    "failed": state.failed(f"train:{run.run_id}"),
                }
            )
    changes = data.get("refinements", {}).get("changes", [])
    left_out = [f"{key}: {why}" for key, why in data.get("round_opened", {}).get("left_out", {}).items()]
    left_out += [f"{c['name']}: {key}: {why}" for c in changes for key, why in c["left_out"].items()]
    left_out += [f"{c['name']}: {c['refused']}" for c in changes if c["refused"]]
    return {
        "round": round_,
        "base": data.get("round_opened", {}).get("base"),
        "outcome": outcome,
        "sentence": sentence,
        "tried": tried,
        "left_out": left_out,
        "placebo": data.get("placebo", {}).get("sentence"),
        "confirmation": data.get("confirmation", {}).get("sentence"),
        "scored": _scored(state, data.get("inference_scored")),
    }


def _scored(state: SweepState, data: dict[str, Any] | None) -> dict[str, Any] | None:
    """What keys without training are worth, with the seconds of the job that scored them."""
    return None if data is None else {**data, "seconds": state.seconds_by_job().get(data["job"], 0.0)}
