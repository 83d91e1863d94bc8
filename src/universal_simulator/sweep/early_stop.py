"""Is a running member so far behind the baseline that the rest of its training is not worth it?

Both curves are read from the runs' own metric logs (`RunFolder.metrics_log("operator")`, one JSON
line per optimiser step) and compared at the same fraction of each one's own schedule. The value of
a curve there is the median, over the steps of the window, of the `rollout` term of the loss: the
relative error of rolled-out windows in physical space, which means the same under every weight of
the other terms, and whose rollout length follows the same fraction of every schedule. Validation
scores would be nearer to the goal, but a short profile has none in the window.

A member is judged once, while it runs, as soon as its own window is complete and three baseline
curves are there. Whether a slow one is still caught before its end depends on when it was launched,
so a plan that must repeat bit for bit leaves `early_stop` off.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from universal_simulator.run_record import RunFolder
from universal_simulator.sweep.state import Run, SweepState

#: the shares of the schedule between which a member is judged, once
WINDOW = (0.30, 0.40)
#: standard deviations of the baseline's seeds that a member may lie behind
DEVIATIONS = 1.0
#: steps that a window needs before its median is trusted
FEWEST_STEPS = 5
#: how the words of a job begin that was ended so
STOPPED_EARLY = "stopped early: "
#: enough for the last whole line of a metrics log
TAIL_BYTES = 4096
#: baselines, references, placebos and confirmations are measured to their end
STOPPABLE_ROLES = ("member", "trial", "refinement")


@dataclass(frozen=True)
class EarlyStop:
    """`stop` with the figures it rests on."""

    stop: bool
    sentence: str
    value: float | None = None
    baseline: float | None = None
    deviation: float | None = None


def window_value(log: Path, total_steps: int) -> float | None:
    """Median rollout loss over the window of a schedule of `total_steps`.

    None while the run has not passed the window, or logged too little in it. A torn last line (the
    run is being written) is skipped; a step logged twice counts as it was logged last.
    """
    if not log.exists():
        return None
    found: dict[int, float] = {}
    last = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        step, loss = values.get("step"), values.get("rollout")
        if not isinstance(step, int) or "total" not in values:
            continue
        last = max(last, step)
        if isinstance(loss, int | float) and WINDOW[0] < step / total_steps <= WINDOW[1]:
            found[step] = float(loss)
    if last < WINDOW[1] * total_steps or len(found) < FEWEST_STEPS:
        return None
    return statistics.median(found.values())


def judge(member: float | None, baselines: Sequence[float | None]) -> EarlyStop:
    """Stop a member whose value is more than a standard deviation above the baseline's mean."""
    seeds = [value for value in baselines if value is not None]
    if member is None or len(seeds) < 3:
        return EarlyStop(False, "not judged: it needs its own window and three baseline curves")
    if not math.isfinite(member):
        return EarlyStop(True, "its loss is no number in the window", None)
    mean, deviation = statistics.fmean(seeds), statistics.stdev(seeds)
    limit = mean + DEVIATIONS * deviation
    stop = member > limit
    return EarlyStop(
        stop,
        f"rollout loss {member:.4g} between {WINDOW[0]:.0%} and {WINDOW[1]:.0%} of its schedule, "
        f"{'more than' if stop else 'within'} {DEVIATIONS:g} standard deviation ({deviation:.2g}) of the "
        f"baseline's {mean:.4g} there ({len(seeds)} seeds)",
        member,
        mean,
        deviation,
    )


class EarlyStopWatch:
    """Judges the running members of one sweep, where its plan asks for it."""

    def __init__(self, state: SweepState) -> None:
        self.state = state
        self._judged: set[str] = set()
        self._values: dict[str, float] = {}

    def behind(self, job_id: str) -> EarlyStop | None:
        """The verdict on a training job that is to be stopped; None for any other, and the second time."""
        run = self.state.run(job_id.removeprefix("train:"))
        if not self.state.plan.early_stop or run is None or job_id in self._judged:
            return None
        if run.role not in STOPPABLE_ROLES or self._is_forced(run):
            return None
        value = self._value(run.run_id)
        seeds = [self._value(seed) for seed in self.state.baselines()] if value is not None else []
        if sum(seed is not None for seed in seeds) < 3:
            return None
        self._judged.add(job_id)
        verdict = judge(value, seeds)
        return verdict if verdict.stop else None

    def _is_forced(self, run: Run) -> bool:
        return any(m.forced and m.key == run.key for r in self.state.plan.rounds for m in r.members)

    def _value(self, run_id: str) -> float | None:
        files = RunFolder(self.state.folder, run_id)
        log = files.metrics_log("operator")
        if run_id not in self._values and files.config.exists() and log.exists():
            config = json.loads(files.config.read_text(encoding="utf-8"))["config"]
            total = int(config["training"]["operator"]["steps"])
            if _last_step(log) >= WINDOW[1] * total:
                value = window_value(log, total)
                if value is not None:
                    self._values[run_id] = value
        return self._values.get(run_id)


def _last_step(log: Path) -> int:
    """Of the last whole line; 0 where there is none. Reads the end of the file only."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return 0
