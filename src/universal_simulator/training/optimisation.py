"""Optimiser, learning-rate schedule and weight averaging of a stage."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

from universal_simulator.configuration.schema import Stage


def make_optimiser(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """AdamW; vectors (biases, gains, norms) are not decayed."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": stage.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas)


def learning_rate(stage: Stage, step: int) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up, then constant or a cosine to eta_min.

    The warm-up takes warmup_ratio of the stage and reaches the full rate at its last step.
    """
    warmup = round(stage.warmup_ratio * stage.steps)
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    if stage.schedule == "constant":
        return stage.learning_rate
    progress = (step - warmup) / max(1, stage.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return stage.eta_min + (stage.learning_rate - stage.eta_min) * cosine


Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """Exponential moving average of the weights with warm-up.

    decay_t = min(decay, t / (1 + t)), t from 0: a plain mean of the weights so far until that reaches
    back 1 / (1 - decay) steps, the memory. The random initialisation has no share in it, and every
    memory shorter than the run takes effect.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, step / (1 + step))
        averages: list[torch.Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
