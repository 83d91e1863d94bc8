"""What has been spent, what a launch would add, and whether a ceiling allows it. Pure arithmetic.

Three scopes: a run with all its jobs, a round, the sweep. With s spent (ended attempts), r what the running
jobs have used or are still forecast to use, and f the forecast of the job asked about, a launch is
refused where s + r + f > ceiling. A job without a forecast counts as nothing until it has run.

The journal is the only book. An attempt counts from its intent on, its seconds and dollars with its end;
dollars are those of the end, else (older journals) the plan's price of its seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from universal_simulator.sweep.plan import Ceiling, Plan
from universal_simulator.sweep.state import Run, SweepState


@dataclass(frozen=True)
class Spend:
    """Worker seconds, their price, and launches of training jobs."""

    seconds: float = 0.0
    usd: float = 0.0
    attempts: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(self.seconds + other.seconds, self.usd + other.usd, self.attempts + other.attempts)


@dataclass(frozen=True)
class Scope:
    """name: `run ID`, `round NAME` or `sweep`."""

    name: str
    ceiling: Ceiling


def scopes(plan: Plan, run: Run | None) -> list[Scope]:
    """The ceilings a job answers to, the narrowest first; a job of no run only to the sweep's."""
    sweep = plan.budget.sweep.model_copy(update={"hours": plan.max_hours})
    whole = [Scope("sweep", sweep)]
    if run is None:
        return whole
    return [
        Scope(f"run {run.run_id}", plan.budget.run),
        Scope(f"round {run.round}", plan.budget.round),
        *whole,
    ]


def crossing(ceiling: Ceiling, spend: Spend) -> str | None:
    """The first ceiling that `spend` lies above, in words, or None."""
    if ceiling.hours is not None and spend.seconds > 3600 * ceiling.hours:
        return f"{spend.seconds / 3600:.4g} worker hours of {ceiling.hours:g}"
    if ceiling.usd is not None and spend.usd > ceiling.usd:
        return f"{spend.usd:.2f} USD of {ceiling.usd:.2f}"
    if ceiling.attempts is not None and spend.attempts > ceiling.attempts:
        return f"{spend.attempts} training launches of {ceiling.attempts}"
    return None


class Ledger:
    """Spending by scope, from the journal; what is running now is told by the queue."""

    def __init__(self, state: SweepState) -> None:
        self.state = state
        self._read = 0
        self._spent: dict[str, Spend] = {}
        self._usd: dict[str, float] = {}

    def run_of(self, job_id: str) -> Run | None:
        return self.state.run(job_id.partition(":")[2])

    def price(self, job_id: str, seconds: float) -> float:
        """USD for so many seconds on the machine class of the job's run."""
        run = self.run_of(job_id)
        machine = self.state.plan.machine(run.machine if run else "small")
        return seconds / 3600 * machine.price_usd_per_hour

    def one(self, job_id: str, seconds: float, *, launches: int = 0) -> Spend:
        """What one job comes to; only training jobs count as attempts."""
        return Spend(seconds, self.price(job_id, seconds), launches if job_id.startswith("train:") else 0)

    def spent(self) -> dict[str, Spend]:
        """Scope name -> launches so far, and what those that ended came to."""
        paid = self.state.paid()
        for event in paid[self._read :]:
            job_id, data = event.data["job"], event.data
            if event.kind == "job_intent":
                self._add(self._spent, job_id, self.one(job_id, 0.0, launches=1))
                continue
            usd = data.get("usd")
            usd = self.price(job_id, data["seconds"]) if usd is None else usd
            # what was never accepted was no launch
            launches = -1 if data.get("refused_launch") else 0
            self._add(
                self._spent, job_id, replace(self.one(job_id, data["seconds"], launches=launches), usd=usd)
            )
            self._usd[job_id] = self._usd.get(job_id, 0.0) + usd
        self._read = len(paid)
        return dict(self._spent)

    def usd_of(self, job_id: str) -> float:
        """What the attempts of a job that ended came to."""
        self.spent()
        return self._usd.get(job_id, 0.0)

    def _add(self, totals: dict[str, Spend], job_id: str, spend: Spend) -> None:
        for scope in scopes(self.state.plan, self.run_of(job_id)):
            totals[scope.name] = totals.get(scope.name, Spend()) + spend

    def with_running(self, running: Mapping[str, Spend]) -> dict[str, Spend]:
        """`spent` and, job id -> seconds and dollars used or still expected, what runs now."""
        totals = self.spent()
        for job_id, spend in running.items():
            self._add(totals, job_id, spend)
        return totals

    def refusal(self, job_id: str, totals: Mapping[str, Spend], asked: Spend) -> tuple[Scope, str] | None:
        """The first scope whose ceiling `asked` on top of `totals` would cross, and how far."""
        for scope in scopes(self.state.plan, self.run_of(job_id)):
            words = crossing(scope.ceiling, totals.get(scope.name, Spend()) + asked)
            if words is not None:
                return scope, words
        return None
