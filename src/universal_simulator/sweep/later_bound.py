"""At most what follows the written rounds: later rounds and scores, whose size the plan bounds and nobody knows before.

A later round starts from the champion of its moment, so each of its runs is counted as the dearest that can be
champion, a refinement times what the plan says it costs more. With n trials, c the costs of the refinements, s
fresh seeds and a placebo p (0 or 1) it trains n + sum(c) + s + p times as much, and full-evaluates its winner and
what that started from. How long a score of test-time compute takes is measured by nobody: they are only counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from universal_simulator.sweep.forecast import Forecast
from universal_simulator.sweep.overhead import usd_per_second
from universal_simulator.sweep.plan import Plan, Round
from universal_simulator.sweep.state import SweepState

#: a round's winner and what it started from
FULL_EVALS = 2
#: can be champion, and what later rounds start from
_ROLES = ("baseline", "member")


@dataclass(frozen=True)
class LaterBound:
    """rounds: their names. trainings: jobs. like: the run that each is counted as, "" without a later round."""

    rounds: tuple[str, ...]
    trainings: int
    full_evals: int
    scores: int
    worker_hours: float
    usd: float
    like: str

    @property
    def sentence(self) -> str:
        if not self.rounds:
            return f"{self.scores} scores of test-time compute on top, which are in no forecast"
        return (
            f"rounds {', '.join(self.rounds)} add at most {self.trainings} trainings and {self.full_evals} full-evals, "
            f"{self.worker_hours:.2f} worker hours and {self.usd:.2f} USD (each as long as {self.like}, the dearest), "
            f"and {self.scores} scores of test-time compute, which are in no forecast"
        )


def later_bound(state: SweepState) -> LaterBound | None:
    """None where the plan asks for nothing after its written rounds."""
    plan, forecast = state.plan, Forecast(state)
    rounds = [round_ for round_ in plan.rounds if round_.kind != "members"]
    scores = _scores(plan, rounds)
    if not rounds and not scores:
        return None
    seconds: dict[str, float] = {}
    usd: dict[str, float] = {}
    for run in state.runs:
        if run.role in _ROLES:
            train_s, full_s = (forecast.seconds(f"{what}:{run.run_id}") for what in ("train", "full"))
            weights, jobs = sum(map(_weight, rounds)), sum(map(_runs, rounds)) + FULL_EVALS * len(rounds)
            seconds[run.run_id] = weights * train_s + FULL_EVALS * len(rounds) * full_s
            idle_s = jobs * forecast.overhead_s(f"train:{run.run_id}")
            usd[run.run_id] = usd_per_second(plan, run.machine) * (seconds[run.run_id] + idle_s)
    like = max(usd, key=lambda run_id: (usd[run_id], seconds[run_id])) if rounds and usd else ""
    return LaterBound(
        rounds=tuple(round_.name for round_ in rounds),
        trainings=sum(map(_runs, rounds)),
        full_evals=FULL_EVALS * len(rounds),
        scores=scores,
        worker_hours=seconds.get(like, 0.0) / 3600,
        usd=usd.get(like, 0.0),
        like=like,
    )


def _runs(round_: Round) -> int:
    trials = round_.search.trials if round_.search else 0
    return trials + len(round_.refinements) + len(round_.confirm or ()) + round_.placebo


def _weight(round_: Round) -> float:
    """Trainings of the champion, a costlier one counted as so many."""
    return _runs(round_) + sum(change.cost - 1.0 for change in round_.refinements)


def _scores(plan: Plan, rounds: list[Round]) -> int:
    searched = sum(any(key.startswith("ttc.") for key in r.search.keys) for r in rounds if r.search)
    return searched + (plan.ttc is not None)
