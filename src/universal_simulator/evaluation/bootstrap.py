"""Bootstrap over groups (initial conditions), the unit that is exchangeable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: fixed: an interval is a function of its data
SEED = 20251018
#: picks drawn at a time: bounds the memory
PICKS_AT_ONCE = 2_000_000


def group_means(values: np.ndarray, groups: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """One value per group in order of first appearance: trajectories of a group are not independent."""
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    rows = np.array([order[group] for group in groups], dtype=int)
    counts = np.bincount(rows, minlength=len(order))
    sums = np.bincount(rows, weights=np.asarray(values, dtype=np.float64), minlength=len(order))
    return tuple(order), sums / counts


def mean_interval(
    values: np.ndarray, *, samples: int, level: float = 0.95, seed: int = SEED
) -> tuple[float, float]:
    """Percentile interval of the mean of one value per group (Efron 1979).

    Deterministic in its arguments. Bias: for heavy tails and few groups it is too narrow
    (coverage near 93 % at 32 Gaussian groups). One group, or a value that is not finite,
    gives (NaN, NaN): there is nothing to resample.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    chunk = max(1, PICKS_AT_ONCE // len(values))
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), size=(min(chunk, samples - start), len(values)))].mean(
                1
            )
            for start in range(0, samples, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample_weights(groups: Sequence[str], *, samples: int, seed: int = SEED) -> np.ndarray:
    """Weights of each trajectory, (1 + S, B): the groups as they are, then S resamples of them.

    A group weighs how often it was drawn, a trajectory its share of that: what is pooled with them
    is a mean over groups. Deterministic in its arguments; a resample may draw nothing of some.
    """
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    rows = np.array([order[group] for group in groups], dtype=int)
    picks = np.random.default_rng(seed).integers(0, len(order), size=(samples, len(order)))
    flat = picks + len(order) * np.arange(samples)[:, None]
    drawn = np.bincount(flat.ravel(), minlength=samples * len(order)).reshape(samples, len(order))
    counts = np.concatenate([np.ones((1, len(order))), drawn])
    return (counts / np.bincount(rows, minlength=len(order)))[:, rows]


def paired_interval(
    candidate: np.ndarray, reference: np.ndarray, *, samples: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(reference - candidate) over the same groups: positive is a gain.

    Pairing removes what the groups share (hard ones are hard for both), so it is far narrower
    than the difference of two intervals.
    """
    candidate, reference = (np.asarray(v, dtype=np.float64) for v in (candidate, reference))
    if candidate.shape != reference.shape:
        raise ValueError(f"pairs need the same groups: {candidate.shape} against {reference.shape}")
    return mean_interval(reference - candidate, samples=samples, level=level)
