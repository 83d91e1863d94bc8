"""At most one process works for a job, and a submission that lost its ticket never begins."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.contract import ERRAND, gone, started_pid, until
from universal_simulator.executors.fence import REFUSED, Fence

JOB = "train:a/b ü"


class Workers:
    """Starts what a scheduler would start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, ticket: str, *words: str, folder: Path | None = None, memory_gib: str = "0"
    ) -> subprocess.Popen[str]:
        fence = [sys.executable, "-m", "universal_simulator.executors.fence", str(folder or self.folder), JOB]
        command = [*fence, ticket, str(self.folder / "log"), memory_gib, "--", *ERRAND, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.started.append(process)
        return process


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    for process in workers.started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_ticket_holder_runs_and_its_exit_code_passes(workers: Workers, tmp_path: Path) -> None:
    fence = Fence(tmp_path, JOB)
    assert fence.ticket is None
    assert not fence.held
    assert fence.issue("one")
    assert workers.start("one", "exit", "3").wait() == 3
    last = fence.last
    assert last is not None
    assert (last.ticket, last.log) == ("one", str(tmp_path / "log"))
    assert abs(last.began - time.time()) < 60
    assert not fence.held


def test_without_the_ticket_nothing_begins(workers: Workers, tmp_path: Path) -> None:
    fence = Fence(tmp_path, JOB)
    for ticket in ("two", ""):
        assert fence.issue(ticket)
        late = workers.start("one", "say", "began")
        assert late.communicate()[0].startswith(f"{JOB}: submission one was withdrawn")
        assert late.returncode == REFUSED
    stranger = workers.start("one", "say", "began", folder=tmp_path / "elsewhere")
    assert "shared with the driver" in stranger.communicate()[0]
    assert stranger.returncode == REFUSED
    assert not (tmp_path / "log").exists()


def test_the_second_waits_for_the_first_and_the_ticket_cannot_change_meanwhile(
    workers: Workers, tmp_path: Path
) -> None:
    fence = Fence(tmp_path, JOB)
    fence.issue("one")
    first = workers.start("one", "sleep", str(tmp_path / "first"))
    pid = started_pid(tmp_path / "first")
    assert pid == first.pid, "the worker becomes the job"
    assert fence.held
    assert not fence.issue("two")
    again = workers.start("one", "sleep", str(tmp_path / "again"))
    with pytest.raises(subprocess.TimeoutExpired):
        again.wait(0.5)
    assert not (tmp_path / "again").exists()
    first.kill()
    first.wait()
    assert started_pid(tmp_path / "again") == again.pid


def test_only_the_process_of_that_submission_is_killed(workers: Workers, tmp_path: Path) -> None:
    fence = Fence(tmp_path, JOB)
    fence.kill_here("one")
    fence.issue("one")
    workers.start("one", "sleep", str(tmp_path / "pid"))
    pid = started_pid(tmp_path / "pid")
    fence.kill_here("another")
    assert not gone(pid)
    fence.kill_here("one")
    until(lambda: gone(pid) and not fence.held, "the end of the process", timeout_s=5)
    fence.kill_here("one")
    assert fence.issue("two")


def test_memory_is_held_to_and_secrets_stay_out(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-the-cluster-99")
    fence = Fence(tmp_path, JOB)
    fence.issue("one")
    assert workers.start("one", "memory", "0.5", memory_gib="0.25").wait() == 1
    assert workers.start("one", "show", "RAY_AUTH_TOKEN", "HOME").wait() == 0
    log = (tmp_path / "log").read_text()
    assert "MemoryError" in log
    assert "RAY_AUTH_TOKEN=\n" in log
    assert "HOME=/" in log


def test_jobs_of_like_names_have_fences_of_their_own(tmp_path: Path) -> None:
    one, other = Fence(tmp_path, "train:a"), Fence(tmp_path, "train-a")
    assert one.issue("x")
    assert other.ticket is None
