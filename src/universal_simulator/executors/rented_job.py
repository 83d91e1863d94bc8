"""One job's way over rented instances.

    queued -> renting -> loading <-> sending -> working -> [ending ->] collecting -> closing -> done
       ^         |          |           |          |           |           |
       +---------+----------+-----------+ discard  +-----------+-----------+--> keeping -> done, its lease kept
       +------------------------------------------------- reclaiming <- submitted again, or recalled

Every step goes as far as it can without waiting, transfers too (`course`); a driver that died left what
matters in the ledger.
*keeping* stops an instance whose results cannot be had and leaves its disk; *reclaiming* wakes it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

from universal_simulator.errors import ExecutorError, UnreachableError
from universal_simulator.executors import kept_results, rental_start, rental_work
from universal_simulator.executors.cloud_ledger import CEILING
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rental_state import Rental
from universal_simulator.executors.tenant import DESTROY_S
from universal_simulator.sweep.executor import JobEnd, JobState, Use

PAUSE_S = 5.0


def ending_at_most_s(settings: CloudSettings) -> float:
    """Seconds that one which is cancelled is waited for."""
    return settings.cancel_patience_s + 2 * DESTROY_S


class RentedJob(Rental):
    """Its steps and its end from here."""

    @property
    def state(self) -> JobState:
        """As the contract's: what is not told yet waits, or is at work on its instance, unless nobody said so at the
        last look: not the instance, or not the service. Once its work is over it waits for what it left to come home."""
        if self.tellable and self.end is not None:
            return "lost" if self.end.lost else "ended"
        if self.phase in _BEFORE_ITS_WORK or self.phase in _AFTER_ITS_WORK:
            return "waiting"
        return "unknown" if self.silence.now_silent or self.unheard else "running"

    @property
    def use(self) -> Use:
        """Dollars from the ledger, loading included; a job without an instance costs none."""
        lease = self.lease and self.tenant.ledger.leases.get(self.lease.label)
        if lease is None or self.needs_room:
            return Use(usd=0.0)
        return Use(usd=lease.spent_usd(self.now()) - lease.usd_before_wake)

    @property
    def billed_end(self) -> JobEnd:
        """Named by its lease and how often that was woken; what it has cost by now; which ceiling ended it."""
        assert self.end is not None
        name = self.lease.submission if self.lease is not None else ""
        end = replace(self.end, usd=self.use.usd, submission=name)
        return replace(end, reason=self._ceiling, ceiling=True) if end.exit_code == CEILING else end

    @property
    def _ceiling(self) -> str:
        spent_usd, limit_usd = self.tenant.spent_usd(self.job.job_id), self.settings.run_limit_usd
        return (
            f"the rent of one job has its ceiling: ${spent_usd:.2f} of ${limit_usd:.2f} (run_ceiling_usd of "
            "--cloud) are spent, and more would cross it"
        )

    def step(self) -> None:
        """As far as it goes now. Raises BudgetError where renting for it would cross a ceiling."""
        while self.phase is not Phase.DONE and self.due <= self.now():
            if self.needs_room and not self.claimed:
                return
            before = self.phase
            try:
                _STEPS[self.phase](self)
                self.unheard = False
            except ExecutorError as error:
                self.unheard = True
                self.later(str(error))
            if self.phase is before:
                if self.due <= self.now():
                    self.due = self.now() + self.settings.poll_s
                return

    def ask_to_end(self) -> None:
        """From the next step on it is brought to its end; asked twice is asked once."""
        if self.end is not None or self.cancelled:
            return
        self.cancelled, self.keep_code = True, -int(signal.SIGTERM)
        until = self.now() + self.settings.cancel_patience_s
        if self.needs_room:
            # nothing of it bills a GPU: what is kept stays as it is, an earlier submission's
            self.lease = None
            self.end = JobEnd(self.job.job_id, self.keep_code, 0.0)
            self.go(Phase.DONE)
        elif self.phase is Phase.WORKING or (
            self.phase in (Phase.LOADING, Phase.SENDING) and self.perhaps_begun
        ):
            self.reason, self.deadline = "cancelled", until
            self.go(Phase.ENDING)
        elif self.phase in (Phase.RENTING, Phase.LOADING, Phase.SENDING, Phase.DISCARDING):
            self.discard("cancelled")
        elif self.phase is Phase.RECLAIMING:
            self.keep("cancelled while it was woken for what it holds")
        else:
            self.deadline, self.afresh, self.due = min(self.deadline, until), False, 0.0

    def cancel(self, *, meanwhile: Callable[[], None] = lambda: None) -> JobEnd:
        """End it: its results come home, or its instance is kept. Raises UnreachableError where its process
        may still be at work. An instance that is not yet seen gone is closed by later steps. `meanwhile` is
        called between two looks."""
        self.ask_to_end()
        begun = self.now()
        while not self._is_over(self.now() - begun):
            self.due = 0.0
            self.step()
            if not self._is_over(self.now() - begun):
                meanwhile()
                self.tenant.client.pause(PAUSE_S)
        if self.end is None:
            raise UnreachableError(f"{self.job.job_id} may still be at work: {self.trouble}")
        return self.end

    def _is_over(self, passed_s: float) -> bool:
        """Its way, or the patience with it."""
        patience_s = ending_at_most_s(self.settings)
        if self.end is not None:
            patience_s = self.settings.poll_s
        return self.phase is Phase.DONE or passed_s > patience_s


_BEFORE_ITS_WORK = (
    Phase.QUEUED,
    Phase.RENTING,
    Phase.LOADING,
    Phase.SENDING,
    Phase.DISCARDING,
    Phase.RECLAIMING,
)
_AFTER_ITS_WORK = (Phase.COLLECTING, Phase.CLOSING)
_STEPS: dict[Phase, Callable[[Rental], None]] = {
    Phase.QUEUED: rental_start.queued,
    Phase.RENTING: rental_start.renting,
    Phase.LOADING: rental_start.loading,
    Phase.SENDING: rental_start.sending,
    Phase.DISCARDING: rental_start.discarding,
    Phase.WORKING: rental_work.working,
    Phase.ENDING: rental_work.ending,
    Phase.COLLECTING: rental_work.collecting,
    Phase.KEEPING: kept_results.keeping,
    Phase.RECLAIMING: kept_results.reclaiming,
    Phase.CLOSING: rental_work.closing,
}
