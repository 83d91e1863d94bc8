"""The executor contract as tests: every implementation subclasses `ExecutorContract`.

A subclass provides the fixture `make` and says what its surroundings can do. Each call of
`make(slots)` gives another driver's executor in the same place, running `errand.py`'s jobs;
`make(slots, command=USIM)` runs `usim` itself.
"""

from __future__ import annotations

import abc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

import pytest

from universal_simulator.errors import ExecutorError
from universal_simulator.executors.local_process import USIM
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, Job, JobEnd, Resources
from universal_simulator.sweep.state import result_hashes

ERRAND = (sys.executable, str(Path(__file__).with_name("errand.py")))


class Make(Protocol):
    def __call__(self, slots: int = 1, *, command: tuple[str, ...] = ERRAND) -> Executor: ...


def errand(folder: Path, job_id: str, *words: str, resources: Resources | None = None) -> Job:
    log = folder / "logs" / f"{job_id.replace(':', '-')}.log"
    return Job(job_id, words, log, folder=folder, resources=resources or Resources())


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for: {what}"
        time.sleep(0.05)


def ends_of(executor: Executor, number: int = 1, *, timeout_s: float = 90.0) -> dict[str, JobEnd]:
    """The next `number` ends, each reported once."""
    found: dict[str, JobEnd] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < number:
        assert time.monotonic() < deadline, f"{len(found)} of {number} jobs ended within {timeout_s} s"
        for end in executor.wait(1.0):
            assert end.job_id not in found, f"{end.job_id} was reported twice"
            found[end.job_id] = end
    return found


def gone(pid: int) -> bool:
    """No process of this number, or only the corpse that its parent has not buried yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def driven(executor: Executor, condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, asked between looks: an executor works while its driver waits. No job may end."""
    return lambda: executor.wait(0.0) == [] and condition()


def started_pid(path: Path, executor: Executor | None = None) -> int:
    """The process id that a sleeping errand wrote; `executor` is given the time to start it."""

    def written() -> bool:
        return path.exists() and path.read_text() != ""

    until(written if executor is None else driven(executor, written), f"a process id in {path}")
    return int(path.read_text())


class ExecutorContract(abc.ABC):
    """`outlives_driver`: jobs go on when their driver dies. `tells_loss`: a worker taken away is
    told as lost (else as the signal that ended the job). `knows_its_size`: what can never fit is
    refused; a cluster that may grow waits instead."""

    outlives_driver: ClassVar[bool]
    tells_loss: ClassVar[bool]
    knows_its_size: ClassVar[bool] = True

    @pytest.fixture
    @abc.abstractmethod
    def make(self) -> Make:
        """Another driver's executor; the fixture ends what is left over."""

    @abc.abstractmethod
    def take_worker_away(self, executor: Executor, job_id: str, pid: int) -> None:
        """End the worker of a running job (process `pid`) without a word, as a lost host does."""

    def test_exit_codes_and_signals_are_told(self, make: Make, tmp_path: Path) -> None:
        executor = make(2)
        jobs = {"good": ("exit", "0"), "bad": ("exit", "3"), "killed": ("die", "9")}
        for name, words in jobs.items():
            executor.submit(errand(tmp_path, name, *words))
        ends = ends_of(executor, 3)
        assert {name: (end.exit_code, end.lost) for name, end in ends.items()} == {
            "good": (0, False),
            "bad": (3, False),
            "killed": (-9, False),
        }
        assert all(0 <= end.seconds < 60 for end in ends.values())
        assert executor.wait(0.1) == []
        assert {executor.state(name) for name in jobs} == {"ended"}

    def test_the_same_place_has_one_name(self, make: Make) -> None:
        """What a canary found out there holds for the next driver as well."""
        first, second = make(1), make(2)
        assert first.place == second.place != ""

    def test_state_and_one_at_work_under_a_name(self, make: Make, tmp_path: Path) -> None:
        executor = make(1)
        assert executor.state("train:a") == "unknown"
        job = errand(tmp_path, "train:a", "sleep", str(tmp_path / "pid"))
        executor.submit(job)
        until(driven(executor, lambda: executor.state("train:a") == "running"), "running")
        with pytest.raises(ExecutorError, match=r"train:a .*at work"):
            executor.submit(job)
        executor.submit(errand(tmp_path, "later", "exit", "0"))
        assert executor.state("later") == "waiting"
        assert executor.wait(0.1) == []
        executor.cancel("train:a")
        assert ends_of(executor)["later"].exit_code == 0

    def test_cancelled_process_is_really_gone_and_its_end_is_told_once(
        self, make: Make, tmp_path: Path
    ) -> None:
        executor = make(1)
        executor.submit(errand(tmp_path, "long", "sleep", str(tmp_path / "pid")))
        pid = started_pid(tmp_path / "pid", executor)
        end = executor.cancel("long")
        assert gone(pid)
        assert end is not None
        assert end.exit_code < 0
        assert not end.lost
        assert executor.state("long") == "ended"
        assert executor.wait(0.1) == []
        assert executor.cancel("long") is None
        assert executor.cancel("never heard of") is None
        executor.submit(errand(tmp_path, "long", "exit", "0"))
        assert ends_of(executor)["long"].exit_code == 0

    def test_cancel_all_ends_all_and_may_be_repeated(self, make: Make, tmp_path: Path) -> None:
        executor = make(2)
        for name in ("a", "b", "c"):
            executor.submit(errand(tmp_path, name, "sleep", str(tmp_path / name)))
        pids = [started_pid(tmp_path / name, executor) for name in ("a", "b")]
        executor.cancel_all()
        executor.cancel_all()
        assert all(gone(pid) for pid in pids)
        assert executor.wait(0.1) == []
        assert not (tmp_path / "c").exists()

    def test_log_tail(self, make: Make, tmp_path: Path) -> None:
        executor = make(1)
        assert executor.tail("talker") == ""
        executor.submit(errand(tmp_path, "talker", "say", *map(str, range(100)), "end: ü"))
        ends_of(executor)
        assert executor.tail("talker", 2).splitlines() == ["99", "end: ü"]
        log = (tmp_path / "logs" / "talker.log").read_text(encoding="utf-8")
        assert [line for line in log.splitlines() if line.isdigit()] == [str(n) for n in range(100)]

    def test_attach_from_two_strings(self, make: Make, tmp_path: Path) -> None:
        """A second driver knows the job's name and the sweep's folder, nothing else."""
        first, second = make(2), make(2)
        assert not second.attach("train:a", str(tmp_path))
        first.submit(errand(tmp_path, "train:a", "count", str(tmp_path / "steps"), "60"))
        until(driven(first, (tmp_path / "steps").exists), "a running job")
        assert not second.attach("train:a", str(tmp_path / "elsewhere"))
        assert second.attach("train:a", str(tmp_path)) == self.outlives_driver
        if not self.outlives_driver:
            assert second.state("train:a") == "unknown"
            return
        assert second.state("train:a") == "running"
        with pytest.raises(ExecutorError, match="at work"):
            second.submit(errand(tmp_path, "train:a", "exit", "0"))
        end = ends_of(second)["train:a"]
        assert (end.exit_code, end.lost) == (0, False)
        assert "from 0" in second.tail("train:a")
        # ended while nobody looked: a third driver still hears of it
        third = make(2)
        assert third.attach("train:a", str(tmp_path))
        again = ends_of(third)["train:a"]
        assert again.exit_code == 0
        # told again it has the same name, so that nobody pays it twice
        assert again.submission == end.submission != ""

    def test_lost_worker_and_resume_from_the_checkpoint(self, make: Make, tmp_path: Path) -> None:
        executor = make(1)
        job = errand(tmp_path, "train:a", "count", str(tmp_path / "steps"), "100")
        executor.submit(job)
        until(driven(executor, (tmp_path / "steps").exists), "a first checkpoint")
        pid = started_pid(tmp_path / "steps.pid", executor)
        self.take_worker_away(executor, "train:a", pid)
        end = ends_of(executor)["train:a"]
        assert end.lost == self.tells_loss
        assert end.exit_code == (LOST_EXIT_CODE if self.tells_loss else -9)
        assert executor.state("train:a") == ("lost" if self.tells_loss else "ended")
        assert gone(pid)
        executor.submit(job)
        assert ends_of(executor)["train:a"].exit_code == 0
        history = (tmp_path / "steps.history").read_text().split()
        assert len(history) <= 101  # the step that was cut off may be repeated, no other
        assert sorted({int(n) for n in history}) == list(range(1, 101))
        assert int(executor.tail("train:a", 1).removeprefix("from ")) > 0

    def test_what_can_never_fit_is_refused(self, make: Make, tmp_path: Path) -> None:
        executor = make(1)
        huge = errand(tmp_path, "huge", "exit", "0", resources=Resources(gpus=4096))
        if not self.knows_its_size:
            executor.submit(huge)
            assert executor.wait(1.0) == []
            assert executor.state("huge") == "waiting"
            end = executor.cancel("huge")
            assert end is not None
            assert end.exit_code < 0
            return
        for refuses in (executor.refuse_impossible, executor.submit):
            with pytest.raises(ExecutorError, match="gpus 4096"):
                refuses(huge)
        executor.refuse_impossible(errand(tmp_path, "small", "exit", "0"))
        assert executor.state("huge") == "unknown"

    @pytest.mark.slow
    def test_a_real_run_goes_on_from_its_checkpoint_bit_for_bit(self, make: Make, tmp_path: Path) -> None:
        executor = make(1, command=USIM)
        records = []
        for name in ("whole", "broken"):
            folder = tmp_path / name
            words = ("run", "rerun_txxoc8a8", "--profile", "smoke", "--folder", str(folder), "--json")
            job = Job("train:it", words, folder / "run.log", folder, Resources(threads=1))
            executor.submit(job)
            if name == "broken":
                # a driver goes on waiting meanwhile, in which distant checkpoints come home
                until(
                    lambda: (
                        executor.wait(0.0) == []
                        and any(tmp_path.glob("broken/artifacts/runs/*/checkpoints/*_state.pt"))
                    ),
                    "a checkpoint",
                )
                assert executor.cancel("train:it") is not None
                executor.submit(job)
            assert ends_of(executor, timeout_s=300)["train:it"].exit_code == 0
            (run,) = (folder / "artifacts" / "runs").iterdir()
            records.append(read_document(RunFolder(folder, run.name).summary, RunRecord))
        assert result_hashes(records[0]) == result_hashes(records[1])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
