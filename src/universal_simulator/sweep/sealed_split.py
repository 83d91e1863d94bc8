"""The sealed test split, once: for the final champion, its baseline and the references."""

from __future__ import annotations

from universal_simulator.errors import BudgetError
from universal_simulator.sweep.baseline_scores import after_its_test
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.jobs import evaluation_id, evaluation_job, training_id
from universal_simulator.sweep.progress import SweepProgress
from universal_simulator.sweep.run_planning import refuse_incomplete
from universal_simulator.sweep.state import SweepState


def open_test(state: SweepState, queue: JobQueue, progress: SweepProgress) -> None:
    """Each opening is journalled before the split is looked at; an answered one is not asked again."""
    if not state.plan.open_test_for_champion:
        return
    champion = state.decision("champion")
    assert champion is not None
    references = [run.run_id for run in state.runs if run.role == "reference"]
    runs = list(dict.fromkeys([champion["champion"], champion["baseline"], *references]))
    openings = state.journal.of("test_opened")
    opened = {run: event.data["opening"] for event in openings for run in event.data["runs"]}
    if champion["champion"] not in opened:
        if len(openings) >= state.plan.test_openings:
            return  # told on the page: this champion was not judged on it
        # a second one only where rounds were appended and the plan asks for it; it is counted
        opening = f"{state.plan.name}-{len(openings) + 1}"
        fresh = [run for run in runs if run not in opened]
        state.journal.append("test_opened", runs=fresh, opening=opening)
        opened |= dict.fromkeys(fresh, opening)
    asked = [run for run in runs if run in opened and state.done(training_id(run))]
    try:
        queue.run(
            [_test_job(state, run, opened[run]) for run in asked],
            lambda shares, running: progress.look(shares, running, "opening the test split"),
            more=after_its_test(state),
        )
    except BudgetError:
        # all tests done: the executor's own ceiling ended the score alone, which is told as not scored
        if not all(state.done(evaluation_id(run, "test")) for run in asked):
            raise
    refuse_incomplete(state, asked, "test")


def _test_job(state: SweepState, run_id: str, opening: str) -> Job:
    run = state.run(run_id)
    assert run is not None, run_id
    return evaluation_job(state.plan, state.folder, run, "test", opening=opening)
