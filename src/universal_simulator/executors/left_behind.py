"""What earlier drivers, and earlier submissions of this one, left rented.

    unclaimed   at work, or being given back, for a driver that died: looked at, copied and ended like any other
                from the first moment on, so that no instance ends its work because nobody came, whatever the
                driver does before it attaches to the job
    aside       kept with what has not come home, to be asked for again; or the instance of an end that was told
"""

from __future__ import annotations

from collections.abc import Callable

from universal_simulator.executors.cloud_ledger import Lease
from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rented_job import RentedJob
from universal_simulator.executors.tenant import Tenant

#: lease, whether it is only asked for what it holds -> its rental
RentalOf = Callable[[Lease, bool], RentedJob]


class LeftBehind:
    """Of every folder of one executor. Claimed by label: a job can have had several instances."""

    def __init__(self) -> None:
        self.aside: list[RentedJob] = []
        self._unclaimed: dict[str, RentedJob] = {}

    def note(self, tenant: Tenant, rental_of: RentalOf) -> None:
        """All that may bill, when a ledger is opened. What a job holds whose result is here is not needed any more."""
        for lease in tenant.ledger.live():
            if not lease.kept and not (lease.recalled and lease.end is None):
                self._unclaimed[lease.label] = rental = rental_of(lease, False)
                rental.claimed = False
                continue
            rental = rental_of(lease, True)
            if any(other.settled for other in tenant.ledger.of_job(lease.job_id)):
                rental.reason = "the result of its job is here"
                rental.phase, rental.end = Phase.CLOSING, lease.end
            self.aside.append(rental)

    @property
    def unclaimed(self) -> list[RentedJob]:
        return list(self._unclaimed.values())

    def claim(self, lease: Lease) -> RentedJob | None:
        """The driver attaches to the job of this lease: how far its rental has come meanwhile."""
        self.aside = [r for r in self.aside if r.lease is None or r.lease.label != lease.label]
        rental = self._unclaimed.pop(lease.label, None)
        if rental is not None:
            rental.claimed = True
        return rental

    def set_aside(self, job_id: str, before: RentedJob | None) -> None:
        """A job is submitted anew; the instances of its earlier submissions, not yet seen gone, are closed on."""
        labels = [label for label, rental in self._unclaimed.items() if rental.job.job_id == job_id]
        for rental in (before, *(self._unclaimed.pop(label) for label in labels)):
            if rental is not None and rental.phase is not Phase.DONE and not rental.needs_room:
                self.aside.append(rental)

    def recalled(self, job_id: str, tenant: Tenant) -> Lease | None:
        """The instance that holds what this job left there; from now on it is this submission's to ask."""
        for rental in self.aside:
            if rental.job.job_id == job_id and rental.reclaim and rental.end is None and rental.lease:
                self.aside.remove(rental)
                lease = tenant.ledger.leases[rental.lease.label]
                return tenant.ledger.claimed(lease.label, tenant.now()) if lease.recalled else lease
        kept = [lease for lease in tenant.ledger.of_job(job_id) if lease.kept]
        return kept[-1] if kept else None
