"""What a noisy trial is probably worth, given its neighbours: the posterior mean of a Gaussian process.

log f_i = g(x_i) + e_i, e_i ~ N(0, log(1 + cv^2)), g ~ GP(m, s^2 k), x the position in the box (0..1
per key), k Matern 5/2 of one length l. m is the generalised least-squares mean; s and l are the
most likely of a grid. Among twelve trials the lowest measured value is mostly the luckiest one;
the lowest posterior mean is not (benchmarks/round_c.py has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from universal_simulator.sweep.search import Box, Fact

#: in widths of the box
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: standard deviation of log nrmse over the box
SCALES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
#: noise that even a fixed seed leaves (of log nrmse)
LEAST_NOISE = 1e-3


def smoothed(box: Box, facts: Sequence[Fact], *, seed_cv: float | None) -> list[float | None]:
    """Posterior mean nrmse at every fact; None for one without a result.

    seed_cv None (noise not measured): the measured values as they are.
    """
    rows = [i for i, fact in enumerate(facts) if fact.objective is not None]
    out: list[float | None] = [fact.objective for fact in facts]
    if seed_cv is None or len(rows) < 3:
        return out
    points = np.array([[p.share(facts[i].values[p.key]) for p in box.parameters] for i in rows])
    logs = np.log([facts[i].objective or math.nan for i in rows])
    noise = math.log1p(seed_cv**2) + LEAST_NOISE**2
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    fits = [_fit(distances, logs, length, scale, noise) for length in LENGTHS for scale in SCALES]
    means = max(fits, key=lambda fit: fit[0])[1]
    for row, mean in zip(rows, means, strict=True):
        out[row] = math.exp(mean)
    return out


def _fit(
    distances: np.ndarray, logs: np.ndarray, length: float, scale: float, noise: float
) -> tuple[float, np.ndarray]:
    """(log likelihood, posterior mean at the data)."""
    r = math.sqrt(5) * distances / length
    kernel = scale**2 * (1 + r + r**2 / 3) * np.exp(-r)
    factor = np.linalg.cholesky(kernel + noise * np.eye(len(logs)))
    white, ones = np.linalg.solve(factor, logs), np.linalg.solve(factor, np.ones_like(logs))
    mean = float(white @ ones / (ones @ ones))
    residual = white - mean * ones
    likelihood = -0.5 * float(residual @ residual) - float(np.log(np.diag(factor)).sum())
    return likelihood, mean + kernel @ np.linalg.solve(factor.T, residual)
