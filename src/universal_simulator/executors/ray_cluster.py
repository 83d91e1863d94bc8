"""Jobs on a Ray cluster, through its job API: a head of our own on this machine, or one that is there.

Each job is one Ray submission: a supervisor actor with the job's CPUs, GPUs and memory, and below it
the `usim` process. The driver and all workers see the sweep's folder under the same path; there
lie the logs, the checkpoints and the fence that keeps a job from running twice.

What ends how: an exit code is told by Ray. A dead supervisor, worker host or head tells none: the job
is lost, and reported so once the fence is free. A silent cluster is waited for.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from universal_simulator.credentials import find_ray_token, masked
from universal_simulator.errors import ExecutorError, UnreachableError
from universal_simulator.executors.child_process import GIB
from universal_simulator.executors.fence import REFUSED, Fence
from universal_simulator.executors.ray_head import RayHead
from universal_simulator.executors.ray_jobs import START_TIMEOUT, JobInfo, RayJobs, job_api_address
from universal_simulator.executors.work_span import WorkSpan
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Executor, Job, JobEnd, JobState, Use
from universal_simulator.sweep.job_log import tail

#: between two looks at the cluster
PAUSE_S = 0.25
#: an earlier process of a dead supervisor is gone after about a second
GONE_WITHIN_S = 15.0
#: a cancelled job gets SIGTERM from Ray, SIGKILL after 3 s
CANCELLED_WITHIN_S = 30.0
#: a share of a custom resource that marks a machine's class
CLASS_SHARE = 0.001


@dataclass(frozen=True)
class _Placed:
    """A submission: where it was handed in, by which string, behind which fence; how long it works."""

    job: Job
    submission: str
    fence: Fence
    jobs: RayJobs
    head: RayHead | None
    span: WorkSpan


class RayClusterExecutor(Executor):
    """`slots` submissions at a time.

    address: "local" starts a head with `threads` CPUs and `gpus` GPUs that ends with this driver
    (so `attach` answers False for what an earlier driver started); "auto" is the cluster named by
    RAY_API_SERVER_ADDRESS, else the head of this machine; or the URL of a job API. There jobs
    outlive their driver. python: the interpreter on the workers that has this package (default:
    this one for addresses of this machine, else `python`). A machine_class asks for a
    node with a custom resource of that name, where the cluster has one; else any node will do.
    """

    remote = True

    def __init__(
        self,
        slots: int = 2,
        *,
        address: str = "auto",
        threads: int | None = None,
        gpus: int = 0,
        python: str | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        if slots < 1:
            raise ExecutorError(f"need at least one worker, got {slots}")
        self.slots = slots
        cores = threads or os.cpu_count() or 1
        self.threads = max(1, cores // slots)
        self._cpus, self._gpus = max(cores, self.threads * slots), gpus
        self._own = self.ends_with_driver = address == "local"
        #: of our own, once one was started
        self.head: RayHead | None = None
        self._cluster: RayJobs | None = None
        if not self._own:
            url = job_api_address() if address == "auto" else address
            self._cluster = RayJobs(url, find_ray_token(os.environ))
        here = self._own or urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        self._python = python or (sys.executable if here else "python")
        self._command = tuple(command or (self._python, "-m", "universal_simulator.cli"))
        self._waiting: list[Job] = []
        self._placed: dict[str, _Placed] = {}
        self._ends: dict[str, JobEnd] = {}
        self._logs: dict[str, Path] = {}
        self._answered = False

    @property
    def place(self) -> str:
        """A head of our own is the same place every time; a cluster is its address."""
        return f"{super().place} {'local' if self._own or self._cluster is None else self._cluster.address}"

    def submit(self, job: Job) -> None:
        if job.job_id in self._placed or any(other.job_id == job.job_id for other in self._waiting):
            raise ExecutorError(f"{job.job_id} is at work already; wait for its end or cancel it")
        self.refuse_impossible(job)
        if self._waiting or len(self._placed) >= self.slots or not self._started(job):
            self._waiting.append(job)
        self._logs[job.job_id] = job.log
        self._ends.pop(job.job_id, None)

    def attach(self, job_id: str, folder: Path | str) -> bool:
        if job_id in self._placed or any(job.job_id == job_id for job in self._waiting):
            return True
        fence = Fence(Path(folder).resolve(), job_id)
        submission = fence.ticket
        if not submission:
            return False
        if self._cluster is None or self._cluster.info(submission) is None:
            self._withdraw(fence, job_id)
            return False
        last = fence.last
        log = Path(last.log if last is not None and last.ticket == submission else os.devnull)
        job = Job(job_id, (), log, folder=Path(folder))
        self._placed[job_id] = _Placed(
            job, submission, fence, self._cluster, None, WorkSpan(fence, submission, handed_in=False)
        )
        return True

    def wait(self, timeout_s: float) -> list[JobEnd]:
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self._look() + self._start_waiting()
            if ended or time.monotonic() >= deadline or not (self._placed or self._waiting):
                return ended
            time.sleep(min(max(0.0, deadline - time.monotonic()), PAUSE_S))

    def state(self, job_id: str) -> JobState:
        if any(job.job_id == job_id for job in self._waiting):
            return "waiting"
        if job_id in self._placed:
            return self._state_of(self._placed[job_id])
        if job_id not in self._ends:
            return "unknown"
        return "lost" if self._ends[job_id].lost else "ended"

    def use(self, job_id: str) -> Use:
        """From the begin that its worker wrote down; pending costs no hours."""
        placed = self._placed.get(job_id)
        return Use(seconds=0.0 if placed is None else placed.span.seconds())

    def cancel(self, job_id: str) -> JobEnd | None:
        if job_id in self._placed:
            end = self._cancel_placed(self._placed[job_id])
        elif any(job.job_id == job_id for job in self._waiting):
            end = JobEnd(job_id, -signal.SIGTERM, 0.0)
        else:
            return None
        self._waiting = [job for job in self._waiting if job.job_id != job_id]
        self._placed.pop(job_id, None)
        self._ends[job_id] = end
        return end

    def tail(self, job_id: str, lines: int = 12) -> str:
        log = self._logs.get(job_id)
        if log is None and job_id in self._placed:
            last = self._placed[job_id].fence.last
            log = Path(last.log) if last is not None else None
        return tail(log, lines) if log is not None and log.is_file() else ""

    def cancel_all(self) -> None:
        """Raises UnreachableError, after ending what can be ended, where some may still be at work."""
        for placed in self._placed.values():
            self._ask_to_stop(placed)
        left = []
        for name in [*(job.job_id for job in self._waiting), *self._placed]:
            try:
                self.cancel(name)
            except UnreachableError as error:
                left.append(str(error))
        if left:
            raise UnreachableError("; ".join(left))

    def close(self) -> None:
        """End a head of our own, and whatever still runs there."""
        if self.head is not None:
            self.head.close()
        if self._cluster is not None:
            self._cluster.close()

    # -- handing in ---------------------------------------------------------------------------

    def refuse_impossible(self, job: Job) -> None:
        """By the size of a head of our own; a cluster may grow."""
        needs = job.resources
        asked = (("threads", needs.threads or 0, self._cpus), ("gpus", needs.gpus, self._gpus))
        for what, need, there in asked if self._own else ():
            if need > there:
                raise ExecutorError(
                    f"{job.job_id} asks for {what} {need}, this head lends {there}: lower what the run asks "
                    "for, or join a larger cluster (--ray-address)"
                )

    def _connect(self) -> tuple[RayJobs, RayHead | None]:
        """The cluster; a head of our own is started, also after the last one died."""
        if self._cluster is not None:
            return self._cluster, None
        if self.head is not None and not self.head.alive:
            self.head.close()
            self.head = None
        if self.head is None:
            self.head = RayHead(cpus=self._cpus, gpus=self._gpus)
        return self.head.jobs, self.head

    def _started(self, job: Job) -> bool:
        """False where a cluster that used to answer is silent just now: the job waits for it."""
        self._withdraw(self._fence_of(job), job.job_id)
        try:
            self._start(job)
        except UnreachableError:
            if not self._answered:
                raise
            return False
        self._answered = True
        return True

    def _fence_of(self, job: Job) -> Fence:
        return Fence((job.folder or job.log.parent).resolve(), job.job_id)

    def _start(self, job: Job) -> None:
        """Hand a job in. Raises UnreachableError where it was not accepted and never will run."""
        jobs, head = self._connect()
        fence = self._fence_of(job)
        submission = f"usim-{secrets.token_hex(8)}"
        self._withdraw(fence, job.job_id)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        fence.issue(submission)
        span = WorkSpan(fence, submission, handed_in=True)
        try:
            wanted = job.resources.machine_class
            marked = head is None and wanted != "small" and wanted in jobs.resource_names()
            jobs.submit(submission, self._request(job, submission, marked=marked))
        except ExecutorError:
            # a lost reply may hide an accepted job: without a ticket it will not begin
            if fence.issue(""):
                raise
        self._placed[job.job_id] = _Placed(job, submission, fence, jobs, head, span)

    def _request(self, job: Job, submission: str, *, marked: bool) -> dict[str, Any]:
        """marked: the cluster marks the nodes of this job's machine class."""
        needs = job.resources
        threads = needs.threads or self.threads
        memory_gib = needs.memory_gib or 0.0
        folder = (job.folder or job.log.parent).resolve()
        fence = [self._python, "-m", "universal_simulator.executors.fence", str(folder), job.job_id]
        fence += [submission, str(job.log.resolve()), str(memory_gib), "--"]
        variables = [f"{name}={threads}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
        words = ["env", *variables, "PYTHONUNBUFFERED=1", *fence, *self._command, *job.arguments]
        return {
            "entrypoint": f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}",
            "entrypoint_num_cpus": threads,
            "entrypoint_num_gpus": needs.gpus,
            "entrypoint_memory": int(memory_gib * GIB),
            "entrypoint_resources": {needs.machine_class: CLASS_SHARE} if marked else {},
            "metadata": {"usim_job": job.job_id, "usim_folder": str(folder)},
        }

    def _withdraw(self, fence: Fence, job_id: str) -> None:
        """No earlier submission is at work or will ever begin, else UnreachableError."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while not fence.issue(""):
            if time.monotonic() > deadline:
                last = fence.last
                where = f"process {last.pid} on {last.host}" if last else "a process"
                raise UnreachableError(
                    f"{where} is still at work for {job_id}, out of this cluster's sight: end it, then go on"
                )
            time.sleep(PAUSE_S)

    def _start_waiting(self) -> list[JobEnd]:
        """Those whose turn has come; one that cannot be handed in at all is lost, and says why then."""
        ends = []
        while self._waiting and len(self._placed) < self.slots:
            try:
                self._start(self._waiting[0])
            except UnreachableError:
                break
            except (ExecutorError, OSError) as error:
                ends.append(JobEnd(self._waiting[0].job_id, LOST_EXIT_CODE, 0.0, lost=True))
                self._note(self._waiting[0].log, str(error))
            self._waiting.pop(0)
        self._ends.update((end.job_id, end) for end in ends)
        return ends

    # -- looking ------------------------------------------------------------------------------

    def _look(self) -> list[JobEnd]:
        """Ends of placed jobs as far as the cluster answers."""
        ended = []
        for name, placed in list(self._placed.items()):
            end = self._settled(placed)
            if end is not None:
                ended.append(end)
                self._ends[name] = end
                self._logs[name] = self._log_of(placed)
                self._placed.pop(name, None)
        return ended

    def _settled(self, placed: _Placed) -> JobEnd | None:
        """Its end where the cluster tells one; None also where it is silent."""
        try:
            return self._end_of(placed)
        except UnreachableError:
            return None

    def _info(self, placed: _Placed) -> JobInfo | None:
        """None: gone for certain, with its head or from a cluster that answers."""
        if placed.head is not None and not placed.head.alive:
            return None
        return placed.jobs.info(placed.submission)

    def _state_of(self, placed: _Placed) -> JobState:
        try:
            info = self._info(placed)
        except UnreachableError:
            return "unknown"
        if info is None:
            return "lost"
        if not info.terminal:
            return "running" if info.status == "RUNNING" else "waiting"
        return "lost" if info.status == "FAILED" and info.driver_exit_code is None else "ended"

    def _end_of(self, placed: _Placed) -> JobEnd | None:
        """Its end, once nothing of it is at work any more; None while it waits or runs."""
        info = self._info(placed)
        if info is not None and not info.terminal:
            if info.status == "RUNNING":
                placed.span.saw()
            return None
        lost = info is None or (info.status == "FAILED" and info.driver_exit_code is None)
        if not (placed.fence.issue("") if lost else not placed.fence.held):
            placed.fence.kill_here(placed.submission)
            return None
        if info is not None and info.error_type == START_TIMEOUT:
            self._placed.pop(placed.job.job_id)
            self._waiting.insert(0, placed.job)
            return None
        seconds = placed.span.seconds(info.end_time / 1000 if info is not None and info.end_time else None)
        if lost:
            self._note(self._log_of(placed), f"lost: {info.message if info else 'the cluster is gone'}")
            return JobEnd(placed.job.job_id, LOST_EXIT_CODE, seconds, lost=True, submission=placed.submission)
        assert info is not None
        code = info.driver_exit_code
        if code is None:
            code = 0 if info.status == "SUCCEEDED" else -signal.SIGTERM
        last = placed.fence.last
        if code == REFUSED or last is None or last.ticket != placed.submission:
            self._note(self._log_of(placed), info.message or "")
        return JobEnd(placed.job.job_id, code, seconds, submission=placed.submission)

    def _cancel_placed(self, placed: _Placed) -> JobEnd:
        name, began = placed.job.job_id, time.monotonic()
        stopped = JobEnd(name, -signal.SIGTERM, placed.span.seconds(), submission=placed.submission)
        while True:
            end = self._settled(placed)
            if end is not None:
                return end
            self._ask_to_stop(placed)
            if placed.fence.issue(""):
                # not at work, and never again; it may have ended by itself just before
                end = self._settled(placed)
                return end if end is not None and end.exit_code == 0 else stopped
            passed = time.monotonic() - began
            if passed > GONE_WITHIN_S:
                placed.fence.kill_here(placed.submission)
            if passed > CANCELLED_WITHIN_S:
                raise UnreachableError(f"{name} may still be at work: {placed.jobs.address} did not end it")
            time.sleep(PAUSE_S)

    def _ask_to_stop(self, placed: _Placed) -> None:
        try:
            placed.jobs.stop(placed.submission)
        except UnreachableError:
            return

    def _log_of(self, placed: _Placed) -> Path:
        last = placed.fence.last
        known = self._logs.get(placed.job.job_id, placed.job.log)
        return Path(last.log) if last is not None and last.ticket == placed.submission else known

    def _note(self, log: Path, words: str) -> None:
        """What Ray says, where the driver looks for the job's last words."""
        if log.parent.is_dir():
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"ray: {masked(words)[-2000:].strip()}\n")
