"""The schema of a steady problem's run: a document of its own, since nothing of it knows a time.

Stages `codec` and `steady_prior`, the latter with the epochs that every config of a time-dependent
equation holds at 0. A file says `problem: steady` to be read as this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from universal_simulator.configuration.documents import merge, parse_overrides, read_extended, validate
from universal_simulator.configuration.locations import find
from universal_simulator.configuration.schema import (
    Count,
    DecoderOptions,
    Fraction,
    NonNegative,
    Positive,
    Section,
    Stage,
    TokenNetworkOptions,
)
from universal_simulator.errors import ConfigurationError
from universal_simulator.run_record import content_hash

_WITHOUT_EFFECT = ("name", "tags", "seed", "threads")


class SteadyData(Section):
    #: name of a specification in `configs/data`, generated where it is missing
    dataset: str
    #: the coefficient is seen in the middle of every so many cells; divides the grid
    observed_every: Count = 8


class SteadyModelOptions(Section):
    latent_dim: Count = 4
    latent_tokens: Annotated[int, Field(ge=4)] = 16
    encoder_hidden: Count = 32
    decoder: DecoderOptions = DecoderOptions()
    #: each of the prior's two networks
    generator: TokenNetworkOptions = TokenNetworkOptions()


class SteadyStage(Section):
    """Optimiser of one stage; epochs are passes over the training split."""

    epochs: Count
    batch_size: Count = 32
    learning_rate: Positive
    warmup_ratio: Fraction = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    eta_min: NonNegative = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: NonNegative = 0.01
    grad_clip: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99

    def stage(self, rows: int) -> Stage:
        """The same in optimiser steps, for `rows` training samples."""
        steps = self.epochs * max(1, rows // self.batch_size)
        return Stage(steps=steps, patience_steps=steps, **self.model_dump(exclude={"epochs", "batch_size"}))


class SteadyEvaluation(Section):
    members: Annotated[int, Field(ge=2)] = 32
    noise_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    bootstrap_samples: Count = 2000


class SteadyRunConfig(Section):
    problem: Literal["steady"]
    name: str
    tags: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    data: SteadyData
    model: SteadyModelOptions = SteadyModelOptions()
    codec: SteadyStage
    steady_prior: SteadyStage
    evaluation: SteadyEvaluation = SteadyEvaluation()

    @property
    def hash(self) -> str:
        """Of everything but the seed that changes the result."""
        return content_hash(self.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT)))


@dataclass(frozen=True)
class SteadyLoaded:
    config: SteadyRunConfig
    source: str


def is_steady(name: str | Path) -> bool:
    """Does this config say `problem: steady`?"""
    return _mapping(find("configs", name)).get("problem") == "steady"


def load_steady(name: str | Path, overrides: Sequence[str] = ()) -> SteadyLoaded:
    """Read, override and validate; every fault at once in one ConfigurationError."""
    path = find("configs", name)
    values = merge({"name": path.stem}, _mapping(path))
    config = validate(SteadyRunConfig, merge(values, parse_overrides(overrides)), str(path))
    faults = [
        f"model.{where}: {divisor} does not divide hidden {hidden}"
        for where, divisor, hidden in (
            ("generator.heads", config.model.generator.heads, config.model.generator.hidden),
            ("generator.group_size", config.model.generator.group_size, config.model.generator.hidden),
            ("decoder.heads", config.model.decoder.heads, config.model.decoder.hidden),
        )
        if hidden % divisor
    ]
    if faults:
        raise ConfigurationError(str(path), faults)
    return SteadyLoaded(config, str(path))


def _mapping(path: Path) -> dict[str, Any]:
    return read_extended(path, "configs")
