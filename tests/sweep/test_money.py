"""What a sweep has spent: every way to stop, attempts that nobody saw the end of, waiting, two books."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.test_job_queue import planned, quiet, trainings
from universal_simulator.errors import BudgetError, UnreachableError
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.executor import Job, JobEnd, JobState
from universal_simulator.sweep.interruption import Interruption
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.plan import Budget, Ceiling, Machine, load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.spending import Ledger, Spend
from universal_simulator.sweep.state import JOURNAL, SweepState
from universal_simulator.sweep.work_clock import ALIVE, WorkClock, mark_alive

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")
PRICED = {"small": Machine(price_usd_per_hour=3600.0)}


class Endless(FakeExecutor):
    """Jobs run until they are cancelled; each took `seconds`."""

    says: JobState = "running"
    seconds = 7.0

    def __init__(self) -> None:
        super().__init__()
        self.at_work: list[str] = []

    def submit(self, job: Job) -> None:
        self.submitted.append(job.job_id)
        self.at_work.append(job.job_id)

    def wait(self, timeout_s: float) -> list[JobEnd]:
        return []

    def state(self, job_id: str) -> JobState:
        return self.says

    def cancel(self, job_id: str) -> JobEnd | None:
        if job_id not in self.at_work:
            return None
        self.at_work.remove(job_id)
        return JobEnd(job_id, -15, self.seconds)


class Raising:
    """Raises at the third look at the jobs."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.looks = error, 0

    def __call__(self) -> None:
        self.looks += 1
        if self.looks == 3:
            raise self.error


def test_a_used_up_sweep_ends_what_runs_and_pays_for_it_before_it_stops(tmp_path: Path) -> None:
    """Resumed, it knows what it has spent: no new launch under the same ceiling."""
    state = planned(tmp_path, max_hours=0.4 / 3600)
    executor = LocalProcessExecutor(1, command=SLEEPS)
    with pytest.raises(BudgetError, match="used up"):
        JobQueue(state, executor).run(trainings(state)[:1], quiet)
    assert executor.wait(0.0) == []
    (end,) = state.journal.of("job_ended")
    assert end.data["interrupted"]
    assert state.seconds_spent > 0.4
    again = SweepState(tmp_path)
    assert not again.running(trainings(state)[0].job_id)
    with pytest.raises(BudgetError, match="used up"):
        JobQueue(again, executor).run(trainings(state)[:1], quiet)
    assert len(again.journal.of("job_intent")) == 1


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(143), RuntimeError("a bug"), OSError(28, "full")]
)
def test_whatever_stops_a_sitting_what_runs_is_ended_and_paid(tmp_path: Path, error: BaseException) -> None:
    state, executor = planned(tmp_path, machines=PRICED, max_hours=9.0), Endless()
    with pytest.raises(type(error)):
        JobQueue(state, executor, check=Raising(error)).run(trainings(state), quiet)
    assert executor.at_work == []
    ends = state.journal.of("job_ended")
    assert [e.data["job"] for e in ends] == executor.submitted
    assert [e.data["usd"] for e in ends] == [7.0, 7.0]
    assert state.seconds_spent == 14.0
    assert not any(state.failed(job) for job in executor.submitted)


def test_one_that_cannot_be_ended_keeps_no_other_from_its_end(tmp_path: Path) -> None:
    class Silent(Endless):
        def cancel(self, job_id: str) -> JobEnd | None:
            if job_id == self.submitted[0]:
                raise UnreachableError("no answer")
            return super().cancel(job_id)

    state, executor = planned(tmp_path), Silent()
    with pytest.raises(KeyboardInterrupt) as caught:
        JobQueue(state, executor, check=Raising(KeyboardInterrupt())).run(trainings(state), quiet)
    assert "no answer" in caught.value.__notes__[0]
    assert [e.data["job"] for e in state.journal.of("job_ended")] == executor.submitted[1:]
    assert state.running(executor.submitted[0])


def begun(state: SweepState, job: Job, *, ago_s: float) -> None:
    """An intent of an earlier driver, so many seconds ago, by the journal's own clock."""
    with pytest.MonkeyPatch.context() as patch:
        then = time.gmtime(time.time() - ago_s)
        patch.setattr("universal_simulator.sweep.journal.time.gmtime", lambda: then)
        state.journal.append("job_intent", job=job.job_id, arguments=list(job.arguments))


def test_an_attempt_that_nobody_saw_the_end_of_is_charged_to_its_last_sign_of_life(tmp_path: Path) -> None:
    """Begun 1000 s ago; its log grew for 600 s, its driver looked for 500 s."""
    state = planned(tmp_path, machines=PRICED, max_hours=9.0, budget=Budget(run=Ceiling(attempts=1)))
    job = trainings(state)[0]
    begun(state, job, ago_s=1000.0)
    job.log.parent.mkdir(parents=True)
    job.log.write_text("step 1")
    os.utime(job.log, (0, time.time() - 400.0))
    mark_alive(tmp_path)
    os.utime(tmp_path / ALIVE, (0, time.time() - 500.0))
    state = SweepState(tmp_path)
    executor = FakeExecutor()
    JobQueue(state, executor).run([job], quiet)
    (end,) = state.journal.of("job_ended")
    assert end.data["abandoned"]
    assert end.data["attempt"] == state.journal.of("job_intent")[0].number
    assert end.data["seconds"] == pytest.approx(600.0, abs=2.0)
    assert end.data["usd"] == pytest.approx(600.0, abs=2.0)
    assert executor.submitted == []
    assert "2 training launches of 1" in state.last_words(job.job_id)


def test_a_job_taken_over_has_worked_since_its_intent(tmp_path: Path) -> None:
    class There(Endless):
        def attach(self, job_id: str, folder: Path | str) -> bool:
            self.at_work.append(job_id)
            return True

    state = planned(tmp_path, max_hours=9.0, budget=Budget(run=Ceiling(hours=0.25)))
    job = trainings(state)[0]
    begun(state, job, ago_s=1000.0)
    state = SweepState(tmp_path)
    JobQueue(state, There()).run([job], quiet)
    assert "ended: run" in state.last_words(job.job_id)
    assert "0.27" in state.last_words(job.job_id)


def test_what_ended_while_no_driver_looked_is_charged_by_its_end(tmp_path: Path) -> None:
    """Its driver was gone for an hour, it took ten seconds: the next launch is not refused for that hour."""

    class Ended(FakeExecutor):
        def attach(self, job_id: str, folder: Path | str) -> bool:
            job = next(job for job in trainings(state) if job.job_id == job_id)
            self.work(job)
            self.ended.append(JobEnd(job_id, 0, 10.0, usd=3.0, submission="one"))
            return True

    state = planned(tmp_path, max_hours=0.5)
    first, second = trainings(state)[:2]
    begun(state, first, ago_s=3600.0)
    state = SweepState(tmp_path)
    JobQueue(state, Ended()).run([first, second], quiet)
    assert state.done(second.job_id)
    assert Ledger(state).spent()["sweep"] == Spend(pytest.approx(10.1), pytest.approx(3.0), 2)


def test_an_end_told_again_is_paid_once(tmp_path: Path) -> None:
    """Killed between the second intent and its launch: what can be attached to is the first submission."""

    class Remembering(FakeExecutor):
        def attach(self, job_id: str, folder: Path | str) -> bool:
            self.ended.append(JobEnd(job_id, -9, 100.0, usd=5.0, submission="first"))
            return True

    state = planned(tmp_path, max_hours=9.0)
    job = trainings(state)[0]
    state.journal.append("job_intent", job=job.job_id, arguments=[])
    state.journal.append(
        "job_ended",
        job=job.job_id,
        attempt=2,
        exit_code=-9,
        seconds=100.0,
        usd=5.0,
        lost=False,
        submission="first",
    )
    state.journal.append("job_intent", job=job.job_id, arguments=[])
    executor = Remembering()
    JobQueue(state, executor).run([job], quiet)
    assert executor.submitted == [job.job_id]
    assert state.done(job.job_id)
    ends = state.journal.of("job_ended")
    assert len({end.data["attempt"] for end in ends}) == len(ends) == len(state.journal.of("job_intent")) == 3
    assert Ledger(state).spent()["sweep"] == Spend(pytest.approx(100.1), pytest.approx(5.0), 2)


def test_the_same_end_journalled_twice_counts_once(tmp_path: Path) -> None:
    state = planned(tmp_path)
    ended = {"job": "data", "exit_code": 1, "seconds": 10.0, "lost": False}
    state.journal.append("job_intent", job="data", arguments=[])
    state.journal.append("job_ended", **ended, attempt=2)
    state.journal.append("job_ended", **ended, attempt=2)
    # an older journal names no attempts: of the oldest one without an end
    state.journal.append("job_intent", job="data", arguments=[])
    state.journal.append("job_ended", **ended)
    assert state.seconds_spent == 20.0
    assert state.attempts("data") == 2
    assert not state.running("data")


def test_waiting_is_no_work_and_silence_changes_nothing() -> None:
    now = [0.0]
    clock = WorkClock(lambda: now[0])
    clock.begin("a")
    told = []
    for state, passed in (
        ("waiting", 50),
        ("unknown", 50),
        ("running", 50),
        ("running", 10),
        ("unknown", 10),
        ("waiting", 5),
        ("running", 100),
        ("ended", 1),
    ):
        now[0] += passed
        told.append(clock.see("a", state))  # type: ignore[arg-type] # literals of JobState
    assert told == [True, False, True, False, False, True, True, False]
    assert clock.seconds("a") == 10 + 10 + 5 + 1
    clock.begin("b")
    now[0] += 3
    clock.see("b", "running")
    assert clock.seconds("b") == 3


def test_a_job_that_waits_uses_up_no_hours_and_is_not_charged_for_them_when_abandoned(tmp_path: Path) -> None:
    """The driver looks for an hour at a job that waits; ten seconds more would be the ceiling."""
    now = [0.0]

    class Pending(Endless):
        says: JobState = "waiting"
        looks = 0

        def wait(self, timeout_s: float) -> list[JobEnd]:
            now[0] += 400.0
            self.looks += 1
            return []

    class KilledDriver(BaseException):
        pass

    state = planned(tmp_path, max_hours=10 / 3600)
    job = trainings(state)[0]

    def die() -> None:
        if executor.looks == 9:
            raise KilledDriver

    executor = Pending()
    queue = JobQueue(state, executor, check=die, clock=WorkClock(lambda: now[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "_end_running", lambda error: None)
        with pytest.raises(KilledDriver):
            queue.run([job], quiet)
    assert now[0] == 3600.0
    state = SweepState(tmp_path)
    JobQueue(state, FakeExecutor()).run([job], quiet)
    assert state.done(job.job_id)
    assert [end.data["seconds"] for end in state.journal.of("job_ended")] == [0.0, 0.1]


def test_a_launch_that_was_not_accepted_is_no_attempt(tmp_path: Path) -> None:
    class Away(FakeExecutor):
        away = True

        def submit(self, job: Job) -> None:
            if self.away:
                raise UnreachableError("the service does not answer")
            super().submit(job)

    state = planned(tmp_path, budget=Budget(run=Ceiling(attempts=1)))
    job, executor = trainings(state)[0], Away()
    for _ in range(3):
        with pytest.raises(UnreachableError):
            JobQueue(SweepState(tmp_path), executor).run([job], quiet)
    executor.away = False
    state = SweepState(tmp_path)
    JobQueue(state, executor).run([job], quiet)
    assert state.done(job.job_id)
    assert Ledger(state).spent()["sweep"].attempts == 1
    assert len(state.journal.of("job_intent")) == len(state.journal.of("job_ended")) == 4


def test_the_executors_own_book_is_reconciled_and_never_added(tmp_path: Path) -> None:
    """What was rented beyond the jobs' ends counts for the sweep once, also at the next resume."""

    class Renting(FakeExecutor):
        book = 0.0

        def submit(self, job: Job) -> None:
            super().submit(job)
            self.ended[-1] = JobEnd(job.job_id, 0, 10.0, usd=2.0)
            self.book += 2.5

        def billed_usd(self, folder: Path | str) -> float | None:
            return self.book

    budget = Budget(sweep=Ceiling(usd=33.0))
    state, executor = planned(tmp_path, max_hours=9.0, budget=budget), Renting()
    JobQueue(state, executor).run(trainings(state)[:4], quiet)
    assert Ledger(state).spent()["sweep"].usd == 10.0
    assert Ledger(state).spent()["round baseline"].usd <= 8.0
    assert [event.data["usd"] for event in state.journal.of("billed")] == [10.0]
    executor.book = 0.0  # another driver's executor, which has not opened its book yet
    again = SweepState(tmp_path)
    JobQueue(again, executor).run(trainings(state)[4:5], quiet)
    assert Ledger(again, billed=lambda: executor.book).spent()["sweep"].usd == 10.0
    assert Ledger(again).spent()["sweep"].usd == 12.0, "without that book: two beyond the ends, and the ends"
    assert len(again.journal.of("billed")) == 1
    assert Ledger(again).left("baseline") == (pytest.approx(9.0 - 50 / 3600), 21.0)
    assert Ledger(again).usd_per_hour(trainings(state)[0].job_id) == pytest.approx(720.0)


def test_what_was_billed_beyond_the_ends_is_paid_under_another_executor_too(tmp_path: Path) -> None:
    """Eight dollars of ends, ten billed, a ceiling of eleven: a job of two dollars is one too many."""
    state = planned(tmp_path, max_hours=9.0, machines=PRICED, budget=Budget(sweep=Ceiling(usd=11.0)))
    jobs = trainings(state)
    for job in jobs[:4]:
        state.journal.append("job_intent", job=job.job_id, arguments=[])
        number = state.journal.events[-1].number
        end = {"attempt": number, "submission": "", "exit_code": 0, "seconds": 2.0, "usd": 2.0, "lost": False}
        state.journal.append("job_ended", job=job.job_id, **end)
    state.journal.append("billed", usd=10.0)
    executor = FakeExecutor()
    with pytest.raises(BudgetError, match=r"12.00 USD of 11.00"):
        JobQueue(state, executor, forecast=lambda job: 2.0).run(jobs[4:5], quiet)
    assert executor.submitted == []


DRIVER = """
import sys
from pathlib import Path
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.sweep.driver import run_sweep
executor = LocalProcessExecutor(1, command=(sys.executable, "-c", "import time; time.sleep(60)"))
run_sweep("smoke", Path(sys.argv[1]), executor=executor, progress=lambda share, what: print(what, flush=True))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_driver_asked_to_end_by_a_signal_ends_and_pays_its_jobs(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / ALIVE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(number)
        assert driver.wait(30) == code
    finally:
        driver.kill()
        driver.wait()
    journal = Journal(tmp_path / JOURNAL)
    (intent,), (end,) = journal.of("job_intent"), journal.of("job_ended")
    assert end.data["attempt"] == intent.number
    assert end.data["interrupted"]
    assert end.data["exit_code"] == -signal.SIGTERM


def test_a_second_interrupt_does_not_wait() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_append_that_was_interrupted_has_not_happened(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    journal.append("first")
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(descriptor: int) -> None:
            raise KeyboardInterrupt

        patch.setattr("universal_simulator.sweep.journal.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            journal.append("second")
    journal.append("third")
    assert [event.kind for event in Journal(tmp_path / JOURNAL).events] == ["first", "third"]


def test_a_new_journal_is_on_the_disk_with_the_folders_that_name_it(tmp_path: Path) -> None:
    synced: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "universal_simulator.sweep.journal.os.fsync",
            lambda handle: synced.append(os.fstat(handle).st_ino),
        )
        journal = Journal(tmp_path / "sweep" / JOURNAL)
        journal.append("first")
        first = list(synced)
        journal.append("second")
    assert {(tmp_path / "sweep").stat().st_ino, tmp_path.stat().st_ino} < set(first)
    assert len(synced) == len(first) + 1, "once is enough"


def test_a_stop_is_journalled_written_and_told_though_the_executor_cannot_end_its_jobs(
    tmp_path: Path,
) -> None:
    class Stuck(FakeExecutor):
        def submit(self, job: Job) -> None:
            super().submit(job)
            self.ended[-1] = JobEnd(job.job_id, 0, 1e4)

        def cancel_all(self) -> None:
            raise UnreachableError("instance 7 may still be at work")

    with pytest.raises(BudgetError, match="used up") as stopped:
        run_sweep("smoke", tmp_path / "poor", executor=Stuck())
    assert "instance 7 may still be at work" in stopped.value.__notes__[-1]
    assert SweepState(tmp_path / "poor").journal.events[-1].kind == "sweep_stopped"
    assert "It was stopped" in report_path(tmp_path / "poor").read_text()
    with pytest.raises(UnreachableError, match="instance 7"):
        run_sweep(
            load_plan("smoke").model_copy(update={"max_hours": 99.0}), tmp_path / "rich", executor=Stuck()
        )
    assert SweepState(tmp_path / "rich").finished
    assert report_path(tmp_path / "rich").exists()


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
