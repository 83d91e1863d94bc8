"""Jobs as subprocesses of this machine: N at a time; threads, memory and GPUs shared out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from universal_simulator.credentials import without_secrets
from universal_simulator.errors import ExecutorError
from universal_simulator.executors.child_process import GIB, end_child, reap_if_ended, start_child
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, Job, JobEnd, JobState
from universal_simulator.sweep.job_log import tail

#: what runs a job's arguments
USIM = (sys.executable, "-m", "universal_simulator.cli")


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    started: float
    threads: int
    gpus: tuple[str, ...]


class LocalProcessExecutor(Executor):
    """`slots` processes, each with an equal share of `threads` (default: all cores).

    On Linux a job dies with its driver, even one ended by SIGKILL: nothing runs on unseen, the
    run goes on from its own checkpoint when it is launched again, and `attach` answers False.

    memory_gib (default: what the machine has) is shared out among the jobs that name their need,
    and such a job is held to it. gpus: names for CUDA_VISIBLE_DEVICES, each given to one job at a
    time (default: that variable, else what /dev shows); a job that asks for none sees them as
    the driver does. Every machine class is this machine.
    """

    ends_with_driver = sys.platform == "linux"

    def __init__(
        self,
        slots: int = 2,
        *,
        threads: int | None = None,
        memory_gib: float | None = None,
        gpus: Sequence[str] | None = None,
        command: Sequence[str] = USIM,
    ) -> None:
        if slots < 1:
            raise ExecutorError(f"need at least one worker, got {slots}")
        self.slots = slots
        cores = threads or os.cpu_count() or 1
        self.threads = max(1, cores // slots)
        self._all_threads = max(cores, self.threads * slots)
        self._all_memory_gib = memory_gib or _machine_memory_gib()
        self._free_gpus = list(visible_gpus() if gpus is None else gpus)
        self._num_gpus = len(self._free_gpus)
        self._command = tuple(command)
        self._waiting: list[Job] = []
        self._running: dict[str, _Running] = {}
        self._logs: dict[str, Path] = {}
        self._ends: dict[str, JobEnd] = {}
        self._unstarted: dict[str, OSError] = {}

    def submit(self, job: Job) -> None:
        if self.state(job.job_id) in ("waiting", "running"):
            raise ExecutorError(f"{job.job_id} is at work already; wait for its end or cancel it")
        self.refuse_impossible(job)
        self._logs[job.job_id] = job.log
        self._ends.pop(job.job_id, None)
        self._waiting.append(job)
        self._start_what_fits()
        if job.job_id in self._unstarted:
            raise ExecutorError(f"{job.job_id} could not be started: {self._unstarted.pop(job.job_id)}")

    def attach(self, job_id: str, folder: Path | str) -> bool:
        """False for what another driver started: no job outlives its driver."""
        return self.state(job_id) in ("waiting", "running")

    def wait(self, timeout_s: float) -> list[JobEnd]:
        deadline = time.monotonic() + timeout_s
        while True:
            codes = {name: reap_if_ended(running.process) for name, running in self._running.items()}
            ended = [self._end(name, code) for name, code in codes.items() if code is not None]
            self._start_what_fits()
            ended += self._never_started()
            if ended or time.monotonic() >= deadline or not self._running:
                return ended
            time.sleep(0.05)

    def state(self, job_id: str) -> JobState:
        if job_id in self._running:
            return "running"
        if any(job.job_id == job_id for job in self._waiting):
            return "waiting"
        if job_id not in self._ends:
            return "unknown"
        return "lost" if self._ends[job_id].lost else "ended"

    def cancel(self, job_id: str) -> JobEnd | None:
        waiting = [job for job in self._waiting if job.job_id == job_id]
        if waiting:
            self._waiting = [job for job in self._waiting if job.job_id != job_id]
            self._ends[job_id] = JobEnd(job_id, -signal.SIGTERM, 0.0)
            return self._ends[job_id]
        if job_id not in self._running:
            return None
        return self._end(job_id, end_child(self._running[job_id].process))

    def tail(self, job_id: str, lines: int = 12) -> str:
        log = self._logs.get(job_id)
        return tail(log, lines) if log is not None and log.exists() else ""

    def cancel_all(self) -> None:
        for name in [*(job.job_id for job in self._waiting), *self._running]:
            self.cancel(name)

    def refuse_impossible(self, job: Job) -> None:
        needs = job.resources
        for what, need, there in (
            ("threads", needs.threads or 0, self._all_threads),
            ("gpus", needs.gpus, self._num_gpus),
            ("memory_gib", needs.memory_gib or 0.0, self._all_memory_gib),
        ):
            if need > there:
                raise ExecutorError(
                    f"{job.job_id} asks for {what} {need:g}, this machine lends {there:g}: lower what it "
                    "asks for (`machines` of the plan), or run it on a larger machine (--executor ray or vast)"
                )

    def _start_what_fits(self) -> None:
        """In the order given: one that does not fit yet holds back those behind it."""
        while self._waiting and len(self._running) < self.slots and self._fits(self._waiting[0]):
            job = self._waiting.pop(0)
            try:
                self._start(job)
            except OSError as error:
                self._unstarted[job.job_id] = error

    def _never_started(self) -> list[JobEnd]:
        """Those whose turn came and failed: no finding about them; submitted again, they say why."""
        ends = [JobEnd(name, LOST_EXIT_CODE, 0.0, lost=True) for name in self._unstarted]
        self._unstarted.clear()
        self._ends.update((end.job_id, end) for end in ends)
        return ends

    def _fits(self, job: Job) -> bool:
        needs = job.resources
        threads = sum(running.threads for running in self._running.values())
        memory = sum(running.job.resources.memory_gib or 0.0 for running in self._running.values())
        return (
            threads + (needs.threads or self.threads) <= self._all_threads
            and memory + (needs.memory_gib or 0.0) <= self._all_memory_gib
            and needs.gpus <= len(self._free_gpus)
        )

    def _start(self, job: Job) -> None:
        threads = job.resources.threads or self.threads
        environment = without_secrets(os.environ) | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
        }
        gpus = tuple(self._free_gpus[: job.resources.gpus])
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        output = open(job.log, "ab")  # noqa: SIM115 (closed when the job ends)
        try:
            process = start_child(
                [*self._command, *job.arguments],
                output=output,
                environment=environment,
                memory_gib=job.resources.memory_gib,
            )
        except OSError:
            output.close()
            raise
        self._free_gpus = self._free_gpus[len(gpus) :]
        self._running[job.job_id] = _Running(job, process, output, time.monotonic(), threads, gpus)

    def _end(self, name: str, exit_code: int) -> JobEnd:
        running = self._running.pop(name)
        running.output.close()
        self._free_gpus = sorted([*self._free_gpus, *running.gpus])
        self._ends[name] = JobEnd(name, exit_code, time.monotonic() - running.started)
        return self._ends[name]


def visible_gpus() -> list[str]:
    """The GPUs that jobs may be given, without importing what drives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    found = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(name for name in found if name.isdigit())


def _machine_memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
