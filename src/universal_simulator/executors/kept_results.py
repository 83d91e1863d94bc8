"""Instances that hold what cannot be had now: stopped with their disks kept, and asked again later.

Nothing that has not come home is destroyed because a line was bad. When patience ends the instance is
stopped, seen stopped and written down; its GPU bills no more, its disk does. `usim cloud status` tells
of it, `usim sweep resume` wakes it and tries again, `usim cloud reap --all` destroys it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from universal_simulator.errors import ExecutorError
from universal_simulator.executors.cloud_ledger import CEILING, FILE, Lease, Ledger
from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rental_start import begin_working, failed_start, never_began
from universal_simulator.executors.rental_state import Rental
from universal_simulator.executors.rental_work import ended_by_itself
from universal_simulator.executors.tenant import RunCeilingError
from universal_simulator.executors.transport import InstanceRefused
from universal_simulator.executors.workplace import Ending
from universal_simulator.sweep.executor import LOST_EXIT_CODE, JobEnd

STOP_PAUSE_S = 5.0
#: of the service, that show it stopped
LOOKS = 2


def keeping(rental: Rental) -> None:
    """Told only when the service shows it stopped, twice (or complete listings do not show it at all).

    Twice because the price falls with it: after a sleep of this machine the first answer's time is not
    believed yet (`ServiceClock`), and what it ran meanwhile would be charged as standing still.
    """
    assert rental.lease is not None
    tenant, lease = rental.tenant, rental.lease
    instance = tenant.instance(lease)
    rental.rested = rental.rested + 1 if instance is not None and instance.at_rest else 0
    if instance is None:
        rental.vanished()
    elif rental.rested == 0:
        tenant.client.stop(instance.id)
        rental.later(f"{rental.reason}; it is being stopped", STOP_PAUSE_S)
    elif rental.rested < LOOKS:
        rental.later(f"{rental.reason}; it is seen stopped", STOP_PAUSE_S)
    else:
        rental.rested = 0
        code = LOST_EXIT_CODE if rental.afresh else rental.keep_code
        # what was told before it was woken is not told again
        seconds = 0.0 if rental.reclaim else rental.worked_s()
        end = JobEnd(rental.job.job_id, code, seconds, lost=code == LOST_EXIT_CODE)
        rental.lease = tenant.ledger.kept(lease.label, end, rental.now(), reason=rental.reason)
        words = telling(rental.lease, tenant.ledger.path.parents[1])
        if rental.afresh:
            failed_start(rental, rental.reason, lease.offer_id)
        else:
            rental.end = end
            rental.go(Phase.DONE)
        rental.note(words)


def reclaiming(rental: Rental) -> None:
    """Wake a kept instance, then take what it holds; a job that is wanted goes on there, or elsewhere.

    Raises BudgetError where its rent would cross the ceiling of the sweep.
    """
    assert rental.lease is not None
    tenant = rental.tenant
    if rental.lease.kept:
        try:
            rental.lease = tenant.wake(rental.lease, recalled=not rental.wanted)
        except RunCeilingError as error:
            rental.lease = None
            never_began(rental, str(error), JobEnd(rental.job.job_id, CEILING, 0.0))
            return
        finally:
            if rental.lease is not None:
                rental.lease = tenant.ledger.leases[rental.lease.label]
            rental.within(rental.settings.startup_s)
    instance = tenant.instance(rental.lease)
    if instance is None:
        rental.note("the instance that was kept with its results is gone from complete listings")
        rental.discard("it vanished while it stood still")
    elif rental.now() > rental.deadline:
        rental.keep(
            f"woken, and not ready after {rental.settings.startup_s:.0f} s: {rental.trouble}",
            afresh=rental.wanted,
        )
    elif instance.actual_status != "running":
        if instance.at_rest:
            rental.wake(instance)
        rental.later(f"it is woken for what it holds; its status is {instance.actual_status}")
    else:
        _take_up(rental)


def _take_up(rental: Rental) -> None:
    """It runs again: what became of the job there?"""
    rental.place = None
    try:
        try:
            ending = rental.workplace().look().ending
        except InstanceRefused:
            if not rental.wanted:
                raise
            # it may never have begun; what was brought or begun before is not brought or begun twice
            rental.go(Phase.SENDING)
            return
        if ending is None and rental.wanted:
            rental.workplace().start()
    except ExecutorError as error:
        rental.later(f"it is woken for what it holds: {error}")
        return
    if ending is None and rental.wanted:
        rental.reclaim = False
        begin_working(rental)
    else:
        ended_by_itself(rental, ending or Ending(LOST_EXIT_CODE, 0.0))


def telling(lease: Lease, folder: Path) -> str:
    """What is kept, why, at what price, and how it ends."""
    price = f"${lease.rate_usd_per_hour:.4f} an hour"
    if lease.disk_usd_per_hour is None:
        price = f"its disk's price (at most {price})"
    return (
        f"instance {lease.instance_id} is stopped and KEPT for {lease.job_id}: {lease.reason}. What is on its "
        f"disk is not here. It costs {price} until it is destroyed. To fetch it: usim sweep resume {folder} "
        f"--executor vast ...; to destroy it: usim cloud reap {folder} --all"
    )


def told_by_the_ledger(folder: Path) -> dict[str, Any] | None:
    """What a sweep has rented, kept and spent (USD up to now, by this machine's clock); None where it never rented.

    Asks nobody: an instance that is being made or destroyed just now, or ended itself, is told as the ledger has it.
    """
    if not (folder / FILE).exists():
        return None
    ledger = Ledger(folder / FILE)
    rented = [lease for lease in ledger.live() if not lease.kept]
    return {
        "rented": [{"id": x.instance_id, "job": x.job_id, "usd_per_hour": x.usd_per_hour} for x in rented],
        "kept": [telling(lease, folder) for lease in ledger.all_kept()],
        "spent_usd": round(ledger.spent_usd(max(time.time(), ledger.latest)), 4),
    }
