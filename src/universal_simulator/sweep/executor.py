"""The contract between the driver and whatever runs its jobs."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path

from universal_simulator.credentials import refuse_secrets


@dataclass(frozen=True)
class Job:
    """One `usim` command. `job_id` is unique in its sweep; both strings rebuild it."""

    job_id: str
    arguments: tuple[str, ...]
    log: Path

    def __post_init__(self) -> None:
        """Before a command reaches a journal, a process list or another machine."""
        refuse_secrets(self.arguments, self.job_id)


@dataclass(frozen=True)
class JobEnd:
    """exit_code is negative for a job ended by a signal."""

    job_id: str
    exit_code: int
    seconds: float


class Executor(abc.ABC):
    """Runs jobs, `slots` at a time. The driver never submits more than fit."""

    slots: int

    @abc.abstractmethod
    def submit(self, job: Job) -> None:
        """Start a job; raises ExecutorError if it cannot be started."""

    @abc.abstractmethod
    def wait(self, timeout_s: float) -> list[JobEnd]:
        """Jobs that ended since the last call; returns early when one ends."""

    @abc.abstractmethod
    def cancel_all(self) -> None:
        """End every running job; idempotent."""
