"""One job on one instance, as the executor sees it: a port, and what is said across it."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from universal_simulator.executors.course import Way


@dataclass(frozen=True)
class Ending:
    """How the job's process ended there; `seconds` by the instance's own clock."""

    exit_code: int
    seconds: float
    step: str = ""


@dataclass(frozen=True)
class Glance:
    """`pulse` changes whenever the job's log, metrics or checkpoints grow; `watched`: the watch lives."""

    ending: Ending | None
    pulse: str
    watched: bool = True


class Workplace(abc.ABC):
    """Every method raises InstanceUnreachable where no answer came, which says nothing about the job,
    and ExecutorError where the instance answered and what was asked of it failed.

    `begun`: a `start` got so far that the job may be at work there, although no answer told so."""

    begun: bool = False

    @abc.abstractmethod
    def bring(self) -> Way:
        """Bring code, data and what the job goes on from, verified; nothing begins there. Begun again it
        goes on where it broke off, and does nothing where the job may have begun. Bytes that move tell
        the instance that the driver lives."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start what was brought; once, however often this is called."""

    @abc.abstractmethod
    def look(self) -> Glance:
        """How it is going; what it has printed since is appended to the job's log here."""

    @abc.abstractmethod
    def fetch(self, *, finished: bool) -> Way:
        """Copy its results here and install them, verified; how many files. `finished`: it ended with
        success, so its record must be whole. With nothing installed raises DamagedCopy where they did not
        arrive as they left, WrongResult where they are not this job's."""

    @abc.abstractmethod
    def halt(self) -> None:
        """Return when its processes are gone."""
