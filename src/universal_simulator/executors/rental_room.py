"""Which of the jobs that wait may rent or wake an instance now: slots, this machine's uplink, and one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rented_job import RentedJob

_TO_BE_SENT = (Phase.RENTING, Phase.LOADING, Phase.SENDING)


def has_room(rental: RentedJob, rentals: Sequence[RentedJob], slots: int) -> bool:
    """Whether one that wants to rent or wake an instance may. One that is sent much waits for the uplink
    before it rents: it would only bill meanwhile."""
    if sum(other.at_work for other in rentals) >= slots:
        return False
    if rental.phase is not Phase.QUEUED or not rental.sends_long:
        return True
    sent = sum(other.sends_long and other.phase in _TO_BE_SENT for other in rentals)
    return sent < rental.settings.sends_at_once


def is_at_work(rental: RentedJob) -> bool:
    """Its job is, on another instance: two may not write into one run folder."""
    leases = rental.tenant.ledger.of_job(rental.job.job_id)
    return any(lease.live and lease.end is None for lease in leases)


def comes_home(rental: RentedJob) -> bool:
    """What it holds is asked for; what was asked for and is given back now is verified at the end."""
    waits = rental.needs_room and is_at_work(rental)
    return rental.phase not in (Phase.CLOSING, Phase.DONE) and not waits
