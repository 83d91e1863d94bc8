"""Accuracy of decoded fields in physical units.

p predicted, y truth, both (B, T, C, X) over the predicted frames; every result is one value
per sample, (B,), unless said otherwise. Nothing here averages over samples: the mean, its
interval and its median are taken over groups by `summary`. NaN and inf propagate, so that a
broken prediction can never look like a good one; only `nrmse_frames` replaces them, by 10.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Fields = Float[Tensor, "B T C X"]
PerSample = Float[Tensor, " B"]

#: a frame whose rms fell below this share of the first one has no scale to be relative to
ENERGY_FLOOR = 1e-6
#: value of a diverged sample, and the error beyond which it counts as one
DIVERGED = 10.0
#: PDEBench's bands of Fourier modes: low 0-3, mid 4-11, high from 12
BANDS: dict[str, tuple[int, int | None]] = {"low": (0, 4), "mid": (4, 12), "high": (12, None)}


def rms(values: Float[Tensor, "*S X"]) -> Float[Tensor, "*S"]:
    """sqrt(mean_x v^2), over the last axis."""
    return values.square().mean(dim=-1).sqrt()


def nrmse_frames(
    predicted: Fields, truth: Fields, initial: Float[Tensor, "B C X"]
) -> tuple[Float[Tensor, "B T C"], Bool[Tensor, "B T C"], Bool[Tensor, " B"]]:
    """sqrt(mean_x (p - y)^2) / sqrt(mean_x y^2) per sample, frame and channel.

    Returns (error (B, T, C), valid (B, T, C), diverged (B,)); initial is (B, C, X).
    Range: 0 is exact, 1 is what predicting zero scores, 10 is the ceiling; lower is better.
    Estimator: no epsilon, so it is exactly invariant under a common scale of p, y and initial.
    Bias: fields that decay raise it at equal absolute error; a few quiet trajectories lead the mean.
    NaN rule: frames with rms(y_t) < 1e-6 rms(y_0), or no energy at all, are not valid (to be
    excluded and counted); a sample with NaN, inf or an error above 10 is diverged and 10 everywhere.
    Source: PDEBench (Takamoto et al. 2022), normalised RMSE, per frame.
    """
    scale, start = rms(truth), rms(initial)[:, None]
    valid = (scale >= ENERGY_FLOOR * start) & (scale > 0)
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


def relative_l2(predicted: Fields, truth: Fields) -> PerSample:
    """||p - y|| / ||y||, Frobenius norms over the whole trajectory.

    Range [0, inf), lower is better. Bias: the energetic early frames weigh most, so it is
    usually below nrmse where fields decay. NaN where the truth is zero throughout. Source:
    the `rel_l2` of the neural operator literature (Li et al. 2021).
    """
    return (predicted - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def vrmse(predicted: Fields, truth: Fields) -> PerSample:
    """sqrt(mean (p - y)^2) / std(y) over the whole trajectory.

    Range [0, inf), lower is better; 1 is what the trajectory's own mean scores. Unlike nrmse
    it gives no credit for the mean. Standard deviation without Bessel's correction. Inf or NaN
    where the truth does not vary. Source: The Well (Ohana et al. 2024).
    """
    spread = truth.flatten(1).std(dim=1, correction=0)
    return (predicted - truth).flatten(1).square().mean(dim=1).sqrt() / spread


def rmse(predicted: Fields, truth: Fields) -> PerSample:
    """Mean over frames and channels of sqrt(mean_x (p - y)^2), in the field's unit.

    Range [0, inf), lower is better. Equals PDEBench's RMSE after the mean over samples.
    """
    return rms(predicted - truth).flatten(1).mean(dim=1)


def max_error(predicted: Fields, truth: Fields) -> PerSample:
    """max |p - y| over x, frames and channels, in the field's unit.

    Range [0, inf), lower is better. PDEBench takes the maximum over its batch as well:
    `pdebench_max_error`, which grows with the number of samples; this one does not.
    """
    return (predicted - truth).abs().flatten(1).amax(dim=1)


def rmse_boundary(predicted: Fields, truth: Fields) -> PerSample:
    """Mean over frames and channels of the rms error of the first and the last cell.

    Range [0, inf), field's unit, lower is better. Equals PDEBench's after the mean over samples.
    On a periodic domain the two cells are like all others: compare with rmse.
    """
    return rms((predicted - truth)[..., [0, -1]]).flatten(1).mean(dim=1)


def rmse_conserved(predicted: Fields, truth: Fields) -> PerSample:
    """Mean over frames and channels of |mean_x p - mean_x y|, in the field's unit.

    Range [0, inf), lower is better. PDEBench takes the root mean square over its batch instead
    of a mean over samples (`pdebench_rmse_conserved`), which is never smaller.
    """
    return (predicted - truth).mean(dim=-1).abs().flatten(1).mean(dim=1)


def rmse_fourier(predicted: Fields, truth: Fields) -> dict[str, PerSample]:
    """Per band, mean over modes, frames and channels of |FFT(p - y)| / X, each (B,).

    Modes of the real transform: low 0-3, mid 4-11, high from 12; field's unit; [0, inf), lower
    is better. PDEBench takes the root mean square over its batch before the mean over modes and
    multiplies by the domain's length (`pdebench_rmse_fourier_*`).
    """
    spectrum = torch.fft.rfft(predicted - truth, norm="forward").abs()
    return {name: spectrum[..., low:high].flatten(1).mean(dim=1) for name, (low, high) in BANDS.items()}


def relative_frames(error: Tensor, initial: Tensor, truth: Tensor) -> Tensor:
    """error (B, T), in the field's unit, over the rms of each frame of truth (B, T, C, X).

    The rms has a floor of a thousandth of that of initial (B, C, X): a field that has died does not decide.
    """
    rms = truth.square().mean(dim=(-2, -1)).sqrt()
    floor = 1e-3 * initial.square().mean(dim=(-2, -1)).sqrt()
    return error / torch.maximum(rms, floor[:, None])
