"""Which configs of a plan are measured, for which runs each measurement stands, and what stands where there is none.

A config that could not be measured is never expected to take nothing: with v the figures of a measured config and
c its `cost` in the plan, a run of cost C on the same machine is counted as the largest v / c times C, over all that
were measured on that machine (on any, where none was). Memory does not grow with cost: the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from universal_simulator.run_record import content_hash
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.jobs import log_path, resources, training_id
from universal_simulator.sweep.plan import Member, Plan
from universal_simulator.sweep.plan_checks import data_words
from universal_simulator.sweep.state import Run, SweepState

KIND = "calibrate"
#: what grows with the cost of a run
_WORK = ("train_s", "small_eval_s", "full_eval_s")


def calibration_jobs(plan: Plan, folder: Path) -> dict[str, Job]:
    """key of a calibration (`config words`) -> its job."""
    jobs = {}
    for member in measured_members(plan):
        key = calibration_key(member.config, member.overrides)
        name = f"{Path(member.config).stem}-{content_hash(key)[:6]}"
        words = ("calibrate", member.config, "--folder", str(folder), "--profile", plan.profile, "--json")
        jobs[key] = Job(
            f"{KIND}:{name}",
            (*words, *data_words(plan.dataset), *member.overrides),
            log_path(folder, f"{KIND}_{name}"),
            folder,
            resources(plan, member.machine),
        )
    return jobs


def calibration_key(config: str, overrides: Sequence[str]) -> str:
    return " ".join([config, *overrides])


def measured_members(plan: Plan) -> Iterable[Member]:
    yield Member(config=plan.baseline.config)
    yield from (peer for peer in plan.references if peer.compute_matched_to is None)
    for round_ in plan.rounds:
        yield from round_.members


def keys_for(plan: Plan, run: Run) -> tuple[str, ...]:
    """Calibrations that stand for a run, the best first: its own, its target's compute, or its config's."""
    if run.role == "compute_matched":
        targets = {peer.key: peer.compute_matched_to for peer in plan.references}
        return (targets.get(run.key) or "",)
    return calibration_key(run.config, run.overrides), run.key, run.config


def left_to_measure(state: SweepState) -> list[Job]:
    """All at first; afterwards those that would not fail again and that a run still to be trained would be weighed by."""
    jobs, told = calibration_jobs(state.plan, state.folder), state.decision("forecast")
    if told is None:
        return list(jobs.values())
    waiting = [run for run in state.runs if not state.done(training_id(run.run_id))]
    asked = [keys_for(state.plan, run) for run in waiting if not state.failed_for_good(training_id(run.run_id))]
    needed = {key for keys in asked if not any(key in told["measured"] for key in keys) for key in keys}
    return [job for key, job in jobs.items() if key in needed and not state.failed_for_good(job.job_id)]


def stand_in(plan: Plan, run: Run, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    """What a run is counted as whose config could not be measured; None where nothing at all was."""
    members = {calibration_key(m.config, m.overrides): m for m in reversed([*measured_members(plan)])}
    known = [(members[key], figures) for key, figures in measured.items() if key in members]
    known = [pair for pair in known if pair[0].machine == run.machine] or known
    if not known:
        return None
    work = {name: max(float(found[name]) / m.cost for m, found in known) * run.cost for name in _WORK}
    memory = max(float(found["peak_memory_gib"]) for _, found in known)
    return work | {"peak_memory_gib": memory}
