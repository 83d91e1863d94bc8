"""The queue: what ended how, what is tried again, what a ceiling forbids, what stands still."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.errors import BudgetError
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Job, JobEnd, JobState
from universal_simulator.sweep.heartbeat import Heartbeat
from universal_simulator.sweep.job_queue import MOST, JobQueue
from universal_simulator.sweep.jobs import training_job
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.plan import Budget, Ceiling, Machine, Plan, load_plan
from universal_simulator.sweep.run_planning import first_runs, identified
from universal_simulator.sweep.state import JOURNAL, SweepState

PLAN = load_plan("smoke")


def quiet(shares: Mapping[str, float], running: Sequence[str]) -> None:
    pass


def planned(folder: Path, plan: Plan = PLAN, **changes: object) -> SweepState:
    """A sweep whose runs are planned and nothing more."""
    plan = plan.model_copy(update=changes)
    journal = Journal(folder / JOURNAL)
    journal.append("sweep_started", plan=plan.model_dump(mode="json"), plan_hash=plan.hash)
    runs = identified(plan, first_runs(plan), data_identity="d", known=())
    journal.append("runs_planned", data_identity="d", code_version="c", runs=[asdict(run) for run in runs])
    return SweepState(folder, journal)


def trainings(state: SweepState) -> list[Job]:
    return [training_job(state.plan, state.folder, run) for run in state.runs]


class Timed(FakeExecutor):
    """Every job ends at once and says it took `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def submit(self, job: Job) -> None:
        super().submit(job)
        self.ended[-1] = JobEnd(job.job_id, self.ended[-1].exit_code, self.seconds)


def test_a_lost_job_is_no_failure_and_is_launched_again_often(tmp_path: Path) -> None:
    class Losing(FakeExecutor):
        losses = MOST["lost"] - 1

        def submit(self, job: Job) -> None:
            if self.losses:
                self.losses -= 1
                self.submitted.append(job.job_id)
                self.ended.append(JobEnd(job.job_id, LOST_EXIT_CODE, 1.0, lost=True))
            else:
                super().submit(job)

    state, executor = planned(tmp_path), Losing()
    job = trainings(state)[0]
    JobQueue(state, executor).run([job], quiet)
    assert state.done(job.job_id)
    assert executor.submitted == [job.job_id] * MOST["lost"]
    assert [e.data["lost"] for e in state.journal.of("job_ended")] == [True] * 4 + [False]


def test_a_job_still_at_work_is_taken_over_and_never_started_twice(tmp_path: Path) -> None:
    class Surviving(FakeExecutor):
        attached: tuple[str, str] | None = None

        def attach(self, job_id: str, folder: Path | str) -> bool:
            self.attached = (job_id, str(folder))
            job = next(job for job in trainings(state) if job.job_id == job_id)
            self.work(job)
            self.ended.append(JobEnd(job_id, 0, 5.0))
            return True

    state, executor = planned(tmp_path), Surviving()
    first, second = trainings(state)[:2]
    state.journal.append("job_intent", job=first.job_id, arguments=list(first.arguments))
    JobQueue(state, executor).run([first, second], quiet)
    assert executor.attached == (first.job_id, str(tmp_path))
    assert executor.submitted == [second.job_id]
    assert state.done(first.job_id)
    assert state.attempts(first.job_id) == 1


def test_the_sweep_stops_before_the_launch_that_would_cross_its_ceiling(tmp_path: Path) -> None:
    """Half an hour; forecasts of ten minutes: three run, none is begun that could not be paid."""
    state = planned(tmp_path)
    executor = Timed(600.0)
    with pytest.raises(BudgetError, match=r"would take sweep to 0.6667 worker hours of 0.5"):
        JobQueue(state, executor, forecast=lambda job: 600.0).run(trainings(state), quiet)
    assert len(executor.submitted) == 3
    assert state.seconds_spent == 1800
    again = Timed(600.0)
    with pytest.raises(BudgetError, match="would take sweep"):
        JobQueue(SweepState(tmp_path), again, forecast=lambda job: 600.0).run(trainings(state), quiet)
    assert again.submitted == []


@pytest.mark.parametrize(
    ("budget", "forecast", "refused", "words"),
    [
        (Budget(round=Ceiling(hours=0.4)), 600.0, 1, "round baseline to 0.5 worker hours of 0.4"),
        (Budget(round=Ceiling(attempts=2)), 0.0, 1, "round baseline to 3 training launches of 2"),
        (Budget(run=Ceiling(usd=0.2)), 600.0, 5, "0.33 USD of 0.20"),
    ],
)
def test_ceilings_of_run_and_round_refuse_only_what_is_theirs(
    tmp_path: Path, budget: Budget, forecast: float, refused: int, words: str
) -> None:
    machines = {"small": Machine(price_usd_per_hour=2.0)}
    state = planned(tmp_path, budget=budget, machines=machines, max_hours=9.0)
    executor = Timed(600.0)
    executor.slots = 1
    jobs = trainings(state)
    JobQueue(state, executor, forecast=lambda job: forecast).run(jobs, quiet)
    given_up = state.journal.of("job_given_up")
    assert len(given_up) == refused
    assert len(executor.submitted) == len(jobs) - refused
    assert words in given_up[0].data["log"]
    assert state.failed_for_good(given_up[0].data["job"])


def test_running_jobs_count_with_their_forecast(tmp_path: Path) -> None:
    """Two slots, room for one and a half: the second is not begun while the first runs."""
    state = planned(tmp_path, max_hours=0.25)
    executor = Timed(600.0)
    with pytest.raises(BudgetError, match="would take"):
        JobQueue(state, executor, forecast=lambda job: 600.0).run(trainings(state), quiet)
    assert len(executor.submitted) == 1
    assert state.seconds_spent == 600  # what ran was waited for


def test_a_job_that_uses_up_the_ceiling_of_its_run_is_ended(tmp_path: Path) -> None:
    state = planned(tmp_path, budget=Budget(run=Ceiling(hours=0.3 / 3600)))
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    executor = LocalProcessExecutor(1, command=command)
    job = trainings(state)[0]
    before = time.monotonic()
    try:
        JobQueue(state, executor).run([job], quiet)
    finally:
        executor.cancel_all()
    assert time.monotonic() - before < 30
    assert state.failed_for_good(job.job_id)
    assert "its ceiling in the plan" in state.last_words(job.job_id)


HANGS_ONCE = """
import pathlib, time
mark = pathlib.Path({mark!r})
print("step 1 of 2", flush=True)
if not mark.exists():
    mark.touch()
    time.sleep(120)
print("resumed", flush=True)
"""


def test_a_real_hang_is_diagnosed_ended_and_launched_again(tmp_path: Path) -> None:
    state = planned(tmp_path, stall_timeout_s=1.0)
    script = HANGS_ONCE.format(mark=str(tmp_path / "mark"))
    executor = LocalProcessExecutor(1, command=(sys.executable, "-c", script))
    job = Job("data", (), tmp_path / "logs" / "data.log", tmp_path)
    before = time.monotonic()
    try:
        JobQueue(state, executor).run([job], quiet)
    finally:
        executor.cancel_all()
    assert time.monotonic() - before < 60
    (stall,) = state.journal.of("job_stalled")
    assert stall.data["silent_s"] >= 1.0
    assert "step 1 of 2" in stall.data["log"]
    assert stall.data["files"]["data.log"] > 0
    assert state.done(job.job_id)
    assert state.attempts(job.job_id) == 2
    assert "resumed" in job.log.read_text()


def test_a_job_that_always_hangs_is_given_up_and_may_be_tried_again_later(tmp_path: Path) -> None:
    class Silent(FakeExecutor):
        def submit(self, job: Job) -> None:
            self.submitted.append(job.job_id)

        def state(self, job_id: str) -> JobState:
            return "running"

        def cancel(self, job_id: str) -> JobEnd | None:
            return JobEnd(job_id, -15, 10.0)

    times = iter(range(0, 10**6, 20))
    state, executor = planned(tmp_path), Silent()
    heartbeat = Heartbeat(executor, 100.0, clock=lambda: float(next(times)))
    job = trainings(state)[0]
    JobQueue(state, executor, heartbeat=heartbeat).run([job], quiet)
    assert len(executor.submitted) == MOST["stall"] == len(state.journal.of("job_stalled"))
    assert state.failed(job.job_id)
    assert not state.failed_for_good(job.job_id)


def test_silence_alone_is_no_stall(tmp_path: Path) -> None:
    """Growing files, a log that grows at the worker, a worker that waits or does not answer: no stall."""

    class Remote(FakeExecutor):
        says: JobState = "running"
        words = 0

        def state(self, job_id: str) -> JobState:
            return self.says

        def tail(self, job_id: str, lines: int = 12) -> str:
            self.words += self.growing
            return f"step {self.words}"

        growing = 1

    now = [0.0]
    executor = Remote()
    heartbeat = Heartbeat(executor, 10.0, clock=lambda: now[0])
    job = Job("train:x", (), tmp_path / "run.log")

    def stalls(seconds: int) -> bool:
        for _ in range(seconds):
            now[0] += 1
            if heartbeat.stalled(job):
                return True
        return False

    assert not stalls(50)
    executor.growing = 0
    for said in ("waiting", "unknown", "lost"):
        executor.says = said  # type: ignore[assignment] # a literal of JobState
        assert not stalls(50)
    executor.says = "running"
    assert stalls(25)
    heartbeat.forget(job.job_id)
    assert not stalls(6)
    executor.says = "unknown"
    assert not stalls(4), "it counts no time in which nobody answers,"
    executor.says = "running"
    assert not stalls(2), "also when somebody does again before the timeout"
    metrics = tmp_path / "metrics_operator.jsonl"
    heartbeat.forget(job.job_id)
    for step in range(8):
        metrics.write_text("x" * step)
        assert not stalls(9)
