"""PDEBench's own estimators where its code differs from the plain definition.

Its code pools samples before it averages frames: a root mean square, or a maximum, over the
batch. So these are one number per set of samples, depend on how many there are and have no
interval over groups. They exist to stand beside published tables; the plain ones decide.
Source: Takamoto et al. 2022, the published evaluation code (1-D branch).
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.evaluation.accuracy import BANDS

#: frames transformed together: bounds the memory of the spectra
FRAMES_AT_ONCE = 10


def pdebench_metrics(predicted: Tensor, truth: Tensor, *, length: float) -> dict[str, float]:
    """All pooled estimators of p and y (B, T, C, X); NaN wherever a prediction is not finite.

    max_error: max over samples and x, then mean over frames and channels.
    rmse_conserved: rms over samples of the error of mean_x u, then mean over frames and channels.
    rmse_fourier_*: rms over samples of |FFT(p - y)| / X times the length, then mean over the
    band's modes, frames and channels.
    """
    found: dict[str, list[Tensor]] = {}
    for start in range(0, truth.shape[1], FRAMES_AT_ONCE):
        frames = slice(start, start + FRAMES_AT_ONCE)
        for name, value in _per_frame((predicted[:, frames] - truth[:, frames]).double(), length).items():
            found.setdefault(name, []).append(value)
    return {name: float(torch.cat(parts).mean()) for name, parts in found.items()}


def _per_frame(error: Tensor, length: float) -> dict[str, Tensor]:
    """name -> (T, C) of errors (B, T, C, X)."""
    spectrum = torch.fft.rfft(error, norm="forward").abs().square().mean(dim=0).sqrt() * length
    return {
        "pdebench_max_error": error.abs().amax(dim=(0, -1)),
        "pdebench_rmse_conserved": error.mean(dim=-1).square().mean(dim=0).sqrt(),
    } | {
        f"pdebench_rmse_fourier_{name}": spectrum[..., low:high].mean(dim=-1)
        for name, (low, high) in BANDS.items()
    }
