"""What goes before the trainings of a sweep: the look at the place, the canary, then the forecast, which is measured."""

from __future__ import annotations

from collections.abc import Callable

from universal_simulator.errors import ExecutorError
from universal_simulator.sweep import canary
from universal_simulator.sweep.calibrations import left_to_measure
from universal_simulator.sweep.executor import Executor, Job
from universal_simulator.sweep.forecast import forecast_event, not_measured, totals
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.jobs import log_path, resources
from universal_simulator.sweep.later_bound import later_bound
from universal_simulator.sweep.run_planning import first_runs
from universal_simulator.sweep.spending import Spend
from universal_simulator.sweep.state import SweepState

#: progress in words
Tell = Callable[[str], None]


def open_place(state: SweepState, executor: Executor) -> None:
    """What earlier sittings left there is known; what the plan's runs need is there, or nothing is begun.

    Raises ExecutorError where a run of the plan could never start: before data are made, not after.
    """
    executor.open(state.folder)
    if state.finished:
        return
    for machine in sorted({wish.machine for wish in first_runs(state.plan)}):
        asks = f"{state.plan.name}: a run on the machine {machine!r}"
        needs = resources(state.plan, machine)
        executor.refuse_impossible(Job(asks, (), log_path(state.folder, machine), state.folder, needs))


def make_forecast(state: SweepState, queue: JobQueue, tell: Tell) -> None:
    """Measure every config of the plan briefly; the forecast is journalled before it is used.

    What a sitting could not measure for reasons of its surroundings is measured in the next one. Raises
    ExecutorError where nothing could be: no launch could be weighed.
    """
    jobs, before = left_to_measure(state), state.decision("forecast")
    if not jobs:
        return
    queue.run(
        jobs,
        lambda shares, _: tell(f"calibrating {sum(share == 1.0 for share in shares.values())}/{len(jobs)}"),
    )
    found = forecast_event(state, queue.ledger.spent().get("sweep", Spend()))
    if not found["measured"]:
        words = "\n".join(f"{key}: {why}" for key, why in found["unmeasured"].items())
        raise ExecutorError(f"no config could be measured, so no launch can be weighed:\n{words}")
    if before is None:
        state.journal.append("forecast", **found)
    elif found["measured"] != before["measured"]:
        state.journal.append("forecast", **found | {"spent": before.get("spent", found["spent"])})
    workers = queue.executor.slots
    total = totals(state, workers=workers)
    warnings = "".join(f"; {words}" for words in (*total.crosses, *not_measured(found)))
    later = later_bound(state)
    tell(
        f"forecast: {total.wall_s / 3600:.2f} h on {workers} workers, {total.worker_hours:.2f} worker "
        f"hours, {total.usd:.2f} USD for {total.jobs} jobs, {total.spent_usd:.2f} USD spent before"
        f"{f'; {later.sentence}' if later else ''}{warnings}"
    )


def send_canary(state: SweepState, queue: JobQueue, tell: Tell) -> None:
    """One short run end to end, where it is wanted; raises unless it came back sound.

    A sweep that is finished has nothing left to start. What is still at work of an earlier canary is ended.
    """
    bound = canary.bond(queue.executor)
    left = canary.superseded(state, bound)
    queue.withdraw(left, "another canary goes: for other code, or on another executor")
    if not canary.wanted(state.plan, queue.executor) or state.finished or canary.passed(state, bound):
        return
    run = canary.canary_run(state, bound)
    job = canary.canary_job(state, run)
    queue.run([job], lambda shares, running: tell("canary: one short run end to end"))
    if not state.done(job.job_id):
        raise ExecutorError(
            f"the canary failed, nothing else was started; see {job.log}:\n{state.last_words(job.job_id)}"
        )
    state.journal.append("canary_passed", run=run.run_id, executor=bound.executor, code=bound.code)
