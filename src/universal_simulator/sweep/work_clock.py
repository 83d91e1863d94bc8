"""How long running jobs have been at work, and until when one was alive whose driver died."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from universal_simulator.sweep.attempts import Attempt
from universal_simulator.sweep.executor import Job, JobState

#: touched by the driver at every look at its jobs
ALIVE = Path(".driver.alive")
#: a driver looks this often at least; added to its last sign, so that no second at work goes uncounted
GRACE_S = 4.0


@dataclass
class _Time:
    worked_s: float
    last: float
    waits: bool
    seen: bool = False


class WorkClock:
    """Seconds in which the executor did not say that a job waits. Monotonic: no set clock changes them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, _Time] = {}

    def begin(self, job_id: str, worked_s: float = 0.0, *, waits: bool = False) -> None:
        self._times[job_id] = _Time(worked_s, self._clock(), waits, seen=worked_s > 0 or waits)

    def forget(self, job_id: str) -> None:
        self._times.pop(job_id, None)

    def see(self, job_id: str, state: JobState) -> bool:
        """Take in what the executor says; True where waiting became work, or work waiting.

        Silence changes nothing. What passed before the first word "waiting" was waiting too.
        """
        about, now = self._times[job_id], self._clock()
        waits = state == "waiting" or (about.waits and state != "running")
        if not (about.waits or (waits and not about.seen)):
            about.worked_s += now - about.last
        changed = waits != about.waits
        about.last, about.waits, about.seen = now, waits, True
        return changed

    def waits(self, job_id: str) -> bool:
        return self._times[job_id].waits

    def seconds(self, job_id: str) -> float:
        about = self._times[job_id]
        return about.worked_s + (0.0 if about.waits else self._clock() - about.last)


def mark_alive(folder: Path) -> None:
    (folder / ALIVE).touch()


def last_alive(folder: Path) -> float | None:
    """When the last driver of this folder looked at its jobs (seconds since the epoch), if one ever did."""
    path = folder / ALIVE
    return path.stat().st_mtime if path.exists() else None


def abandoned_s(attempt: Attempt, job: Job, alive: float | None, *, now: float | None = None) -> float:
    """Seconds charged for an attempt that nobody saw the end of: up to its last sign of life.

    Signs are the times of the job's log and of the files beside it (metrics, checkpoints), and the
    driver's own last look, plus `GRACE_S`. Of one that waited at that look, only its files count.
    """
    now = time.time() if now is None else now
    ours = attempt.began if alive is None else max(alive, attempt.began)
    own = max((path.stat().st_mtime for path in _files(job)), default=0.0)
    if attempt.since is None:
        return attempt.worked_s + max(0.0, min(now, own) - ours)
    return attempt.worked_s + max(0.0, min(now, max(own, ours + GRACE_S)) - attempt.since)


def _files(job: Job) -> list[Path]:
    """A run's log lies in its own folder; other logs lie together in `logs`."""
    beside = () if job.log.parent.name == "logs" else job.log.parent.rglob("*")
    return [path for path in {job.log, *beside} if path.is_file()]
