"""Schedules, averages of weights, the curriculum and what counts as an exploded loss."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from universal_simulator.configuration import load_config
from universal_simulator.configuration.schema import (
    Stage,
)
from universal_simulator.training import loop
from universal_simulator.training.loop import rollout_length, validation_steps
from universal_simulator.training.optimisation import WeightAverage, learning_rate


def stage(**values: Any) -> Stage:
    return Stage(**{"steps": 100, "learning_rate": 1.0, "patience_steps": 10} | values)


def test_schedule_warms_up_and_ends_at_eta_min() -> None:
    rates = [learning_rate(stage(warmup_ratio=0.1, schedule="cosine", eta_min=0.01), k) for k in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[-1] < 0.012
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(stage(), 99) == 1.0


def test_average_forgets_the_initialisation() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9999)
    torch.nn.init.constant_(model.weight, 3.0)
    before = float(average.model.weight)
    for step in range(300):
        average.update(model, step)
    left = abs(float(average.model.weight) - 3.0) / abs(before - 3.0)
    assert left < 1e-6


@pytest.mark.parametrize("memory", [50, 100, 150, 290])
def test_average_remembers_as_long_as_configured(memory: int) -> None:
    """Weights that rise by one a step, against the recursion in plain floats; never a mean of all of them."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 1 - 1 / memory)
    expected = 0.0
    for step in range(300):
        torch.nn.init.constant_(model.weight, float(step))
        average.update(model, step)
        # a plain mean of the first `memory` weights, then exponential
        expected = step / 2 if step < memory else expected + (step - expected) / memory
    assert float(average.model.weight.detach()) == pytest.approx(expected, rel=1e-4)
    plain_mean = 299 / 2
    assert float(average.model.weight.detach()) > plain_mean


def test_curriculum_and_validation_steps() -> None:
    config = load_config("rerun_txxoc8a8", profile="embedded").config.training
    lengths = [rollout_length(config, k) for k in range(config.operator.steps)]
    assert lengths == sorted(lengths)
    assert set(lengths) == set(config.rollout_curriculum)
    assert validation_steps(100, 4) == {25, 50, 75, 100}


def test_a_loss_that_passes_through_zero_has_a_ceiling_that_a_falling_one_never_meets() -> None:
    positive = [float(v) for v in torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.01]
    assert loop.loss_ceiling(positive, 100) == pytest.approx(100 * statistics.median(positive))
    falling = [1.5 - 0.05 * k + 0.4 * (-1) ** k for k in range(60)]
    for step in range(10, 60):
        assert falling[step] < loop.loss_ceiling(falling[max(0, step - 50) : step], 100)
    assert loop.loss_ceiling(falling[-50:], 100) < 100
    assert loop.loss_ceiling(positive[:9], 100) == math.inf
