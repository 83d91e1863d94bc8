"""Accuracy against plain loops, identities, limits and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from universal_simulator.evaluation import accuracy
from universal_simulator.evaluation.pdebench_metrics import FRAMES_AT_ONCE, pdebench_metrics

SHAPE = (3, 4, 2, 16)
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rel_l2": accuracy.relative_l2,
    "vrmse": accuracy.vrmse,
    "rmse": accuracy.rmse,
    "max_error": accuracy.max_error,
    "rmse_boundary": accuracy.rmse_boundary,
    "rmse_conserved": accuracy.rmse_conserved,
} | {
    f"rmse_fourier_{band}": lambda p, y, band=band: accuracy.rmse_fourier(p, y)[band]  # type: ignore[misc]
    for band in accuracy.BANDS
}


def fields(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(name: str, p: np.ndarray, y: np.ndarray) -> float:
    """One sample (T, C, X), one number, no vectorisation over frames or channels."""
    e = p - y
    if name == "rel_l2":
        return math.sqrt(sum(v * v for v in e.flat)) / math.sqrt(sum(v * v for v in y.flat))
    if name == "vrmse":
        mean = sum(y.flat) / y.size
        spread = math.sqrt(sum((v - mean) ** 2 for v in y.flat) / y.size)
        return math.sqrt(sum(v * v for v in e.flat) / e.size) / spread
    if name == "max_error":
        return max(abs(v) for v in e.flat)
    values = []
    for frame in e:
        for row in frame:
            if name == "rmse":
                values.append(math.sqrt(sum(v * v for v in row) / len(row)))
            elif name == "rmse_boundary":
                values.append(math.sqrt((row[0] ** 2 + row[-1] ** 2) / 2))
            elif name == "rmse_conserved":
                values.append(abs(sum(row)) / len(row))
            else:
                low, high = accuracy.BANDS[name.removeprefix("rmse_fourier_")]
                modes = range(low, len(row) // 2 + 1 if high is None else min(high, len(row) // 2 + 1))
                values += [abs(mode(row, k)) for k in modes]
    return sum(values) / len(values) if values else math.nan


def mode(row: np.ndarray, k: int) -> complex:
    n = len(row)
    return sum(v * complex(math.cos(2 * math.pi * k * i / n), -math.sin(2 * math.pi * k * i / n)) for i, v in enumerate(row)) / n  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_metric_is_the_loop_and_zero_on_the_truth(name: str) -> None:
    p, y = fields(0, 2, 3, 2, 32), fields(1, 2, 3, 2, 32)
    found = PLAIN[name](p, y)
    for row in range(2):
        assert float(found[row]) == pytest.approx(by_hand(name, p[row].numpy(), y[row].numpy()), rel=1e-9)
    assert float(PLAIN[name](y, y).abs().max()) == 0.0


@pytest.mark.parametrize("name", PLAIN)
def test_a_nan_is_never_averaged_away(name: str) -> None:
    y = fields(1, *SHAPE[:3], 32)
    p = y.clone()
    p[1, 2, 0, 0] = float("nan")  # the first cell, so that the boundary sees it too
    found = PLAIN[name](p, y)
    assert bool(found[1].isnan())
    assert float(found[0]) == 0.0


def test_nrmse_is_the_loop() -> None:
    p, y = fields(0, *SHAPE), fields(1, *SHAPE)
    error, valid, diverged = accuracy.nrmse_frames(p, y, y[:, 0])
    for b, t, c in np.ndindex(SHAPE[:3]):
        top = math.sqrt(sum((p[b, t, c, x] - y[b, t, c, x]) ** 2 for x in range(16)) / 16)
        bottom = math.sqrt(sum(y[b, t, c, x] ** 2 for x in range(16)) / 16)
        assert float(error[b, t, c]) == pytest.approx(top / bottom, rel=1e-12)
    assert bool(valid.all())
    assert not bool(diverged.any())


def test_nrmse_of_the_truth_is_zero_and_of_silence_is_one() -> None:
    y = fields(1, *SHAPE)
    assert float(accuracy.nrmse_frames(y, y, y[:, 0])[0].max()) == 0.0
    silence = accuracy.nrmse_frames(torch.zeros_like(y), y, y[:, 0])[0]
    assert torch.allclose(silence, torch.ones_like(silence))


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000), sign=st.sampled_from([-1.0, 1.0]))
@settings(max_examples=30, deadline=None)
def test_relative_errors_ignore_a_common_scale_and_absolute_ones_follow_it(
    scale: float, seed: int, sign: float
) -> None:
    p, y = fields(seed, *SHAPE), fields(seed + 1, *SHAPE)
    factor = sign * scale
    before = accuracy.nrmse_frames(p, y, y[:, 0])[0]
    after = accuracy.nrmse_frames(factor * p, factor * y, factor * y[:, 0])[0]
    assert torch.allclose(after, before, rtol=1e-9)
    for name in ("rel_l2", "vrmse"):
        assert torch.allclose(PLAIN[name](factor * p, factor * y), PLAIN[name](p, y), rtol=1e-9)
    for name in ("rmse", "max_error", "rmse_boundary", "rmse_conserved", "rmse_fourier_low"):
        assert torch.allclose(PLAIN[name](factor * p, factor * y), scale * PLAIN[name](p, y), rtol=1e-9)


@given(shift=st.integers(0, 15), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_common_shift_on_the_circle_changes_nothing(shift: int, seed: int) -> None:
    p, y = fields(seed, *SHAPE), fields(seed + 1, *SHAPE)
    before = accuracy.nrmse_frames(p, y, y[:, 0])[0]
    after = accuracy.nrmse_frames(p.roll(shift, -1), y.roll(shift, -1), y[:, 0].roll(shift, -1))[0]
    assert torch.allclose(after, before, rtol=1e-12)


def test_diverged_counts_as_ten_and_silent_frames_are_excluded() -> None:
    y = fields(1, 4, 4, 1, 16)
    y[2, 2:] *= 1e-9
    y[3] = 0
    p = y.clone()
    p[0, 3, 0, 5] = float("nan")
    p[1] = 100 * p[1]
    error, valid, diverged = accuracy.nrmse_frames(p, y, y[:, 0])
    assert diverged.tolist() == [True, True, False, False]
    assert bool((error[:2] == 10).all())
    assert valid[2, :, 0].tolist() == [True, True, False, False]
    per_sample = accuracy.mean_valid(error, valid, dims=(1, 2))
    assert float(per_sample[2]) == 0.0
    assert bool(per_sample[3].isnan()), "a field of zeros has no relative error"


def test_an_error_just_above_ten_is_a_failure_and_just_below_is_not() -> None:
    y = fields(1, 2, 3, 1, 16)
    p = y.clone()
    p[0] *= 1 + 9.99
    p[1, -1] *= 1 + 10.01
    error, _, diverged = accuracy.nrmse_frames(p, y, y[:, 0])
    assert diverged.tolist() == [False, True]
    assert float(error[0].mean()) == pytest.approx(9.99)
    assert float(error[1].mean()) == 10.0


def test_pooled_estimators_are_the_loop_of_the_published_code() -> None:
    frames, length = FRAMES_AT_ONCE + 3, 2.0
    p, y = fields(0, 3, frames, 2, 32), fields(1, 3, frames, 2, 32)
    e, found = (p - y).numpy(), pdebench_metrics(p, y, length=length)
    peaks, masses, bands = [], [], {name: [] for name in accuracy.BANDS}  # type: ignore[var-annotated]
    for t, c in np.ndindex(frames, 2):
        peaks.append(max(abs(v) for row in e[:, t, c] for v in row))
        masses.append(math.sqrt(sum(sum(row) ** 2 for row in e[:, t, c]) / 3) / 32)
        size = [
            math.sqrt(sum(abs(32 * mode(row, k)) ** 2 for row in e[:, t, c]) / 3) / 32 * length
            for k in range(17)
        ]
        for name, (low, high) in accuracy.BANDS.items():
            bands[name].append(float(np.mean(size[low:high])))
    assert found["pdebench_max_error"] == pytest.approx(np.mean(peaks))
    assert found["pdebench_rmse_conserved"] == pytest.approx(np.mean(masses))
    for name, values in bands.items():
        assert found[f"pdebench_rmse_fourier_{name}"] == pytest.approx(np.mean(values))


def test_pooled_and_plain_estimators_agree_on_one_sample() -> None:
    p, y = fields(0, 1, 5, 1, 32), fields(1, 1, 5, 1, 32)
    found = pdebench_metrics(p, y, length=1.0)
    assert found["pdebench_rmse_conserved"] == pytest.approx(float(accuracy.rmse_conserved(p, y)))
    assert found["pdebench_rmse_fourier_mid"] == pytest.approx(float(accuracy.rmse_fourier(p, y)["mid"]))
    assert found["pdebench_max_error"] <= float(accuracy.max_error(p, y))
