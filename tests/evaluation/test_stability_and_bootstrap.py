"""Horizons, correlation, intervals and the summary that joins them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from universal_simulator.evaluation.bootstrap import group_means, mean_interval, paired_interval
from universal_simulator.evaluation.glossary import entry
from universal_simulator.evaluation.stability import correlation, horizon
from universal_simulator.evaluation.summary import Summary


def fields(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_horizon_counts_steps_before_the_first_fall() -> None:
    curve = torch.tensor([0.9, 0.85, 0.7, 0.9])
    assert horizon(curve, 0.8, falls_below=True) == (2, False)
    assert horizon(curve, 0.5, falls_below=True) == (4, True)
    assert horizon(torch.tensor([0.1, 0.3]), 0.2, falls_below=False) == (1, False)
    assert horizon(torch.tensor([float("nan")]), 0.8, falls_below=True) == (0, False)


def test_correlation_is_pearsons_and_ignores_scale_and_mean() -> None:
    p, y = fields(0, 2, 3, 1, 16), fields(1, 2, 3, 1, 16)
    found = correlation(p, y, y[:, 0])
    for row, frame in np.ndindex(2, 3):
        expected = np.corrcoef(p[row, frame, 0], y[row, frame, 0])[0, 1]
        assert float(found[row, frame]) == pytest.approx(expected)
    assert torch.allclose(correlation(3 * y + 7, y, y[:, 0]), torch.ones(2, 3, dtype=torch.float64))
    assert torch.allclose(correlation(-y, y, y[:, 0]), -torch.ones(2, 3, dtype=torch.float64))


def test_correlation_of_what_does_not_vary() -> None:
    y = fields(1, 2, 3, 1, 16)
    assert float(correlation(torch.ones_like(y), y, y[:, 0]).abs().max()) == 0.0
    assert float(correlation(torch.full_like(y, torch.nan), y, y[:, 0]).abs().max()) == 0.0
    flat = y.clone()
    flat[0, 1:] = 0.5
    assert correlation(flat, flat, flat[:, 0])[0].isnan().tolist() == [False, True, True]


def test_interval_is_near_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, samples=4000)
    half = 1.96 * values.std(ddof=1) / 20
    assert abs(low - (values.mean() - half)) < 0.1 * half
    assert abs(high - (values.mean() + half)) < 0.1 * half
    assert mean_interval(values, samples=4000) == (low, high)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        low, high = mean_interval(generator.normal(size=64), samples=400, seed=trial)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 400 <= 0.98


def test_pairing_removes_what_the_groups_share() -> None:
    generator = np.random.default_rng(2)
    hardness = generator.lognormal(size=100)
    candidate, reference = 0.9 * hardness, hardness + 0.01 * generator.normal(size=100)
    low, high = paired_interval(candidate, reference, samples=2000)
    assert 0 < low < 0.1 * hardness.mean() < high
    apart = mean_interval(candidate, samples=2000)
    assert high - low < 0.2 * (apart[1] - apart[0])
    with pytest.raises(ValueError, match="same groups"):
        paired_interval(candidate, reference[:50], samples=10)


def test_one_group_has_no_interval_and_trajectories_of_a_group_count_once() -> None:
    assert all(math.isnan(v) for v in mean_interval(np.ones(1), samples=10))
    groups, means = group_means(np.array([1.0, 5.0, 3.0]), ["b", "a", "b"])
    assert groups == ("b", "a")
    assert means.tolist() == [2.0, 5.0]
    metric = Summary(["a"] * 3, field_unit="m/s", bootstrap_samples=50).mean("rmse", torch.ones(3))
    assert (metric.value, metric.low, metric.unit) == (1.0, None, "m/s")


def test_a_broken_sample_makes_the_metric_missing_with_a_reason() -> None:
    summary = Summary(list("abcd"), field_unit="1", bootstrap_samples=50)
    values = torch.tensor([1.0, float("inf"), 2.0, float("nan")])
    metric = summary.mean("rel_l2", values)
    assert metric.value is None
    assert metric.reason == "not finite on 2 of 4 trajectories"
    excluded = summary.mean("nrmse", torch.tensor([1.0, float("nan"), 3.0, 2.0]), exclude_nan=True)
    assert excluded.value == 2.0
    assert excluded.reason == "1 of 4 trajectories excluded"


def test_every_family_has_a_line_and_strangers_have_none() -> None:
    assert entry("nrmse@50").text == entry("nrmse@").text
    assert entry("spectrum_error_high").text == entry("spectrum_error_").text
    assert entry("horizon").better == "higher"
    with pytest.raises(KeyError, match="glossary"):
        entry("accuracy")
