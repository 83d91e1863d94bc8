"""The plan as data: hypotheses with numeric forecasts, rounds, gates, promotion, tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from universal_simulator.configuration.documents import read_extended, validate
from universal_simulator.configuration.locations import find
from universal_simulator.errors import ConfigurationError
from universal_simulator.run_record import content_hash

NonNegative = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Forecast(Part):
    """What a round's hypothesis expects of the headline metric, scored afterwards."""

    metric: str = "nrmse"
    #: relative reduction against the baseline, low to high
    relative_reduction: tuple[float, float] | None = None
    #: the absolute value expected to be undercut
    below: float | None = None


class Member(Part):
    config: str
    #: promoted whatever the improvement gate says (never whatever physics says)
    forced: bool = False
    #: expected cost relative to the baseline; the longest start first
    cost: Annotated[float, Field(gt=0)] = 1.0
    #: for a reference: the config of this sweep that it is, with one thing taken away
    ablates: str | None = None


class Round(Part):
    name: str
    hypothesis: str
    forecast: Forecast
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    promote: Annotated[int, Field(ge=1)] = 1


class Baseline(Part):
    config: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)


class Improvement(Part):
    """`literal`: the plan's own line. `relative`: what decides, together with the noise."""

    rule: Literal["relative_and_beyond_noise", "literal"] = "relative_and_beyond_noise"
    literal: NonNegative = 0.01
    literal_reference: NonNegative = 0.09
    relative: NonNegative = 0.11


class Ratio(Part):
    """value <= max_ratio * reference; below `absolute` both count as zero (exact by construction)."""

    max_ratio: NonNegative
    absolute: NonNegative = 0.0
    #: why this gate does not apply in this plan, if it does not
    not_applicable: str | None = None


class Limit(Part):
    """value <= at_most, whatever the reference does."""

    at_most: NonNegative
    #: what the number is derived from
    why: str = ""


class Gates(Part):
    improvement: Improvement = Improvement()
    small_eval: dict[str, Ratio]
    hard_abort: dict[str, Ratio]
    #: absolute ceilings, on every regime
    limits: dict[str, Limit] = Field(default_factory=dict)


class Rung(Part):
    name: str
    below: float


class Criterion(Part):
    """One line of a tier: `value` absolute, or `ratio` to the baseline."""

    metric: str
    at_most: float | None = None
    below: float | None = None
    at_least: float | None = None
    at_most_ratio: float | None = None
    below_ratio: float | None = None
    absolute: NonNegative = 0.0
    not_applicable: str | None = None


class Tier(Part):
    name: str
    criteria: tuple[Criterion, ...]


class Plan(Part):
    version: Literal[1]
    name: str
    description: str = ""
    profile: str
    dataset: str
    headline_regime: str
    predictor: Literal["deterministic, guarded, without TTC"] = "deterministic, guarded, without TTC"
    baseline: Baseline
    references: tuple[Member, ...] = ()
    rounds: tuple[Round, ...]
    gates: Gates
    ladder: tuple[Rung, ...]
    tiers: tuple[Tier, ...]
    #: worker hours, summed over jobs and resumes
    max_hours: Annotated[float, Field(gt=0)]
    open_test_for_champion: bool = True
    #: rounds the written plan describes and this version cannot run
    described_rounds: dict[str, str] = Field(default_factory=dict)

    @property
    def hash(self) -> str:
        return content_hash(self.model_dump(mode="json"))


def load_plan(name: str | Path) -> Plan:
    path = find("plans", name)
    plan = validate(Plan, read_extended(path, "plans"), str(path))
    configs = [plan.baseline.config, *(m.config for r in plan.rounds for m in r.members)]
    configs += [reference.config for reference in plan.references]
    repeated = sorted({c for c in configs if configs.count(c) > 1})
    if repeated:
        raise ConfigurationError(
            str(path), [f"{name} is a member twice; a repeat needs another seed" for name in repeated]
        )
    unknown = [r.ablates for r in plan.references if r.ablates is not None and r.ablates not in configs]
    if unknown:
        raise ConfigurationError(
            str(path), [f"references: ablates {name!r} is no config of this plan" for name in unknown]
        )
    if len(set(plan.baseline.seeds)) < len(plan.baseline.seeds):
        raise ConfigurationError(str(path), ["baseline.seeds: a seed is given twice"])
    return plan
