"""Runs jobs on an executor: intent, launch, end, another attempt, giving up; ceilings before each launch.

However a sitting ends (a ceiling, an exception, a signal), what runs is ended first and its end journalled,
then the stop. Only SIGKILL leaves attempts without an end: the next sitting takes them over, or journals
that they were abandoned and charges them up to their last sign of life.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from universal_simulator.errors import BudgetError, ExecutorError, UnreachableError, UsimError
from universal_simulator.sweep.early_stop import STOPPED_EARLY, EarlyStopWatch
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, Job, JobEnd
from universal_simulator.sweep.heartbeat import Heartbeat
from universal_simulator.sweep.job_log import live_share, tail
from universal_simulator.sweep.jobs import decides_nothing, log_of
from universal_simulator.sweep.left_open import note_last_look
from universal_simulator.sweep.returned_results import ReturnedResults
from universal_simulator.sweep.spending import NOTHING, Ledger, Spend
from universal_simulator.sweep.state import SweepState
from universal_simulator.sweep.work_clock import WorkClock, abandoned_s, mark_alive

#: report(share done of each job begun, jobs running), called about every two seconds
Report = Callable[[Mapping[str, float], Sequence[str]], None]
#: a job is tried this often in one sitting, by what ended it: a signal, a stall, the loss of its worker; or, of
#: what decides nothing and stops nobody to look at it, by what came back and is not of it
MOST = {"signal": 2, "stall": 3, "lost": 5, "lie": 2}
POLL_S = 2.0


class JobQueue:
    """One sitting of one driver; what it did before stands in the journal.

    forecast(job id) -> seconds it is expected to take, 0 where nothing is known; overhead(job id) -> those that
    it is billed for beside them. check() is called at every look and may raise to end the sitting.
    """

    def __init__(
        self,
        state: SweepState,
        executor: Executor,
        *,
        forecast: Callable[[str], float] = lambda job_id: 0.0,
        overhead: Callable[[str], float] = lambda job_id: 0.0,
        heartbeat: Heartbeat | None = None,
        check: Callable[[], None] = lambda: None,
        clock: WorkClock | None = None,
    ) -> None:
        self.state = state
        self.executor = executor
        self.forecast = forecast
        self.overhead = overhead
        self.heartbeat = heartbeat or Heartbeat(executor, state.plan.stall_timeout_s)
        self.ledger = Ledger(state, billed=lambda: executor.billed_usd(state.folder))
        self.watch = EarlyStopWatch(state)
        self.returned = ReturnedResults(state)
        self.check = check
        self.clock = clock or WorkClock()
        self._first = True
        self._running: dict[str, Job] = {}
        #: told by the executor, not journalled yet
        self._told: dict[str, JobEnd] = {}
        self._ends: Counter[tuple[str, str]] = Counter()
        #: why a job was asked to end
        self._why: dict[str, dict[str, Any]] = {}

    def run(
        self, jobs: Sequence[Job], report: Report, *, more: Callable[[], Sequence[Job]] = lambda: ()
    ) -> None:
        """Run what is not done yet, `slots` at a time, in the order given.

        more() is asked at every look, for jobs that follow from what ended; those are held to the journal like
        the given ones. Each job is given or returned once.
        Returns when each is done, given up or refused by a ceiling of its run or round; what decides nothing
        is given up at the sweep's too. Anything else raises BudgetError there: at once where it is used up;
        where only the next launch would cross it, after what runs has ended. Whatever is raised, nothing runs
        any more then.
        """
        self._note_last_look()
        try:
            self._run(jobs, report, more)
        except BaseException as error:
            self._end_running(error)
            raise
        finally:
            self.ledger.journal_billed()

    def abandon(self, jobs: Iterable[str]) -> None:
        """End every attempt of these jobs, whether they run again or not: nobody will ever tell how it ended."""
        self._note_last_look()
        for name in jobs:
            job = Job(name, (), log_of(self.state.folder, name), self.state.folder)
            while (attempt := self.state.attempt(name)) is not None:
                self._abandoned(job, abandoned_s(attempt, job, attempt.looked))

    def withdraw(self, jobs: Iterable[str], reason: str) -> None:
        """End what earlier drivers began of jobs that nobody wants now, and pay for it; they may be wanted again.

        One that nobody answers for keeps its attempt open, for a later sitting.
        """
        self._note_last_look()
        for name in jobs:
            job = Job(name, (), log_of(self.state.folder, name), self.state.folder)
            try:
                attached = self._attached(job)
            except UnreachableError:
                continue
            if attached:
                self._end(job, reason=reason, for_good=False)

    def _note_last_look(self) -> None:
        if self._first:
            note_last_look(self.state)
            self._first = False

    def _run(self, jobs: Sequence[Job], report: Report, more: Callable[[], Sequence[Job]]) -> None:
        self.check()
        waiting, silent = list[Job](), list[Job]()
        self._admit(jobs, waiting, silent)
        self._admit(more(), waiting, silent)
        stopped: BudgetError | None = None
        finished = {j.job_id: 1.0 for j in jobs if self.state.done(j.job_id)}
        if self._running:
            # what ended while no driver looked is paid by its end, before its time is guessed at a launch
            waiting = [*self._take_ends(0.0, finished), *waiting]
        while ((waiting or silent) and stopped is None) or self._running:
            self.check()
            if silent and not waiting and not self._running:
                asked, silent = silent, []
                self._admit(asked, waiting, silent)
            while waiting and stopped is None and len(self._running) < self.executor.slots:
                stopped = self._launch(waiting.pop(0))
            live = {name: live_share(job.log) for name, job in self._running.items()}
            report(finished | live, list(self._running))
            again = self._take_ends(POLL_S, finished)
            waiting = [*self._end_stalled(), *again, *waiting]
            self._end_overspending(waiting)
            self._end_behind()
            self._admit(more(), waiting, silent)
        if stopped is not None:
            raise stopped

    def _take_ends(self, timeout_s: float, finished: dict[str, float]) -> list[Job]:
        """Journal what ended; those to be launched again."""
        again = []
        self._told = {end.job_id: end for end in self.executor.wait(timeout_s)}
        self._look()
        for end in list(self._told.values()):
            job = self._running[end.job_id]
            if self._ended(job, end, **self._why.get(end.job_id, {})):
                again.append(job)
            elif end.exit_code == 0:
                finished[job.job_id] = 1.0
        return again

    def _admit(self, jobs: Iterable[Job], waiting: list[Job], silent: list[Job]) -> None:
        """The one way in: nothing for jobs that are over, those at work are taken over, the others wait for a worker.

        silent: those of which nobody can say now whether they are at work. UnreachableError: no others go on.
        """
        trouble = None
        for job in jobs:
            if self.returned.failed_unsaid(job.job_id):
                self._give_up(job, tail(job.log), final=True)
            if self.state.done(job.job_id) or self.state.failed_for_good(job.job_id):
                continue
            try:
                if not self._attached(job):
                    waiting.append(job)
            except UnreachableError as error:
                silent.append(job)
                trouble = error
        if trouble is not None and not waiting and not self._running:
            raise trouble

    def _attached(self, job: Job) -> bool:
        """Take over a job that an earlier driver began; where it is gone, its attempt is ended here."""
        attempt = self.state.attempt(job.job_id)
        if attempt is None:
            return False
        if not self.executor.attach(job.job_id, self.state.folder):
            self._abandoned(job, abandoned_s(attempt, job, attempt.looked))
            return False
        self._begin(job, abandoned_s(attempt, job, time.time()), waits=attempt.since is None)
        self.state.journal.append("job_attached", job=job.job_id, attempt=attempt.number)
        return True

    def _abandoned(self, job: Job, seconds: float, **words: str | bool) -> None:
        """An attempt that nobody will tell the end of, charged as far as it is known to have come."""
        end = JobEnd(job.job_id, LOST_EXIT_CODE, seconds, lost=True)
        self.ledger.pay(end, **({"abandoned": True} | words))

    def _launch(self, job: Job) -> BudgetError | None:
        """Start a job, unless a ceiling forbids it; the error is the sweep's own ceiling."""
        asked = self._whole(job.job_id, launches=1)
        refused = self.ledger.refusal(job.job_id, self._with_running(self._expected()), asked)
        if refused is not None:
            scope, words = refused
            reason = f"{job.job_id} would take {scope.name} to {words}"
            if scope.name == "sweep" and not decides_nothing(job.job_id):
                used_up = self.ledger.refusal(job.job_id, self.ledger.spent(), Spend())
                return _used_up(words) if used_up else BudgetError(f"{reason}, so it was not launched")
            self._give_up(job, f"not launched: {reason}, its ceiling in the plan", final=True, ceiling=True)
            return None
        self.returned.keep(job.job_id)
        self.state.journal.append(
            "job_intent",
            job=job.job_id,
            arguments=list(job.arguments),
            place=self.executor.place,
            ends_with_driver=self.executor.ends_with_driver,
        )
        self._begin(job)
        try:
            self.executor.submit(job)
        except ExecutorError as error:
            self._forget(job)
            self._abandoned(job, 0.0, refused_launch=True, words=str(error))
            raise
        return None

    def _begin(self, job: Job, worked_s: float = 0.0, *, waits: bool = False) -> None:
        self._running[job.job_id] = job
        self.clock.begin(job.job_id, worked_s, waits=waits)
        mark_alive(self.state.folder)

    def _forget(self, job: Job) -> None:
        del self._running[job.job_id]
        self._told.pop(job.job_id, None)
        self._why.pop(job.job_id, None)
        self.clock.forget(job.job_id)
        self.heartbeat.forget(job.job_id)

    def _look(self) -> None:
        """Who waits and who works, journalled where it changes: only work counts as hours."""
        mark_alive(self.state.folder)
        for name in self._running:
            if self.clock.see(name, self.executor.state(name)):
                kind = "job_waiting" if self.clock.waits(name) else "job_at_work"
                self.state.journal.append(kind, job=name, worked_s=round(self.clock.seconds(name), 3))

    def _ended(
        self,
        job: Job,
        end: JobEnd,
        cause: str | None = None,
        reason: str | None = None,
        *,
        ceiling: bool = False,
        for_good: bool = True,
    ) -> bool:
        """Journal an end; True if the job is to be tried again. reason: why it was ended, for good; by a ceiling."""
        cause = cause or _cause(end)
        if self.state.told_before(end.job_id, end.submission):
            # of an earlier submission, paid already: the one journalled last never reached the executor
            self._forget(job)
            self._abandoned(job, 0.0, refused_launch=True, words=f"{end.submission} ended before")
            return True
        self._ends[job.job_id, cause] += 1
        returned = self.returned.of(end)
        lies = list(returned.lies)
        self.ledger.pay(end, refused=lies, results=returned.results)
        self._forget(job)
        self.returned.settle(end, believed=end.exit_code == 0 and not lies)
        if lies:
            self._ends[job.job_id, "lie"] += 1
            if decides_nothing(job.job_id) and self._ends[job.job_id, "lie"] < MOST["lie"]:
                return True
            self._give_up(job, f"what came back is not of this job: {'; '.join(lies)}", final=False)
            return False
        if end.exit_code == 0:
            return False
        reason = reason or (end.reason if end.ceiling else None)
        if reason is None and not end.reason and self._ends[job.job_id, cause] < MOST.get(cause, 0):
            return True
        final = (reason is not None and for_good) or self.returned.is_final(end)
        words = reason or end.reason or tail(job.log)
        self._give_up(job, words, final=final, ceiling=ceiling or end.ceiling)
        return False

    def _end_running(self, error: BaseException) -> None:
        """Before a stop: each running job is ended and its end journalled, whatever befalls the others.

        One whose end the executor cannot tell keeps its attempt open: the next sitting settles it.
        """
        self.executor.ask_to_end(list(self._running))
        for job in list(self._running.values()):
            if not self.state.running(job.job_id):
                continue
            try:
                end = self._told.get(job.job_id) or self.executor.cancel(job.job_id)
                if end is not None and end.exit_code == 0:
                    self._ended(job, end)
                elif end is not None and not self.state.told_before(end.job_id, end.submission):
                    self.ledger.pay(end, interrupted=True)
            except (UsimError, OSError) as trouble:
                error.add_note(f"{job.job_id} was not ended in the journal: {trouble}")

    def _give_up(self, job: Job, log: str, *, final: bool, ceiling: bool = False) -> None:
        self.state.journal.append("job_given_up", job=job.job_id, log=log, final=final, ceiling=ceiling)

    def _end_stalled(self) -> list[Job]:
        """Diagnose and end jobs that stand still; those to be launched again, from their checkpoints."""
        again = []
        for job in list(self._running.values()):
            stall = self.heartbeat.stalled(job)
            if stall is None:
                continue
            self.state.journal.append("job_stalled", job=job.job_id, **vars(stall))
            if self._end(job, cause="stall"):
                again.append(job)
        return again

    def _end(self, job: Job, **why: Any) -> bool:
        """Cancel a job and journal its end with the reason; True if it is to be tried again.

        One that nobody answers for may still be at work: it stays, and when its end is told, that was why.
        """
        if job.job_id in self._why and self.executor.state(job.job_id) == "unknown":
            return False
        self._why[job.job_id] = why
        try:
            end = self.executor.cancel(job.job_id)
        except UnreachableError:
            return False
        return end is not None and self._ended(job, end, **why)

    def _whole(self, name: str, *, launches: int = 0) -> Spend:
        """What a job is forecast to come to, with what it is billed for beside its work and at its end."""
        idle_s = self.overhead(name) + self.executor.ending_s
        return self.ledger.one(name, self.forecast(name), launches=launches, idle_s=idle_s)

    def _used(self, name: str, least: Spend = NOTHING) -> Spend:
        """What a running job has come to, by the executor's account or else by the clock, were it to be ended now."""
        use = self.executor.use(name)
        seconds = max(self.clock.seconds(name) if use.seconds is None else use.seconds, least.seconds)
        usd = self.ledger.price(name, seconds) if use.usd is None else use.usd
        return Spend(seconds, max(usd + self.ledger.price(name, self.executor.ending_s), least.usd))

    def _with_running(self, running: Mapping[str, Spend]) -> dict[str, Spend]:
        ending_usd = sum(self.ledger.price(name, self.executor.ending_s) for name in running)
        return self.ledger.with_running(running, kept_back_usd=ending_usd)

    def _expected(self) -> dict[str, Spend]:
        """Running jobs -> what they have used, or are forecast to use if that is more."""
        return {name: self._used(name, self._whole(name)) for name in self._running}

    def _end_overspending(self, waiting: Sequence[Job]) -> None:
        """Jobs that use up the ceiling of their run or round are ended; that of the sweep ends it."""
        self._end_overspending_scores(waiting)
        totals = self._with_running({name: self._used(name) for name in self._running})
        for job in list(self._running.values()):
            refused = self.ledger.refusal(job.job_id, totals, Spend())
            if refused is None or decides_nothing(job.job_id):
                continue
            scope, words = refused
            if scope.name == "sweep":
                raise _used_up(words)
            reason = f"ended: {scope.name} has used {words}, its ceiling in the plan"
            self._end(job, reason=reason, ceiling=True)

    def _end_overspending_scores(self, waiting: Sequence[Job]) -> None:
        """What decides nothing may use half of what the others leave of each ceiling: as much again stays for them."""
        for job in [job for job in self._running.values() if decides_nothing(job.job_id)]:
            to_come = {j.job_id: self._whole(j.job_id) for j in waiting}
            totals = self._with_running(self._expected() | to_come)
            refused = self.ledger.refusal(job.job_id, totals, self._used(job.job_id))
            if refused is not None:
                scope, words = refused
                reason = (
                    f"ended: it decides nothing, and with as much again {scope.name} would come to {words}"
                )
                self._end(job, reason=f"{reason}, its ceiling in the plan", ceiling=True)

    def _end_behind(self) -> None:
        """Members that lie behind the baseline's own curve are ended for good, with the figures."""
        for job in list(self._running.values()):
            verdict = self.watch.behind(job.job_id)
            if verdict is not None:
                self._end(job, reason=f"{STOPPED_EARLY}{verdict.sentence}")


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
