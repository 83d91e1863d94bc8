"""Attempts without an end: settled only where they were begun, charged by the driver that looked at them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.test_job_queue import planned, quiet, trainings
from tests.sweep.test_money import begun
from universal_simulator.cli.executors import Where, opened
from universal_simulator.errors import UnreachableError, UserError
from universal_simulator.executors.cloud_ledger import FILE, Ledger
from universal_simulator.sweep import canary
from universal_simulator.sweep.driver import estimate_sweep, resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.plan import load_plan
from universal_simulator.sweep.state import JOURNAL, SweepState
from universal_simulator.sweep.work_clock import ALIVE, mark_alive

PLAN = load_plan("smoke")


class Elsewhere(FakeExecutor):
    """A cluster whose driver is killed at the first training."""

    place = "RayClusterExecutor http://head:8265"

    def submit(self, job: Job) -> None:
        if job.job_id.startswith("train:"):
            raise SystemExit(137)
        super().submit(job)

    def cancel(self, job_id: str) -> None:
        raise UnreachableError("as a killed driver: nobody ends it")


def left_elsewhere(folder: Path, executor: FakeExecutor) -> str:
    with pytest.raises(SystemExit):
        run_sweep(PLAN, folder, executor=executor)
    (job,) = SweepState(folder).open_attempts()
    return job


def test_what_may_be_at_work_elsewhere_is_not_run_here(tmp_path: Path) -> None:
    job = left_elsewhere(tmp_path, Elsewhere())
    before = (tmp_path / JOURNAL).read_bytes()
    here = FakeExecutor()
    for go_on in (
        lambda: resume_sweep(tmp_path, executor=here),
        lambda: resume_sweep(tmp_path, executor=here, plan=PLAN.model_copy(update={"max_hours": 9.0})),
        lambda: run_sweep(PLAN, tmp_path, executor=here),
    ):
        with pytest.raises(UserError, match="--executor ray --ray-address http://head:8265") as refused:
            go_on()
        assert job in str(refused.value)
        assert "--abandon" in str(refused.value)
        assert refused.value.exit_code == 2
    assert here.submitted == []
    assert (tmp_path / JOURNAL).read_bytes() == before
    state = resume_sweep(tmp_path, executor=here, abandon=True)
    assert state.finished
    ends = [e.data for e in state.journal.of("job_ended") if e.data["job"] == job]
    assert [e["lost"] for e in ends] == [True, False]


def test_what_is_abandoned_is_ended_though_nothing_asks_for_it_again(tmp_path: Path) -> None:
    """A canary left elsewhere: here none is wanted, and no later resume may be refused because of it."""

    class Canaried(FakeExecutor):
        place = Elsewhere.place
        remote = True

        def submit(self, job: Job) -> None:
            if job.job_id.startswith("canary:"):
                raise SystemExit(137)
            super().submit(job)

        cancel = Elsewhere.cancel

    job = left_elsewhere(tmp_path, Canaried())
    assert job.startswith("canary:")
    assert resume_sweep(tmp_path, executor=FakeExecutor(), abandon=True).finished
    state = SweepState(tmp_path)
    (end,) = [e.data for e in state.journal.of("job_ended") if e.data["job"] == job]
    assert end["abandoned"]
    assert end["lost"]
    assert state.open_attempts() == {}
    assert resume_sweep(tmp_path, executor=FakeExecutor()).finished


def test_a_canary_that_another_one_supersedes_is_ended_and_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left open by a killed driver; then the plan is edited, so the archive is another, and is edited back."""
    plan = PLAN.model_copy(update={"canary": True})

    class Remote(FakeExecutor):
        place = Elsewhere.place
        kills = ""
        at_work = ""
        cancelled: tuple[str, ...] = ()

        def submit(self, job: Job) -> None:
            if self.kills and job.job_id.startswith(self.kills):
                raise SystemExit(137)
            super().submit(job)

        def attach(self, job_id: str, folder: Path | str) -> bool:
            return job_id == self.at_work

        def cancel(self, job_id: str) -> JobEnd | None:
            if self.kills:
                raise UnreachableError("as a killed driver: nobody ends it")
            self.cancelled += (job_id,)
            return JobEnd(job_id, -15, 7.0)

    killed = Remote()
    killed.kills = "canary:"
    with pytest.raises(SystemExit):
        run_sweep(plan, tmp_path, executor=killed)
    (old,) = SweepState(tmp_path).open_attempts()
    with monkeypatch.context() as patch:
        patch.setattr(canary, "archive_hash", lambda: "b" * 64)
        edited = Remote()
        edited.at_work = old
        edited.kills = ""
        state = resume_sweep(tmp_path, executor=edited)
    assert edited.cancelled == (old,)
    assert old not in edited.submitted
    (end,) = [e.data for e in state.journal.of("job_ended") if e.data["job"] == old]
    assert (end["exit_code"], end["seconds"] > 0, end["lost"]) == (-15, True, False)
    assert state.finished
    assert state.open_attempts() == {}
    assert resume_sweep(tmp_path, executor=FakeExecutor()).finished, "no other executor is refused"
    # edited back before it had passed: ended for another, it is no failed canary
    assert not state.failed_for_good(old)


def test_other_code_is_refused_before_anything_is_opened_or_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at work for the sweep goes on: the code that began it can be brought back to it."""

    class Watched(FakeExecutor):
        place = Elsewhere.place
        asked = 0

        def open(self, folder: Path | str) -> None:
            self.asked += 1

        def cancel_all(self) -> None:
            self.asked += 1

    left_elsewhere(tmp_path, Elsewhere())
    before = (tmp_path / JOURNAL).read_bytes()
    monkeypatch.setattr("universal_simulator.sweep.run_planning.code_version", lambda: "f" * 64)
    executor, amended = Watched(), PLAN.model_copy(update={"max_hours": 9.0})
    for go_on in (
        lambda: resume_sweep(tmp_path, executor=executor, plan=amended),
        lambda: run_sweep(PLAN, tmp_path, executor=executor),
        lambda: estimate_sweep(PLAN, tmp_path, executor=executor),
    ):
        with pytest.raises(UserError, match="bring that code back"):
            go_on()
    assert executor.asked == 0
    assert (tmp_path / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("answers_later", [True, False])
def test_one_job_that_nobody_answers_for_takes_no_other_down(tmp_path: Path, answers_later: bool) -> None:
    """The healthy ones are taken over and end; then it is asked for once more."""

    class Partly(FakeExecutor):
        asked = 0

        def attach(self, job_id: str, folder: Path | str) -> bool:
            if job_id == silent.job_id:
                self.asked += 1
                if self.asked == 1 or not answers_later:
                    raise UnreachableError("no answer")
            self.work(next(job for job in jobs if job.job_id == job_id))
            self.ended.append(JobEnd(job_id, 0, 5.0))
            return True

        def cancel(self, job_id: str) -> JobEnd | None:
            raise AssertionError(f"{job_id} was cancelled")

    state = planned(tmp_path, max_hours=99.0)
    jobs = trainings(state)[:3]
    healthy, silent, fresh = jobs
    for job in (healthy, silent):
        begun(state, job, ago_s=100.0)
    executor = Partly()
    if answers_later:
        JobQueue(SweepState(tmp_path), executor).run(jobs, quiet)
    else:
        with pytest.raises(UnreachableError, match="no answer"):
            JobQueue(SweepState(tmp_path), executor).run(jobs, quiet)
    state = SweepState(tmp_path)
    assert executor.submitted == [fresh.job_id]
    assert state.done(healthy.job_id)
    assert state.done(fresh.job_id)
    assert state.done(silent.job_id) == answers_later
    assert list(state.open_attempts()) == ([] if answers_later else [silent.job_id])
    assert executor.asked == 2


def test_the_same_place_and_one_that_ends_with_its_driver_are_gone_on_with(tmp_path: Path) -> None:
    class Back(FakeExecutor):
        place = Elsewhere.place

    left_elsewhere(tmp_path / "same", Elsewhere())
    assert resume_sweep(tmp_path / "same", executor=Back()).finished

    class Mortal(Elsewhere):
        ends_with_driver = True

    left_elsewhere(tmp_path / "mortal", Mortal())
    assert resume_sweep(tmp_path / "mortal", executor=FakeExecutor()).finished


def test_no_other_executor_goes_on_while_something_is_rented(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / FILE)
    ledger.open("usim", "smoke", 0.0)
    lease = ledger.intend(
        "train:a", (), log=tmp_path / "a.log", machine_class="small", offer_id=1, usd_per_hour=1.0, now=1.0
    )
    ledger.rented(lease.label, 7, 2.0)
    words = {"workers": 1, "ray_address": "local", "folder": tmp_path}
    for where in (Where.local, Where.ray):
        with pytest.raises(UserError, match=r"train:a.*cloud status .*cloud reap"), opened(where, **words):
            pass
    ledger.gone(lease.label, 3.0, reason="reaped by hand")
    with opened(Where.local, **words) as executor:
        assert executor.slots == 1


def test_a_later_sitting_of_another_hour_is_no_sign_of_life(tmp_path: Path) -> None:
    """Worked for 60 s ten hours ago; a sitting an hour ago looked at other jobs and settled nothing of it."""

    class Unreachable(FakeExecutor):
        def attach(self, job_id: str, folder: Path | str) -> bool:
            if job_id == first.job_id:
                raise UnreachableError("no answer")
            self.work(second)
            self.ended.append(JobEnd(job_id, 0, 1.0))
            return True

    state = planned(tmp_path, max_hours=99.0)
    first, second = trainings(state)[:2]
    begun(state, first, ago_s=36060.0)
    begun(state, second, ago_s=36060.0)
    mark_alive(tmp_path)
    os.utime(tmp_path / ALIVE, (0, time.time() - 36000.0))
    with pytest.raises(UnreachableError):
        JobQueue(SweepState(tmp_path), Unreachable()).run([second, first], quiet)
    assert time.time() - (tmp_path / ALIVE).stat().st_mtime < 60, "that sitting left its own sign"
    state = SweepState(tmp_path)
    JobQueue(state, FakeExecutor()).run([first], quiet)
    lost = next(e.data for e in state.journal.of("job_ended") if e.data["job"] == first.job_id)
    assert lost["abandoned"]
    assert lost["seconds"] == pytest.approx(64.0, abs=2.0)
