"""Recalibration: one factor per lead time on the members' distances from their mean.

ensemble (B, M, T, C, X), truth (B, T, C, X) as in `uncertainty`, whose rules hold here too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.evaluation.uncertainty import (
    VALUES_AT_ONCE,
    broken_points,
    central_levels,
    ece_frames,
    frames_at_once,
    pooled,
    rank_counts,
    shares_covered,
    spread_and_error,
    spread_skill,
)

#: an ensemble whose spread is below this share of the field's rms has collapsed to round-off
COLLAPSED = 1e-6


@dataclass(frozen=True, eq=False)
class Recalibration:
    """One factor per lead time, (T,), on the members' distances from their mean.

    Repairs a spread that is too small or too large at a lead time; it cannot move spread to where
    the errors are. Fitted on calibration samples only; the raw metrics stand beside.
    """

    scale: Tensor

    @classmethod
    def fit(cls, ensemble: Tensor, truth: Tensor, *, smooth: int = 0) -> Recalibration:
        """The scale per lead time with the lowest ece, searched around that of spread-skill 1.

        ece, not spread-skill, because a few large errors lead the latter: under heavy tails its
        scale is too wide for most points. Three sweeps of 9 factors, from a range of 4 down to
        steps of 2 %. smooth averages log s over that many lead times to either side (fewer at
        the ends) against the noise of few samples. A lead time whose ensemble has collapsed
        (spread < 1e-6 rms) keeps its members, s = 1; one with a value that is not finite gets
        NaN.
        """
        scale = torch.cat([_best_scale(*chunk) for chunk in frames_at_once(ensemble, truth)])
        return cls(_smoothed(scale, smooth))

    @classmethod
    def fit_spread(cls, spread: Tensor, error: Tensor, *, smooth: int = 0) -> Recalibration:
        """The scale per lead time that makes `spread_skill` 1; arguments from `spread_and_error`.

        Cheap (no members), and what a Gaussian ensemble needs. Where spread or error is exactly
        0, s = 1.
        """
        still = (pooled(spread, None) == 0) | (pooled(error, None) == 0)
        scale = 1 / spread_skill(spread, error)
        return cls(_smoothed(torch.where(still, torch.ones_like(scale), scale), smooth))

    def seen_from_raw(self, mean: Tensor, truth: Tensor) -> Tensor:
        """y' = mean + (y - mean) / s_t, (B, T, C, X), float64; mean is the ensemble's.

        Order statistics keep their place under `apply`, so the truth has the same rank among the
        raw members at y' as at y among the recalibrated: coverage and rank histogram are those of
        (ensemble, y'), and the CRPS is s_t times theirs. No second ensemble is made.
        """
        if truth.shape[1] != len(self.scale):
            raise ValueError(f"{len(self.scale)} scales do not fit {truth.shape[1]} lead times")
        scale = self.scale.to(truth.device, torch.float64).reshape(-1, *[1] * (truth.ndim - 2))
        return mean.double() + (truth.double() - mean.double()) / scale

    def apply(self, ensemble: Tensor) -> Tensor:
        """mean + s_t (x - mean), (B, M, T, C, X), in float64.

        The mean of the result, rounded to the ensemble's dtype, is bit for bit `ensemble_mean`
        of the ensemble for float32 and below (where |mean| > 1e-7 max |x|), equal to round-off
        for float64: that is why the result is wider than its source. NaN and inf stay in their point.
        """
        if ensemble.shape[2] != len(self.scale):
            raise ValueError(f"{len(self.scale)} scales do not fit {ensemble.shape[2]} lead times")
        if ensemble.shape[1] < 2:
            raise ValueError(f"uncertainty needs at least 2 members, got {ensemble.shape[1]}")
        scale = self.scale.to(ensemble.device, torch.float64)
        out = ensemble.to(torch.float64, copy=True)
        # aimed at the rounded mean, the sum's round-off stays far from its rounding boundaries
        frames = max(1, VALUES_AT_ONCE // max(1, ensemble[:, :, :1].numel()))
        for part, factor in zip(out.split(frames, dim=2), scale.split(frames), strict=True):
            mean = part.mean(dim=1, keepdim=True)
            centre = mean.to(ensemble.dtype).double()
            part.sub_(mean).mul_(factor.reshape(-1, *[1] * (part.ndim - 3))).add_(centre)
        return out


def _smoothed(scale: Tensor, half_width: int) -> Tensor:
    if half_width == 0:
        return scale
    logs = torch.nn.functional.avg_pool1d(
        scale.log()[None, None], 2 * half_width + 1, stride=1, padding=half_width, count_include_pad=False
    )
    return logs[0, 0].exp()


def _best_scale(members: Tensor, truth: Tensor) -> Tensor:
    """The scale (T,) with the lowest ece of these frames."""
    levels = central_levels(members.shape[1]).to(members.device)
    spread, error = (v.mean(dim=0) for v in spread_and_error(members, truth))
    mean = members.mean(dim=1)
    energy = mean.square().transpose(0, 1).flatten(1).mean(dim=1)
    held = spread > COLLAPSED**2 * energy
    scale = torch.where(held & (error > 0), (error / spread).sqrt(), torch.ones_like(spread))
    distances = (members - mean[:, None]).movedim(1, -1).contiguous().sort(dim=-1).values
    misses, broken = (truth - mean)[..., None], broken_points(members, truth)
    # the middle first: where nothing changes (argmin takes the first) the scale stays
    steps = torch.tensor([0, -1, 1, -2, 2, -3, 3, -4, 4], dtype=torch.float64, device=members.device) / 4
    for reach in (math.log(4), math.log(4) / 4, math.log(4) / 16):
        tried = scale * (reach * steps).exp()[:, None]
        found = []
        for factors in tried:
            places = misses / factors.reshape(-1, *[1] * (misses.ndim - 2))
            below = torch.searchsorted(distances, places)[..., 0]
            up_to = torch.searchsorted(distances, places, right=True)[..., 0]
            counts = rank_counts(below, up_to, broken, members.shape[1])
            found.append(ece_frames(shares_covered(counts), levels))
        scale = tried.gather(0, torch.stack(found).argmin(dim=0, keepdim=True))[0]
    scale = torch.where(held, scale, torch.ones_like(scale))
    return torch.where(torch.isfinite(spread + error), scale, torch.full_like(scale, torch.nan))
