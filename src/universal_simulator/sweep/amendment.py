"""What of a plan may change while its sweep is under way: what is still to be paid, and what is still to come.

A past that was edited is refused with the difference: gates, members and hypotheses were journalled
before their results were known, and stay so.
"""

from __future__ import annotations

from typing import Any

from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import UserError
from universal_simulator.sweep.jobs import decides_nothing
from universal_simulator.sweep.plan import Plan
from universal_simulator.sweep.state import SweepState

#: top keys of a plan that decide nothing about results
OPEN_KEYS = ("max_hours", "budget", "machines", "stall_timeout_s", "open_test_for_champion", "test_openings")


def amend(state: SweepState, given: Plan) -> None:
    """Journal the difference to the plan of this sweep, and go on with it; refuse an edited past."""
    stored = state.plan
    if stored.hash == given.hash:
        return
    past = difference(_with_open_parts(stored, given), given)
    if past:
        raise UserError(
            f"{state.folder} belongs to another plan; a sweep under way accepts another "
            f"{', '.join(OPEN_KEYS)} and appended rounds, not an edited past:\n{past}"
        )
    appended = given.rounds[len(stored.rounds) :]
    late = [round_.name for round_ in appended if round_.kind == "members"]
    if late and state.decision("small_eval_gates") is not None:
        raise UserError(
            f"round {', '.join(late)}: rounds of members are compared with each other, and the gates of this "
            "sweep are decided; append a round of kind search or refine, or start a new folder"
        )
    jobs, decisions, rounds = _reopened(state, given)
    if appended or decisions or rounds:
        _refuse_unasked_opening(state, given)
    state.journal.append(
        "plan_amended",
        difference=difference(stored, given),
        appended=[round_.name for round_ in appended],
        reopened_jobs=jobs,
        reopened_decisions=decisions,
        reopened_rounds=rounds,
        plan=given.model_dump(mode="json"),
        plan_hash=given.hash,
    )
    state.read_plan()


def _reopened(state: SweepState, given: Plan) -> tuple[list[str], bool, list[str]]:
    """Jobs that a ceiling refused and another budget lets ask again, whether decisions are taken again for them,
    and rounds that were skipped as not affordable.

    Those of written rounds come again until a round stands on the champion that was chosen without them; those of
    a later round until its gates were asked. An opened test split may always be looked at by whom it was opened for.
    """
    keys = ("budget", "max_hours", "machines")
    if all(getattr(state.plan, key) == getattr(given, key) for key in keys):
        return [], False, []
    later = [round_.name for round_ in state.plan.rounds if round_.kind != "members"]
    rounds = [
        name for name in later if not (state.skipped(name) or {"affordable": True}).get("affordable", True)
    ]
    decided = {e.data["round"] for kind in ("round_gates", "round_ended") for e in state.journal.of(kind)}
    written, others = [], []
    for job in state.refused_by_ceilings():
        run = state.run(job.partition(":")[2])
        if run is None or decides_nothing(job):
            continue
        if job.startswith("test:") or (run.round in later and run.round not in decided):
            others.append(job)
        elif run.round not in later and not state.journal.of("round_opened"):
            written.append(job)
    return [*written, *others], bool(written), rounds


def _refuse_unasked_opening(state: SweepState, given: Plan) -> None:
    """What is decided after the sealed split was opened leads to another look at it: only where asked for."""
    openings = len(state.journal.of("test_opened"))
    if openings and given.open_test_for_champion and openings >= given.test_openings:
        raise UserError(
            f"the sealed test split of {state.folder} was opened {openings} time(s), and a champion of what "
            f"is appended or asked again would open it again: say test_openings: {openings + 1} in the plan if that is "
            "wanted (every row then shows the count), or open_test_for_champion: false to go on without"
        )


def _with_open_parts(stored: Plan, given: Plan) -> Plan:
    """The stored plan with what it may take over from the given one: what then differs is its past."""
    taken: dict[str, Any] = {key: getattr(given, key) for key in OPEN_KEYS}
    if given.rounds[: len(stored.rounds)] == stored.rounds:
        taken["rounds"] = given.rounds
    return stored.model_copy(update=taken)


def difference(stored: Plan, given: Plan) -> str:
    """The first keys in which two plans differ, a line each; empty where they do not."""
    before, after = (flatten(_by_name(plan)) for plan in (stored, given))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return "\n".join(f"  {key}: {before.get(key)!r} there, {after.get(key)!r} given" for key in keys[:10])


def _by_name(plan: Plan) -> dict[str, Any]:
    """Rounds by their names, so that an edited one shows its keys and an appended one itself."""
    values = plan.model_dump(mode="json")
    return {**values, "rounds": {round_["name"]: round_ for round_ in values["rounds"]}}
