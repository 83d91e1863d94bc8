"""Local search around the best: a box of a few keys, filled trial by trial from recorded facts.

For each key k with the base's effective value c_k > 0 the box is [(1 - w) c_k, (1 + w) c_k],
w the plan's width (0.2: the plan's +-20 %). Trial 0 is the base itself, whose result is known. Trial
i is a pure function of the facts of trials 0 .. i - q, where q trials are in flight: not of who
finished first, nor of how often the driver was restarted. Trials i - q + 1 .. i - 1 count as
running, finished or not.

Nothing here starts a run or imports an optimiser; `proposals.py` does the proposing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from universal_simulator.configuration.profiles import STAGES
from universal_simulator.configuration.schema import PENDING_SECTIONS
from universal_simulator.configuration.unread_settings import unread
from universal_simulator.sweep.gates import GateResult

#: digits that a proposed value keeps: what is journalled, hashed and run is the same number
DIGITS = 6
#: nearer to an edge than this share of the box's width counts as at the bound
BOUND_SHARE = 0.01
#: gates that say whether a trial is better, not whether it is allowed
ACCURACY_GATES = ("improvement", "no_regression")


@dataclass(frozen=True)
class Parameter:
    """One searched key of the effective config, with the interval it moves in."""

    key: str
    low: float
    high: float

    @property
    def centre(self) -> float:
        return (self.low + self.high) / 2

    def share(self, value: float) -> float:
        """Where `value` lies: 0 at the low edge, 1 at the high one, beyond them outside the box."""
        return (value - self.low) / (self.high - self.low)

    def at(self, share: float) -> float:
        value = self.low + share * (self.high - self.low)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Box:
    """The searched keys, and what was left out with the reason."""

    parameters: tuple[Parameter, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    recentred: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(parameter.key for parameter in self.parameters)

    def at_bound(self, values: Mapping[str, float]) -> tuple[str, ...]:
        """Keys whose value lies at an edge of the box (or outside it)."""
        return tuple(
            p.key for p in self.parameters if not BOUND_SHARE < p.share(values[p.key]) < 1 - BOUND_SHARE
        )


@dataclass(frozen=True)
class Fact:
    """What the journal and the records say of one trial.

    objective: the headline nrmse, None while it runs. margins: gate -> worst margin over the
    regimes as a share of its threshold, below 0 where it blocks. failure: why it has no result.
    """

    values: dict[str, float]
    objective: float | None = None
    margins: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def finished(self) -> bool:
        return self.objective is not None or self.failure is not None

    @property
    def allowed(self) -> bool:
        """It has a result and no gate but accuracy blocks it."""
        return self.objective is not None and all(margin >= 0 for margin in self.margins.values())


def make_box(keys: Sequence[str], effective: Mapping[str, Any], *, width: float) -> Box:
    """The box around the base's effective (flattened) config; dead keys are left out with a reason."""
    parameters, left_out = [], {}
    for key in keys:
        reason = dead_because(key, effective, trains_reward=False)
        if reason is not None:
            left_out[key] = reason
            continue
        centre = float(effective[key])
        parameters.append(Parameter(key, (1 - width) * centre, (1 + width) * centre))
    return Box(tuple(parameters), left_out)


def dead_because(key: str, effective: Mapping[str, Any], *, trains_reward: bool = True) -> str | None:
    """Why moving `key` around its value can change nothing, or None where it can.

    trains_reward: False of a box, whose `ttc` keys are scored on a stored model.
    """
    section = key.partition(".")[0]
    if key not in effective:
        return "the config has no such key"
    if section == "ttc" and not effective.get("ttc.enabled"):
        return "test-time compute is off for this member, so nothing reads it"
    reason = unread(key, effective, trains_reward=trains_reward)
    if reason is not None:
        return reason
    if section in PENDING_SECTIONS and section != "ttc":
        return f"the stage {section} is not run by this version"
    stage = key.split(".")[1] if key.startswith("training.") else ""
    if stage in STAGES and stage not in effective.get("training.stages", ()):
        return f"this member trains no {stage} stage"
    value = effective[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"its value {value!r} is not a number to search around"
    if value <= 0:
        return f"its value is {value:g}: a share of nothing is no interval"
    return None


def needs_training(key: str) -> bool:
    """False for keys that only inference reads: one trained model answers for all their values."""
    return key.partition(".")[0] not in ("ttc", "guards")


def is_search_key(key: str) -> bool:
    """Of test-time compute: scored on a trained model, whether it was trained with it or not."""
    return key.partition(".")[0] == "ttc"


def waits(facts: Sequence[Fact], *, trial: int, in_flight: int) -> bool:
    """A trial that this one must know of is not finished yet."""
    return not all(fact.finished for fact in facts[: max(1, trial - in_flight + 1)])


def visible_facts(facts: Sequence[Fact], *, trial: int, in_flight: int) -> tuple[list[Fact], list[Fact]]:
    """(what trial number `trial` knows, what it counts as running) of the trials before it.

    Raises ValueError when a fact it must know is not finished yet (`waits`): propose it later.
    """
    known = list(facts[: max(1, trial - in_flight + 1)])
    if waits(facts, trial=trial, in_flight=in_flight):
        raise ValueError(f"trial {trial} waits for the trials up to {trial - in_flight}")
    return known, [Fact(fact.values) for fact in facts[len(known) : trial]]


def ask_seed(*parts: object) -> int:
    """A 31-bit seed of what the ask is about: the same ask, the same proposal."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def gate_margins(results: Sequence[GateResult]) -> dict[str, float]:
    """gate -> its worst margin over the regimes, as a share of the threshold.

    Not evaluable counts as violated by its whole threshold; not applicable and accuracy gates
    are no constraints. Exact zeros and thresholds of zero keep their absolute margin.
    """
    margins: dict[str, float] = {}
    for gate in results:
        if gate.name in ACCURACY_GATES or gate.answer == "not_applicable":
            continue
        if gate.answer == "not_evaluable" or gate.margin is None:
            margin = -1.0
        else:
            margin = gate.margin / gate.threshold if gate.threshold else gate.margin
        margins[gate.name] = min(margin, margins.get(gate.name, math.inf))
    return margins


def best(facts: Sequence[Fact]) -> int | None:
    """Index of the allowed fact with the lowest objective; the earlier one of equals."""
    allowed = [
        (fact.objective, index)
        for index, fact in enumerate(facts)
        if fact.allowed and fact.objective is not None
    ]
    return min(allowed)[1] if allowed else None


def recentre(box: Box, facts: Sequence[Fact], *, width: float) -> Box | None:
    """Once: where the best trial lies at an edge, its keys move their interval around it.

    The interval becomes [(1 - w) b, (1 + w) b] around the best value b. None where the box was
    moved before, nothing is allowed yet or the best lies inside.
    """
    winner = best(facts)
    if box.recentred or winner is None:
        return None
    values = facts[winner].values
    moved = box.at_bound(values)
    if not moved:
        return None
    parameters = tuple(
        Parameter(p.key, (1 - width) * values[p.key], (1 + width) * values[p.key]) if p.key in moved else p
        for p in box.parameters
    )
    return replace(box, parameters=parameters, recentred=True)


def box_of_trial(
    box: Box, facts: Sequence[Fact], *, trial: int, trials: int, in_flight: int, width: float
) -> Box:
    """The box that trial number `trial` of `trials` is proposed in: moved, if at all, at half time."""
    turn = trials // 2 + 1
    if trial < turn:
        return box
    known, _ = visible_facts(facts, trial=turn, in_flight=in_flight)
    return recentre(box, known, width=width) or box


def confirmation(
    winner: Sequence[float], champion: Sequence[float], baseline: Sequence[float], *, relative: float
) -> tuple[bool, str]:
    """Does the winner hold on fresh seeds? (answer, the sentence with its figures)

    winner: nrmse with three seeds that the search never saw; the searched seed was chosen for being
    the best of many and does not count. champion: nrmse of every seed of it that was run. With
    d = mean log champion - mean log winner, it holds when 1 - exp(-d) reaches the plan's relative
    share and d > t s sqrt(1/n + 1/m): s pooled over the seeds of winner, champion and baseline
    (noise multiplies, so it is one number in the log), t the one-sided 95 % quantile of its degrees
    of freedom.
    """
    from scipy.special import stdtrit

    if len(winner) < 3 or not champion or not all(map(math.isfinite, [*winner, *champion, *baseline])):
        return False, f"a confirmation needs three finished seeds, {len(winner)} did"
    groups = [[math.log(value) for value in values] for values in (winner, champion, baseline)]
    means = [math.fsum(logs) / len(logs) if logs else 0.0 for logs in groups]
    squares = math.fsum((x - mean) ** 2 for logs, mean in zip(groups, means, strict=True) for x in logs)
    freedom = sum(max(0, len(logs) - 1) for logs in groups)
    spread = math.sqrt(squares / freedom)
    gain = means[1] - means[0]
    noise = float(stdtrit(freedom, 0.95)) * spread * math.sqrt(1 / len(winner) + 1 / len(champion))
    share, needed = 1 - math.exp(-gain), 1 - math.exp(-noise)
    tests = {
        f"{math.exp(means[0]):.4g} over {len(winner)} fresh seeds against {math.exp(means[1]):.4g} of the "
        f"champion, gain {share:.1%} (needs {relative:.0%})": share >= relative,
        f"beyond the noise of that comparison, {needed:.1%} (seeds vary by {spread:.1%})": gain > noise,
    }
    return all(tests.values()), "; ".join(f"{text}: {'yes' if ok else 'no'}" for text, ok in tests.items())
