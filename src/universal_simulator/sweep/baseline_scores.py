"""Test-time compute on the baseline, as the plan's `ttc` asks: scored by evaluation alone, at the very end.

The headline predictor is without test-time compute, so nothing is decided by what is found here; it
stands on the page, with every diagnostic, the bound first. Journalled once. What cannot be scored is told, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from universal_simulator.configuration.inference_settings import words_of
from universal_simulator.errors import BudgetError, IntegrityError
from universal_simulator.evaluation.search_summary import search_lines, search_name, told
from universal_simulator.sweep.inference_search import scored_record
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.jobs import scoring_job, training_id
from universal_simulator.sweep.state import Run, SweepState

EVENT = "ttc_scored"


def score_baseline(state: SweepState, queue: JobQueue, tell: Callable[[str], None]) -> None:
    """The plan's settings on the first baseline seed that was trained; nothing where the plan asks none."""
    asked, seeds = state.plan.ttc, [run for run in state.baselines() if state.done(training_id(run))]
    run = state.run(seeds[0]) if seeds else None
    if asked is None or run is None or state.journal.of(EVENT):
        return
    job = scoring_job(
        state.plan,
        state.folder,
        run,
        asked.settings,
        groups=asked.groups,
        reward_groups=asked.reward_groups,
    )
    scores: list[dict[str, Any]] = []
    failure = None
    try:
        queue.run([job], lambda shares, _: tell(f"scoring test-time compute: {job.job_id}"))
        if state.done(job.job_id):
            scores = [score for setting in asked.settings for score in _scores(state, run, setting)]
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
