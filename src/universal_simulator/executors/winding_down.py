"""The end of everything that is rented: one that fails does not keep the others alive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rented_job import RentedJob
from universal_simulator.executors.tenant import Tenant
from universal_simulator.executors.vast_client import VastClient

PAUSE_S = 5.0
#: times that an error which is no silence (a full disk here, a fault of ours) may meet one instance
MOST_ERRORS = 3


def failing(act: Callable[[], object]) -> list[str]:
    """Do it; what went wrong in words, whatever it was: something else may still have to be ended."""
    try:
        act()
    except Exception as error:  # noqa: BLE001 (told by the caller, with all others)
        return [_words(error)]
    return []


def give_back(rentals: Sequence[RentedJob], client: VastClient, within_s: float) -> list[str]:
    """Bring every rental to its end, in turns, for `within_s` seconds; those that are not, in words.

    One that keeps failing is at least asked to stop, so that its GPU bills no more.
    """
    until = client.clock() + within_s
    errors: Counter[int] = Counter()
    troubles: dict[int, str] = {}
    left = dict(enumerate(rentals))
    while left:
        for key, rental in list(left.items()):
            failed = failing(partial(_onward, rental))
            troubles[key] = f"{rental.job.job_id}: {failed[0] if failed else rental.trouble}"
            errors[key] += bool(failed)
            if rental.phase is Phase.DONE:
                if not failed:
                    del troubles[key]
                del left[key]
            elif errors[key] >= MOST_ERRORS or client.clock() > until:
                troubles[key] += _stopped(rental)
                del left[key]
        if left:
            client.pause(PAUSE_S)
    return list(troubles.values())


def _onward(rental: RentedJob) -> None:
    rental.ask_to_end()
    rental.due = 0.0
    rental.step()


def _stopped(rental: RentedJob) -> str:
    lease = rental.lease
    if lease is None or not lease.live or lease.instance_id is None:
        return ""
    number = lease.instance_id
    failed = failing(partial(rental.tenant.client.stop, number))
    if failed:
        return f"; instance {number} could not even be stopped: {failed[0]}"
    return f"; instance {number} was asked to stop, its disk is kept"


def destroy_above_the_ceiling(tenant: Tenant) -> list[str]:
    """Whatever is still rented goes while its rent would cross the ceiling, results or not: the ceiling says
    so. Those that still bill a GPU go first. What was destroyed, or could not be, in words."""
    told = []
    for lease in sorted(tenant.ledger.live(), key=lambda lease: lease.kept):
        if lease.kept and not tenant.must_stop():
            break
        told += failing(partial(tenant.release, lease, "the ceiling")) or [
            f"instance {lease.instance_id} was DESTROYED by the ceiling with what it held for {lease.job_id}"
        ]
    return told


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
