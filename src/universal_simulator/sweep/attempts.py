"""The attempts of a sweep's jobs, replayed: each begins with an intent and has exactly one end.

An attempt is named by the number of its intent in the journal, and its end names it. An end that names
an attempt already ended is not counted again; one of an older journal, which names none, is of the
oldest attempt without an end.

Time: an attempt works from its intent on. Where it was seen waiting first, the journal says so
(`job_waiting`) and says when it was seen at work (`job_at_work`).
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass, replace

from universal_simulator.sweep.journal import Event


@dataclass(frozen=True)
class Attempt:
    """An attempt without an end. Times in seconds since the epoch.

    worked_s: at work before `since`; since: from when on it works, None while it waits.
    place: of the executor it was begun on, None in older journals; ends_with_driver: no job of it outlives its
    driver. looked: when its driver looked last, 0 if never; None while one may be looking.
    """

    number: int
    began: float
    worked_s: float
    since: float | None
    place: str | None = None
    ends_with_driver: bool = False
    looked: float | None = None


class Attempts:
    """Takes events in the journal's order. `seconds`: of all ends."""

    def __init__(self) -> None:
        self.open: dict[str, Attempt] = {}
        self.ends: dict[str, list[Event]] = {}
        self.paid: list[Event] = []
        self.seconds = 0.0
        self._without_end: dict[str, list[Attempt]] = {}
        self._ended: set[int] = set()

    def take(self, event: Event) -> bool:
        """False for an end that is told a second time."""
        job = event.data["job"]
        open_ = self._without_end.setdefault(job, [])
        if event.kind == "job_intent":
            began = epoch(event)
            place, mortal = event.data.get("place"), event.data.get("ends_with_driver", False)
            open_.append(Attempt(event.number, began, 0.0, began, place, mortal))
            self.paid.append(event)
        elif event.kind == "job_ended":
            if not self._end(open_, event):
                return False
        elif open_ and event.kind == "job_attached":
            open_[-1] = replace(open_[-1], looked=None)
        elif open_:
            waits = event.kind == "job_waiting"
            since = None if waits else epoch(event)
            open_[-1] = replace(open_[-1], worked_s=event.data["worked_s"], since=since)
        if open_:
            self.open[job] = open_[-1]
        else:
            self.open.pop(job, None)
        return True

    def left(self, event: Event) -> None:
        """Their driver is gone; what is known of its last look."""
        for job in event.data["jobs"]:
            open_ = self._without_end.get(job, [])
            open_[:] = [replace(attempt, looked=event.data["looked"]) for attempt in open_]
            if open_:
                self.open[job] = open_[-1]

    def _end(self, open_: list[Attempt], event: Event) -> bool:
        number = event.data.get("attempt")
        if number is None and open_:
            number = open_[0].number
        if number is not None:
            if number in self._ended:
                return False
            self._ended.add(number)
            open_[:] = [attempt for attempt in open_ if attempt.number != number]
        self.ends.setdefault(event.data["job"], []).append(event)
        self.paid.append(event)
        self.seconds += event.data["seconds"]
        return True


def epoch(event: Event) -> float:
    """When it was journalled; whole seconds, rounded down."""
    return float(calendar.timegm(time.strptime(event.at, "%Y-%m-%dT%H:%M:%SZ")))
