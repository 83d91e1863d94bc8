"""Training of a steady problem: the codec, the prior over its latents, and the prior's control.

    codec    L = mean_b rms(p' - p) / rms(p) over cells and both walls, where p is the declared value
    prior    L of `training/stochastic.py:generator_loss` with the codec's latent as the target
    control  L of the codec, on the decoded answer, the codec held still

Batches are drawn anew from (seed, step). A stage takes seconds, so a killed one starts again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from universal_simulator.configuration.steady import SteadyStage
from universal_simulator.errors import DivergenceError
from universal_simulator.inference.counting import OperationCounter
from universal_simulator.model.steady_prior import SteadyCodec, SteadyPrior, SteadyRegressor
from universal_simulator.training.loop import memory_errors_explained, step_seed
from universal_simulator.training.optimisation import WeightAverage, learning_rate, make_optimiser
from universal_simulator.training.stochastic import generator_loss

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class SteadyBatches:
    """Training pairs: log a at the sensors (B, S) and pressure (B, 1, X)."""

    observed: Tensor
    pressure: Tensor

    def __len__(self) -> int:
        return len(self.observed)


@dataclass(frozen=True)
class SteadyOutcome(Generic[Model]):
    """Averaged weights, and what they took."""

    model: Model
    steps: int
    flops: float


def train_steady(
    model: Model,
    rules: SteadyStage,
    batches: SteadyBatches,
    *,
    loss: Callable[[Model, SteadyBatches], Tensor],
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
) -> SteadyOutcome[Model]:
    """DivergenceError where a loss is not finite."""
    stage, flops = rules.stage(len(batches)), 0
    optimiser, average = make_optimiser(model, stage), WeightAverage(model, stage.ema_decay)
    for step in range(stage.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, step)
        with torch.random.fork_rng(devices=[]), memory_errors_explained():
            torch.manual_seed(step_seed(seed, step))
            rows = torch.randint(len(batches), (rules.batch_size,))
            batch = SteadyBatches(batches.observed[rows], batches.pressure[rows])
            optimiser.zero_grad(set_to_none=True)
            # every step is alike: the first is counted
            with OperationCounter() if step == 0 else nullcontext() as counter:
                value = loss(model, batch)
                value.backward()
            if counter is not None:
                flops = counter.total
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), stage.grad_clip))
        if not (math.isfinite(float(value.detach())) and math.isfinite(norm)):
            raise DivergenceError(
                f"step {step + 1}: loss {float(value.detach())}, gradient norm {norm}; lower the stage's "
                "learning_rate or grad_clip"
            )
        optimiser.step()
        average.update(model, step)
        if on_step is not None:
            on_step(step + 1, stage.steps)
    return SteadyOutcome(average.model, stage.steps, float(flops) * stage.steps)


def codec_loss(codec: SteadyCodec, batch: SteadyBatches) -> Tensor:
    return decoded_error(codec, codec.encode(batch.pressure), batch.pressure)


def prior_loss(prior: SteadyPrior, batch: SteadyBatches, *, codec: SteadyCodec) -> Tensor:
    with torch.no_grad():
        target = codec.encode(batch.pressure)
    return generator_loss(prior, prior.context(batch.observed), target).total


def control_loss(regressor: SteadyRegressor, batch: SteadyBatches, *, codec: SteadyCodec) -> Tensor:
    return decoded_error(codec, regressor(batch.observed), batch.pressure)


def decoded_error(codec: SteadyCodec, latent: Tensor, pressure: Tensor) -> Tensor:
    """Relative error of the decoded field over its cells and walls, mean over samples."""
    walls = codec.offset.expand(*pressure.shape[:-1], 2)
    truth = torch.cat([pressure, walls], dim=-1)
    error = codec.decode(latent, codec.basis()) - truth
    scale = (pressure - codec.offset).square().mean(dim=(-2, -1)).sqrt()
    return (error.square().mean(dim=(-2, -1)).add(1e-12 * scale.square()).sqrt() / scale).mean()
