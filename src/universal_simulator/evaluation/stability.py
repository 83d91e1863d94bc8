"""How long a rollout stays useful: correlation with the truth and the horizons."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.evaluation.accuracy import ENERGY_FLOOR, rms

#: a rollout is useful while the mean correlation stays at or above this
CORRELATION_FLOOR = 0.8
#: ... or, more strictly, while the mean nrmse stays at or below this
NRMSE_CEILING = 0.2


def correlation(predicted: Tensor, truth: Tensor, initial: Tensor) -> Tensor:
    """Pearson correlation over space, mean over channels, per sample and frame (B, T).

    Range [-1, 1], 1 is best; blind to amplitude and mean, hence easy for decaying fields.
    NaN rule: NaN (to be excluded) where the truth does not vary (fluctuation's rms below 1e-6 of
    the first frame's rms); 0 where it varies and the prediction does not, or is not finite.
    """
    y = truth - truth.mean(dim=-1, keepdim=True)
    p = predicted - predicted.mean(dim=-1, keepdim=True)
    varies = (rms(y) >= ENERGY_FLOOR * rms(initial)[:, None]) & (rms(y) > 0)
    size = rms(p) * rms(y)
    value = ((p * y).mean(dim=-1) / size).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    value = torch.where(varies, value.clamp(-1, 1), torch.full_like(value, torch.nan))
    return value.nanmean(dim=-1)


def horizon(curve: Tensor, threshold: float, *, falls_below: bool) -> tuple[int, bool]:
    """Rollout steps before `curve` (T,) first crosses the threshold, and whether it never does.

    Range 0..T, higher is better. Where it never crosses, the trajectory ended first: the value
    T is a lower bound (capped) and is written `>=`. A NaN entry counts as crossed.
    Source: the correlation time of Lippe et al. 2023, on the mean curve.
    """
    crossed = curve < threshold if falls_below else curve > threshold
    crossed = crossed | ~torch.isfinite(curve)
    if not bool(crossed.any()):
        return len(curve), True
    return int(crossed.nonzero()[0]), False
