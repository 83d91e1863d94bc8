"""What has been spent, what a launch would add, and whether a ceiling allows it. Pure arithmetic.

Three scopes: a run with all its jobs, a round, the sweep. With s spent (ended attempts), r what the running
jobs have used or are still forecast to use, and f the forecast of the job asked about, a launch is
refused where s + r + f > ceiling; in dollars f and r hold what a job is measured to be billed for beside its
work (`overhead`) and what ending it can cost (`Executor.ending_s`): what a ceiling ends, ends below it. A job
without a forecast counts as nothing else until it has run.
A score that decides nothing is ended where s + r, with its own use a second time, comes to more: it may use
half of what the others leave.

The journal is the only book of the ceilings. Where the executor keeps one of its own (what is rented, also
what no job is charged for), the sweep's dollars are the larger of the two sums, never both: journalled as
`billed` where the executor's is the larger. Where that book is not at hand (another executor goes on), what was
billed beyond the ends so far is paid on top of every later one. An attempt counts from its intent on, its seconds and dollars with its end;
dollars are those of the end, else (older journals) the plan's price of its seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from universal_simulator.sweep.executor import JobEnd
from universal_simulator.sweep.journal import Event
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


NOTHING = Spend()


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
    """Spending by scope, from the journal; what is running now is told by the queue.

    billed() -> USD in the executor's own book of this sweep, None where it keeps none.
    """

    def __init__(self, state: SweepState, *, billed: Callable[[], float | None] = lambda: None) -> None:
        self.state = state
        self.billed = billed
        self._read = 0
        self._spent: dict[str, Spend] = {}
        self._usd: dict[str, float] = {}
        #: number of the last `billed` event, and what it says beyond the ends before it
        self._beyond: tuple[int, float] = (-1, 0.0)

    def run_of(self, job_id: str) -> Run | None:
        return self.state.run(job_id.partition(":")[2])

    def price(self, job_id: str, seconds: float) -> float:
        """USD for so many seconds on the machine class of the job's run."""
        run = self.run_of(job_id)
        machine = self.state.plan.machine(run.machine if run else "small")
        return seconds / 3600 * machine.price_usd_per_hour

    def one(self, job_id: str, seconds: float, *, launches: int = 0, idle_s: float = 0.0) -> Spend:
        """What one job comes to; only training jobs count as attempts. idle_s: paid too, and no work (`overhead`)."""
        usd = self.price(job_id, seconds + idle_s)
        return Spend(seconds, usd, launches if job_id.startswith("train:") else 0)

    def spent(self) -> dict[str, Spend]:
        """Scope name -> launches so far, and what those that ended came to."""
        return self._at_least_billed(self._summed())

    def journal_billed(self) -> None:
        """The executor's sum, where it lies above what the journal says so far by a cent or more."""
        billed = self.billed()
        if billed is not None and billed >= self._journalled_usd() + 0.01:
            self.state.journal.append("billed", usd=round(billed, 6))

    def pay(self, end: JobEnd, **words: Any) -> None:
        """The one place where an attempt is paid. An end of no known attempt names none."""
        attempt = self.state.attempt(end.job_id)
        self.state.journal.append(
            "job_ended",
            job=end.job_id,
            attempt=None if attempt is None else attempt.number,
            submission=end.submission,
            exit_code=end.exit_code,
            seconds=round(end.seconds, 3),
            usd=round(self.price(end.job_id, end.seconds) if end.usd is None else end.usd, 6),
            lost=end.lost,
            **({"refused": [], "results": {}} | words),
        )

    def _journalled_usd(self) -> float:
        told = [float(event.data["usd"]) for event in self.state.journal.of("billed")]
        return max([self._summed().get("sweep", Spend()).usd, *told])

    def _at_least_billed(self, totals: dict[str, Spend], kept_back_usd: float = 0.0) -> dict[str, Spend]:
        sweep = totals.get("sweep", Spend())
        billed = self.billed()
        if billed:
            usd = max(sweep.usd, max(self._journalled_usd(), billed) + kept_back_usd)
        else:
            usd = sweep.usd + self._beyond_ends()
        return totals | {"sweep": replace(sweep, usd=usd)}

    def _beyond_ends(self) -> float:
        """Of the last `billed`: USD of loading, idling and strays, which no job's end tells."""
        told = self.state.journal.of("billed")
        if told and told[-1].number != self._beyond[0]:
            last = told[-1]
            ends = [e for e in self.state.paid() if e.kind == "job_ended" and e.number < last.number]
            paid = sum(self._usd_of(event) for event in ends)
            self._beyond = (last.number, max(0.0, float(last.data["usd"]) - paid))
        return self._beyond[1]

    def _usd_of(self, end: Event) -> float:
        """As it was told, else (older journals) by the plan's price."""
        usd = end.data.get("usd")
        return self.price(end.data["job"], end.data["seconds"]) if usd is None else float(usd)

    def _summed(self) -> dict[str, Spend]:
        """Intents and ends alone."""
        paid = self.state.paid()
        for event in paid[self._read :]:
            job_id, data = event.data["job"], event.data
            if event.kind == "job_intent":
                self._add(self._spent, job_id, self.one(job_id, 0.0, launches=1))
                continue
            usd = self._usd_of(event)
            # what was never accepted was no launch
            launches = -1 if data.get("refused_launch") else 0
            self._add(
                self._spent, job_id, replace(self.one(job_id, data["seconds"], launches=launches), usd=usd)
            )
            self._usd[job_id] = self._usd.get(job_id, 0.0) + usd
        self._read = len(paid)
        return dict(self._spent)

    def usd_per_hour(self, job_id: str) -> float:
        """As the attempts of a job were billed, where any took time; else by the plan."""
        self._summed()
        seconds = self.state.seconds_by_job().get(job_id, 0.0)
        if seconds <= 0:
            return self.price(job_id, 3600.0)
        return self._usd.get(job_id, 0.0) / seconds * 3600

    def left(self, round_name: str) -> tuple[float, float | None]:
        """Hours and dollars that a round may still use, by its own ceiling and the sweep's; None: no ceiling."""
        spent, budget = self.spent(), self.state.plan.budget
        hours, usd = [], []
        sweep = budget.sweep.model_copy(update={"hours": self.state.plan.max_hours})
        for name, ceiling in (("sweep", sweep), (f"round {round_name}", budget.round)):
            used = spent.get(name, Spend())
            if ceiling.hours is not None:
                hours.append(ceiling.hours - used.seconds / 3600)
            if ceiling.usd is not None:
                usd.append(ceiling.usd - used.usd)
        return min(hours), min(usd, default=None)

    def _add(self, totals: dict[str, Spend], job_id: str, spend: Spend) -> None:
        for scope in scopes(self.state.plan, self.run_of(job_id)):
            totals[scope.name] = totals.get(scope.name, Spend()) + spend

    def with_running(self, running: Mapping[str, Spend], *, kept_back_usd: float = 0.0) -> dict[str, Spend]:
        """`spent` and, job id -> seconds and dollars used or still expected, what runs now.

        kept_back_usd: of those dollars, what is kept back for ending them and is in no book yet.
        """
        totals = self._summed()
        for job_id, spend in running.items():
            self._add(totals, job_id, spend)
        return self._at_least_billed(totals, kept_back_usd)

    def refusal(self, job_id: str, totals: Mapping[str, Spend], asked: Spend) -> tuple[Scope, str] | None:
        """The first scope whose ceiling `asked` on top of `totals` would cross, and how far."""
        for scope in scopes(self.state.plan, self.run_of(job_id)):
            words = crossing(scope.ceiling, totals.get(scope.name, Spend()) + asked)
            if words is not None:
                return scope, words
        return None
