"""Runs jobs on an executor: intent, launch, end, another attempt, giving up; the budget between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from universal_simulator.errors import BudgetError
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.sweep.executor import Executor, Job, JobEnd
from universal_simulator.sweep.job_log import live_share, tail
from universal_simulator.sweep.state import SweepState, result_hashes

#: report(share done of each job begun, jobs running), called about every two seconds
Report = Callable[[Mapping[str, float], Sequence[str]], None]
#: a job ended by a signal is tried this often in one sitting
MAX_ATTEMPTS = 2
#: failures of a training itself, which another try would repeat
FINAL_FAILURES = ("DivergenceError", "MemoryExhaustedError")
#: what a finished job adds to its run's record
ADDED = {"train": ("training", "small_eval"), "full": ("full_eval",), "test": ("test",)}
POLL_S = 2.0


class JobQueue:
    """One sitting of one driver; what it did before stands in the journal."""

    def __init__(self, state: SweepState, executor: Executor) -> None:
        self.state = state
        self.executor = executor
        self._running: dict[str, Job] = {}
        self._started: dict[str, float] = {}

    def run(self, jobs: Sequence[Job], report: Report) -> None:
        """Run what is not done yet, `slots` at a time, in the order given.

        Returns when each is done or given up; raises BudgetError when the plan's hours are used up.
        """
        state = self.state
        waiting = [j for j in jobs if not state.done(j.job_id) and not state.failed_for_good(j.job_id)]
        tried: dict[str, int] = {}
        while waiting or self._running:
            while waiting and len(self._running) < self.executor.slots:
                self._launch(waiting.pop(0))
            shares = {j.job_id: 1.0 for j in jobs if state.done(j.job_id)}
            live = {name: live_share(job.log) for name, job in self._running.items()}
            report(shares | live, list(self._running))
            for end in self.executor.wait(POLL_S):
                job = self._running.pop(end.job_id)
                tried[end.job_id] = tried.get(end.job_id, 0) + 1
                if self._ended(job, end, tried[end.job_id]):
                    waiting.insert(0, job)
            self._refuse_overspending()

    def _launch(self, job: Job) -> None:
        self.state.journal.append("job_intent", job=job.job_id, arguments=list(job.arguments))
        self.executor.submit(job)
        self._running[job.job_id] = job
        self._started[job.job_id] = time.monotonic()

    def _ended(self, job: Job, end: JobEnd, tried: int) -> bool:
        """Journal an end; True if the job is to be tried again."""
        self.state.journal.append(
            "job_ended",
            job=end.job_id,
            exit_code=end.exit_code,
            seconds=round(end.seconds, 3),
            results=self._results(end.job_id) if end.exit_code == 0 else {},
        )
        if end.exit_code < 0 and tried < MAX_ATTEMPTS:
            return True
        if end.exit_code != 0:
            self.state.journal.append(
                "job_given_up",
                job=end.job_id,
                log=tail(job.log),
                final=self._is_final(end.job_id, end.exit_code),
            )
        return False

    def _refuse_overspending(self) -> None:
        spent = self.state.seconds_spent
        spent += sum(time.monotonic() - self._started[name] for name in self._running)
        if spent > self.state.plan.max_hours * 3600:
            raise BudgetError(
                f"the budget of {self.state.plan.max_hours:g} worker hours is used up (max_hours of the "
                "plan, summed over jobs and resumes); finished runs are kept"
            )

    def _results(self, job_id: str) -> dict[str, dict[str, str]]:
        """run id -> hash of each result that this job added to its record."""
        what, _, run_id = job_id.partition(":")
        path = RunFolder(self.state.folder, run_id).summary if run_id else None
        if path is None or not path.exists():
            return {}
        found = result_hashes(read_document(path, RunRecord))
        return {run_id: {name: found[name] for name in ADDED[what] if name in found}}

    def _is_final(self, job_id: str, exit_code: int) -> bool:
        """The training itself failed (it diverged, memory is too small); anything else can be mended."""
        what, _, run_id = job_id.partition(":")
        if what != "train" or exit_code < 0:
            return False
        path = RunFolder(self.state.folder, run_id).summary
        return path.exists() and read_document(path, RunRecord).failure_kind in FINAL_FAILURES
