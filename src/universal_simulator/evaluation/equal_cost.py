"""What a search is compared with at equal cost, so that nothing but its search can explain a gain.

Rivals need no reward: the operator alone, the centre of an ensemble of at least two members (one noisy member
would flatter whatever stands beside it) and the mean over symmetric representations. An ensemble's centre is
the project's own: the guarded members' mean, and where the model is calibrated for that regime and its `centre`
is above 0, a point between it and the guarded operator, whose one rollout is charged as well. A rival's size is
the budget over what one member or copy costs, rounded up: in case of doubt the rival has more. Budgets
include the plain rollout and are counted in three ways, since they do not agree:

    evaluations   operator steps and corrector samples
    operations    floating-point operations in operator steps (`inference/operations.py`), reward included
    seconds       of this machine under its load at the time: the median of REPEATS warm calls, or the one
                  call where it alone takes LONG_S, beside which a first call's warming is nothing

The reference of a gain is the *best* rival by mean nrmse on the same data, which flatters the rival.
The gain over representations alone is the learned reward's own.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.evaluation.bootstrap import resample_weights
from universal_simulator.evaluation.ensemble import guard_members
from universal_simulator.inference.candidates import Representation
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.operations import evaluations_per_sample
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.search_controls import representations_alone
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.calibration import RegimeCalibration

Kind = Literal["evaluations", "operations", "seconds"]
KINDS: tuple[Kind, ...] = ("evaluations", "operations", "seconds")
#: calls whose median is taken, and seconds after which a single call says enough
REPEATS, LONG_S = 3, 0.5
T = TypeVar("T")
#: rivals at equal cost have at least two and at most this many members or copies
FEWEST, MOST = 2, 32


@dataclass(frozen=True)
class Spent:
    """Per trajectory, the plain rollout included: evaluations, operations (in operator steps), seconds."""

    evaluations: float
    operations: float
    seconds: float

    def of(self, kind: Kind) -> float:
        return float(getattr(self, kind))

    def share(self, size: int) -> Spent:
        """Of one of `size` members or copies."""
        return Spent(self.evaluations / size, self.operations / size, self.seconds / size)

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.evaluations + other.evaluations,
            self.operations + other.operations,
            self.seconds + other.seconds,
        )


NOTHING = Spent(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Answer:
    """nrmse (B,) of guarded rollouts; size: members or copies, each of which costs `each`; once: spent
    beside them, whatever their number. `spent` is all of it."""

    nrmse: Tensor
    spent: Spent
    size: int
    once: Spent = NOTHING

    @property
    def each(self) -> Spent:
        own, once = self.spent, self.once
        return Spent(
            own.evaluations - once.evaluations, own.operations - once.operations, own.seconds - once.seconds
        ).share(self.size)


class Rivals:
    """Answers that need no reward, to the same question, asked once for each size.

    calibration: what the model's calibration says of the one regime `truth` is of, under this protocol.
    """

    def __init__(
        self,
        predictor: SearchingPredictor,
        truth: Trajectories,
        *,
        noise_seed: int,
        calibration: RegimeCalibration | None = None,
    ) -> None:
        self.predictor = predictor
        self.truth = truth
        self.noise_seed = noise_seed
        self.calibration = calibration
        self.frames = truth.fields.shape[1] - 1
        self.steps = self.frames * predictor.substeps
        self.answers: dict[tuple[str, int], Answer] = {}

    def searched(self, predictor: SearchingPredictor) -> Answer:
        """A search's own answer, with what it spent."""
        truth = self.truth
        observe, asked = predictor.observe, 0

        def rollout() -> Tensor:
            """Observed once, however often it is timed."""
            nonlocal asked
            predictor.observe, asked = (None if asked else observe), asked + 1
            return predictor.rollout(truth.fields[:, 0], truth.parameters, self.frames)

        try:
            raw, seconds = timed(rollout, per=len(truth))
        finally:
            predictor.observe = observe
        accounts = predictor.accounts
        extra = float(accounts.evaluations.double().mean())
        operations = float(accounts.operations(self.predictor.prices).mean())
        spent = Spent(self.steps + extra, self.steps + operations, seconds)
        return Answer(self._score(raw), spent, len(predictor.views))

    def named(self, name: str, size: int) -> Answer:
        """The operator, the centre of an ensemble of `size` members, or the mean of `size` representations."""
        if (name, size) not in self.answers:
            ask = {"operator": self._operator, "ensemble": self._ensemble}
            self.answers[name, size] = ask.get(name, self._representations)(size)
        return self.answers[name, size]

    def at(self, budget: Spent, kind: Kind) -> dict[str, Answer]:
        """Rivals with at least the budget, by name."""
        names = ["operator"]
        if self.predictor.surrogate.corrector is not None:
            names.append("ensemble")
        if len(self._views(FEWEST)) >= FEWEST:
            names.append("representations")
        return {name: self.named(name, self._size(name, budget, kind)) for name in names}

    def _size(self, name: str, budget: Spent, kind: Kind) -> int:
        if name == "operator":
            return 1
        fewest = self.named(name, FEWEST)
        left = budget.of(kind) - fewest.once.of(kind)
        size = math.ceil(left / fewest.each.of(kind) - 1e-9)
        size = min(MOST, max(FEWEST, size))
        return len(self._views(size)) if name == "representations" else size

    def _operator(self, size: int) -> Answer:
        raw, spent = self._plain
        return Answer(self._score(raw), spent, size)

    @functools.cached_property
    def _plain(self) -> tuple[Tensor, Spent]:
        """The operator's rollout before any guard, and what it costs."""
        truth = self.truth
        raw, seconds = timed(
            lambda: SurrogatePredictor.rollout(
                self.predictor, truth.fields[:, 0], truth.parameters, self.frames
            ),
            per=len(truth),
        )
        return raw, Spent(self.steps, self.steps, seconds)

    def _ensemble(self, size: int) -> Answer:
        predictor, truth = self.predictor, self.truth
        sampler = StochasticPredictor(
            predictor.surrogate,
            predictor.guards_config,
            members=size,
            frame_spacing_s=predictor.frame_spacing_s,
        )
        drawn, seconds = timed(
            lambda: sampler.rollout_members(
                truth.fields[:, 0], truth.parameters, self.frames, seed=self.noise_seed
            ),
            per=len(truth),
        )
        evaluations = size * self.steps * (1 + evaluations_per_sample(predictor.surrogate))
        operations = size * self.steps * predictor.prices.member_step
        centre, once = (
            guard_members(sampler, drawn, truth.fields[:, 0], truth.parameters).mean(dim=1),
            NOTHING,
        )
        if self.calibration is not None and self.calibration.centre > 0:
            raw, once = self._plain
            centre = self.calibration.centred(
                centre, predictor.guard(raw, truth.fields[:, 0], truth.parameters)
            )
        spent = Spent(evaluations, operations, seconds) + once
        return Answer(self._error(centre), spent, size, once)

    def _representations(self, size: int) -> Answer:
        return self.searched(representations_alone(self.predictor, copies=size))

    def _views(self, size: int) -> tuple[Representation, ...]:
        return representations_alone(self.predictor, copies=size).views

    def _score(self, raw: Tensor) -> Tensor:
        return self._error(self.predictor.guard(raw, self.truth.fields[:, 0], self.truth.parameters))

    def _error(self, guarded: Tensor) -> Tensor:
        error, valid, _ = nrmse_frames(guarded, self.truth.fields[:, 1:], self.truth.fields[:, 0])
        return mean_valid(error, valid, dims=(1, 2)).nan_to_num()


def timed(call: Callable[[], T], *, per: int) -> tuple[T, float]:
    """What the first call answers, and seconds of a call over `per`: see the module."""
    started = time.perf_counter()
    found = call()
    taken = [time.perf_counter() - started]
    if taken[0] < LONG_S:
        taken.clear()
        for _ in range(REPEATS):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return found, statistics.median(taken) / per


@dataclass(frozen=True)
class Gain:
    """1 - mean(found) / mean(reference) over groups, with its paired 95 % interval."""

    value: float
    low: float
    high: float


def gain(found: Tensor, reference: Tensor, groups: tuple[str, ...], *, samples: int) -> Gain:
    """Of nrmse (B,) over another on the same trajectories: groups are resampled in pairs."""
    weights = resample_weights(groups, samples=samples)
    ours, theirs = (weights @ v.double().cpu().numpy() for v in (found, reference))
    gains = 1 - ours / theirs
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    return Gain(float(gains[0]), float(low), float(high))


def best(rivals: dict[str, Answer], groups: tuple[str, ...]) -> str:
    """The rival with the smallest mean nrmse over groups."""
    weights = resample_weights(groups, samples=0)[0]
    return min(rivals, key=lambda name: float(weights @ rivals[name].nrmse.double().cpu().numpy()))
