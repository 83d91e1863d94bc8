"""What a sweep has spent: every way to stop, attempts that nobody saw the end of, waiting, two books."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.test_job_queue import planned, quiet, trainings
from universal_simulator.errors import BudgetError, UnreachableError
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.sweep.executor import Job, JobEnd, JobState
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.plan import Machine
from universal_simulator.sweep.state import SweepState

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
