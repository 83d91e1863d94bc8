"""Healing as rules: a failure of a known kind -> a changed config, capped, with its lineage.

Pure functions. The driver journals what they answer before the healed run starts; a run that is
only killed (a signal, without a reason), lost or stalled is resumed unchanged, which is no healing.

A rule changes only keys that are live for the run: a key of a stage that is not trained, or of
test-time compute that is off, would change nothing, so it is left and the reason is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from universal_simulator.configuration.unread_settings import unread

#: the plan, if training diverges: learning rate x 0.7, warm-up 8 %, clip 0.5
RATE_FACTOR, WARMUP, CLIP = 0.7, 0.08, 0.5
#: the plan, if memory is out: fewer samples at a time, by 2, then by half
SMALLER_BY = 2
#: the plan, if physics gates fail: lambda_spectral 0.05 -> 0.1, guidance 1.0 -> 0.7, weights raised
SPECTRAL, GUIDANCE, WEIGHT_FACTOR = 0.1, 0.7, 1.5


@dataclass(frozen=True)
class Healing:
    """before and after: the effective values of the keys that the rule changed.

    left: key -> why the rule names it and does not change it.
    """

    rule: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: str
    left: dict[str, str] = field(default_factory=dict)

    @property
    def overrides(self) -> tuple[str, ...]:
        """As words of the command line."""
        return tuple(f"{key}={json.dumps(value)}" for key, value in sorted(self.after.items()))


def heal(failure_kind: str | None, evidence: str, effective: Mapping[str, Any]) -> Healing | None:
    """The changed config for a failure, or None where no rule knows a cure.

    failure_kind: the class of the exception in the run's record. effective: the run's config,
    flattened. The optimiser's batch is never changed: smaller micro-batches are weighted by
    their samples.
    """
    if failure_kind == "DivergenceError":
        return _steadier(evidence, effective)
    if failure_kind == "MemoryExhaustedError":
        return _smaller(evidence, effective)
    if failure_kind == "RewardError":
        return _without_reward(evidence, effective)
    return None


def heal_physics(evidence: str, effective: Mapping[str, Any]) -> Healing | None:
    """The changed config of a trained run that fails a physics gate, or None where nothing is left to change.

    evidence: the sentences of the gates it failed.
    """
    wanted: dict[str, Any] = {"training.loss.lambda_spectral": SPECTRAL, "guards.mass_projection": True}
    for name in ("mass", "energy"):
        key = f"ttc.reward_weights.{name}"
        wanted[key] = WEIGHT_FACTOR * effective.get(key, 0.0)
    wanted["ttc.guidance_lambda"] = GUIDANCE
    after, left = {}, {}
    for key, value in wanted.items():
        reason = inactive(key, effective) or _reached(key, value, effective[key])
        if reason is None:
            after[key] = value
        else:
            left[key] = reason
    if not after:
        return None
    rule = "physics gate failed: lambda_spectral 0.1, projection on, reward weights x 1.5, guidance 0.7"
    return _healing(rule, after, effective, evidence, left)


def inactive(key: str, effective: Mapping[str, Any]) -> str | None:
    """Why nothing reads `key` in this run, or None where it is live."""
    if key not in effective:
        return "this version has no such key"
    section, _, rest = key.partition(".")
    if section == "ttc" and not effective.get("ttc.enabled"):
        return "test-time compute is off for this run"
    reason = unread(key, effective)
    if reason is not None:
        return reason
    stage = rest.partition(".")[0]
    is_stage = section == "training" and f"training.{stage}.steps" in effective
    if is_stage and stage not in effective["training.stages"]:
        return f"the stage {stage} is not trained in this run"
    return None


def _reached(key: str, wanted: Any, value: Any) -> str | None:
    """Why a live key is left: the rule asks for no more than it has."""
    if key == "ttc.guidance_lambda":
        return f"is {value:g} already" if value <= wanted else None
    if isinstance(wanted, bool):
        return "is on already" if value else None
    return f"is {value:g} already" if value >= wanted else None


def _steadier(evidence: str, effective: Mapping[str, Any]) -> Healing:
    """Of the stage that diverged, where the evidence begins with its name; of every stage elsewhere."""
    after: dict[str, Any] = {}
    stages = effective["training.stages"]
    named = evidence.partition(",")[0]
    for stage in [named] if named in stages else stages:
        key = f"training.{stage}."
        if f"{key}learning_rate" not in effective:
            continue
        after[f"{key}learning_rate"] = RATE_FACTOR * effective[f"{key}learning_rate"]
        after[f"{key}eta_min"] = RATE_FACTOR * effective[f"{key}eta_min"]
        after[f"{key}warmup_ratio"] = max(WARMUP, effective[f"{key}warmup_ratio"])
        after[f"{key}grad_clip"] = min(CLIP, effective[f"{key}grad_clip"])
    return _healing("diverged: learning rate x 0.7, warm-up 8 %, clip 0.5", after, effective, evidence)


def _smaller(evidence: str, effective: Mapping[str, Any]) -> Healing | None:
    given = effective["training.micro_batch_size"]
    size = given or effective["training.batch_size"]
    smaller = max(1, size - SMALLER_BY if given is None else size // 2)
    after: dict[str, Any] = {}
    left: dict[str, str] = {}
    if smaller != size:
        after["training.micro_batch_size"] = smaller
    if effective["training.compile"]:
        after["training.compile"] = False
    caches = [key for key in effective if key.rpartition(".")[2] == "latent_cache_dtype"]
    for key in caches or ["latent_cache_dtype"]:
        reason = inactive(key, effective)
        if reason is None and effective[key] == "float32":
            after[key] = "bfloat16"
        else:
            left[key] = reason or f"is {effective[key]} already"
    if not after:
        return None
    rule = "out of memory: smaller micro-batches, compile off, latent cache in bfloat16"
    return _healing(rule, after, effective, evidence, left)


def _without_reward(evidence: str, effective: Mapping[str, Any]) -> Healing | None:
    """A test-time reward that is not finite can rank nothing: it is weighed 0, by name."""
    named = re.search(r"reward '(\w+)'", evidence)
    key = f"ttc.reward_weights.{named.group(1)}" if named else ""
    if not named or inactive(key, effective) or effective[key] == 0:
        return None
    rule = f"the test-time reward {named.group(1)} is not finite: it weighs nothing"
    return _healing(rule, {key: 0.0}, effective, evidence)


def _healing(
    rule: str,
    after: dict[str, Any],
    effective: Mapping[str, Any],
    evidence: str,
    left: dict[str, str] | None = None,
) -> Healing:
    changed = {key: value for key, value in after.items() if effective[key] != value}
    return Healing(rule, {key: effective[key] for key in changed}, changed, evidence, left or {})
