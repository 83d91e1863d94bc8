"""Small ensembles, and their scores by loops: the oracles of the vectorised ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

B, M, T, C, X = 3, 5, 4, 2, 6


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draws(seed), dtype=torch.float64)


def tiny(members: int = M, *, ties: bool = False) -> tuple[Tensor, Tensor]:
    ensemble, truth = normal(0, B, members, T, C, X), normal(1, B, T, C, X)
    return ((2 * ensemble).round() / 2, (2 * truth).round() / 2) if ties else (ensemble, truth)


def perfect(
    seed: int, members: int, *, samples: int = 32, frames: int = 4, points: int = 64, uneven: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Members and a truth that is one of them, of a width that varies from point to point, and that width."""
    width = 0.1 + 2 * torch.rand(samples, frames, 1, points, generator=draws(seed), dtype=torch.float64) ** 2
    if not uneven:
        width = torch.ones_like(width)
    noise = normal(seed + 1, samples, members + 1, frames, 1, points)
    everyone = normal(seed + 2, samples, 1, frames, 1, points) + width[:, None] * noise
    return everyone[:, 1:], everyone[:, 0], width


def each(ensemble: Tensor, truth: Tensor) -> list[tuple[tuple[int, ...], list[float], float]]:
    x, y = ensemble.numpy(), truth.numpy()
    return [((b, t), list(x[b, :, t, c, i]), float(y[b, t, c, i])) for b, t, c, i in np.ndindex(y.shape)]


def per_frame(ensemble: Tensor, truth: Tensor, point: Callable[[list[float], float], float]) -> np.ndarray:
    """mean over (C, X) of a function of one point's members and truth, (B, T)."""
    out = np.zeros(truth.shape[:2])
    for place, members, true in each(ensemble, truth):
        out[place] += point(members, true) / (C * X)
    return out


def fair_crps_by_hand(members: list[float], true: float) -> float:
    n = len(members)
    pairs = sum(abs(a - b) for a in members for b in members)
    return sum(abs(a - true) for a in members) / n - pairs / (2 * n * (n - 1))


def variance_by_hand(members: list[float], _true: float = 0.0) -> float:
    mean = sum(members) / len(members)
    return sum((a - mean) ** 2 for a in members) / (len(members) - 1)


def square_by_hand(members: list[float], true: float) -> float:
    return (sum(members) / len(members) - true) ** 2
