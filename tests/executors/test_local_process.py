"""Local processes pass the contract; threads, memory and GPUs are shared out; nothing outlives its driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.contract import (
    ERRAND,
    ExecutorContract,
    Make,
    ends_of,
    errand,
    gone,
    started_pid,
    until,
)
from universal_simulator.errors import ExecutorError
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, JobEnd, Resources


class TestLocalProcess(ExecutorContract):
    outlives_driver = False
    tells_loss = False

    @pytest.fixture
    def make(self) -> Iterator[Make]:
        made: list[LocalProcessExecutor] = []

        def factory(slots: int = 1, *, command: tuple[str, ...] = ERRAND) -> Executor:
            made.append(LocalProcessExecutor(slots, threads=2, gpus=(), command=command))
            return made[-1]

        yield factory
        for executor in made:
            executor.cancel_all()

    def take_worker_away(self, executor: Executor, job_id: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


def local(slots: int = 1, **options: object) -> LocalProcessExecutor:
    return LocalProcessExecutor(slots, command=ERRAND, **{"threads": 4, "gpus": (), **options})  # type: ignore[arg-type]


def shown(folder: Path, name: str) -> dict[str, str]:
    lines = (folder / "logs" / f"{name}.log").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


DRIVER = """
import sys
from pathlib import Path
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.sweep.executor import Job
folder = Path(sys.argv[1])
executor = LocalProcessExecutor(1, command=(sys.executable, sys.argv[2]))
executor.submit(Job("a", ("sleep", str(folder / "pid")), folder / "a.log", folder))
executor.wait(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_job_dies_with_its_driver_and_attach_says_so(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), ERRAND[1]])
    try:
        pid = started_pid(tmp_path / "pid")
    finally:
        driver.kill()
        driver.wait()
    until(lambda: gone(pid), "the end of the orphan", timeout_s=5)
    assert not local().attach("a", tmp_path)


def test_what_a_job_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    """A grandchild in the job's group would go on writing into the run's folder."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
    )
    executor = LocalProcessExecutor(1, command=(sys.executable, str(script)))
    executor.submit(errand(tmp_path, "a", str(tmp_path / "pid")))
    assert ends_of(executor)["a"].exit_code == 0
    until(lambda: gone(int((tmp_path / "pid").read_text())), "the end of the grandchild", timeout_s=5)


def test_threads_are_an_equal_share_unless_named(tmp_path: Path) -> None:
    executor = local(2)
    executor.submit(errand(tmp_path, "share", "show", "OMP_NUM_THREADS"))
    executor.submit(errand(tmp_path, "all", "show", "OMP_NUM_THREADS", resources=Resources(threads=4)))
    assert executor.state("all") == "waiting"  # 2 of 4 threads are taken
    ends_of(executor, 2)
    assert shown(tmp_path, "share") == {"OMP_NUM_THREADS": "2"}
    assert shown(tmp_path, "all") == {"OMP_NUM_THREADS": "4"}


def test_each_gpu_is_given_to_one_job_at_a_time(tmp_path: Path) -> None:
    executor = local(3, gpus=("0", "1", "GPU-7"))
    two, one = Resources(gpus=2), Resources(gpus=1)
    executor.submit(errand(tmp_path, "two", "show", "CUDA_VISIBLE_DEVICES", resources=two))
    executor.submit(errand(tmp_path, "one", "show", "CUDA_VISIBLE_DEVICES", resources=one))
    executor.submit(errand(tmp_path, "next", "show", "CUDA_VISIBLE_DEVICES", resources=two))
    assert executor.state("next") == "waiting"
    ends_of(executor, 3)
    assert shown(tmp_path, "two") == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert shown(tmp_path, "one") == {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    assert len(shown(tmp_path, "next")["CUDA_VISIBLE_DEVICES"].split(",")) == 2


def test_gpus_are_those_the_driver_may_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    executor = LocalProcessExecutor(1, command=ERRAND)
    executor.submit(errand(tmp_path, "a", "show", "CUDA_VISIBLE_DEVICES", resources=Resources(gpus=1)))
    ends_of(executor)
    assert shown(tmp_path, "a") == {"CUDA_VISIBLE_DEVICES": "2"}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux only")
def test_memory_is_shared_out_and_held_to(tmp_path: Path) -> None:
    executor = local(2, memory_gib=1.0)
    quarter = Resources(memory_gib=0.25)
    executor.submit(errand(tmp_path, "greedy", "memory", "0.5", resources=quarter))
    executor.submit(errand(tmp_path, "modest", "memory", "0.1", resources=Resources(memory_gib=0.9)))
    assert executor.state("modest") == "waiting"
    ends = ends_of(executor, 2)
    assert ends["greedy"].exit_code == 1
    assert "MemoryError" in executor.tail("greedy")
    assert ends["modest"].exit_code == 0
    with pytest.raises(ExecutorError, match="memory_gib 2, this machine lends 1"):
        executor.submit(errand(tmp_path, "huge", "exit", "0", resources=Resources(memory_gib=2)))


def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    executor = LocalProcessExecutor(1, command=(str(tmp_path / "missing"),))
    with pytest.raises(ExecutorError, match=r"a could not be started: .*missing"):
        executor.submit(errand(tmp_path, "a"))
    assert executor.state("a") == "unknown"
    with pytest.raises(ExecutorError, match="at least one worker, got 0"):
        LocalProcessExecutor(0)


def test_one_whose_turn_comes_and_that_cannot_start_is_lost(tmp_path: Path) -> None:
    executor = local(1)
    executor.submit(errand(tmp_path, "first", "sleep", str(tmp_path / "pid")))
    executor.submit(errand(tmp_path / "there", "second", "exit", "0"))
    (tmp_path / "there").write_text("a file where the folder of the log should be")
    executor.cancel("first")
    assert executor.wait(5) == [JobEnd("second", LOST_EXIT_CODE, 0.0, lost=True)]
    assert executor.state("second") == "lost"
    with pytest.raises(ExecutorError, match="could not be started"):
        executor.submit(errand(tmp_path / "there", "second", "exit", "0"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"threads": 0}, "threads must be at least 1"),
        ({"gpus": -1}, "gpus must be 0 or more"),
        ({"memory_gib": 0.0}, "memory_gib must be above 0"),
        ({"memory_gib": float("nan")}, "memory_gib must be above 0"),
    ],
)
def test_impossible_needs_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Resources(**wrong)  # type: ignore[arg-type]
