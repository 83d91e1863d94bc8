"""Attempts that an earlier driver left without an end: where they may be at work, and until when it looked at them.

An attempt belongs to the place where it was begun. An executor of another place finds nothing of it: the
job would be called lost and paid a second time while it goes on, and is billed, where it was begun.
"""

from __future__ import annotations

from universal_simulator.errors import UserError
from universal_simulator.sweep.executor import Executor
from universal_simulator.sweep.state import SweepState
from universal_simulator.sweep.work_clock import last_alive

#: first word of a place -> how to ask for it, and how to see and end what is there
_WORDS = {
    "LocalProcessExecutor": ("--executor local", ""),
    "RayClusterExecutor": ("--executor ray --ray-address {address}", ""),
    "VastExecutor": (
        "--executor vast --ceiling-usd USD",
        "; what is rented is told by `usim cloud status {folder}` and ended by `usim cloud reap {folder} --all`",
    ),
}


def elsewhere(state: SweepState, executor: Executor) -> dict[str, str]:
    """job id -> another place where its attempt without an end was begun, and where it can have outlived its driver.

    Journals from before places were written down name none.
    """
    return {
        job: attempt.place
        for job, attempt in state.open_attempts().items()
        if attempt.place is not None and attempt.place != executor.place and not attempt.ends_with_driver
    }


def refuse_elsewhere(state: SweepState, executor: Executor) -> None:
    """Raises UserError where an attempt without an end was begun in another place, and may be at work there."""
    found = elsewhere(state, executor)
    if not found:
        return
    place = next(iter(found.values()))
    jobs = [job for job, where in found.items() if where == place]
    name, _, address = place.partition(" ")
    asked, books = _WORDS.get(name, (f"the executor {name}", ""))
    raise UserError(
        f"{state.folder}: {', '.join(jobs)} began on {place} and has no end in the journal: it may still be at "
        f"work and be billed there, and {executor.place} cannot know; nothing was started.\n"
        f"Go on where it began: usim sweep resume {state.folder} {asked.format(address=address)}\n"
        f"Only where nothing of it runs any more: usim sweep resume {state.folder} --abandon journals it as lost and "
        f"runs it again{books.format(folder=state.folder)}"
    )


def note_last_look(state: SweepState) -> None:
    """Journal until when their driver looked at the attempts left open, before this sitting leaves a look of its own.

    One file says it for all sittings of a folder, so it is read in the first sitting after. An attempt taken over
    is looked at again.
    """
    left = [job for job, attempt in state.open_attempts().items() if attempt.looked is None]
    if left:
        state.journal.append("attempts_left", jobs=left, looked=round(last_alive(state.folder) or 0.0, 3))
