"""The Ray executor against a cluster that falls silent, forgets, and starts late what was given up."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.executors.contract import ERRAND, ExecutorContract, Make, ends_of, errand, gone, started_pid, until
from tests.executors.loopback_ray import LoopbackRay
from universal_simulator.errors import ExecutorError, UnreachableError, UserError
from universal_simulator.executors import fence, ray_cluster
from universal_simulator.executors.ray_cluster import RayClusterExecutor
from universal_simulator.executors.ray_jobs import RayJobs, job_api_address
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, JobEnd, Resources, Use

TOKEN = "a-token-of-the-cluster-99"


@pytest.fixture
def ray() -> Iterator[LoopbackRay]:
    ray = LoopbackRay()
    yield ray
    ray.fault = None
    ray.close()


@pytest.fixture
def make(ray: LoopbackRay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RayClusterExecutor]]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(ray_cluster, "GONE_WITHIN_S", 2.0)
    monkeypatch.setattr(ray_cluster, "PAUSE_S", 0.05)
    made: list[RayClusterExecutor] = []

    def factory(slots: int = 1, *, command: tuple[str, ...] = ERRAND) -> RayClusterExecutor:
        made.append(RayClusterExecutor(slots, address=ray.address, threads=2, command=command))
        return made[-1]

    yield factory
    ray.fault = None
    for executor in made:
        executor.cancel_all()
        executor.close()


class TestRayContract(ExecutorContract):
    outlives_driver = True
    tells_loss = True
    knows_its_size = False

    @pytest.fixture
    def make(self, make: Make, ray: LoopbackRay) -> Make:
        self.ray = ray
        return make

    def take_worker_away(self, executor: Executor, job_id: str, pid: int) -> None:
        self.ray.lose_supervisor(self.ray.find(job_id))


@pytest.mark.parametrize("fault", ["silent", "error", "foreign", "token"])
def test_silence_is_neither_end_nor_loss(ray: LoopbackRay, make: Make, tmp_path: Path, fault: str) -> None:
    executor, other = make(2), make(2)
    ray.fault = fault
    with pytest.raises(UnreachableError, match=r"token|answer"):
        executor.submit(errand(tmp_path, "a", "say", "a"))
    assert executor.state("a") == "unknown"
    ray.fault = None
    executor.submit(errand(tmp_path, "a", "sleep", str(tmp_path / "pid")))
    pid = started_pid(tmp_path / "pid")
    ray.fault = fault
    assert executor.state("a") == "unknown"
    assert executor.wait(0.3) == []
    with pytest.raises(UnreachableError, match=r"token|answer"):
        other.attach("a", tmp_path)
    executor.submit(errand(tmp_path, "b", "say", "b"))
    assert executor.state("b") == "waiting", "it waits for the cluster to come back"
    os.kill(pid, signal.SIGKILL)
    assert executor.wait(0.3) == [], "its process is gone, but nobody told how"
    ray.fault = None
    ends = ends_of(executor, 2)
    assert ends["a"].exit_code == -9
    assert ends["b"].exit_code == 0


def test_a_lost_reply_starts_nothing_twice(ray: LoopbackRay, make: Make, tmp_path: Path) -> None:
    executor = make(1)
    job = errand(tmp_path, "a", "count", str(tmp_path / "steps"), "5")
    executor.submit(errand(tmp_path, "before", "exit", "0"))
    ends_of(executor)
    ray.fault = "lost reply"
    executor.submit(job)
    assert ends_of(executor)["a"].exit_code == 0
    assert (tmp_path / "steps.history").read_text().split() == ["1", "2", "3", "4", "5"]


def test_a_head_that_forgot_is_loss_once_the_process_is_gone(
    ray: LoopbackRay, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's host is another one: nobody here can end the process that the head forgot."""
    executor, successor = make(1), make(1)
    executor.submit(errand(tmp_path, "a", "sleep", str(tmp_path / "pid")))
    pid = started_pid(tmp_path / "pid")
    ray.forget()
    with monkeypatch.context() as patch:
        patch.setattr(fence.socket, "gethostname", lambda: "elsewhere")
        assert executor.wait(0.5) == []
        assert not gone(pid)
        with pytest.raises(UnreachableError, match=rf"process {pid} on .* is still at work for a"):
            successor.attach("a", tmp_path)
        os.kill(pid, signal.SIGKILL)
        end = ends_of(executor)["a"]
    assert (end.exit_code, end.lost) == (LOST_EXIT_CODE, True)
    assert not successor.attach("a", tmp_path)


def test_a_process_that_the_head_forgot_is_ended_on_this_host(
    ray: LoopbackRay, make: Make, tmp_path: Path
) -> None:
    executor = make(1)
    executor.submit(errand(tmp_path, "a", "sleep", str(tmp_path / "pid")))
    pid = started_pid(tmp_path / "pid")
    ray.forget()
    assert ends_of(executor)["a"].lost
    assert gone(pid)


def test_what_was_given_up_never_begins_late(ray: LoopbackRay, make: Make, tmp_path: Path) -> None:
    executor = make(1)
    executor.submit(errand(tmp_path, "a", "say", "late", resources=Resources(gpus=7)))
    submission = ray.find("a")
    assert executor.state("a") == "waiting"
    assert executor.use("a") == Use(seconds=0.0)  # pending is no work
    assert executor.cancel("a") == JobEnd("a", -15, 0.0, submission=submission.request["submission_id"])
    submission.stopped = False  # as if the stop had never arrived
    ray.begin(submission)
    until(lambda: submission.status == "FAILED", "the end of the late one")
    assert submission.exit_code == fence.REFUSED
    assert not (tmp_path / "logs" / "a.log").exists()


def test_no_room_for_a_quarter_of_an_hour_is_waiting_not_loss(
    ray: LoopbackRay, make: Make, tmp_path: Path
) -> None:
    """Ray fails a job that found no room in time; it is handed in again, and the old one is barred."""
    executor = make(1)
    executor.submit(errand(tmp_path, "a", "say", "began", resources=Resources(gpus=7)))
    first = ray.find("a")
    first.finish("FAILED", error_type="JOB_SUPERVISOR_ACTOR_START_TIMEOUT", message="failed to start")
    assert executor.wait(0.3) == []
    assert executor.state("a") == "waiting"
    second = ray.find("a")
    assert second is not first
    ray.begin(second)
    assert ends_of(executor)["a"].exit_code == 0


def test_needs_classes_and_token_in_the_request(ray: LoopbackRay, make: Make, tmp_path: Path) -> None:
    executor = make(2)
    needs = Resources(threads=2, gpus=1, memory_gib=0.5, machine_class="large")
    executor.submit(errand(tmp_path, "any", "exit", "0", resources=needs))
    ray.marks["large"] = 1.0
    executor.submit(errand(tmp_path, "marked", "exit", "0", resources=needs))
    ends_of(executor, 2)
    request = ray.find("marked").request
    assert request["entrypoint_num_cpus"] == 2
    assert request["entrypoint_num_gpus"] == 1
    assert request["entrypoint_memory"] == 2**29
    assert request["entrypoint_resources"] == {"large": ray_cluster.CLASS_SHARE}
    assert ray.find("any").request["entrypoint_resources"] == {}
    assert set(ray.headers) == {f"Bearer {TOKEN}"}
    assert TOKEN not in str(request)


def test_refusals_say_what_to_do(ray: LoopbackRay, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="http://HOST:8265"):
        RayJobs("HOST:8265")
    with pytest.raises(UserError, match="http://HOST:8265"):
        RayJobs("ray://HOST:10001")
    # after a head of one's own has gone with its driver any executor may go on, after a cluster none
    assert RayClusterExecutor(1, address="local").ends_with_driver
    assert not make().ends_with_driver
    with pytest.raises(ExecutorError, match="at least one worker, got 0"):
        RayClusterExecutor(0)
    ray.fault = "token"
    with pytest.raises(UnreachableError, match="RAY_AUTH_TOKEN"):
        RayJobs(ray.address).version()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", " https://head:8265 ")
    assert job_api_address() == "https://head:8265"
    assert job_api_address({}) == "http://127.0.0.1:8265"
