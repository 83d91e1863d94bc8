"""The contract between the driver and whatever runs its jobs.

An executor runs `usim` commands somewhere: processes of this machine, a Ray cluster, rented
instances. The driver decides and journals, the executor only carries out. Every implementation
passes the tests of `tests/executors/contract.py`.

**Conventions**

*Identity.* A job is named by two strings, its `job_id` (unique in its sweep) and its `folder` (the
sweep's). They are all that a new driver has after the old one died. A job resubmitted keeps both.

*Who submits.* One driver per folder (its lock sees to that), from one thread. The driver journals the
intent before `submit` and the end after `wait`; so after a crash a job can be running that no
journal says has ended. A resumed driver therefore calls `attach` for each such job first and submits
only where the answer is False. What an executor of another `place` began is refused before anybody is asked.

*Every submission ends exactly once*, as one `JobEnd` handed out by `wait` or by `cancel`, never by
both and never twice. After that the job can be submitted again: it goes on from its own checkpoint.

*Three ways to end.* The process told an exit code: 0 is success, above 0 the command failed
(resubmitting would repeat it), below 0 a signal ended it. Or `lost`: the worker, its host or the
cluster's head went away before an exit code was told; that is not the run's fault and no finding
about it, so it is resubmitted from its checkpoint and counted on its own.

*Silence is not an answer.* Where a job runs and does not reply, the job is neither ended nor lost:
`state` says "unknown", `wait` returns without it, `attach` raises `UnreachableError`. It becomes
lost only by evidence: its process, worker, instance or cluster is known to be gone.

*Nothing runs twice.* An executor starts a job only when no earlier process of the same two strings
can still be writing into the run's folder. `cancel` returns when the process is gone, not when it
has been asked to go.

*Time and money.* Waiting is not work: `JobEnd.seconds` and `Use.seconds` leave it out, so a job pending
for hours uses up no ceiling of hours. Dollars are what the executor is billed, loading and idling
included; where it bills nothing of its own, the driver prices the seconds.

*Order.* `slots` jobs run at a time; more than that, or more than fit their needs, wait inside the
executor in the order given. What can never fit is refused by `submit`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from universal_simulator.credentials import refuse_secrets

#: unknown: never heard of here, or where it runs does not answer: conclude nothing
#: waiting: accepted, not started (no free slot, instance loading); or its work is over, and what it left is on its way
#: running: its process was seen at work
#: ended: an exit code was told, or it was cancelled
#: lost: known to be gone without an exit code
JobState = Literal["unknown", "waiting", "running", "ended", "lost"]

#: exit code of a `JobEnd` that is lost: below 0 like a signal, but of no signal
LOST_EXIT_CODE = -255


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job needs; the default is small and fits everywhere.

    threads: CPU threads of the numerics (OMP_NUM_THREADS), None for an equal share of the
    executor's own. Results are bit for bit only for equal thread counts.
    gpus: whole GPUs for this job alone. memory_gib: main memory, None for no limit.
    machine_class: a name that an executor with several kinds of machine maps to one of them
    ("small" is its cheapest); others ignore it.
    """

    threads: int | None = None
    gpus: int = 0
    memory_gib: float | None = None
    machine_class: str = "small"

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1 or None for a share, got {self.threads}")
        if self.gpus < 0:
            raise ValueError(f"gpus must be 0 or more, got {self.gpus}")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ValueError(f"memory_gib must be above 0 or None for no limit, got {self.memory_gib}")


@dataclass(frozen=True)
class Job:
    """One `usim` command. `job_id` is unique in its sweep; with `folder` it finds the job again.

    arguments: the words after `usim`. log: where the driver reads its output (appended to).
    folder: the sweep's folder; a job without one runs, but cannot be attached to.
    """

    job_id: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path | None = None
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Before a command reaches a journal, a process list or another machine."""
        refuse_secrets(self.arguments, self.job_id)


@dataclass(frozen=True)
class JobEnd:
    """How one submission ended.

    exit_code is negative for a job ended by a signal, `LOST_EXIT_CODE` for a lost one.
    seconds: how long it ran, waiting excluded, as far as known. lost: worker or host went away;
    not the run's fault, resubmit it from its checkpoint. usd: what this submission was billed up to
    here; None: by the plan's price of its seconds. submission: the executor's own name of this
    submission, the same whenever its end is told again; "" where no end outlives the driver. reason:
    why submitting it again now is of no use, in words; the sitting gives the job up and others go on.
    ceiling: because of a ceiling of the executor's own, which holds as one of the plan does.
    """

    job_id: str
    exit_code: int
    seconds: float
    lost: bool = False
    usd: float | None = None
    submission: str = ""
    reason: str = ""
    ceiling: bool = False


@dataclass(frozen=True)
class Use:
    """What a submission has used so far. seconds: at work, waiting excluded; usd: as billed.

    None: not known here. The driver then counts the seconds in which `state` did not say "waiting",
    and prices them as the plan does.
    """

    seconds: float | None = None
    usd: float | None = None


class Executor(abc.ABC):
    """Runs jobs, `slots` at a time; the module's docstring has the rules for all methods."""

    slots: int
    #: workers are elsewhere: code, data and results travel, so a sweep sends a canary first
    remote: bool = False
    #: no job outlives its driver: another executor may go on with what such a one left
    ends_with_driver: bool = False
    #: a job that is asked to end can be billed for this long until it is: a ceiling in dollars keeps it back
    ending_s: float = 0.0

    @property
    def place(self) -> str:
        """Where jobs go, in words that stay the same as long as it is the same place.

        A canary that passed in one place says nothing of another.
        """
        return type(self).__name__

    def open(self, folder: Path | str) -> None:
        """Take note of whatever earlier drivers left elsewhere for this sweep, and end what nobody wants.

        A sitting's first call. What was left and nobody attaches to is ended by `cancel_all`. Raises
        UnreachableError where nobody can say what there is; then nothing may be called finished.
        """
        return

    def refuse_impossible(self, job: Job) -> None:
        """Raise ExecutorError where such a job could never run here, as far as that is known. Starts nothing."""
        return

    def bring_home(self, timeout_s: float) -> bool:
        """Fetch what earlier sittings had to leave elsewhere, when a sitting has nothing else to run.

        True while some of it is still on its way: call again. Raises BudgetError at a ceiling.
        """
        return False

    @abc.abstractmethod
    def submit(self, job: Job) -> None:
        """Accept a job, to run now or when there is room.

        Raises ExecutorError if it cannot be started, can never fit, or is at work here already;
        UnreachableError (one of those) if nobody answered and nothing was accepted.
        """

    @abc.abstractmethod
    def attach(self, job_id: str, folder: Path | str) -> bool:
        """Take over a job that another driver submitted for `folder`.

        True: found; from now on it is this executor's, and `wait` will report its end, also one
        that came meanwhile. False: certainly gone and not at work anywhere; submit it again.
        Raises UnreachableError where that cannot be known now: submitting could run it twice.
        """

    @abc.abstractmethod
    def wait(self, timeout_s: float) -> list[JobEnd]:
        """Jobs that ended since the last call; returns early when one ends or none is at work."""

    @abc.abstractmethod
    def state(self, job_id: str) -> JobState:
        """What is known of a job submitted or attached here. Never raises for a silent worker."""

    def use(self, job_id: str) -> Use:
        """What a job submitted or attached here has used since its submission. Asks nobody; never raises."""
        return Use()

    def billed_usd(self, folder: Path | str) -> float | None:
        """All that was billed for a sweep by the executor's own book, up to now; None: it keeps none.

        Never less than the sum of its ends' `usd`. Asks nobody; never raises.
        """
        return None

    def ask_to_end(self, job_ids: Sequence[str]) -> None:
        """Several will be cancelled one after the other: where an end takes long, let all begin to end now.

        Waits for nothing; the ends are told by `cancel` of each.
        """
        return

    @abc.abstractmethod
    def cancel(self, job_id: str) -> JobEnd | None:
        """End a job and return its end when its process is gone; `wait` will not repeat it.

        A job that ended by itself just before gives that end. None: nothing is at work under this
        name. Raises UnreachableError where the process may still be at work.
        """

    @abc.abstractmethod
    def tail(self, job_id: str, lines: int = 12) -> str:
        """The last lines of the job's output so far; "" where there is none yet."""

    @abc.abstractmethod
    def cancel_all(self) -> None:
        """End every job at work here; idempotent. Their ends are not reported by this one.

        A driver that wants them (to pay for them) calls `cancel` for each job first, this one last.
        """
