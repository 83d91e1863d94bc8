"""How long a submission was at work: by its worker's wall clock, held to what this driver saw by its own.

The worker writes down when it began, the cluster when it ended; either clock can be set, and they can be those
of two hosts. With a clock of this machine that nobody sets (its seconds since boot, sleep included):

    seen at work, first to last look  <=  seconds  <=  since it was handed in here

Of one that was taken over nobody here knows when it was handed in: then there is no upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from universal_simulator.executors.fence import Fence


def since_boot() -> float | None:
    """Seconds that pass also while this machine sleeps; None where the system has no such clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return None if boot is None else time.clock_gettime(boot)


class WorkSpan:
    """Of one submission. handed_in: by this driver, just now."""

    def __init__(
        self,
        fence: Fence,
        submission: str,
        *,
        handed_in: bool,
        clock: Callable[[], float | None] = since_boot,
    ) -> None:
        self._fence, self._submission, self._clock = fence, submission, clock
        self._handed_in = clock() if handed_in else None
        self._first: float | None = None
        self._seen_s = 0.0

    def saw(self) -> None:
        """The cluster says just now that it is at work; nothing where its worker has not begun."""
        now = self._clock()
        if now is None or self._began() is None:
            return
        self._first = now if self._first is None else self._first
        self._seen_s = now - self._first

    def seconds(self, ended: float | None = None) -> float:
        """Up to its end (Unix seconds, None: up to now); 0 for one that never began."""
        began, now = self._began(), self._clock()
        if began is None:
            return 0.0
        told = max(self._seen_s, (time.time() if ended is None else ended) - began)
        return told if now is None or self._handed_in is None else min(told, now - self._handed_in)

    def _began(self) -> float | None:
        last = self._fence.last
        return last.began if last is not None and last.ticket == self._submission else None
