"""The service's own clock, which is the one that bills: by its `Date` header, between answers by ours.

This machine's wall clock can be set back, its monotonic one stands still while it sleeps, and neither
outlives the driver; `Date` is in every answer of every HTTP server (RFC 9110, 6.6.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

#: two answers that agree within this are believed (seconds); `Date` has whole seconds
AGREE_S = 30.0


class ServiceClock:
    """Never runs backwards. A leap forward is believed when two answers in a row tell it."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._seen: tuple[float, float] | None = None
        self._leap: tuple[float, float] | None = None

    def hear(self, date: str | None) -> None:
        """One answer's `Date` header; one that is missing or no date changes nothing."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, OverflowError):
            return
        at = self._monotonic()
        if self._seen is None:
            self._seen = (told, at)
            return
        ahead = told - self._expected(self._seen, at)
        if ahead <= 0:
            return
        if ahead > AGREE_S:
            before, self._leap = self._leap, (told, at)
            if before is None or abs(told - self._expected(before, at)) > AGREE_S:
                return
        self._seen, self._leap = (told, at), None

    def now(self) -> float:
        """Seconds since 1970 by the service; by this machine until it has answered once."""
        return self._wall() if self._seen is None else self._expected(self._seen, self._monotonic())

    def _expected(self, seen: tuple[float, float], at: float) -> float:
        return seen[0] + max(0.0, at - seen[1])
