"""How far a sweep is and how long it still takes: what is left of every job, at the speed seen so far.

Each job of the written rounds is so much *work*: its forecast seconds where the sweep was calibrated, else
its run's relative cost in the plan with the shares below. With

    speed   = work done in this sitting / time of busy workers in this sitting
    left_s  = sum over phases of makespan(work left of each job) / speed

nothing is told before TOLD_FROM of all work was done in the sitting: the first increments of a job say how
long it takes to begin, not how long it takes. Rounds that follow from a champion are not foreseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from universal_simulator.sweep.forecast import Forecast, makespan
from universal_simulator.sweep.jobs import DATA, training_id
from universal_simulator.sweep.state import REFERENCE_ROLES, Run, SweepState

#: work of a training that does not grow with its cost, in trainings of the baseline: start, data, calibration
OVERHEAD = 0.7
#: work of one evaluation of a large split, in trainings of the same run (measured .26 to .34 of the plan's
#: members, embedded profile; a deterministic reference more)
EVALUATION = 0.3
#: work of making the data, in all trainings together (embedded: 45 s beside 1,430)
DATA_SHARE = 0.03
#: share of all work that must be done in a sitting before its speed is believed
TOLD_FROM = 0.05
#: a longer silence between two looks was spent on something else (rounds that are not foreseen)
LONGEST_LOOK_S = 10.0
#: roles that full-eval judges whether or not they win
JUDGED = ("baseline", *REFERENCE_ROLES)


@dataclass(frozen=True)
class Outlook:
    """share: of all foreseen work, done. left_s: None while nothing can be said."""

    share: float
    left_s: float | None

    def sentence(self, text: str) -> str:
        return text if self.left_s is None else f"about {in_words(self.left_s)} left; {text}"


class SweepProgress:
    """Follows one sitting of a driver, `workers` jobs at a time; tell(share of the sweep, words) hears of it."""

    def __init__(
        self,
        state: SweepState,
        tell: Callable[[float, str], None] | None = None,
        *,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.tell = tell or (lambda share, words: None)
        self.workers = workers
        self.clock = clock
        self.work = Work(state)
        #: told last; never falls, though what is decided may add work
        self.share = 0.0
        self._looked = (clock(), 0)
        self._busy_s = 0.0
        #: done when this sitting first looked at runs
        self._before: float | None = None

    def look(self, shares: Mapping[str, float], running: Sequence[str], text: str) -> None:
        """A look at jobs at work, told with what is left."""
        outlook = self.seen(shares, running)
        self.tell(outlook.share, outlook.sentence(text))

    def say(self, text: str) -> None:
        self.tell(self.share, text)

    def seen(self, shares: Mapping[str, float], running: Sequence[str]) -> Outlook:
        """shares: done of the jobs begun, running: those at work, both as the queue reports them."""
        self._count_time(len(running))
        phases = self.work.phases()
        if not phases:
            return self._told(DATA_SHARE * shares.get(DATA, 0.0), None)
        left = [sorted(self._left(phase, shares), reverse=True) for phase in phases]
        total = sum(sum(phase.values()) for phase in phases)
        done = total - sum(map(sum, left))
        if self._before is None:
            self._before, self._busy_s = done, 0.0
        made = done - self._before
        share = DATA_SHARE + (1 - DATA_SHARE) * (done / total if total else 1.0)
        if made < TOLD_FROM * total or made <= 0 or self._busy_s <= 0:
            return self._told(share, None)
        wall = sum(makespan(phase, self.workers) for phase in left)
        return self._told(share, wall * self._busy_s / made)

    def _count_time(self, running: int) -> None:
        now, (before, at_work) = self.clock(), self._looked
        self._busy_s += at_work * min(now - before, LONGEST_LOOK_S)
        self._looked = (now, running)

    def _told(self, share: float, left_s: float | None) -> Outlook:
        self.share = max(self.share, share)
        return Outlook(self.share, left_s)

    def _left(self, phase: Mapping[str, float], shares: Mapping[str, float]) -> list[float]:
        return [
            0.0 if self._is_over(job) else work * (1 - shares.get(job, 0.0)) for job, work in phase.items()
        ]

    def _is_over(self, job: str) -> bool:
        """Done or given up, or about a run whose training was."""
        training = training_id(job.partition(":")[2])
        return self.state.done(job) or self.state.failed(job) or self.state.failed(training)


class Work:
    """What every job of the written rounds is expected to be, phase by phase, by the state's latest decisions."""

    def __init__(self, state: SweepState) -> None:
        self.state = state
        self.forecast = Forecast(state)

    def phases(self) -> list[dict[str, float]]:
        """Trainings, full-evals, openings of the test split: job id -> work. Empty before runs are planned."""
        runs = self.state.runs
        if not runs:
            return []
        judged = list(self._judged(runs))
        train = {training_id(run.run_id): self.of(training_id(run.run_id), run) for run in runs}
        full = {f"full:{run.run_id}": self.of(f"full:{run.run_id}", run) for run in judged}
        test = {f"test:{run.run_id}": self.of(f"test:{run.run_id}", run) for run in self._opened(judged)}
        return [train, full, test]

    def of(self, job: str, run: Run) -> float:
        measured = self.forecast.seconds(job)
        if measured or self.state.decision("forecast") is not None:
            return measured
        return (run.cost + OVERHEAD) * (1.0 if job.startswith("train:") else EVALUATION)

    def _judged(self, runs: Sequence[Run]) -> Iterator[Run]:
        """References and baselines, and who is promoted: as decided, or else the dearest that can be."""
        decided = self.state.decision("promotions")
        promoted = None if decided is None else {item["run_id"] for item in decided["promoted"]}
        forced = {m.key for round_ in self.state.plan.rounds for m in round_.members if m.forced}
        yield from (run for run in runs if run.role in JUDGED)
        for round_ in self.state.plan.rounds:
            members = sorted(self.state.members(round_.name), key=lambda run: -run.cost)
            if promoted is not None:
                yield from (run for run in members if run.run_id in promoted)
                continue
            yield from (run for run in members if run.key in forced)
            yield from [run for run in members if run.key not in forced][: round_.promote]

    def _opened(self, judged: Sequence[Run]) -> list[Run]:
        """Champion (undecided: the dearest that can be), its baseline and the references."""
        if not self.state.plan.open_test_for_champion:
            return []
        decided = self.state.decision("champion")
        baselines = [run for run in judged if run.role == "baseline"][:1]
        champion = max(judged, key=lambda run: run.cost, default=None)
        if decided is not None:
            champion = self.state.run(decided["champion"])
        chosen = [*([] if champion is None else [champion]), *baselines]
        chosen += [run for run in judged if run.role == "reference"]
        return list({run.run_id: run for run in chosen}.values())


def in_words(seconds: float) -> str:
    """Minutes alone from ten of them on: an estimate that names seconds then pretends."""
    minutes = seconds / 60
    if minutes >= 10:
        return f"{minutes:.0f} min"
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest:02d} s" if whole else f"{rest} s"
