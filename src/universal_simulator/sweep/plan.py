"""The plan as data: hypotheses with numeric forecasts, rounds, gates, promotion, tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from universal_simulator.configuration.documents import read_extended, validate
from universal_simulator.configuration.locations import find
from universal_simulator.errors import ConfigurationError
from universal_simulator.run_record import content_hash
from universal_simulator.sweep.plan_checks import is_data_file, plan_faults

#: metrics whose resamples stand in the records
DRAWN = ("ece",)
NonNegative = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Forecast(Part):
    """What a round's hypothesis expects of the headline metric, scored afterwards."""

    metric: Literal["nrmse"] = "nrmse"
    #: relative reduction against the baseline, low to high
    relative_reduction: tuple[float, float] | None = None
    #: the absolute value expected to be undercut
    below: float | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.relative_reduction is None) == (self.below is None):
            raise ValueError("give exactly one of relative_reduction (low to high) and below")
        if self.relative_reduction is not None and self.relative_reduction[0] > self.relative_reduction[1]:
            raise ValueError("relative_reduction goes from low to high")
        return self


class Member(Part):
    """A config to run, with what this plan changes of it (`key=value` words)."""

    config: str
    overrides: tuple[str, ...] = ()
    #: a repeat of a config that is in the plan already needs another seed
    seed: Annotated[int, Field(ge=0)] = 0
    #: promoted whatever the improvement gate says (never whatever physics says)
    forced: bool = False
    #: one of the plan's `machines`
    machine: str = "small"
    #: expected cost relative to the baseline; the longest start first
    cost: Annotated[float, Field(gt=0)] = 1.0
    #: for a reference: the config of this sweep that it is, with one thing taken away
    ablates: str | None = None
    #: for a reference: trained for as many steps as use up the training FLOPs measured of this config
    compute_matched_to: str | None = None

    @property
    def key(self) -> str:
        """Tells the members of one plan apart; the config's name where that is enough."""
        words = [*self.overrides, *([f"seed={self.seed}"] if self.seed else [])]
        words += [f"compute of {self.compute_matched_to}"] if self.compute_matched_to else []
        return " ".join([self.config, *words])


class Search(Part):
    """Round C: a box of +-width (as a share) around the champion's own values of `keys`.

    Keys of `ttc` need no training: after the others have a winner they are scored on its stored model.
    """

    #: dotted keys of the effective config; what is not live for the champion is left out and said so
    keys: Annotated[tuple[str, ...], Field(min_length=1)]
    width: Annotated[float, Field(gt=0, lt=1)] = 0.2
    trials: Annotated[int, Field(ge=2, le=64)] = 8
    #: a trial does not wait for the in_flight - 1 trials before it
    in_flight: Annotated[int, Field(ge=1)] = 2
    #: results before the model proposes; until then the box is sampled at random
    startup: Annotated[int, Field(ge=1, le=3)] = 2
    #: values of each `ttc` key that are scored across its box, its own among them
    values: Annotated[int, Field(ge=2, le=32)] = 5


class Refinement(Part):
    """Round D: one change of the champion, by dotted keys in the plan's own terms (epochs)."""

    name: str
    set: Annotated[dict[str, Any], Field(min_length=1)]
    #: expected cost relative to the champion
    cost: Annotated[float, Field(gt=0)] = 1.0
    #: runs only if the forecast of its peak memory is below this
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = None


class Round(Part):
    """`members`: written configs. `search` and `refine` start from the champion of that moment."""

    name: str
    hypothesis: str
    forecast: Forecast
    kind: Literal["members", "search", "refine"] = "members"
    members: tuple[Member, ...] = ()
    promote: Annotated[int, Field(ge=1)] = 1
    #: only while no config reaches this nrmse
    unless_below: Annotated[float, Field(gt=0)] | None = None
    search: Search | None = None
    refinements: tuple[Refinement, ...] = ()
    #: one run more: what the round is compared with, and only the seed changed; it voids the round
    #: when it passes the improvement gate
    placebo: bool = False
    #: fresh seeds on which a round's winner must hold before it may become champion
    confirm: Annotated[tuple[int, ...], Field(min_length=3)] | None = None

    @model_validator(mode="after")
    def _parts_of_its_kind(self) -> Self:
        parts = {"members": self.members, "search": self.search, "refine": self.refinements}
        names = {"members": "members", "search": "search", "refine": "refinements"}
        if not parts.pop(self.kind):
            raise ValueError(f"a round of kind {self.kind} needs {names[self.kind]}")
        wrong = [names[kind] for kind, part in parts.items() if part]
        wrong += [k for k in ("unless_below", "confirm") if self.kind == "members" and getattr(self, k)]
        if wrong:
            raise ValueError(f"a round of kind {self.kind} has no {', '.join(wrong)}")
        if self.kind != "members" and self.promote != 1:
            raise ValueError(f"a round of kind {self.kind} promotes one winner")
        return self


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
    #: fails only where the paired 95 % interval over groups of value - limit lies above zero (ece)
    beyond_noise: bool = False
    #: why this gate does not apply in this plan, if it does not
    not_applicable: str | None = None


class Limit(Part):
    """value <= at_most, or value > above, whatever the reference does.

    beyond_noise: off the headline regime it fails only where its whole 95 % interval lies at `above` or below.
    """

    at_most: NonNegative | None = None
    above: float | None = None
    beyond_noise: bool = False
    #: what the number is derived from
    why: str = ""
    #: why this gate does not apply in this plan, if it does not
    not_applicable: str | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_most is None) == (self.above is None):
            raise ValueError("give exactly one of at_most and above")
        if self.beyond_noise and self.above is None:
            raise ValueError("beyond_noise: only what must lie above something is held to its interval")
        return self


class Gates(Part):
    improvement: Improvement = Improvement()
    small_eval: dict[str, Ratio]
    hard_abort: dict[str, Ratio]
    #: absolute bounds, on every regime
    limits: dict[str, Limit] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _noise_is_known(self) -> Self:
        asked = [
            n for rules in (self.small_eval, self.hard_abort) for n, r in rules.items() if r.beyond_noise
        ]
        unknown = sorted(set(asked) - set(DRAWN))
        if unknown:
            raise ValueError(
                f"beyond_noise: resamples are kept of {', '.join(DRAWN)} alone, not of {', '.join(unknown)}"
            )
        return self


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

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        names = ("at_most", "below", "at_least", "at_most_ratio", "below_ratio")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)}; given: {', '.join(given) or 'none'}")
        return self


class Tier(Part):
    name: str
    criteria: tuple[Criterion, ...]


class Machine(Part):
    """A class of machine that an executor maps to one of its own; `small` is always there."""

    price_usd_per_hour: NonNegative = 0.0
    gpus: Annotated[int, Field(ge=0)] = 0
    #: a job there is held to it, where the executor can; None: no limit
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    #: CPU threads of a job; None: an equal share
    threads: Annotated[int, Field(ge=1)] | None = None


class Ceiling(Part):
    """What may be spent at most; asked before each launch, with the forecast. None: no ceiling.

    hours and usd are worker hours and their price; attempts are launches of training jobs.
    """

    hours: Annotated[float, Field(gt=0)] | None = None
    usd: NonNegative | None = None
    attempts: Annotated[int, Field(ge=1)] | None = None


class Budget(Part):
    """run: each run with its evaluations. round: each round. sweep: all (its hours are `max_hours`)."""

    run: Ceiling = Ceiling()
    round: Ceiling = Ceiling()
    sweep: Ceiling = Ceiling()


class Healing(Part):
    """Which failures become a changed run by rule; divergence and exhausted memory always do."""

    #: a member that fails a physics gate is trained again, changed by the plan's rule
    physics: bool = False
    #: healed descendants of one planned run
    generations: Annotated[int, Field(ge=0)] = 2


class Scores(Part):
    """Settings of test-time compute scored on the baseline's first seed, at the end; they decide nothing."""

    #: each some `ttc.key=value` words
    settings: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    #: initial conditions of small-eval that are diagnosed
    groups: Annotated[int, Field(ge=2)] = 12
    #: of its half of calibration that the reward is trained on; None: all
    reward_groups: Annotated[int, Field(ge=1)] | None = None


class Plan(Part):
    version: Literal[1]
    name: str
    description: str = ""
    profile: str
    #: a name in `configs/data`, generated where it is missing, or the path of a data file (.hdf5)
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
    budget: Budget = Budget()
    machines: dict[str, Machine] = Field(default_factory=lambda: {"small": Machine()})
    healing: Healing = Healing()
    #: a job whose log and metrics stand still for so long is ended and launched again
    stall_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    #: measure every member briefly and forecast the sweep before anything is trained
    calibrate: bool = False
    #: one short run goes end to end before the rest start; None: on remote executors
    canary: bool | None = None
    #: judge the final champion, its baseline and the references on the sealed test split
    open_test_for_champion: bool = True
    #: how often the sealed split may be opened in all. A sweep opens it once; one that goes on with
    #: appended rounds after that must say 2 here, and every figure then stands under that count
    test_openings: Annotated[int, Field(ge=1)] = 1
    #: end members that lie behind the baseline's own curve at 30-40 % of their schedule
    early_stop: bool = False
    #: the tier at which rounds of kind search and refine are no longer begun
    rest_at_tier: str | None = None
    #: what of test-time compute is shown on the baseline; None: nothing
    ttc: Scores | None = None
    #: rounds that this plan leaves out, with the reason
    skip_rounds: dict[str, str] = Field(default_factory=dict)

    #: references of the plan it extends that it leaves out, with the reason; told on the page
    skip_references: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_word_for_hours(self) -> Self:
        if self.budget.sweep.hours is not None:
            raise ValueError("budget.sweep.hours: the hours of a sweep are its max_hours")
        return self

    def machine(self, name: str) -> Machine:
        """A class that the plan does not describe costs nothing and asks for nothing."""
        return self.machines.get(name, Machine())

    @property
    def hash(self) -> str:
        return content_hash(self.model_dump(mode="json"))


def load_plan(name: str | Path) -> Plan:
    """Read, merge and check a plan; every fault at once in one ConfigurationError.

    Beyond types: every config exists and loads under the plan's profile, gates and tiers name
    metrics that are measured, the headline regime is in the data, the ladder descends.
    """
    path = find("plans", name)
    values = read_extended(path, "plans")
    given = values.get("dataset")
    if isinstance(given, str) and is_data_file(given) and Path(given).is_file():
        values["dataset"] = str(Path(given).resolve())
    faults = plan_faults(values)
    try:
        plan = validate(Plan, values, str(path))
    except ConfigurationError as error:
        raise ConfigurationError(str(path), [*error.faults, *faults]) from error
    if faults:
        raise ConfigurationError(str(path), faults)
    return plan
