"""Bootstrap over groups (initial conditions), the unit that is exchangeable."""

from __future__ import annotations

import numpy as np

#: fixed: an interval is a function of its data
SEED = 20251018


def mean_interval(values: np.ndarray, *, samples: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of one value per group (Efron 1979)."""
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(SEED)
    picks = generator.integers(0, len(values), size=(samples, len(values)))
    means = values[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
