"""Whether a job still gives signs of life: its log and its run's metric files grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from universal_simulator.sweep.executor import Executor, Job
from universal_simulator.sweep.job_log import tail

#: lines of the log kept as evidence of a stall
EVIDENCE_LINES = 20


@dataclass(frozen=True)
class Stall:
    """silent_s: how long nothing grew. files: what was watched, name -> bytes. log: its last words."""

    silent_s: float
    files: dict[str, int]
    log: str


@dataclass(frozen=True)
class _Sign:
    files: dict[str, int]
    since: float
    looked: float
    words: str | None = None


class Heartbeat:
    """Watches jobs by the sizes of their files, and asks the executor before it calls one stalled.

    A job that waits for a worker, or whose worker does not answer, is not stalled: silence is no
    answer, and its time does not count. Time is the monotonic clock's: a wall clock set back or forward changes nothing.
    """

    def __init__(
        self, executor: Executor, timeout_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.executor = executor
        self.timeout_s = timeout_s
        self.clock = clock
        self._seen: dict[str, _Sign] = {}

    def stalled(self, job: Job) -> Stall | None:
        """The diagnosis of a job that stood still for the timeout, or None.

        The executor is asked for its own view of the log twice, at half the timeout and at its end:
        where the log is only copied back, it may have grown there.
        """
        now, files = self.clock(), _files(job)
        sign = self._seen.get(job.job_id)
        if sign is None or sign.files != files:
            self._seen[job.job_id] = _Sign(files, now, now)
            return None
        at_work = self.executor.state(job.job_id) == "running"
        since = sign.since if at_work else sign.since + now - sign.looked
        self._seen[job.job_id] = sign = replace(sign, since=since, looked=now)
        silent_s = now - sign.since
        if not at_work or silent_s < self.timeout_s / 2:
            return None
        if sign.words is None:
            self._seen[job.job_id] = sign = replace(sign, words=self._words(job))
        if silent_s < self.timeout_s:
            return None
        if self._words(job) != sign.words:
            self._seen[job.job_id] = _Sign(files, now, now)
            return None
        return Stall(round(silent_s, 1), files, tail(job.log, EVIDENCE_LINES))

    def forget(self, job_id: str) -> None:
        self._seen.pop(job_id, None)

    def _words(self, job: Job) -> str:
        return self.executor.tail(job.job_id, EVIDENCE_LINES)


def _files(job: Job) -> dict[str, int]:
    paths = [job.log, *sorted(job.log.parent.glob("metrics_*.jsonl"))]
    return {path.name: path.stat().st_size for path in paths if path.exists()}
