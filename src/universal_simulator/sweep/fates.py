"""Why each run was kept or rejected, and what each round decided: one sentence each, from the decisions alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from universal_simulator.run_record import EvaluationRecord
from universal_simulator.sweep.early_stop import STOPPED_EARLY
from universal_simulator.sweep.gates import HARD_ABORT, crossed, crossings, paired_interval
from universal_simulator.sweep.jobs import training_id
from universal_simulator.sweep.plan import Round
from universal_simulator.sweep.round_report import CANDIDATES, later_rounds
from universal_simulator.sweep.rounds import headline_value
from universal_simulator.sweep.state import REFERENCE_ROLES, Run, SweepState

#: of a gate that lets nobody through
BLOCKING = ("fail", "not_evaluable")


def outcome(state: SweepState) -> str:
    """Who won and on what terms; why the sweep ended before, if it did."""
    champion = state.decision("champion")
    sentence = str(champion["sentence"]) if champion else "The sweep has not reached a champion yet."
    full = state.evaluations("full_eval")
    if champion and champion["champion"] in full:
        gates = state.gates("full_eval").get(champion["champion"], [])
        told = crossings(gates, full[champion["champion"]])
        # a journal from before wrote "every gate passed" alone
        sentence += "".join(f" Across a line: {words}." for words in told if words not in sentence)
    ends = [e for e in state.journal.events if e.kind in ("sweep_stopped", "sweep_finished")]
    if ends and ends[-1].kind == "sweep_stopped":
        sentence += f" It was stopped: {ends[-1].data['reason']}."
    return sentence


def round_sentences(state: SweepState) -> dict[str, str]:
    """name of a round -> what it decided, in the order of the plan."""
    later = {told["round"].name: told for told in later_rounds(state)}
    return {
        r.name: f"Round {r.name}: {later[r.name]['outcome']}: {later[r.name]['sentence']}"
        if r.name in later
        else _written(state, r)
        for r in state.plan.rounds
    }


def _written(state: SweepState, round_: Round) -> str:
    """A round of members: whom it promotes, or what stopped all of them."""
    name = f"Round {round_.name}"
    void = _void(state, round_.name)
    if void is not None:
        return f"{name} is void: {void}"
    if state.decision("promotions") is None:
        return f"{name} is not decided yet"
    promoted = [
        f"{run} ({why})" for run, why in _promoted(state).items() if _round_of(state, run) == round_.name
    ]
    if promoted:
        return f"{name} promotes {', '.join(promoted)}"
    runs = [run.run_id for run in state.members(round_.name)]
    gates = state.gates("small_eval")
    counted = Counter(words for run in runs for words in _blocking(gates.get(run, ()), forced=False))
    stopped = ", ".join(f"{count} of {len(runs)} fail {words}" for words, count in counted.most_common())
    return f"{name} promotes nobody: {stopped or 'no member has a result'}"


def fate(state: SweepState, run_id: str) -> str:
    """kept, promoted or rejected, and by what; `not decided` while the sweep has not come so far."""
    run = state.run(run_id)
    assert run is not None, run_id
    champion = state.decision("champion")
    leader = champion["champion"] if champion else None
    if run_id == leader:
        return "kept: champion" + (", the baseline stays it" if run.role == "baseline" else "")
    if run.role == "baseline":
        return "kept: a seed of the baseline, which the rounds are measured against"
    if run.role in REFERENCE_ROLES:
        return f"kept: {run.role.replace('_', ' ')}, shown beside the candidates and none itself"
    if run.role not in CANDIDATES:
        return f"kept: {run.role} of round {run.round}, no candidate"
    healed = next((other.run_id for other in state.runs if other.parent == run_id), None)
    instead = f"; {healed} takes its place" if healed else ""
    if state.failed(training_id(run_id)):
        words = state.last_words(training_id(run_id))
        why = words if words.startswith(STOPPED_EARLY) else state.why_not(training_id(run_id))
        return f"rejected: {why}{instead}"
    if any(e.data["champion"] == run_id for e in state.journal.of("champion")):
        return f"promoted: champion until {leader}"
    found = _of_member(state, run, leader) if run.role == "member" else _of_later(state, run)
    return found + instead


def _of_member(state: SweepState, run: Run, leader: str | None) -> str:
    void, promoted = _void(state, run.round), _promoted(state)
    if void is not None:
        return f"rejected: its round is void: {void}"
    if state.decision("promotions") is None:
        return "not decided yet"
    if run.run_id in promoted:
        why = promoted[run.run_id]
        return f"promoted from round {run.round} ({why}){_after_full_eval(state, run.run_id, leader)}"
    forced = any(m.forced and m.key == run.key for r in state.plan.rounds for m in r.members)
    gates = state.gates("small_eval").get(run.run_id)
    rivals = [other for other in promoted if _round_of(state, other) == run.round]
    limit = next(r.promote for r in state.plan.rounds if r.name == run.round)
    return _rejected(state, run.run_id, gates, rivals, limit=limit, forced=forced)


def _of_later(state: SweepState, run: Run) -> str:
    """Of a search or refinement: its gates stand in events of the round, not of the sweep."""
    told = [e.data for e in state.journal.of("round_gates") if e.data["round"] == run.round]
    gates = {d["suite"]: d["gates"][run.run_id] for d in told if run.run_id in d["gates"]}
    ended = [e.data for e in state.journal.of("round_ended") if e.data["round"] == run.round]
    if not ended:
        return "not decided yet"
    if "full_eval" in gates:
        stopped = _blocking(gates["full_eval"], forced=False)
        why = f"fails {', '.join(stopped)} in full-eval" if stopped else ended[-1]["sentence"]
        return f"promoted from round {run.round} (best passing member), not champion: {why}"
    rivals = [e.data["champion"] for e in state.journal.of("champion") if e.data.get("round") == run.round][
        -1:
    ]
    if "small_eval" not in gates or not (rivals or _blocking(gates["small_eval"], forced=False)):
        return f"rejected: round {run.round}: {ended[-1]['sentence']}"
    return _rejected(state, run.run_id, gates["small_eval"], rivals, limit=1, forced=False)


def _rejected(
    state: SweepState,
    run_id: str,
    gates: Sequence[Mapping[str, Any]] | None,
    rivals: Sequence[str],
    *,
    limit: int,
    forced: bool,
) -> str:
    if not gates:
        return "rejected: it has no result to judge"
    stopped = _blocking(gates, forced=forced)
    if stopped:
        return f"rejected: fails {', '.join(stopped)}"
    if not rivals:
        return "rejected: passes every gate, but its round promoted nobody"
    number = "one" if limit == 1 else str(limit)
    told = "; ".join(_beside(state, run_id, rival, "small_eval") for rival in rivals)
    return f"rejected: passes every gate{_excused(gates)}, but its round promotes {number} and {told}"


def _after_full_eval(state: SweepState, run_id: str, leader: str | None) -> str:
    gates = state.gates("full_eval").get(run_id)
    if leader is None or gates is None:
        return ""
    stopped = _blocking(gates, forced=False)
    if stopped:
        return f", not champion: fails {', '.join(stopped)} in full-eval"
    told = _beside(state, run_id, leader, "full_eval")
    return f", not champion: passes every gate of full-eval{_excused(gates)}, but {told}"


def _beside(state: SweepState, run_id: str, rival: str, suite: str) -> str:
    """How a rival that was preferred compares, on the headline regime and wherever noise does not cover it."""
    headline = state.plan.headline_regime
    ours, theirs = (_evaluation(state, run, suite) for run in (run_id, rival))
    if ours is None or theirs is None:
        return f"{rival} was preferred"
    words = ""
    for regime in sorted(ours.result.regimes, key=lambda name: name != headline):
        if regime not in theirs.result.regimes:
            continue
        interval = paired_interval(theirs.result.regimes[regime], ours.result.regimes[regime])
        if interval is None:
            continue
        told = f"paired 95 % interval of its gain {interval[0]:.4f} to {interval[1]:.4f}"
        alike = interval[0] <= 0 <= interval[1]
        if regime == headline:
            words += f" ({told}: {'indistinguishable' if alike else 'beyond noise'})"
        elif not alike:
            words += f"; at {regime} {'it' if interval[0] > 0 else 'this run'} is lower beyond noise ({told})"
    lower = headline_value(theirs, headline) < headline_value(ours, headline)
    return (
        f"{rival} {'is lower' if lower else 'was preferred'}, nRMSE {headline_value(theirs, headline):.4f} against "
        f"{headline_value(ours, headline):.4f} in {suite.replace('_', '-')} at {headline}{words}"
    )


def _evaluation(state: SweepState, run_id: str, suite: str) -> EvaluationRecord | None:
    """Of one run: a sentence for each of thousands must not read the records of all."""
    record = state.record(run_id)
    return None if record is None else record.evaluations.get(suite)


def _blocking(gates: Sequence[Mapping[str, Any]], *, forced: bool) -> list[str]:
    """Which gates stop it, with their regimes; a hard abort beside its own gate says nothing more."""
    blocked = [g for g in gates if g["answer"] in BLOCKING and not (forced and g["name"] == "improvement")]
    names = {(g["name"], g["regime"]) for g in blocked}
    return [
        f"{g['name']} ({g['regime']}{', not evaluable' if g['answer'] == 'not_evaluable' else ''})"
        for g in blocked
        if not g["name"].startswith(HARD_ABORT)
        or (g["name"].removeprefix(HARD_ABORT), g["regime"]) not in names
    ]


def _excused(gates: Sequence[Mapping[str, Any]]) -> str:
    """Which of its passes noise alone excuses."""
    found = [
        f"{g['name']} ({g['regime']})" for g in gates if crossed(g) and not g["name"].startswith(HARD_ABORT)
    ]
    return f" (within noise alone: {', '.join(found)})" if found else ""


def _promoted(state: SweepState) -> dict[str, str]:
    decided = state.decision("promotions")
    return {item["run_id"]: item["reason"] for item in decided["promoted"]} if decided else {}


def _round_of(state: SweepState, run_id: str) -> str | None:
    run = state.run(run_id)
    return None if run is None else run.round


def _void(state: SweepState, round_name: str) -> str | None:
    """What a placebo that passed says of its round."""
    told = [e.data for e in state.journal.of("placebo") if e.data["round"] == round_name]
    return str(told[-1]["sentence"]) if told and told[-1]["void"] else None
