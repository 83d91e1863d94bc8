"""Healing as rules: a failure of a known kind -> a changed config, capped, with its lineage.

Pure functions. The driver journals what they answer before the healed run starts; a run that is
only killed (a signal, without a reason) is resumed unchanged, which is no healing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: healed descendants of one planned run
MAX_GENERATIONS = 2
#: the plan: learning rate x 0.7, warm-up 8 %, clip 0.5
RATE_FACTOR, WARMUP, CLIP = 0.7, 0.08, 0.5
#: the plan: fewer samples at a time, by 2, then by half
SMALLER_BY = 2


@dataclass(frozen=True)
class Healing:
    """before and after: the effective values of the keys that the rule changed."""

    rule: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: str

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
    return None


def _steadier(evidence: str, effective: Mapping[str, Any]) -> Healing:
    after: dict[str, Any] = {}
    for stage in ("codec", "operator"):
        key = f"training.{stage}."
        if stage not in effective["training.stages"]:
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
    if smaller == size and not effective["training.compile"]:
        return None
    after = {"training.micro_batch_size": smaller, "training.compile": False}
    return _healing("out of memory: smaller micro-batches, compile off", after, effective, evidence)


def _healing(rule: str, after: dict[str, Any], effective: Mapping[str, Any], evidence: str) -> Healing:
    changed = {key: value for key, value in after.items() if effective[key] != value}
    return Healing(rule, {key: effective[key] for key in changed}, changed, evidence)
