"""What rounds after the written ones run: proposed trials and live refinements, as words for the loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import ConfigurationError
from universal_simulator.sweep.continuation import Change, live_change
from universal_simulator.sweep.jobs import config_words
from universal_simulator.sweep.plan import Plan, Round, Search
from universal_simulator.sweep.proposals import propose
from universal_simulator.sweep.run_planning import Wish, identified
from universal_simulator.sweep.search import Box, Fact, ask_seed, box_of_trial, visible_facts, waits
from universal_simulator.sweep.state import Run, SweepState


def effective_config(plan: Plan, run: Run) -> dict[str, Any]:
    """The flattened effective config of a planned run."""
    words = config_words(plan, seed=run.seed, overrides=run.overrides)
    loaded = load_config(run.config, words, profile=plan.profile)
    return flatten(loaded.config.model_dump(mode="json"))


def proposed_trial(
    origin: str, round_name: str, search: Search, box: Box, facts: Sequence[Fact], *, seed_cv: float | None
) -> tuple[list[str], dict[str, Any]] | None:
    """(overrides, what the journal keeps) of the trial after `facts`; None while it must wait.

    origin: hash of the plan as its sweep began. An amended one would draw otherwise what is proposed after it.
    """
    trial = len(facts)
    if waits(facts, trial=trial, in_flight=search.in_flight):
        return None
    known, running = visible_facts(facts, trial=trial, in_flight=search.in_flight)
    today = box_of_trial(
        box, facts, trial=trial, trials=search.trials, in_flight=search.in_flight, width=search.width
    )
    proposal = propose(
        today,
        known,
        running,
        seed=ask_seed(origin, round_name, trial),
        seed_cv=seed_cv,
        startup=search.startup,
    )
    about = {
        "values": proposal.values,
        "how": proposal.how,
        "at_bound": list(proposal.at_bound),
        "box": {p.key: [p.low, p.high] for p in today.parameters},
        "recentred": today.recentred,
    }
    return [f"{key}={value!r}" for key, value in proposal.values.items()], about


def planned_refinements(state: SweepState, round_: Round, base: Run) -> list[Change]:
    """Each refinement of the plan as it can act on the base; memory as it was measured there.

    One that makes no valid config of this base, or one that has run already, is refused in words.
    """
    effective, record = effective_config(state.plan, base), state.record(base.run_id)
    measured = record.training.peak_memory_gib if record and record.training else None
    changes = []
    for wanted in round_.refinements:
        change = live_change(
            wanted.name,
            wanted.set,
            effective,
            peak_memory_gib=measured,
            memory_limit_gib=wanted.memory_limit_gib,
        )
        if change.refused is None:
            words = (*base.overrides, *change.words)
            wish = Wish(base.config, base.seed, "refinement", round_.name, base.cost, words)
            try:
                identified(state.plan, [wish], data_identity=state.data_identity, known=state.runs)
            except ConfigurationError as error:
                change = replace(change, refused="; ".join(error.faults))
        changes.append(change)
    return changes
