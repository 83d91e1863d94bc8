"""Test-time compute on the baseline, as the plan's `ttc` asks: scored by evaluation alone, when all is decided.

The headline predictor is without test-time compute, so nothing is decided by what is found here; it
stands on the page, with every diagnostic, the bound first. Journalled once. What cannot be scored is told, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from universal_simulator.configuration.inference_settings import words_of
from universal_simulator.errors import BudgetError, IntegrityError
from universal_simulator.evaluation.search_summary import search_lines, search_name, told
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.jobs import evaluation_id, scoring_job, training_id
from universal_simulator.sweep.score_records import scored_record
from universal_simulator.sweep.state import Run, SweepState

EVENT = "ttc_scored"


def scoring(state: SweepState) -> tuple[Run, Job] | None:
    """The plan's settings on the first baseline seed that was trained; nothing where it asks none, or has its answer."""
    asked, seeds = state.plan.ttc, [run for run in state.baselines() if state.done(training_id(run))]
    run = state.run(seeds[0]) if seeds else None
    if asked is None or run is None or state.journal.of(EVENT):
        return None
    groups = {"groups": asked.groups, "reward_groups": asked.reward_groups}
    return run, scoring_job(state.plan, state.folder, run, asked.settings, **groups)


def after_its_test(state: SweepState) -> Callable[[], Sequence[Job]]:
    """`more` of the test split's evaluations: the score, once, when nobody writes into its run's folder any more.

    The champion's evaluation is the longest of them; workers that wait for it have this to do. A score that was
    given up is not asked again: what follows would be the same.
    """
    todo = scoring(state)

    def more() -> Sequence[Job]:
        nonlocal todo
        if todo is None or not state.done(evaluation_id(todo[0].run_id, "test")):
            return ()
        job, todo = todo[1], None
        return () if state.failed(job.job_id) else (job,)

    return more


def score_baseline(state: SweepState, queue: JobQueue, tell: Callable[[str], None]) -> None:
    """Score what is not scored yet, and journal what was found."""
    todo = scoring(state)
    if todo is None:
        return
    run, job = todo
    settings = state.plan.ttc.settings if state.plan.ttc is not None else ()
    scores: list[dict[str, Any]] = []
    failure = None
    try:
        # given up already, beside the test: what follows would be the same
        waiting = [] if state.failed(job.job_id) else [job]
        queue.run(waiting, lambda shares, _: tell(f"scoring test-time compute: {job.job_id}"))
        if state.done(job.job_id):
            scores = [score for setting in settings for score in _scores(state, run, setting)]
        else:
            failure = state.last_words(job.job_id)
    except (BudgetError, IntegrityError) as error:
        # everything is decided by now: what this would have told is the one thing that is missing
        failure = str(error)
    state.journal.append(EVENT, run=run.run_id, job=job.job_id, scores=scores, failure=failure)


def _scores(state: SweepState, run: Run, setting: str) -> list[dict[str, Any]]:
    """One setting, regime by regime."""
    record = scored_record(state, run, words_of(setting))
    return [
        {
            "setting": setting,
            "regime": label,
            "name": search_name(record, label),
            "nrmse": told(regime.metrics["nrmse"]),
            "lines": [asdict(line) for line in search_lines(record, label)],
        }
        for label, regime in record.result.regimes.items()
    ]
