"""A rented job until it works: it waits, an instance is asked for, loads, or is given back for another."""

from __future__ import annotations

import signal

from universal_simulator.errors import ExecutorError
from universal_simulator.executors.cloud_ledger import CEILING
from universal_simulator.executors.course import Course
from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rental_state import Rental
from universal_simulator.executors.tenant import NotNow, RunCeilingError
from universal_simulator.sweep.executor import LOST_EXIT_CODE, JobEnd

DOUBT_PAUSE_S = 10.0


def queued(rental: Rental) -> None:
    """Raises BudgetError where renting for it would cross the ceiling of the sweep."""
    try:
        answer = rental.tenant.rent(rental.job, rental.avoid, sending_s=rental.sending_s)
    except RunCeilingError as error:
        never_began(rental, str(error), JobEnd(rental.job.job_id, CEILING, 0.0))
        return
    if isinstance(answer, NotNow):
        _not_now(rental, answer)
        return
    rental.searching_since = None
    rental.lease = answer
    rental.go(Phase.RENTING)


def _not_now(rental: Rental, answer: NotNow) -> None:
    patience_s = rental.settings.search_patience_s
    if answer.offer_id is not None:
        failed_start(rental, answer.reason, answer.offer_id)
    elif rental.searching_since is None:
        rental.searching_since = rental.now()
        rental.avoid.clear()
    elif rental.now() - rental.searching_since > patience_s:
        never_began(rental, f"{answer.reason}, for {patience_s:.0f} s")
    if rental.phase is Phase.QUEUED:
        rental.later(answer.reason, answer.pause_s)


def renting(rental: Rental) -> None:
    assert rental.lease is not None
    rental.lease = rental.tenant.resolve(rental.lease)
    if not rental.lease.live:
        failed_start(rental, rental.lease.reason, None)
    elif rental.lease.instance_id is None:
        rental.later("it is not known yet whether an instance was made", DOUBT_PAUSE_S)
    else:
        rental.met_at = None
        rental.within(rental.settings.startup_s)
        rental.go(Phase.LOADING)


def loading(rental: Rental) -> None:
    assert rental.lease is not None
    instance = rental.tenant.instance(rental.lease)
    if instance is None:
        rental.discard("it vanished before it was ready")
    elif rental.now() > rental.deadline:
        told = rental.trouble or f"its status is {instance.actual_status}"
        _not_ready(rental, f"not ready after {rental.settings.startup_s:.0f} s: {told}")
    elif instance.outbid and not rental.perhaps_begun:
        rental.discard("it was outbid before it was ready")
    elif instance.actual_status != "running" or instance.ssh_host is None or instance.ssh_port is None:
        if instance.outbid:
            rental.wake(instance)
        rental.later(f"its status is {instance.actual_status}")
    else:
        rental.place = rental.workplace_of(rental.job, rental.lease, instance)
        rental.go(Phase.SENDING)


def sending(rental: Rental) -> None:
    """As far as the line is now; where it broke off the service is heard first, then it goes on from there."""
    if rental.met_at is None:
        rental.met_at = rental.now()
        if rental.sends_long:
            rental.within(rental.settings.startup_s)
        rental.limit = rental.deadline
    try:
        if rental.course is None:
            rental.course = Course(rental.workplace().bring())
        done = rental.course.step()
    except ExecutorError as error:
        _not_yet(rental, error)
        return
    settings, moved = rental.settings, rental.course.moved
    # every byte buys the time it may take
    rental.deadline = max(rental.deadline, rental.limit + settings.send_s(moved))
    if done is not None:
        _start(rental)
    elif rental.now() > rental.deadline:
        passed_s = rental.now() - rental.met_at
        _not_ready(
            rental,
            f"it was sent {moved / 1e6:.0f} MB in {passed_s:.0f} s, at least "
            f"{settings.send_mbit_per_s_at_least:g} Mbit/s are asked for (send_mbit_per_s_at_least)",
        )
    else:
        share = min(1.0, moved / rental.weight) if rental.weight else 0.0
        rental.trouble = f"{int(10 * share) * 10} % of {rental.weight / 1e9:.1f} GB"
        rental.soon()


def _not_yet(rental: Rental, error: ExecutorError) -> None:
    rental.go(Phase.LOADING)
    rental.later(f"it could not be made ready: {error}")


def _start(rental: Rental) -> None:
    assert rental.lease is not None
    if not rental.lease.starting:
        rental.lease = rental.tenant.ledger.starting(rental.lease.label, rental.now())
    place = rental.workplace()
    try:
        place.start()
    except ExecutorError as error:
        if not place.begun:
            _not_yet(rental, error)
            return
        # it may be at work there: from here on nothing of it is destroyed unseen
        rental.in_doubt = True
    rental.trouble, rental.reclaim = "", False
    begin_working(rental)


def _not_ready(rental: Rental, reason: str) -> None:
    """Destroyed for another, unless an earlier driver may have started the job on it."""
    if rental.perhaps_begun:
        rental.keep(reason, afresh=True)
    else:
        rental.discard(reason)


def begin_working(rental: Rental) -> None:
    assert rental.lease is not None
    rental.lease = rental.tenant.ledger.placed(rental.lease.label, rental.now())
    rental.pulse_at = rental.copied_at = rental.now()
    rental.look_at = 0.0
    rental.silence.heard()
    rental.go(Phase.WORKING)


def discarding(rental: Rental) -> None:
    """Gone for certain before another is asked for."""
    assert rental.lease is not None
    lease = rental.tenant.release(rental.lease, rental.reason)
    if rental.cancelled:
        rental.lease, rental.end = lease, JobEnd(rental.job.job_id, -signal.SIGTERM, 0.0)
        rental.go(Phase.DONE)
    elif not rental.wanted:
        rental.lease, rental.end = lease, JobEnd(rental.job.job_id, LOST_EXIT_CODE, 0.0, lost=True)
        rental.go(Phase.DONE)
    elif rental.reclaim:
        rental.lease, rental.place, rental.reclaim = None, None, False
        rental.trouble, rental.reason = rental.reason, ""
        rental.go(Phase.QUEUED)
    else:
        failed_start(rental, rental.reason, lease.offer_id)


def failed_start(rental: Rental, reason: str, offer_id: int | None) -> None:
    if offer_id is not None:
        rental.avoid.add(offer_id)
    rental.lease, rental.place, rental.reclaim = None, None, False
    rental.startups += 1
    rental.trouble, rental.reason = reason, ""
    if rental.startups >= rental.settings.startups_per_start:
        never_began(rental, f"{rental.startups} instances failed before the job began; the last: {reason}")
    else:
        rental.go(Phase.QUEUED)


def never_began(rental: Rental, reason: str, end: JobEnd | None = None) -> None:
    """No finding about the job: told as lost."""
    rental.end = end or JobEnd(rental.job.job_id, LOST_EXIT_CODE, 0.0, lost=True)
    rental.go(Phase.DONE)
    rental.note(reason)


def give_up_unlucky(rental: Rental) -> None:
    """Its instances went away too often in this sitting: nothing more is rented for it, others go on."""
    job_id, at_most = rental.job.job_id, rental.settings.losses_per_run
    reason = (
        f"{job_id} has lost {rental.tenant.lost(job_id)} instances at work in this sitting, {at_most} are replaced "
        "(losses_per_run of --cloud); type the command again to go on from its last copy"
    )
    never_began(rental, reason, JobEnd(job_id, LOST_EXIT_CODE, 0.0, lost=True, reason=reason))
