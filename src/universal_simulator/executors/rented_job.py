"""One job's way over rented instances: queued, renting, loading, working, collecting, closing, done.

    queued -> renting -> loading -> working -> collecting -> closing -> done
       ^         |          |          |            |
       +---------+----------+ discard  +--- lost ---+--> closing (told as lost once it is verified gone)

Every step goes as far as it can without waiting; a driver that died left what matters in the ledger.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from universal_simulator.credentials import masked
from universal_simulator.errors import ExecutorError
from universal_simulator.executors.cloud_ledger import Lease
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.rental_phase import (
    BEFORE_THE_JOB,
    CEILING,
    DESERTED,
    Phase,
    phase_of,
)
from universal_simulator.executors.silence import Health, Silence, health_of
from universal_simulator.executors.tenant import NotNow, RunCeilingError, Tenant
from universal_simulator.executors.transport import DamagedCopy, InstanceUnreachable
from universal_simulator.executors.vast_replies import CloudError, Instance
from universal_simulator.executors.workplace import Ending, Glance, Workplace
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Job, JobEnd

#: makes the workplace of a job on an instance that can be spoken to
WorkplaceOf = Callable[[Job, Lease, Instance], Workplace]
#: a copy that fails this often is the instance's fault
MAX_COPIES = 5
DOUBT_PAUSE_S = 10.0
CANCEL_TRIES, CANCEL_PAUSE_S = 4, 5.0
#: results that are there, and only cannot be reached, are waited for longer
RESULTS_PATIENCE = 8.0


@dataclass
class RentedJob:
    """`due`: when it wants to be stepped next, in seconds of the tenant's clock. `end`: how it ended,
    told only when nothing of it can still be at work."""

    job: Job
    tenant: Tenant
    workplace_of: WorkplaceOf
    phase: Phase = Phase.QUEUED
    lease: Lease | None = None
    end: JobEnd | None = None
    due: float = 0.0
    #: the last thing that went wrong, for people
    trouble: str = ""

    def __post_init__(self) -> None:
        self.settings: CloudSettings = self.tenant.settings
        self.avoid: set[int] = set()
        self.startups = 0
        self.silence = Silence(self.settings.unreachable_s)
        self._workplace: Workplace | None = None
        self._deadline = self._pulse_at = self._copied_at = self.now()
        self._searching_since: float | None = None
        self._woken_at: float | None = None
        self._pulse = ""
        self._copies = 0
        self._ending = Ending(LOST_EXIT_CODE, 0.0)
        self._reason = ""
        if self.lease is not None:
            self.phase = phase_of(self.lease)
            self.end = self.lease.end
            self._deadline = self.now() + self.settings.startup_s

    def now(self) -> float:
        return self.tenant.now()

    @property
    def at_work(self) -> bool:
        """Something is rented for it."""
        return self.phase not in (Phase.QUEUED, Phase.DONE)

    @property
    def tellable(self) -> bool:
        """Its end is final: its process is over, or its instance verified gone."""
        return self.end is not None and (not self.end.lost or self.phase is Phase.DONE)

    def step(self) -> None:
        """As far as it goes now. Raises BudgetError where renting for it would cross a ceiling."""
        while self.phase is not Phase.DONE and self.due <= self.now():
            before = self.phase
            try:
                _STEPS[self.phase](self)
            except ExecutorError as error:
                self._later(str(error))
            if self.phase is before:
                if self.due <= self.now():
                    self.due = self.now() + self.settings.poll_s
                return

    def _later(self, trouble: str, pause_s: float | None = None) -> None:
        self.trouble = trouble
        self.due = self.now() + (self.settings.poll_s if pause_s is None else pause_s)

    def _go(self, phase: Phase) -> None:
        self.phase, self.due = phase, 0.0

    # --- before it works ---

    def _queued(self) -> None:
        try:
            answer = self.tenant.rent(self.job, self.avoid)
        except RunCeilingError as error:
            self._never_began(str(error), JobEnd(self.job.job_id, CEILING, 0.0))
            return
        if isinstance(answer, NotNow):
            if answer.offer_id is not None:
                self._failed_start(answer.reason, answer.offer_id)
            elif self._searching_since is None:
                self._searching_since = self.now()
                self.avoid.clear()
            elif self.now() - self._searching_since > self.settings.search_patience_s:
                self._never_began(f"{answer.reason}, for {self.settings.search_patience_s:.0f} s")
            if self.phase is Phase.QUEUED:
                self._later(answer.reason, answer.pause_s)
            return
        self._searching_since = None
        self.lease = answer
        self._go(Phase.RENTING)

    def _renting(self) -> None:
        assert self.lease is not None
        self.lease = self.tenant.resolve(self.lease)
        if not self.lease.live:
            self._failed_start(self.lease.reason, None)
        elif self.lease.instance_id is None:
            self._later("it is not known yet whether an instance was made", DOUBT_PAUSE_S)
        else:
            self._deadline = self.now() + self.settings.startup_s
            self._go(Phase.LOADING)

    def _loading(self) -> None:
        assert self.lease is not None
        instance = self.tenant.instance(self.lease)
        if instance is None:
            self._discard("it vanished before it was ready")
        elif instance.outbid:
            self._discard("it was outbid before it was ready")
        elif self.now() > self._deadline:
            told = self.trouble or f"its status is {instance.actual_status}"
            self._discard(f"not ready after {self.settings.startup_s:.0f} s: {told}")
        elif instance.actual_status != "running" or instance.ssh_host is None or instance.ssh_port is None:
            self._later(f"its status is {instance.actual_status}")
        else:
            try:
                self._workplace = self.workplace_of(self.job, self.lease, instance)
                self._workplace.start()
            except ExecutorError as error:
                self._later(f"it could not be made ready: {error}")
                return
            self._begin_working()

    def _begin_working(self) -> None:
        assert self.lease is not None
        self.lease = self.tenant.ledger.placed(self.lease.label, self.now())
        self._pulse_at = self._copied_at = self.now()
        self._go(Phase.WORKING)

    def _discard(self, reason: str) -> None:
        self._reason = reason
        self._go(Phase.DISCARDING)

    def _discarding(self) -> None:
        """Gone for certain before another is asked for."""
        assert self.lease is not None
        lease = self.tenant.release(self.lease, self._reason)
        self._failed_start(self._reason, lease.offer_id)

    def _failed_start(self, reason: str, offer_id: int | None) -> None:
        if offer_id is not None:
            self.avoid.add(offer_id)
        self.lease, self._workplace = None, None
        self.startups += 1
        self.trouble = reason
        if self.startups >= self.settings.startups_per_start:
            self._never_began(f"{self.startups} instances failed before the job began; the last: {reason}")
        else:
            self._go(Phase.QUEUED)

    def _never_began(self, reason: str, end: JobEnd | None = None) -> None:
        """No finding about the job: told as lost."""
        self._note(reason)
        self.end = end or JobEnd(self.job.job_id, LOST_EXIT_CODE, 0.0, lost=True)
        self._go(Phase.DONE)

    def _note(self, reason: str) -> None:
        """A line in the job's log, where people look for what became of it."""
        self.trouble = reason
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.job.log, "a", encoding="utf-8") as log:
            log.write(masked(f"[rented instance] {reason}\n"))

    # --- while it works ---

    def workplace(self) -> Workplace:
        """Raises InstanceUnreachable where the service does not say where to find it."""
        assert self.lease is not None
        if self._workplace is None:
            instance = self.tenant.instance(self.lease)
            if instance is None or instance.ssh_host is None:
                raise InstanceUnreachable(f"{self.lease.label}: the service names no address for it")
            self._workplace = self.workplace_of(self.job, self.lease, instance)
        return self._workplace

    def _working(self) -> None:
        assert self.lease is not None
        if self.tenant.must_stop(self.lease):
            reason = f"its ceiling of ${self.settings.run_limit_usd:.2f} would be crossed"
            self.stop(reason, exit_code=CEILING)
            return
        try:
            glance = self.workplace().look()
        except ExecutorError as error:
            self._unheard(str(error))
            return
        self.silence.heard()
        if glance.ending is not None:
            self._ended_by_itself(glance.ending)
        elif not self._stalled(glance):
            if not glance.watched:
                self.workplace().start()
            if self.now() - self._copied_at >= self.settings.checkpoint_s:
                self._copy_checkpoint()

    def _stalled(self, glance: Glance) -> bool:
        if glance.pulse != self._pulse:
            self._pulse, self._pulse_at = glance.pulse, self.now()
        quiet_s = self.now() - self._pulse_at
        if quiet_s < self.settings.heartbeat_s:
            return False
        self.stop(f"neither log nor metrics nor checkpoints grew for {quiet_s:.0f} s")
        return True

    def stop(self, reason: str, *, exit_code: int = LOST_EXIT_CODE) -> None:
        """End its work there and collect what it has; told as lost unless `exit_code` says otherwise."""
        try:
            self.workplace().halt()
        except ExecutorError as error:
            self._unheard(f"{reason}, and it cannot be ended: {error}")
            return
        self._note(reason)
        self._reason, self._ending = reason, Ending(exit_code, self._worked_s())
        self._go(Phase.COLLECTING)

    def _ended_by_itself(self, ending: Ending) -> None:
        self._ending = ending
        if ending.exit_code != 0 and ending.step in BEFORE_THE_JOB:
            self._discard(f"step {ending.step!r} failed there with exit code {ending.exit_code}")
            return
        if ending.exit_code == DESERTED:
            self._reason = "it ended itself, the driver was silent"
            self._ending = Ending(LOST_EXIT_CODE, ending.seconds)
        self.silence = Silence(RESULTS_PATIENCE * self.settings.unreachable_s)
        self._go(Phase.COLLECTING)

    def _copy_checkpoint(self) -> None:
        try:
            self.workplace().fetch(finished=False)
            self._copied_at = self.now()
        except DamagedCopy as error:
            self.trouble = str(error)

    def _unheard(self, trouble: str) -> None:
        """Ask the other witness, and give up only when both agree."""
        assert self.lease is not None
        self._workplace = None
        health: Health | None = None
        try:
            instance = self.tenant.instance(self.lease)
            health = health_of(instance)
            if instance is not None and instance.outbid and not self.settings.spot:
                self._wake(instance)
        except CloudError as error:
            trouble = f"{trouble}; and the service: {error}"
        self.silence.unheard(self.now(), health)
        verdict = self.silence.verdict
        if verdict is not None:
            self._lose(verdict)
        else:
            self._later(trouble)

    def _wake(self, instance: Instance) -> None:
        """It stopped itself when the driver was silent; its disk has the results. Not asked too often."""
        if self._woken_at is None or self.now() - self._woken_at > self.settings.startup_s:
            self.tenant.client.start(instance.id)
            self._woken_at = self.now()

    def _lose(self, reason: str) -> None:
        assert self.lease is not None
        self._reason = reason
        self._note(f"lost: {reason}")
        self._finish(JobEnd(self.job.job_id, LOST_EXIT_CODE, self._worked_s(), lost=True), files=0)

    # --- after it worked ---

    def _collecting(self) -> None:
        finished = self._ending.exit_code == 0
        try:
            files = self.workplace().fetch(finished=finished)
        except DamagedCopy as error:
            self._copies += 1
            if self._copies >= MAX_COPIES:
                self._lose(f"its results could not be taken: {error}")
            else:
                self._later(str(error))
            return
        except ExecutorError as error:
            self._unheard(str(error))
            return
        self.silence.heard()
        code = self._ending.exit_code
        lost = code == LOST_EXIT_CODE
        self._finish(JobEnd(self.job.job_id, code, self._ending.seconds, lost=lost), files=files)

    def _finish(self, end: JobEnd, *, files: int) -> None:
        assert self.lease is not None
        self.lease = self.tenant.ledger.ended(
            self.lease.label, end, self.now(), files=files, reason=self._reason
        )
        self.end = end
        self._go(Phase.CLOSING)

    def _closing(self) -> None:
        assert self.lease is not None
        self.lease = self.tenant.release(self.lease, self._reason or "its job has ended")
        self._go(Phase.DONE)

    def _worked_s(self) -> float:
        placed = self.lease.placed_at if self.lease is not None else None
        return 0.0 if placed is None else max(0.0, self.now() - placed)

    # --- ended from here ---

    def cancel(self) -> JobEnd | None:
        """End it; its end where its process is gone. Raises UnreachableError where that is not known."""
        if self.end is None:
            if self.phase in (Phase.WORKING, Phase.COLLECTING):
                self._cancel_at_work()
            else:
                self._cancel_before()
        self.step_to_the_end(self.settings.poll_s)
        return self.end

    def _cancel_before(self) -> None:
        if self.lease is not None:
            self.tenant.release(self.lease, "cancelled")
        self.end = JobEnd(self.job.job_id, -signal.SIGTERM, 0.0)
        self._go(Phase.DONE)

    def _cancel_at_work(self, tries: int = CANCEL_TRIES) -> None:
        """Its results come home if they can; its process is gone in any case."""
        assert self.lease is not None
        seconds, code, files = self._worked_s(), -int(signal.SIGTERM), 0
        self._reason = "cancelled"
        try:
            self.workplace().halt()
            ending = self.workplace().look().ending
            files = self.workplace().fetch(finished=ending is not None and ending.exit_code == 0)
            if ending is not None:
                seconds, code = ending.seconds, ending.exit_code
        except ExecutorError as error:
            if tries > 1:
                self.tenant.client.pause(CANCEL_PAUSE_S)
                self._cancel_at_work(tries - 1)
                return
            self._note(f"cancelled without its last results: {error}")
            self.lease = self.tenant.release(self.lease, "cancelled")
        self._finish(JobEnd(self.job.job_id, code, seconds), files=files)

    def step_to_the_end(self, seconds: float) -> None:
        """Give the closing of its lease this long; what is left over is closed by later steps."""
        until = self.now() + seconds
        while self.phase is Phase.CLOSING and self.now() <= until:
            self.due = 0.0
            self.step()
            if self.phase is Phase.CLOSING:
                self.tenant.client.pause(min(5.0, seconds))


_STEPS: dict[Phase, Callable[[RentedJob], None]] = {
    Phase.QUEUED: RentedJob._queued,
    Phase.RENTING: RentedJob._renting,
    Phase.LOADING: RentedJob._loading,
    Phase.DISCARDING: RentedJob._discarding,
    Phase.WORKING: RentedJob._working,
    Phase.COLLECTING: RentedJob._collecting,
    Phase.CLOSING: RentedJob._closing,
}
