"""Where a rented job is on its way, and the exit codes that only rented jobs have."""

from __future__ import annotations

import enum

from universal_simulator.executors.cloud_ledger import Lease

#: steps before the job itself, at which an instance can fail it
BEFORE_THE_JOB = ("setup", "code", "data")
#: of work that the instance ended itself because it had not heard from the driver
DESERTED = -254


class Phase(enum.Enum):
    QUEUED = "queued"
    RENTING = "renting"
    LOADING = "loading"
    SENDING = "sending"
    DISCARDING = "discarding"
    WORKING = "working"
    ENDING = "ending"
    COLLECTING = "collecting"
    KEEPING = "keeping"
    RECLAIMING = "reclaiming"
    CLOSING = "closing"
    DONE = "done"


def phase_of(lease: Lease) -> Phase:
    """Where the ledger says that its job is."""
    if not lease.live or lease.kept:
        return Phase.DONE
    if lease.end is not None:
        return Phase.CLOSING
    if lease.instance_id is None:
        return Phase.RENTING
    return Phase.LOADING if lease.placed_at is None else Phase.WORKING
