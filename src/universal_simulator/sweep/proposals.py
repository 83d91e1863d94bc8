"""Where to look next: Optuna's Gaussian-process sampler as a function of recorded facts.

The study lives for one ask: it is rebuilt from the facts every time, so nothing of it is ever
stored, resumed or trusted. What is told to it:

- objective: log nrmse, smoothed. Seed noise multiplies, so in the log its standard deviation is
  sqrt(log(1 + cv^2)) everywhere, and a share of the box means the same for every key. Optuna fits a
  noise variance whose prior prefers little of it and has no option for a measured one; worse, its
  expected improvement counts from the best *measured* value, which is the luckiest. So the measured
  noise enters before: Optuna is told the posterior means of `smoothing.py`.
- constraints: gate margins, the same keys on every trial (<= 0 is feasible there, so with the sign
  turned). A failed trial gets the worst objective seen and violates all of them.
- trials in flight: as RUNNING with their values; the sampler averages over what they may answer.

Optuna (and with it torch) is imported on the first ask only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from universal_simulator.sweep.search import Box, Fact
from universal_simulator.sweep.smoothing import smoothed

#: two trials nearer than this share of the box in every key are one trial
SAME_SHARE = 0.01


@dataclass(frozen=True)
class Proposal:
    """`how`: by the model, by chance (too few facts) or by chance instead of a repetition."""

    values: dict[str, float]
    how: str
    at_bound: tuple[str, ...]


def propose(
    box: Box,
    known: Sequence[Fact],
    running: Sequence[Fact] = (),
    *,
    seed: int,
    seed_cv: float | None,
    startup: int = 2,
) -> Proposal:
    """The next trial's values: the same facts and seed, the same values.

    known: finished trials, the base among them. startup: with fewer results than this the point is
    drawn at random. seed_cv: measured coefficient of variation of nrmse over seeds (None: unknown,
    values are told as measured). Raises ValueError for a box without parameters.
    """
    if not box.parameters:
        raise ValueError("nothing to search: every key of the box was left out")
    chance = random.Random(seed)
    results = [fact for fact in known if fact.objective is not None]
    if len(results) < startup:
        values, how = _random_point(box, chance), f"at random: {len(results)} of {startup} results so far"
    else:
        smooth = smoothed(box, known, seed_cv=seed_cv)
        told = [replace(fact, objective=value) for fact, value in zip(known, smooth, strict=True)]
        values, how = _modelled_point(box, told, running, seed), "by the model"
        if _is_repetition(box, values, [*known, *running]):
            values, how = _random_point(box, chance), "at random: the model repeated a trial"
    return Proposal(values, how, box.at_bound(values))


def _random_point(box: Box, chance: random.Random) -> dict[str, float]:
    return {p.key: p.at(chance.random()) for p in box.parameters}


def _is_repetition(box: Box, values: dict[str, float], facts: Sequence[Fact]) -> bool:
    return any(
        all(abs(p.share(values[p.key]) - p.share(fact.values[p.key])) < SAME_SHARE for p in box.parameters)
        for fact in facts
    )


def _modelled_point(box: Box, known: Sequence[Fact], running: Sequence[Fact], seed: int) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.trial import FrozenTrial, TrialState, create_trial

    space: dict[str, BaseDistribution] = {p.key: FloatDistribution(p.low, p.high) for p in box.parameters}

    class BoxSampler(optuna.samplers.GPSampler):
        """Searches today's box; facts from before it moved lie outside of it and still count."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
            return space

    sampler = BoxSampler(seed=seed, n_startup_trials=0, deterministic_objective=False)
    objectives = [fact.objective for fact in known if fact.objective is not None]
    keys = sorted({key for fact in known for key in fact.margins})
    worst = max(map(math.log, objectives))

    def stored(fact: Fact, state: TrialState) -> FrozenTrial:
        # its own interval: Optuna refuses a value outside of a trial's distribution
        reach: dict[str, BaseDistribution] = {
            p.key: FloatDistribution(min(p.low, fact.values[p.key]), max(p.high, fact.values[p.key]))
            for p in box.parameters
        }
        values = {p.key: fact.values[p.key] for p in box.parameters}
        if state == TrialState.RUNNING:
            return create_trial(state=state, params=values, distributions=reach)
        failed = fact.objective is None
        return create_trial(
            state=state,
            value=worst if fact.objective is None else math.log(fact.objective),
            params=values,
            distributions=reach,
            constraints={key: 1.0 if failed else -fact.margins.get(key, 0.0) for key in keys},
        )

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([stored(fact, TrialState.COMPLETE) for fact in known])
    study.add_trials([stored(fact, TrialState.RUNNING) for fact in running])
    asked = study.ask(space)
    return {p.key: p.at(p.share(float(asked.params[p.key]))) for p in box.parameters}
