"""A real Ray on this machine: the contract, lost workers and heads, resources, nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.contract import ERRAND, ExecutorContract, Make, ends_of, errand, gone, started_pid, until
from universal_simulator.errors import ExecutorError
from universal_simulator.executors.ray_cluster import RayClusterExecutor
from universal_simulator.executors.ray_head import RayHead
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, Resources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    head = RayHead(cpus=2, gpus=2)
    yield head
    head.close()


class TestRayCluster(ExecutorContract):
    """An existing cluster: its jobs go on without their driver."""

    outlives_driver = True
    tells_loss = True
    knows_its_size = False

    @pytest.fixture
    def make(self, head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
        monkeypatch.setenv("RAY_AUTH_TOKEN", head.token.get_secret_value())
        made: list[RayClusterExecutor] = []

        def factory(slots: int = 1, *, command: tuple[str, ...] = ERRAND) -> Executor:
            made.append(RayClusterExecutor(slots, address=head.address, threads=2, command=command))
            return made[-1]

        yield factory
        for executor in made:
            executor.cancel_all()
            executor.close()

    def take_worker_away(self, executor: Executor, job_id: str, pid: int) -> None:
        os.kill(parent_of(pid), signal.SIGKILL)


@pytest.fixture
def own() -> Iterator[RayClusterExecutor]:
    executor = RayClusterExecutor(2, address="local", threads=2, gpus=2, command=ERRAND)
    yield executor
    executor.close()


def processes_of(leader: int) -> dict[int, str]:
    """Everything in the session that the head's process leads: all of Ray's own processes."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_head_killed_members_lost_and_resubmitted_to_a_new_head(
    own: RayClusterExecutor, tmp_path: Path
) -> None:
    """Two members run, the head gets SIGKILL: both lost, both go on from their checkpoints, once."""
    jobs = {name: errand(tmp_path, name, "count", str(tmp_path / name), "120") for name in ("a", "b")}
    for job in jobs.values():
        own.submit(job)
    until(lambda: all((tmp_path / name).exists() for name in jobs), "first checkpoints")
    first = own.head
    assert first is not None
    pids = [started_pid(tmp_path / f"{name}.pid") for name in jobs]
    (ray_start,) = (pid for pid, words in processes_of(first.pid).items() if parent_of(pid) == first.pid)
    os.kill(ray_start, signal.SIGKILL)
    ends = ends_of(own, 2)
    assert {(end.exit_code, end.lost) for end in ends.values()} == {(LOST_EXIT_CODE, True)}
    assert all(gone(pid) for pid in pids)
    until(lambda: not processes_of(first.pid), "the end of the old head's processes", timeout_s=20)
    for job in jobs.values():
        own.submit(job)
    assert {end.exit_code for end in ends_of(own, 2).values()} == {0}
    assert own.head is not first
    for name in jobs:
        history = [int(n) for n in (tmp_path / f"{name}.history").read_text().split()]
        assert sorted(set(history)) == list(range(1, 121))
        assert len(history) <= 121
        assert "ray: lost: the cluster is gone" in (tmp_path / "logs" / f"{name}.log").read_text()


def test_needs_reach_the_job_and_nothing_is_left_behind(own: RayClusterExecutor, tmp_path: Path) -> None:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAY_AUTH_TOKEN")
    own.submit(errand(tmp_path, "gpu", "show", *names, resources=Resources(gpus=1, threads=1)))
    own.submit(errand(tmp_path, "greedy", "memory", "0.5", resources=Resources(memory_gib=0.25)))
    ends = ends_of(own, 2)
    assert ends["gpu"].exit_code == 0
    shown = dict(line.split("=", 1) for line in (tmp_path / "logs" / "gpu.log").read_text().splitlines())
    assert shown["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    assert shown["OMP_NUM_THREADS"] == "1"
    assert shown["RAY_AUTH_TOKEN"] == ""
    assert ends["greedy"].exit_code == 1
    assert "MemoryError" in own.tail("greedy")
    with pytest.raises(ExecutorError, match="gpus 3, this head lends 2"):
        own.submit(errand(tmp_path, "huge", "exit", "0", resources=Resources(gpus=3)))
    assert not own.attach("gpu", tmp_path), "another driver's head is gone with it"
    own.submit(errand(tmp_path, "long", "sleep", str(tmp_path / "pid")))
    pid = started_pid(tmp_path / "pid")
    assert own.head is not None
    folder = own.head.folder
    leader = own.head.pid
    words = " ".join(processes_of(leader).values())
    assert "raylet" in words
    assert own.head.token.get_secret_value() not in words
    own.close()
    until(lambda: gone(pid) and not processes_of(leader), "the end of all processes", timeout_s=20)
    assert not folder.exists()


DRIVER = """
import sys
from pathlib import Path
from universal_simulator.executors.ray_cluster import RayClusterExecutor
from universal_simulator.sweep.executor import Job
folder = Path(sys.argv[1])
executor = RayClusterExecutor(1, address="local", threads=1, command=(sys.executable, sys.argv[2]))
executor.submit(Job("a", ("sleep", str(folder / "pid")), folder / "a.log", folder))
(folder / "head").write_text(f"{executor.head.pid} {executor.head.folder}")
executor.wait(600)
"""


def test_a_killed_driver_takes_its_own_head_along(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), ERRAND[1]])
    try:
        pid = started_pid(tmp_path / "pid")
    finally:
        driver.kill()
        driver.wait()
    number, name = (tmp_path / "head").read_text().split()
    leader, folder = int(number), Path(name)
    until(lambda: gone(pid) and not processes_of(leader), "the end of all processes", timeout_s=20)
    successor = RayClusterExecutor(1, address="local", threads=1, command=ERRAND)
    assert not successor.attach("a", tmp_path)
    assert not folder.exists()


def test_a_sweep_whose_head_is_killed_ends_in_the_same_results(tmp_path: Path) -> None:
    """The measurement of the log, on the smoke plan: lost members go on, no step and no job twice."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "ray_head_killed.py"
    words = ["smoke", str(tmp_path / "ray"), "--whole", str(tmp_path / "local")]
    answer = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=1200, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    result = json.loads(answer.stdout)
    assert result["same_digest"]
    assert len(result["ray"]["lost"]) == 2
