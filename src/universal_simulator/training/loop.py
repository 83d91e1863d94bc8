"""One training stage: optimiser steps over a rollout curriculum, validated, resumable.

Everything random in step n is drawn from generators seeded by (seed, n): a resumed run
repeats the interrupted one bit for bit without storing any generator.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from universal_simulator.configuration.schema import Stage, TrainingConfig
from universal_simulator.errors import DivergenceError, MemoryExhaustedError
from universal_simulator.inference.counting import OperationCounter
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.checkpoint import load_state, save_state
from universal_simulator.training.losses import LossTerms, weighted_mean
from universal_simulator.training.optimisation import WeightAverage, learning_rate, make_optimiser

#: steps over which the running median of the loss is taken
MEDIAN_WINDOW = 50
#: one batch may hold a freak; only this many in a row are a divergence
EXPLODED_STEPS = 5
#: seconds between stored training states
CHECKPOINT_INTERVAL_S = 15.0


#: loss of one batch, every term a mean over samples; randomness from torch's seeded generator
LossFunction = Callable[[Surrogate, Any], LossTerms]


class Batch(Protocol):
    """Samples that can be taken in parts."""

    def __len__(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def split(self, size: int) -> Iterator[Any]: ...


class BatchSource(Protocol):
    def __call__(self, generator: torch.Generator, batch_size: int, num_steps: int) -> Batch:
        """What windows of num_steps + 1 frames give, drawn with `generator`."""


@dataclass
class Progress:
    """What of a stage is done; plain values, stored in the checkpoint."""

    step: int = 0
    training_flops: float = 0.0
    best_score: float = math.inf
    best_step: int = 0
    best_weights: str = "ema"
    seconds: float = 0.0
    exploded: int = 0
    stopped_early: bool = False
    losses: list[float] = field(default_factory=list)
    validations: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class StageOutcome:
    weights: dict[str, Tensor]
    progress: Progress


def loss_ceiling(recent: list[float], factor: float) -> float:
    """What a loss that goes on as it did does not exceed; infinite before 10 losses are known.

    median + (factor - 1) max(|median|, median |loss - median|): factor times the median where losses
    are positive. A likelihood's pass through zero, where a multiple of the median is no bound.
    """
    if len(recent) < 10:
        return math.inf
    median = statistics.median(recent)
    deviation = statistics.median(abs(value - median) for value in recent)
    return median + (factor - 1) * max(abs(median), deviation)


class StageTraining:
    """Trains what of `surrogate` requires gradients; returns the better of raw and EMA weights.

    loss(surrogate, batch) is minimised over `accumulation` batches of `batch_size` windows.
    rollout_length(step) -> steps of the windows that optimiser step `step` is trained on.
    validate(surrogate) -> score (lower is better), asked `validations` times. `on_step(done, total)` is called after
    every optimiser step. Raises DivergenceError; the last state stays on disk.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        config: TrainingConfig,
        stage: Stage,
        *,
        loss: LossFunction,
        batch_size: int,
        accumulation: int,
        rollout_length: Callable[[int], int],
        seed: int,
        batches: BatchSource,
        flops_before: float = 0.0,
        seconds_before: float = 0.0,
        validate: Callable[[Surrogate], float],
        validations: int,
        state_path: Path,
        log_path: Path,
        input_hash: str,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.surrogate = surrogate
        self.config = config
        self.stage = stage
        self.loss = loss
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.rollout_length = rollout_length
        self.seed = seed
        self.batches = batches
        self.validate = validate
        self.validations = validations
        self.state_path = state_path
        self.log_path = log_path
        self.input_hash = input_hash
        self.on_step = on_step
        self.optimiser = make_optimiser(surrogate, self.stage)
        self.average = WeightAverage(surrogate, self.stage.ema_decay)
        self.progress = Progress(training_flops=flops_before)
        self.seconds_before = seconds_before
        self.best: dict[str, Tensor] = {}
        self.flops_of_length: dict[int, float] = {}
        self.forward: LossFunction = torch.compile(loss) if config.compile else loss

    def run(self) -> StageOutcome:
        self._restore()
        # what a stage does before its first step (latents kept for it) is its time, again when it is resumed
        self.progress.seconds += self.seconds_before
        stop_at = self.stage.steps
        milestones = validation_steps(self.stage.steps, self.validations)
        stored_at = started = time.monotonic()
        self.surrogate.train()
        while self.progress.step < stop_at and not self.progress.stopped_early:
            self._step(self.progress.step)
            self.progress.step += 1
            if self.progress.step in milestones:
                self._validate()
                waited = self.progress.step - self.progress.best_step
                self.progress.stopped_early = waited >= self.stage.patience_steps
            now = time.monotonic()
            self.progress.seconds += now - started
            started = now
            ended = self.progress.step == stop_at or self.progress.stopped_early
            if now - stored_at > CHECKPOINT_INTERVAL_S or ended:
                self._store()
                stored_at = time.monotonic()
            if self.on_step is not None:
                self.on_step(self.progress.step, stop_at)
        return StageOutcome(self.best, self.progress)

    def _step(self, step: int) -> None:
        rate = learning_rate(self.stage, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        length = self.rollout_length(step)
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        self.optimiser.zero_grad(set_to_none=True)
        parts: list[LossTerms] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(self.seed, step) ^ 0x5DEECE66D)
            for _ in range(self.accumulation):
                parts.append(self._micro_batch(generator, length))
        # only what this stage trains: others may still hold gradients of the stage before
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.stage.grad_clip)
        values = _mean_terms(parts)
        self._refuse_divergence(values["total"], float(norm), step)
        self.optimiser.step()
        self.average.update(self.surrogate, step)
        self._log(
            {"step": step + 1, "rollout_length": length, "lr": rate, "grad_norm": float(norm), **values}
        )

    def _micro_batch(self, generator: torch.Generator, length: int) -> LossTerms:
        """Draw one micro-batch, forward and backward; floating-point operations counted once per length.

        Drawing counts as well: a stochastic stage without a cache rolls the operator out for it.
        """
        if length in self.flops_of_length:
            terms = self._forward_backward(self.batches(generator, self.batch_size, length))
        else:
            # counted on the plain function: a compiled one that first runs under a counter never compiles
            compiled, self.forward = self.forward, self.loss
            with OperationCounter() as counter:
                terms = self._forward_backward(self.batches(generator, self.batch_size, length))
            self.forward = compiled
            self.flops_of_length[length] = float(counter.total)
        self.progress.training_flops += self.flops_of_length[length]
        return terms

    def _forward_backward(self, batch: Batch) -> LossTerms:
        total = len(batch)
        parts = []
        for part in batch.split(self.config.micro_batch_size or total):
            share = len(part) / total
            with (
                memory_errors_explained(),
                torch.autocast(
                    batch.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
                ),
            ):
                terms = self.forward(self.surrogate, part)
                (share * terms.total / self.accumulation).backward()
            parts.append((share, terms))
        return parts[0][1] if len(parts) == 1 else weighted_mean(parts)

    def _refuse_divergence(self, loss: float, norm: float, step: int) -> None:
        recent = self.progress.losses
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DivergenceError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}; lower the stage's "
                "learning_rate or grad_clip"
            )
        ceiling = loss_ceiling(recent, self.config.divergence_factor)
        if loss > ceiling:
            self.progress.exploded += 1
            if self.progress.exploded >= EXPLODED_STEPS:
                raise DivergenceError(
                    f"step {step + 1}: loss {loss:.4g}, for {EXPLODED_STEPS} steps above {ceiling:.4g}, "
                    f"{self.config.divergence_factor:g} times its running size; lower the stage's "
                    "learning_rate or grad_clip"
                )
            return
        self.progress.exploded = 0
        self.progress.losses = (recent + [loss])[-MEDIAN_WINDOW:]

    def _validate(self) -> None:
        """Score raw and averaged weights; keep the best seen, with its name."""
        self.surrogate.eval()
        scores = {"raw": self.validate(self.surrogate), "ema": self.validate(self.average.model)}
        self.surrogate.train()
        name = min(scores, key=lambda key: ranked(scores[key]))
        if ranked(scores[name]) < self.progress.best_score or not self.best:
            source = self.surrogate if name == "raw" else self.average.model
            self.best = {key: value.detach().clone() for key, value in source.state_dict().items()}
            self.progress.best_score = ranked(scores[name])
            self.progress.best_step = self.progress.step
            self.progress.best_weights = name
        self.progress.validations.append([self.progress.step, scores["raw"], scores["ema"]])
        self._log(
            {"step": self.progress.step, "validation_raw": scores["raw"], "validation_ema": scores["ema"]}
        )

    def _log(self, values: dict[str, float | int]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def _store(self) -> None:
        state: dict[str, Any] = {
            "surrogate": self.surrogate.state_dict(),
            "average": self.average.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "progress": vars(self.progress),
            "flops_of_length": self.flops_of_length,
        }
        save_state(self.state_path, state, input_hash=self.input_hash)

    def _restore(self) -> None:
        state = load_state(self.state_path, input_hash=self.input_hash)
        if state is not None:
            self.surrogate.load_state_dict(state["surrogate"])
            self.average.model.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.best = state["best"]
            self.progress = Progress(**state["progress"])
            self.flops_of_length = state["flops_of_length"]
        truncate_log(self.log_path, self.progress.step)


def ranked(score: float) -> float:
    """A score as it competes: what is not finite loses to everything, where NaN would win or lock."""
    return score if math.isfinite(score) else math.inf


@contextmanager
def memory_errors_explained() -> Iterator[None]:
    """What torch and numpy raise when memory is gone, as one error with its cure."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not known:
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MemoryExhaustedError(
            f"no memory left in a training step ({first}); lower training.micro_batch_size"
        ) from error


def truncate_log(path: Path, step: int) -> None:
    """Drop lines of steps after `step`, and a torn last line: no step is ever logged twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError):
            break
        kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def validation_steps(steps: int, count: int) -> frozenset[int]:
    """`count` evenly spaced steps, the last of them the end of the stage."""
    return frozenset(round(steps * (i + 1) / count) for i in range(count)) - {0}


def rollout_length(config: TrainingConfig, step: int) -> int:
    """Rollout length of optimiser step `step`: the curriculum's entries by their shares."""
    reached = 0.0
    for length, share in zip(config.rollout_curriculum, config.curriculum_shares, strict=True):
        reached += share * config.operator.steps
        if step < reached:
            return length
    return config.rollout_curriculum[-1]


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed of (seed, step), well mixed (splitmix64)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1


def _mean_terms(parts: list[LossTerms]) -> dict[str, float]:
    rows = [part.floats() for part in parts]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
