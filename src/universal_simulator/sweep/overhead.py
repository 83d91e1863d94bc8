"""What a job is billed for beside its work: an instance that loads, is installed, gets code and data.

With u the dollars that an end was billed, s its seconds at work and p the plan's price of its machine per
second, it was billed for u / p - s seconds that were no work. The canary and the calibrations go the same
way as every job, so the median of theirs stands for all; it is 0 where the plan's own price is what is
paid. Waiting is no work: it counts in dollars and on the clock, not in worker hours.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from universal_simulator.sweep.plan import Plan
from universal_simulator.sweep.state import SweepState

#: jobs from which it is measured, beside the calibrations
CANARY = "canary:"


def usd_per_second(plan: Plan, machine: str) -> float:
    return plan.machine(machine).price_usd_per_hour / 3600


def overhead_s(state: SweepState, machines: Mapping[str, str]) -> float:
    """Billed seconds per job that are no work. machines: job id of a calibration -> its machine class."""
    found = []
    for event in state.paid():
        job, data = event.data["job"], event.data
        if event.kind != "job_ended" or data["exit_code"] != 0 or data.get("usd") is None:
            continue
        machine = "small" if job.startswith(CANARY) else machines.get(job)
        if machine is not None and (price := usd_per_second(state.plan, machine)) > 0:
            found.append(max(0.0, float(data["usd"]) / price - float(data["seconds"])))
    return statistics.median(found) if found else 0.0
