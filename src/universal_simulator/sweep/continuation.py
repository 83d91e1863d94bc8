"""Rounds after the written ones: whether to begin, whom to believe, when to stop. Pure functions.

A round of kind `search` or `refine` starts from the champion of that moment. Before it begins,
`reason_to_skip` may say why it is not worth it; a placebo (the champion with another seed) tells
whether its gate can be believed; what is known of all placebos is the running false-promotion rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.search import dead_because

#: how a reason to skip a round begins that another budget can take away
NOT_AFFORDABLE = "not affordable: "


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands before a round: champion's headline nrmse, tiers met, hours and dollars.

    What is left is the smaller of what the sweep and the round may still use.
    """

    champion: float
    #: tiers of the plan whose every criterion passes or does not apply
    tiers_met: tuple[str, ...]
    hours_left: float
    #: hours of one training as long as the champion's, with its small-eval
    hours_per_run: float
    #: None: no ceiling of dollars
    usd_left: float | None = None
    #: of such a training, as it was billed
    usd_per_run: float = 0.0


def reason_to_skip(
    standing: Standing,
    *,
    runs: int,
    not_below: float | None,
    target_tier: str | None,
    expected_gain: float | None,
    needed_gain: float,
) -> str | None:
    """Why the next round is not begun, in words, or None.

    runs: trainings it would start. not_below: the plan's condition, "if no config reaches < x".
    target_tier: the tier at which the sweep may rest. expected_gain: the most that the round's own
    forecast hopes for, as a share; needed_gain: what the improvement gate asks (share, beyond noise).
    """
    if not_below is not None and standing.champion < not_below:
        return f"not needed: the champion's nrmse {standing.champion:.4g} is below {not_below:g}"
    if target_tier is not None and target_tier in standing.tiers_met:
        return f"target reached: the champion meets every criterion of the tier {target_tier!r}"
    hours = runs * standing.hours_per_run
    if hours > standing.hours_left:
        return (
            f"{NOT_AFFORDABLE}{runs} runs of {standing.hours_per_run * 60:.1f} minutes, measured on the "
            f"champion, are {hours:.2f} hours; {max(0.0, standing.hours_left):.2f} are left"
        )
    usd = runs * standing.usd_per_run
    if standing.usd_left is not None and usd > standing.usd_left:
        return (
            f"{NOT_AFFORDABLE}{runs} runs of {standing.usd_per_run:.2f} USD, as billed for the champion, are "
            f"{usd:.2f} USD; {max(0.0, standing.usd_left):.2f} are left"
        )
    if expected_gain is not None and expected_gain < needed_gain:
        return (
            f"not worth it: its forecast hopes for {expected_gain:.0%} at most, and less than "
            f"{needed_gain:.0%} would not count as an improvement (the plan's share, and the seed spread)"
        )
    return None


@dataclass(frozen=True)
class Change:
    """One refinement as it will run: its words, and what of it was left out with the reason."""

    name: str
    words: tuple[str, ...]
    left_out: dict[str, str]
    #: why it does not run at all
    refused: str | None = None


def live_change(
    name: str,
    settings: Mapping[str, Any],
    effective: Mapping[str, Any],
    *,
    peak_memory_gib: float | None = None,
    memory_limit_gib: float | None = None,
) -> Change:
    """What of a refinement can act on this champion.

    settings: dotted key -> value, as the plan writes it. effective: the champion's flattened config.
    A key that nothing reads is left out; a refinement without a live key is refused, as is one
    whose forecast memory exceeds the limit.
    """
    words, left_out = [], {}
    for key, value in settings.items():
        reason = _dead(key, value, effective)
        if reason is None:
            words.append(f"{key}={json.dumps(value)}")
        else:
            left_out[key] = reason
    refused = None if words else "none of its keys is live for this champion"
    if words and memory_limit_gib is not None:
        if peak_memory_gib is None:
            refused = "the champion's peak memory was not measured, so its own cannot be forecast"
        else:
            forecast = peak_memory_gib * memory_growth(settings, effective)
            if forecast > memory_limit_gib:
                refused = f"its memory forecast, {forecast:.1f} GiB, exceeds {memory_limit_gib:g} GiB"
    return Change(name, tuple(words), left_out, refused)


def memory_growth(settings: Mapping[str, Any], effective: Mapping[str, Any]) -> float:
    """By how much peak memory can grow at most: the product of the widths that a change multiplies.

    Activations grow with tokens times width, attention with tokens squared, weights with width
    squared: so tokens and widths count squared. An upper bound; a measured forecast is better.
    """
    growth = 1.0
    for key in ("latent_tokens", "latent_dim", "operator.hidden", "decoder.hidden"):
        full = f"model.options.{key}"
        if full in settings and full in effective:
            growth *= max(1.0, settings[full] / effective[full]) ** 2
    return growth


def _dead(key: str, value: Any, effective: Mapping[str, Any]) -> str | None:
    """Like `dead_because`, for a value that is set and not moved around."""
    known = {"epochs": "steps", "patience_epochs": "patience_steps"}
    section, _, name = key.rpartition(".")
    written = f"{section}.{known[name]}" if section.startswith("training.") and name in known else key
    if written == key and effective.get(key) == value:
        return f"the champion has it already ({value!r})"
    reason = dead_because(written, {**effective, written: 1.0} if written in effective else effective)
    return reason


@dataclass(frozen=True)
class PlaceboVerdict:
    """`void`: the round promotes nothing, for its gate promoted the champion's own copy, or was not held to it.

    judged: it passed or failed, and counts in the rate of false promotions.
    """

    void: bool
    judged: bool
    sentence: str


def placebo_verdict(
    results: Sequence[GateResult], *, missing: str = "it has no result to compare"
) -> PlaceboVerdict:
    """Judged by the improvement gate of the headline regime alone: physics is the champion's own.

    A placebo that was asked for and not judged (it diverged, a ceiling refused it, its gate is not evaluable)
    is a gate that is not evaluable, which blocks promotion. missing: why it has no results.
    """
    gate = next((result for result in results if result.name == "improvement"), None)
    if gate is None or gate.answer not in ("pass", "fail"):
        why = missing if gate is None else gate.sentence
        return PlaceboVerdict(
            True,
            False,
            f"void: the placebo that the plan asks for could not be judged, so nothing is promoted ({why})",
        )
    if gate.answer == "pass":
        return PlaceboVerdict(
            True,
            True,
            "void: the placebo, the champion with another seed, passes the improvement gate; what else "
            f"passed in this round may be the same luck ({gate.sentence})",
        )
    return PlaceboVerdict(False, True, f"the placebo does not pass, as it should ({gate.sentence})")


@dataclass(frozen=True)
class FalsePromotions:
    """What all placebos so far say of the gate; the interval is Jeffreys' (Beta(1/2, 1/2) prior)."""

    passed: int
    judged: int
    low: float
    high: float

    @property
    def sentence(self) -> str:
        if not self.judged:
            return "no placebo was judged yet, so the rate of false promotions is unknown"
        return (
            f"{self.passed} of {self.judged} placebos passed the improvement gate: false promotions "
            f"{self.passed / self.judged:.0%} (95 % interval {self.low:.0%} to {self.high:.0%})"
        )


def false_promotions(passed: Sequence[bool]) -> FalsePromotions:
    from scipy.special import betaincinv

    count, judged = sum(passed), len(passed)
    a, b = count + 0.5, judged - count + 0.5
    low = 0.0 if count == 0 else float(betaincinv(a, b, 0.025))
    high = 1.0 if count == judged else float(betaincinv(a, b, 0.975))
    return FalsePromotions(count, judged, low, high)
