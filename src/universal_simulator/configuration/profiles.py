"""The one rule by which a profile rescales what depends on training length, for all members alike.

With r = steps_per_epoch of the profile (or the stage's own, `stage_steps_per_epoch`) and R =
REFERENCE_STEPS_PER_EPOCH:

    steps          = round(epochs * r)           patience_steps = round(patience_epochs * r)
    EMA memory     = m * r / R                   where decay = 1 - 1/m
    learning rate  = f * rate                    eta_min = f * eta_min        f of the stage

An EMA decay is a memory in steps: kept as a share of the run it stays different between
members and never outlives the run. f is the profile's learning_rate_factor: short runs need
larger steps; `learning_rate_factors` names stages with a factor of their own (the plan's rates of
the stochastic stages continue a training, ours begins one). Accumulation is either collapsed into one micro-batch or, where the profile says
`accumulation: drop`, dropped: then every optimiser step sees the plan's micro-batch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard, get_args

from pydantic import BaseModel, ConfigDict, Field

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import find

REFERENCE_STEPS_PER_EPOCH = 2000
#: the stages whose optimiser the rule rescales
StageName = Literal["codec", "operator", "diff_residual", "consistency_distill"]
STAGES: tuple[StageName, ...] = get_args(StageName)
#: a plan counts in epochs, a run in optimiser steps
PLAN_TERMS = (("epochs", "steps"), ("patience_epochs", "patience_steps"))
#: beyond this an epoch count is a slip, not a plan
MAX_STEPS = 1e12


class Profile(BaseModel):
    """`overlay` holds plain config values set for all members alike (data, evaluation, compute)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    description: str = ""
    steps_per_epoch: Annotated[float, Field(gt=0)]
    #: stage -> its own steps per epoch, for all members alike
    stage_steps_per_epoch: dict[StageName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0
    #: stage -> its own factor
    learning_rate_factors: dict[StageName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    accumulation: Literal["keep", "collapse", "drop"] = "keep"
    overlay: dict[str, Any] = Field(default_factory=dict)


def load_profile(name: str) -> Profile:
    path = find("configs/profiles", name)
    return validate(Profile, read_mapping(path), str(path))


def apply_profile(
    values: dict[str, Any], profile: Profile
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Plan values -> effective values, the rule of each key it changed, and faults."""
    rules: dict[str, str] = {}
    faults: list[str] = []
    training = dict(values.get("training", {}))
    for name in STAGES:
        training[name] = _rescaled(dict(training.get(name, {})), name, profile, rules, faults)
    for section, where in (
        (training, "training"),
        (training["consistency_distill"], "training.consistency_distill"),
    ):
        _without_accumulation(section, where, profile, rules)
    return {**values, "training": training}, rules, faults


def _without_accumulation(
    section: dict[str, Any], where: str, profile: Profile, rules: dict[str, str]
) -> None:
    batch, accumulation = section.get("batch_size"), section.get("accumulation", 1)
    if profile.accumulation == "keep" or not _is_number(batch) or not _is_number(accumulation):
        return
    if profile.accumulation == "collapse":
        section["batch_size"] = batch * accumulation
        rules[f"{where}.batch_size"] = "accumulation collapsed into one micro-batch"
    section["accumulation"] = 1
    rules[f"{where}.accumulation"] = f"accumulation: {profile.accumulation}"


def _rescaled(
    stage: dict[str, Any], name: StageName, profile: Profile, rules: dict[str, str], faults: list[str]
) -> dict[str, Any]:
    """One stage's plan values -> effective ones; what changed is added to `rules`."""
    where, rate = f"training.{name}", profile.stage_steps_per_epoch.get(name, profile.steps_per_epoch)
    for plan_key, key in PLAN_TERMS:
        if plan_key not in stage:
            continue
        epochs = stage.pop(plan_key)
        if key in stage:
            faults.append(
                f"{where}.{key}: {plan_key} is given as well; state {plan_key} in files, "
                f"or {key} on the command line, not both"
            )
        elif not _is_number(epochs) or not 0 < epochs * rate < MAX_STEPS:
            faults.append(f"{where}.{plan_key}: expected a number above 0, got {epochs!r}")
            stage[key] = 1
        else:
            stage[key] = max(1, round(epochs * rate))
            rules[f"{where}.{key}"] = f"{plan_key} x {rate:g} steps per epoch"
    factor = profile.learning_rate_factors.get(name, profile.learning_rate_factor)
    for key in ("learning_rate", "eta_min"):
        if _is_number(stage.get(key)) and factor != 1:
            stage[key] = stage[key] * factor
            rules[f"{where}.{key}"] = f"x {factor:g}"
    decay = stage.get("ema_decay")
    if _is_number(decay) and 0 <= decay < 1 and rate != REFERENCE_STEPS_PER_EPOCH:
        memory = max(1.0, rate / REFERENCE_STEPS_PER_EPOCH / (1 - decay))
        stage["ema_decay"] = round(1 - 1 / memory, 12)
        rules[f"{where}.ema_decay"] = (
            f"memory {1 / (1 - decay):.6g} -> {memory:.4g} steps (x {rate:g}/{REFERENCE_STEPS_PER_EPOCH})"
        )
    return stage


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
