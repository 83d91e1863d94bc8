"""A short measured training and evaluation of one config, from which its whole run is forecast.

With t_l the seconds of one optimiser step at rollout length l, n_l how many such steps the config
has, v the seconds of one validation and k how many there are, a stage takes

    sum over l of n_l t_l  +  k v

and everything else (reading data, building the model, what a stage prepares) once. t_l is the median of
steps measured at that length; the first at each length is left out (operations are counted
there, compilers run). An evaluation is measured on its small suite and grows with its groups. The
stochastic stages have one length. What they roll out besides (latents kept, validations, the choice of
noise, recalibration) is measured on a share of the configured initial conditions and windows and grows with
them. Early stopping is not foreseen: the forecast is the longest case.
"""

from __future__ import annotations

import json
import math
import re
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from universal_simulator.configuration import LoadedConfig, load_config
from universal_simulator.configuration.schema import RunConfig, TrainingConfig
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.device import peak_memory_gib, resolve
from universal_simulator.errors import TrainingError
from universal_simulator.experiment import prepare_dataset, run
from universal_simulator.run_record import RunRecord
from universal_simulator.training.loop import rollout_length

#: optimiser steps measured at each rollout length; the first is not counted
STEPS_PER_LENGTH = 4
#: ensembles are rolled out on one of so many of the configured initial conditions
ENSEMBLE_SHARE = 8
STOCHASTIC = ("diff_residual", "consistency_distill")


@dataclass(frozen=True)
class Calibration:
    """Forecast of one run. Seconds include the start of each process; memory is the largest of all."""

    train_s: float
    small_eval_s: float
    full_eval_s: float
    #: classical solver and trivial predictors of the full suite: once per sweep
    references_s: float
    peak_memory_gib: float
    optimiser_steps: int
    #: "stage, rollout length" -> seconds of one optimiser step
    step_s: dict[str, float]
    #: what measuring took
    calibration_s: float


def calibrate(
    name: str, overrides: Sequence[str], folder: Path, *, profile: str | None = None
) -> Calibration:
    """Measure a config on its own data (made in `folder` where missing); nothing of it is kept."""
    started, startup_s = time.monotonic(), time.process_time()
    whole = load_config(name, overrides, profile=profile)
    data = whole.config.data
    dataset = prepare_dataset(str(data.file or data.dataset), folder)
    share, ensemble_words = fewer_ensembles(whole.config, dataset)
    words = [
        *without_lengths(overrides),
        *short_words(whole.config.training),
        *ensemble_words,
        f"data.file={json.dumps(str(dataset.path))}",
    ]
    short = load_config(name, words, profile=profile)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    moments: list[tuple[int, float]] = []

    def watch(phase: str, done: int, total: int) -> None:
        if phase == "train":
            moments.append((done, time.monotonic()))

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="calibration-", dir=folder) as scratch:
        record = run(short, Path(scratch), progress=watch)
    return _forecast(
        whole, short, dataset, record, moments, startup_s, time.monotonic() - started, ensembles_are=share
    )


def without_lengths(overrides: Sequence[str]) -> list[str]:
    """The words without those that say how long a stage trains: `short_words` says it, and once is allowed."""
    return [word for word in overrides if not re.match(r"training\.\w+\.(epochs|steps)=", word)]


def short_words(training: TrainingConfig) -> list[str]:
    """Overrides that make a training as short as can be measured, every rollout length in it."""
    lengths = len(training.rollout_curriculum)
    words = [f"training.{stage}.steps={STEPS_PER_LENGTH}" for stage in training.stages]
    words.append(f"training.operator.steps={STEPS_PER_LENGTH * lengths}")
    words.append(f"training.curriculum_shares={json.dumps([1 / lengths] * lengths)}")
    return [*words, "training.validations=1", "training.ensemble_validation.validations=1"]


def fewer_ensembles(config: RunConfig, dataset: Dataset) -> tuple[float, list[str]]:
    """How many times fewer initial conditions and windows the stochastic stages meet, and the overrides.

    One share for all of them: what is rolled out grows by it as a whole.
    """
    training = config.training
    groups = training.ensemble_validation.groups
    fewer = max(1, groups // ENSEMBLE_SHARE)
    share = groups / fewer
    there = dataset.info.groups_per_split["calibration"] // len(CALIBRATION_HALVES)
    calibrated = min(config.evaluation.calibration_groups or there, there)
    words = [
        f"training.ensemble_validation.groups={fewer}",
        f"evaluation.calibration_groups={max(1, round(calibrated / share))}",
    ]
    for stage in STOCHASTIC:
        windows = getattr(training, stage).latent_cache_windows
        words.append(f"training.{stage}.latent_cache_windows={math.ceil(windows / share)}")
    return share, words


def _forecast(
    whole: LoadedConfig,
    short: LoadedConfig,
    dataset: Dataset,
    record: RunRecord,
    moments: Sequence[tuple[int, float]],
    startup_s: float,
    calibration_s: float,
    *,
    ensembles_are: float,
) -> Calibration:
    """ensembles_are: so many times fewer than in the whole run."""
    assert record.training is not None
    observed = record.training.observation
    # what is fitted after the stages (an ensemble's calibration) has no steps and counts as fixed
    trained = set(observed["wall_clock_s_by_stage"])
    stages = [stage for stage in short.config.training.stages if stage in trained]
    step_s, validation_s = measured(short.config.training, stages, moments)
    steady_s = _steps_s(short.config.training, stages, step_s)
    fixed_s = max(0.0, observed["process_s"] - steady_s - sum(validation_s.values()))
    # latents kept before the first step, noise and recalibration after the last: what grows of the rest
    rolled_s = observed["wall_clock_s_by_stage"].get("calibration", 0.0)
    for stage in set(stages) & set(STOCHASTIC):
        steps_s = _steps_s(short.config.training, [stage], step_s)
        taken_s = observed["wall_clock_s_by_stage"][stage] - validation_s[stage]
        rolled_s += max(0.0, taken_s - steps_s)
        validation_s[stage] *= ensembles_are
    fixed_s += (ensembles_are - 1) * rolled_s
    training_s = _steps_s(whole.config.training, stages, step_s)
    for stage in stages:
        rules = whole.config.training.ensemble_validation if stage in STOCHASTIC else whole.config.training
        training_s += rules.validations * validation_s[stage]
    small = record.evaluations["small_eval"]
    small_s = float(small.observation["wall_clock_s"])
    growth = _full_groups(whole.config, dataset) / small.result.protocol.num_groups
    return Calibration(
        train_s=startup_s + fixed_s + training_s,
        small_eval_s=small_s,
        full_eval_s=startup_s + growth * small_s,
        references_s=growth * float(small.observation["references_s"]),
        peak_memory_gib=_peak_memory_gib(short.config.device),
        optimiser_steps=sum(_lengths(whole.config.training, stages).values()),
        step_s={f"{stage}, {length}": seconds for (stage, length), seconds in step_s.items()},
        calibration_s=calibration_s,
    )


def measured(
    training: TrainingConfig, stages: Sequence[str], moments: Sequence[tuple[int, float]]
) -> tuple[dict[tuple[str, int], float], dict[str, float]]:
    """(stage, length) -> seconds of a step; stage -> seconds of its validation, which ends it.

    moments: (steps done over all stages, when), after every step; the first step of all has no
    beginning and is one of those that do not count.
    """
    taken = {done: now - before for (_, before), (done, now) in pairwise(moments)}
    seconds: dict[tuple[str, int], float] = {}
    validations: dict[str, float] = {}
    before = 0
    for stage in stages:
        lengths = [_length(training, stage, step) for step in range(getattr(training, stage).steps)]
        for length in dict.fromkeys(lengths):
            places = [step for step, found in enumerate(lengths) if found == length][1:]
            steady = [taken[before + step + 1] for step in places if step + 1 < len(lengths)]
            if not steady:
                raise TrainingError(f"stage {stage}: no step at rollout length {length} was measured")
            seconds[stage, length] = statistics.median(steady)
        last = taken[before + len(lengths)]
        validations[stage] = max(0.0, last - seconds[stage, lengths[-1]])
        before += len(lengths)
    return seconds, validations


def _steps_s(training: TrainingConfig, stages: Sequence[str], step_s: dict[tuple[str, int], float]) -> float:
    return sum(count * step_s[key] for key, count in _lengths(training, stages).items())


def _lengths(training: TrainingConfig, stages: Sequence[str]) -> Counter[tuple[str, int]]:
    """(stage, rollout length) -> optimiser steps the config takes there."""
    return Counter(
        (stage, _length(training, stage, step))
        for stage in stages
        for step in range(getattr(training, stage).steps)
    )


def _length(training: TrainingConfig, stage: str, step: int) -> int:
    """Only the operator's windows grow; the other stages keep one length."""
    return rollout_length(training, step) if stage == "operator" else 0


def _full_groups(config: RunConfig, dataset: Dataset) -> int:
    there = dataset.info.groups_per_split["selection"]
    return min(config.evaluation.full_groups or there, there)


def _peak_memory_gib(device: str) -> float:
    """Of the accelerator where the config trains on one, else of this process: as `TrainingRecord` tells it."""
    on_device = peak_memory_gib(resolve(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if on_device is None else on_device
