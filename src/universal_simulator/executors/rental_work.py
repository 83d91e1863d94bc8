"""A rented job from its first look to its last: at work, ended from here, brought home, given back."""

from __future__ import annotations

from universal_simulator.errors import ExecutorError
from universal_simulator.executors.cloud_ledger import CEILING, DRIVER_SILENT
from universal_simulator.executors.course import Course
from universal_simulator.executors.rental_phase import BEFORE_THE_JOB, DESERTED, Phase
from universal_simulator.executors.rental_state import Rental
from universal_simulator.executors.transport import DamagedCopy, InstanceRefused, WrongResult
from universal_simulator.executors.workplace import Ending, Glance
from universal_simulator.sweep.executor import LOST_EXIT_CODE, JobEnd

CANCEL_PAUSE_S = 5.0


def working(rental: Rental) -> None:
    assert rental.lease is not None
    if rental.tenant.must_stop(rental.lease):
        limit = rental.settings.run_limit_usd
        stop(rental, f"its ceiling of ${limit:.2f} would be crossed", exit_code=CEILING)
        return
    _copy_checkpoint(rental)
    if rental.now() < rental.look_at:
        if rental.course is None:
            rental.due = rental.look_at
        return
    try:
        glance = _glance(rental)
    except ExecutorError as error:
        _unheard(rental, str(error))
        return
    rental.silence.heard()
    rental.look_at = rental.now() + rental.settings.poll_s
    if glance.ending is not None:
        ended_by_itself(rental, glance.ending)
    elif not _stalled(rental, glance):
        if not glance.watched:
            rental.workplace().start()
        if rental.course is None and rental.now() - rental.copied_at >= rental.settings.checkpoint_s:
            rental.course = Course(rental.workplace().fetch(finished=False))
            _copy_checkpoint(rental)


def _glance(rental: Rental) -> Glance:
    """Raises InstanceUnreachable or ExecutorError, as `Workplace.look` does."""
    if rental.in_doubt:
        rental.workplace().start()
        rental.in_doubt = False
    return rental.workplace().look()


def _stalled(rental: Rental, glance: Glance) -> bool:
    if glance.pulse != rental.pulse:
        rental.pulse, rental.pulse_at = glance.pulse, rental.now()
    quiet_s = rental.now() - rental.pulse_at
    if quiet_s < rental.settings.heartbeat_s:
        return False
    stop(rental, f"neither log nor metrics nor checkpoints grew for {quiet_s:.0f} s")
    return True


def _copy_checkpoint(rental: Rental) -> None:
    """While it works, and is looked at: one that stands still holds up nothing, and is begun again later."""
    if rental.course is None:
        return
    try:
        done = rental.course.step()
    except ExecutorError as error:
        rental.course = None
        rental.trouble = f"its checkpoint cannot be taken: {error}"
        return
    if done is None:
        rental.soon()
    else:
        rental.course, rental.copied_at = None, rental.now()


def _unheard(rental: Rental, trouble: str) -> None:
    """Ask the other witness, and give up only when both agree; then it is stopped, not destroyed."""
    trouble = rental.ask_the_service(trouble)
    verdict = rental.silence.verdict
    if rental.silence.gone:
        rental.vanished()
    elif verdict is not None:
        rental.keep(f"lost: {verdict}")
    else:
        rental.later(trouble)


def stop(rental: Rental, reason: str, *, exit_code: int = LOST_EXIT_CODE) -> None:
    """End its work there and collect what it has; told as lost unless `exit_code` says otherwise."""
    rental.reason, rental.keep_code = reason, exit_code
    settings = rental.settings
    rental.within(settings.reserve_s if exit_code == CEILING else settings.results_patience_s)
    rental.go(Phase.ENDING)


def ended_by_itself(rental: Rental, ending: Ending) -> None:
    rental.ending = ending
    if ending.exit_code != 0 and ending.step in BEFORE_THE_JOB:
        rental.discard(f"step {ending.step!r} failed there with exit code {ending.exit_code}")
        return
    if ending.exit_code == DESERTED:
        rental.reason = DRIVER_SILENT
        rental.ending = Ending(LOST_EXIT_CODE, ending.seconds)
    settings = rental.settings
    rental.within(settings.startup_s if rental.reclaim else settings.results_patience_s)
    rental.go(Phase.COLLECTING)


def ending(rental: Rental) -> None:
    try:
        rental.workplace().halt()
        seen = rental.workplace().look().ending
    except (ExecutorError, OSError) as error:
        _not_taken(rental, error, f"{rental.reason}, and its work cannot be ended: {error}")
        return
    code, seconds = rental.keep_code, rental.worked_s()
    if seen is not None:
        seconds = seen.seconds
        if seen.exit_code == 0 or (rental.cancelled and seen.exit_code != DESERTED):
            # it ended by itself just before
            code = seen.exit_code
    rental.ending = Ending(code, seconds)
    rental.go(Phase.COLLECTING)


def collecting(rental: Rental) -> None:
    code, settings = rental.ending.exit_code, rental.settings
    try:
        if rental.course is None:
            rental.course = Course(rental.workplace().fetch(finished=code == 0))
        files = rental.course.step()
    except WrongResult as error:
        # every hour of asking for the same lie would be paid
        rental.keep(f"its results are not believed: {error}", afresh=_goes_on_elsewhere(rental))
        return
    except (ExecutorError, OSError) as error:
        rental.course = None
        _not_taken(rental, error, f"its results cannot be taken: {error}")
        return
    rental.silence.heard()
    if files is None:
        bought_s = settings.fetch_s(rental.course.moved) if rental.keep_code != CEILING else 0.0
        if _is_over(rental, bought_s):
            rental.keep(
                f"of its results {rental.course.moved / 1e6:.0f} MB came in time",
                afresh=_goes_on_elsewhere(rental),
            )
        else:
            rental.soon()
        return
    rental.drop_course()
    if rental.reason:
        rental.note(rental.reason)
    if rental.reclaim and rental.wanted and not rental.cancelled and code < 0:
        rental.discard("what an earlier attempt left on it is here; the job goes on from there")
        return
    seconds = rental.ending.seconds
    if rental.reclaim and rental.lease is not None:
        # these were told, and paid, when it was kept
        seconds = max(0.0, seconds - rental.lease.seconds_before_wake)
    rental.finish(JobEnd(rental.job.job_id, code, seconds, lost=code == LOST_EXIT_CODE), files=files)


def _not_taken(rental: Rental, error: Exception, trouble: str) -> None:
    """Try again while patience and money last; then its disk is kept."""
    assert rental.lease is not None
    if not isinstance(error, (DamagedCopy, InstanceRefused, OSError)):
        trouble = rental.ask_the_service(trouble)
        if rental.silence.gone:
            rental.vanished()
            return
    if _is_over(rental) or (rental.cancelled and rental.at_rest):
        rental.keep(trouble, afresh=_goes_on_elsewhere(rental))
    else:
        rental.later(trouble, CANCEL_PAUSE_S if rental.cancelled else None)


def _is_over(rental: Rental, bought_s: float = 0.0) -> bool:
    """Patience with it, longer by what has moved, or its money."""
    assert rental.lease is not None
    spent = rental.keep_code != CEILING and rental.tenant.must_stop(rental.lease)
    return spent or rental.now() > rental.deadline + bought_s


def _goes_on_elsewhere(rental: Rental) -> bool:
    return rental.reclaim and rental.wanted and not rental.cancelled


def closing(rental: Rental) -> None:
    """Its instance, and those kept with what an earlier attempt of the same job left, which is here now."""
    assert rental.lease is not None
    tenant = rental.tenant
    rental.lease = tenant.release(rental.lease, rental.reason or "its job has ended")
    if rental.lease.settled:
        for lease in tenant.ledger.of_job(rental.job.job_id):
            if lease.kept:
                tenant.release(lease, "the result of its job is here")
    rental.go(Phase.DONE)
