"""Accuracy on decoded fields in physical units. p predicted, y truth, both (B, T, C, X)."""

from __future__ import annotations

import torch
from torch import Tensor

#: a frame whose rms fell below this share of the first one has no scale to be relative to
ENERGY_FLOOR = 1e-6
#: value of a diverged sample, and the error beyond which it counts as one
DIVERGED = 10.0


def rms(values: Tensor) -> Tensor:
    """sqrt(mean_x v^2), over the last axis."""
    return values.square().mean(dim=-1).sqrt()


def nrmse_frames(predicted: Tensor, truth: Tensor, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sqrt(mean_x (p - y)^2) / sqrt(mean_x y^2) per sample, frame and channel.

    Returns (error (B, T, C), valid (B, T, C), diverged (B,)). Frames with
    rms(y_t) < 1e-6 rms(y_0) are not valid. A sample with NaN, inf or an error above 10
    anywhere is diverged and its error is 10 everywhere. No epsilon. Lower is better, 0 is
    exact; estimator of PDEBench's normalised RMSE (Takamoto et al. 2022, eq. 2) per frame.
    """
    scale, start = rms(truth), rms(initial)[:, None]
    valid = scale >= ENERGY_FLOOR * start
    error = rms(predicted - truth) / torch.where(valid, scale, torch.ones_like(scale))
    bad = ~torch.isfinite(error) | (error > DIVERGED)
    diverged = (bad & valid).flatten(1).any(dim=1) | ~torch.isfinite(predicted).flatten(1).all(dim=1)
    error = torch.where(diverged[:, None, None], torch.full_like(error, DIVERGED), error)
    return error, valid, diverged


def mean_valid(values: Tensor, valid: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Mean over the valid entries; NaN where there are none."""
    count = valid.sum(dim=dims)
    total = torch.where(valid, values, torch.zeros_like(values)).sum(dim=dims)
    return torch.where(count > 0, total / count.clamp_min(1), torch.full_like(total, torch.nan))


def relative_l2(predicted: Tensor, truth: Tensor) -> Tensor:
    """|p - y| / |y|, Frobenius norms over the whole trajectory, (B,)."""
    return (predicted - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def vrmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """rmse / standard deviation of the truth over the trajectory, (B,)."""
    spread = truth.flatten(1).std(dim=1, correction=0)
    return (predicted - truth).flatten(1).square().mean(dim=1).sqrt() / spread


def rmse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean over frames and channels of sqrt(mean_x (p - y)^2), (B,), unit of the field."""
    return rms(predicted - truth).flatten(1).mean(dim=1)


def max_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """max |p - y| over the trajectory, (B,), unit of the field."""
    return (predicted - truth).abs().flatten(1).amax(dim=1)


def rmse_boundary(predicted: Tensor, truth: Tensor) -> Tensor:
    """rms error over the first and last cell of the axis, (B,), unit of the field."""
    edges = (predicted - truth)[..., [0, -1]]
    return edges.flatten(1).square().mean(dim=1).sqrt()


def rmse_conserved(predicted: Tensor, truth: Tensor) -> Tensor:
    """rms over frames of the error of the spatial mean, (B,), unit of the field."""
    return (predicted - truth).mean(dim=-1).flatten(1).square().mean(dim=1).sqrt()


#: PDEBench's bands of Fourier modes: low 0-3, mid 4-11, high from 12
BANDS = {"low": (0, 4), "mid": (4, 12), "high": (12, None)}


def rmse_fourier(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """rms over modes of a band of |FFT(p - y)| / X, mean over frames, per band (B,)."""
    spectrum = torch.fft.rfft(predicted - truth, norm="forward").abs()
    return {
        name: spectrum[..., low:high].square().mean(dim=-1).sqrt().flatten(1).mean(dim=1)
        for name, (low, high) in BANDS.items()
    }


def correlation(predicted: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation over space per sample and frame, mean over channels, (B, T)."""
    p = predicted - predicted.mean(dim=-1, keepdim=True)
    y = truth - truth.mean(dim=-1, keepdim=True)
    scale = (p.square().sum(-1) * y.square().sum(-1)).sqrt()
    value = (p * y).sum(-1) / torch.where(scale > 0, scale, torch.ones_like(scale))
    return value.nan_to_num(0.0).mean(dim=-1)


def horizon(curve: Tensor, threshold: float, *, falls_below: bool) -> tuple[int, bool]:
    """Frames before `curve` (T,) first crosses the threshold; True if it never does (capped)."""
    crossed = curve < threshold if falls_below else curve > threshold
    crossed = crossed | ~torch.isfinite(curve)
    if not bool(crossed.any()):
        return len(curve), True
    return int(crossed.nonzero()[0]), False
