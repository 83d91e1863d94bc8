"""What is known of one job's way over rented instances, and the small steps that all its phases share.

The phases themselves: `rental_start` (queued, renting, loading, sending, discarding), `rental_work` (working, ending,
collecting, closing), `kept_results` (keeping, reclaiming); `rented_job` says which comes when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from universal_simulator.credentials import masked
from universal_simulator.executors.cloud_ledger import Lease
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.course import Course
from universal_simulator.executors.rental_phase import Phase, phase_of
from universal_simulator.executors.silence import Silence, health_of
from universal_simulator.executors.tenant import Tenant
from universal_simulator.executors.transport import InstanceUnreachable
from universal_simulator.executors.vast_replies import CloudError, Instance
from universal_simulator.executors.workplace import Ending, Workplace
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Job, JobEnd

#: between two looks at a transfer
COURSE_PAUSE_S = 1.0
#: makes the workplace of a job on an instance that can be spoken to
WorkplaceOf = Callable[[Job, Lease, Instance], Workplace]


@dataclass
class Rental:
    """`due`: when it wants to be stepped next, in seconds of the tenant's clock. `end`: how it ended,
    told only when nothing of it can still be at work. `wanted`: the driver waits for that end; otherwise only
    what an earlier submission left is brought home. `reclaim`: begin with what a kept `lease` holds."""

    job: Job
    tenant: Tenant
    workplace_of: WorkplaceOf
    phase: Phase = Phase.QUEUED
    lease: Lease | None = None
    end: JobEnd | None = None
    due: float = 0.0
    #: the last thing that went wrong, for people
    trouble: str = ""
    wanted: bool = True
    reclaim: bool = False
    #: the driver has submitted the job, or attached to it; before that nothing more is rented for it
    claimed: bool = True
    #: bytes that an instance is sent before its job begins
    weight: int = 0

    def __post_init__(self) -> None:
        self.settings: CloudSettings = self.tenant.settings
        self.silence = Silence(self.settings.unreachable_s)
        # before it works
        self.avoid: set[int] = set()
        self.startups = 0
        self.searching_since: float | None = None
        self.deadline = self.now() + self.settings.startup_s
        #: first contact with its instance
        self.met_at: float | None = None
        #: its deadline then, before any byte moved
        self.limit = self.deadline
        #: a transfer of this phase under way
        self.course: Course | None = None
        # at work
        self.place: Workplace | None = None
        self.pulse = ""
        self.pulse_at = self.copied_at = self.now()
        self.look_at = 0.0
        self.woken_at: float | None = None
        #: its start was asked for, and no answer told whether it began
        self.in_doubt = False
        #: an earlier driver may have got so far; it cannot be asked any more
        self.perhaps_begun = self.lease is not None and self.lease.starting
        #: the last step ended in the service's silence
        self.unheard = False
        #: the service shows it stopped
        self.at_rest = False
        # at its end
        self.ending = Ending(LOST_EXIT_CODE, 0.0)
        self.reason = ""
        self.cancelled = False
        #: looks in a row that showed it stopped
        self.rested = 0
        #: how it is told to have ended where its results stay on the instance
        self.keep_code = LOST_EXIT_CODE
        #: once its instance is kept the job goes on elsewhere
        self.afresh = False
        if self.lease is not None:
            self.phase = Phase.RECLAIMING if self.reclaim else phase_of(self.lease)
            self.end = None if self.reclaim else self.lease.end

    def now(self) -> float:
        return self.tenant.now()

    @property
    def needs_room(self) -> bool:
        """It would rent or wake an instance with its next step."""
        sleeps = self.phase is Phase.RECLAIMING and self.lease is not None and self.lease.kept
        return self.phase is Phase.QUEUED or sleeps

    @property
    def sends_long(self) -> bool:
        """It takes this machine's uplink for itself before its job begins."""
        return self.settings.send_s(self.weight) > self.settings.send_aside_s

    @property
    def sending_s(self) -> float:
        """How long, on top of its start, it may be sent to; then there is a second patience for what is not
        sending: reading here, checking there, a line that breaks off."""
        return self.settings.startup_s + self.settings.send_s(self.weight) if self.sends_long else 0.0

    @property
    def at_work(self) -> bool:
        """An instance of it bills its GPU."""
        return not self.needs_room and self.phase is not Phase.DONE

    @property
    def tellable(self) -> bool:
        """Its end is final: its process is over, or its instance verified gone or stopped."""
        return self.end is not None and (not self.end.lost or self.phase is Phase.DONE)

    def go(self, phase: Phase) -> None:
        self.drop_course()
        self.phase, self.due = phase, 0.0

    def drop_course(self) -> None:
        """No transfer goes on."""
        if self.course is not None:
            self.course.cancel()
            self.course = None

    def soon(self) -> None:
        """A transfer is under way."""
        self.due = self.now() + COURSE_PAUSE_S

    def later(self, trouble: str, pause_s: float | None = None) -> None:
        self.trouble = trouble
        self.due = self.now() + (self.settings.poll_s if pause_s is None else pause_s)

    def within(self, seconds: float) -> None:
        """What comes next has this long."""
        self.deadline = self.now() + seconds

    def note(self, reason: str) -> None:
        """A line in the job's log, where people look for what became of it."""
        self.trouble = reason
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.job.log, "a", encoding="utf-8") as log:
            log.write(masked(f"[rented instance] {reason}\n"))

    def workplace(self) -> Workplace:
        """Raises InstanceUnreachable where the service does not say where to find it."""
        assert self.lease is not None
        if self.place is None:
            instance = self.tenant.instance(self.lease)
            if instance is None or instance.ssh_host is None or instance.ssh_port is None:
                raise InstanceUnreachable(f"{self.lease.label}: the service names no address for it")
            self.place = self.workplace_of(self.job, self.lease, instance)
        return self.place

    def ask_the_service(self, trouble: str) -> str:
        """It did not answer: hear the other witness. One that stopped itself in the driver's absence is
        started again, its disk has the results. Returns the trouble in words."""
        assert self.lease is not None
        self.place = None
        health = None
        try:
            instance = self.tenant.instance(self.lease)
            health = health_of(instance)
            self.at_rest = instance is not None and instance.at_rest
            if instance is not None and instance.outbid and not self.settings.spot and not self.cancelled:
                self.wake(instance)
        except CloudError as error:
            trouble = f"{trouble}; and the service: {error}"
        self.silence.unheard(self.now(), health)
        return trouble

    def wake(self, instance: Instance) -> None:
        """Not asked too often."""
        if self.woken_at is None or self.now() - self.woken_at > self.settings.startup_s:
            self.tenant.client.start(instance.id)
            self.woken_at = self.now()

    def worked_s(self) -> float:
        placed = self.lease.placed_at if self.lease is not None else None
        return 0.0 if placed is None else max(0.0, self.now() - placed)

    def keep(self, reason: str, *, afresh: bool = False) -> None:
        """What it holds cannot be had now: stop it, and leave its disk as it is."""
        self.reason, self.afresh = reason, afresh
        self.go(Phase.KEEPING)

    def discard(self, reason: str) -> None:
        """Nothing on it is of worth."""
        self.reason = reason
        self.go(Phase.DISCARDING)

    def finish(self, end: JobEnd, *, files: int) -> None:
        """What it left is here (or it is gone): written down, then the instance is given back."""
        assert self.lease is not None
        self.lease = self.tenant.ledger.ended(
            self.lease.label, end, self.now(), files=files, reason=self.reason
        )
        self.end = end
        self.go(Phase.CLOSING)

    def vanished(self) -> None:
        """Complete listings do not show its instance any more: what was on it is nobody's to fetch."""
        self.reason = f"lost: {self.silence.verdict or 'complete listings do not show its instance'}"
        self.note(self.reason)
        lost = self.keep_code == LOST_EXIT_CODE
        self.finish(JobEnd(self.job.job_id, self.keep_code, self.worked_s(), lost=lost), files=0)
