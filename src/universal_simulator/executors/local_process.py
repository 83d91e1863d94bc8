"""Jobs as subprocesses of this machine, N at a time, threads shared out."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import IO

from universal_simulator.credentials import without_secrets
from universal_simulator.errors import ExecutorError
from universal_simulator.sweep.executor import Executor, Job, JobEnd

_PR_SET_PDEATHSIG = 1


class LocalProcessExecutor(Executor):
    """`slots` processes, each with an equal share of `threads` (default: all cores).

    On Linux a job dies with its driver, even one ended by SIGKILL: nothing runs on unseen,
    and the run goes on from its own checkpoint when it is launched again.
    """

    def __init__(self, slots: int = 2, *, threads: int | None = None) -> None:
        if slots < 1:
            raise ExecutorError(f"need at least one worker, got {slots}")
        self.slots = slots
        self.threads = max(1, (threads or os.cpu_count() or 1) // slots)
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes], float]] = {}

    def submit(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        environment = without_secrets(os.environ) | {
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
        }
        log = open(job.log, "ab")  # noqa: SIM115 (closed when the job ends)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "universal_simulator.cli", *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            log.close()
            raise ExecutorError(f"{job.job_id} could not be started: {error}") from error
        self._running[job.job_id] = (process, log, time.monotonic())

    def wait(self, timeout_s: float) -> list[JobEnd]:
        deadline = time.monotonic() + timeout_s
        while True:
            ended = [name for name, (process, _, _) in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= deadline or not self._running:
                return [self._end(name) for name in ended]
            time.sleep(0.05)

    def cancel_all(self) -> None:
        for process, _, _ in self._running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for name in list(self._running):
            process = self._running[name][0]
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._end(name)

    def _end(self, name: str) -> JobEnd:
        process, log, started = self._running.pop(name)
        log.close()
        return JobEnd(name, int(process.returncode), time.monotonic() - started)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
