"""Runs jobs on an executor: intent, launch, end, another attempt, giving up; ceilings before each launch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from universal_simulator.errors import BudgetError
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.sweep.early_stop import STOPPED_EARLY, EarlyStopWatch
from universal_simulator.sweep.executor import Executor, Job, JobEnd
from universal_simulator.sweep.heartbeat import Heartbeat
from universal_simulator.sweep.job_log import live_share, tail
from universal_simulator.sweep.spending import Ledger, Spend
from universal_simulator.sweep.state import SweepState, result_hashes
from universal_simulator.sweep.testimony import falsehoods

#: report(share done of each job begun, jobs running), called about every two seconds
Report = Callable[[Mapping[str, float], Sequence[str]], None]
#: a job is tried this often in one sitting, by what ended it: a signal, a stall, the loss of its worker
MOST = {"signal": 2, "stall": 3, "lost": 5}
#: failures of a training itself, which another try would repeat
FINAL_FAILURES = ("DivergenceError", "MemoryExhaustedError", "RewardError")
#: what a finished job adds to its run's record
ADDED = {
    "canary": ("training", "small_eval"),
    "train": ("training", "small_eval"),
    "full": ("full_eval",),
    "test": ("test",),
}
POLL_S = 2.0


class JobQueue:
    """One sitting of one driver; what it did before stands in the journal.

    forecast(job id) -> seconds it is expected to take, 0 where nothing is known.
    """

    def __init__(
        self,
        state: SweepState,
        executor: Executor,
        *,
        forecast: Callable[[str], float] = lambda job_id: 0.0,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.state = state
        self.executor = executor
        self.forecast = forecast
        self.heartbeat = heartbeat or Heartbeat(executor, state.plan.stall_timeout_s)
        self.ledger = Ledger(state)
        self.watch = EarlyStopWatch(state)
        self._running: dict[str, Job] = {}
        self._started: dict[str, float] = {}
        self._ends: Counter[tuple[str, str]] = Counter()

    def run(
        self, jobs: Sequence[Job], report: Report, *, more: Callable[[], Sequence[Job]] = lambda: ()
    ) -> None:
        """Run what is not done yet, `slots` at a time, in the order given.

        more() is asked whenever something ended, for jobs that follow from it.
        Returns when each is done, given up or refused by a ceiling of its run or round. Raises
        BudgetError at a ceiling of the sweep: at once where it is used up; where only the next launch
        would cross it, after what runs has ended.
        """
        state = self.state
        waiting = [j for j in jobs if not state.done(j.job_id) and not state.failed_for_good(j.job_id)]
        waiting = [job for job in waiting if not self._attached(job)]
        waiting += more()
        stopped: BudgetError | None = None
        finished = {j.job_id: 1.0 for j in jobs if state.done(j.job_id)}
        while (waiting and stopped is None) or self._running:
            while waiting and stopped is None and len(self._running) < self.executor.slots:
                stopped = self._launch(waiting.pop(0))
            live = {name: live_share(job.log) for name, job in self._running.items()}
            report(finished | live, list(self._running))
            for end in self.executor.wait(POLL_S):
                job = self._running[end.job_id]
                if self._ended(job, end):
                    waiting.insert(0, job)
                elif end.exit_code == 0:
                    finished[job.job_id] = 1.0
            waiting = [*self._end_stalled(), *waiting]
            self._end_overspending()
            self._end_behind()
            waiting += more()
        if stopped is not None:
            raise stopped

    def _attached(self, job: Job) -> bool:
        """Take over a job that an earlier driver began and that may still be at work."""
        if not self.state.running(job.job_id) or not self.executor.attach(job.job_id, self.state.folder):
            return False
        self.state.journal.append("job_attached", job=job.job_id)
        self._begin(job)
        return True

    def _launch(self, job: Job) -> BudgetError | None:
        """Start a job, unless a ceiling forbids it; the error is the sweep's own ceiling."""
        asked = self.ledger.one(job.job_id, self.forecast(job.job_id), launches=1)
        refused = self.ledger.refusal(job.job_id, self.ledger.with_running(self._expected()), asked)
        if refused is not None:
            scope, words = refused
            reason = f"{job.job_id} would take {scope.name} to {words}"
            if scope.name == "sweep":
                used_up = self.ledger.refusal(job.job_id, self.ledger.spent(), Spend())
                return _used_up(words) if used_up else BudgetError(f"{reason}, so it was not launched")
            self._give_up(job, f"not launched: {reason}, its ceiling in the plan", final=True)
            return None
        self.state.journal.append("job_intent", job=job.job_id, arguments=list(job.arguments))
        self.executor.submit(job)
        self._begin(job)
        return None

    def _begin(self, job: Job) -> None:
        self._running[job.job_id] = job
        self._started[job.job_id] = time.monotonic()

    def _ended(self, job: Job, end: JobEnd, cause: str | None = None, reason: str | None = None) -> bool:
        """Journal an end; True if the job is to be tried again. reason: why it was ended for good."""
        cause = cause or _cause(end)
        del self._running[job.job_id]
        self.heartbeat.forget(job.job_id)
        self._ends[job.job_id, cause] += 1
        record = self._record(end.job_id)
        lies = self._lies(end, record)
        self.state.journal.append(
            "job_ended",
            job=end.job_id,
            exit_code=end.exit_code,
            seconds=round(end.seconds, 3),
            lost=end.lost,
            refused=lies,
            results={} if end.exit_code or lies else self._results(end.job_id, record),
        )
        if lies:
            self._set_aside(end.job_id)
            self._give_up(job, f"what came back is not of this job: {'; '.join(lies)}", final=False)
            return False
        if end.exit_code == 0:
            return False
        if reason is None and self._ends[job.job_id, cause] < MOST.get(cause, 0):
            return True
        final = reason is not None or self._is_final(end.job_id, end.exit_code)
        self._give_up(job, reason or tail(job.log), final=final)
        return False

    def _give_up(self, job: Job, log: str, *, final: bool) -> None:
        self.state.journal.append("job_given_up", job=job.job_id, log=log, final=final)

    def _end_stalled(self) -> list[Job]:
        """Diagnose and end jobs that stand still; those to be launched again, from their checkpoints."""
        again = []
        for job in list(self._running.values()):
            stall = self.heartbeat.stalled(job)
            if stall is None:
                continue
            self.state.journal.append("job_stalled", job=job.job_id, **vars(stall))
            end = self.executor.cancel(job.job_id)
            if end is not None and self._ended(job, end, "stall" if end.exit_code else None):
                again.append(job)
        return again

    def _expected(self) -> dict[str, float]:
        """Running jobs -> seconds they have used, or are forecast to use if that is more."""
        now = time.monotonic()
        return {name: max(now - self._started[name], self.forecast(name)) for name in self._running}

    def _end_overspending(self) -> None:
        """Jobs that use up the ceiling of their run or round are ended; that of the sweep ends it."""
        now = time.monotonic()
        totals = self.ledger.with_running({name: now - self._started[name] for name in self._running})
        for job in list(self._running.values()):
            refused = self.ledger.refusal(job.job_id, totals, Spend())
            if refused is None:
                continue
            scope, words = refused
            if scope.name == "sweep":
                raise _used_up(words)
            end = self.executor.cancel(job.job_id)
            if end is not None:
                self._ended(job, end, reason=f"ended: {scope.name} has used {words}, its ceiling in the plan")

    def _end_behind(self) -> None:
        """Members that lie behind the baseline's own curve are ended for good, with the figures."""
        for job in list(self._running.values()):
            verdict = self.watch.behind(job.job_id)
            end = self.executor.cancel(job.job_id) if verdict is not None else None
            if verdict is not None and end is not None:
                self._ended(job, end, reason=f"{STOPPED_EARLY}{verdict.sentence}")

    def _record(self, job_id: str) -> RunRecord | None:
        """The record of the run that a job is about, as it lies here now."""
        what, _, run_id = job_id.partition(":")
        path = RunFolder(self.state.folder, run_id).summary if what in ADDED else None
        return read_document(path, RunRecord) if path is not None and path.exists() else None

    def _lies(self, end: JobEnd, record: RunRecord | None) -> list[str]:
        """Why the result of a job that says it ended well cannot be its own."""
        what, _, run_id = end.job_id.partition(":")
        if end.exit_code != 0 or what not in ADDED:
            return []
        if record is None:
            return ["no record came back"]
        model = RunFolder(self.state.folder, run_id).model
        lies = [] if model.exists() else [f"{model.name} did not come back"]
        lies += falsehoods(record, run_id, data_identity=self.state.data_identity)
        suites = [suite for suite in ADDED[what] if suite != "training" and suite not in record.evaluations]
        return lies + [f"its {suite} is not in the record" for suite in suites]

    def _set_aside(self, job_id: str) -> None:
        """A record that is not believed is kept as evidence, out of the way of the next attempt's."""
        what, _, run_id = job_id.partition(":")
        summary = RunFolder(self.state.folder, run_id).summary
        if what in ("train", "canary") and summary.exists():
            summary.replace(summary.with_name(f"refused-{self.state.attempts(job_id)}.json"))

    def _results(self, job_id: str, record: RunRecord | None) -> dict[str, dict[str, str]]:
        """run id -> hash of each result that this job added to its record."""
        what, _, run_id = job_id.partition(":")
        if record is None:
            return {}
        found = result_hashes(record)
        return {run_id: {name: found[name] for name in ADDED[what] if name in found}}

    def _is_final(self, job_id: str, exit_code: int) -> bool:
        """The training itself failed (it diverged, memory is too small); anything else can be mended."""
        if exit_code < 0 or not job_id.startswith("train:"):
            return False
        record = self._record(job_id)
        return record is not None and record.failure_kind in FINAL_FAILURES


def _used_up(words: str) -> BudgetError:
    return BudgetError(
        f"the budget of the sweep is used up: {words} (max_hours and budget of the plan, summed over jobs "
        "and resumes); finished runs are kept"
    )


def _cause(end: JobEnd) -> str:
    if end.exit_code == 0:
        return "success"
    if end.lost:
        return "lost"
    return "signal" if end.exit_code < 0 else "failure"
