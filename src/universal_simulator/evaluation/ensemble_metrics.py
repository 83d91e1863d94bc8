"""Measured ensembles of one regime -> metrics and curves, each with its interval over groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.evaluation import uncertainty
from universal_simulator.evaluation.bootstrap import resample_weights
from universal_simulator.evaluation.ensemble import EnsembleMeasurement
from universal_simulator.evaluation.summary import Summary
from universal_simulator.model.calibration import RegimeCalibration
from universal_simulator.run_record import Metric

#: bins of predicted spread
BINS = 5
LEVEL = 0.95

Curves = dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Pooled:
    """An estimate over groups (...) and its 95 % percentile interval, low and high alike."""

    value: Tensor
    low: Tensor
    high: Tensor

    def rows(self, name: str) -> Curves:
        """The curve and its interval under `name`, `name_low`, `name_high`."""
        parts = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: _finite(values) for key, values in parts.items()}


class Pooling:
    """Pools per-sample pieces over groups, as they are and resampled."""

    def __init__(self, groups: Sequence[str], *, samples: int) -> None:
        self.weights = torch.from_numpy(resample_weights(groups, samples=samples))
        #: with one group there is nothing to resample
        self.resampled = len(set(groups)) > 1

    def __call__(self, estimate: Callable[[Tensor], Tensor], *, unbias: bool = False) -> Pooled:
        """estimate: weights (S, B) -> (S, ...). Percentile interval over the resamples.

        unbias: for estimates that noise can only raise (a mean of absolute values), which every
        resample raises once more: the interval is moved back by the mean excess, not below 0.
        """
        found = estimate(self.weights)
        value, draws = found[0], found[1:]
        if not self.resampled:
            return Pooled(value, torch.full_like(value, torch.nan), torch.full_like(value, torch.nan))
        quantiles = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=draws.dtype)
        low, high = torch.quantile(draws, quantiles, dim=0)
        if unbias:
            excess = (draws.mean(dim=0) - value).clamp_min(0)
            low = torch.minimum((low - excess).clamp_min(0), value)
            high = torch.maximum(high - excess, value)
        return Pooled(value, low, high)


def ensemble_metrics(
    summary: Summary,
    measured: EnsembleMeasurement,
    *,
    calibration: RegimeCalibration | None,
    why_uncalibrated: str,
) -> tuple[dict[str, Metric], Curves]:
    """Metrics with intervals, and curves per lead time, level, rank and bin.

    Without a calibration the recalibrated figures are the raw ones and say so, and crps_skill is
    missing: it has nothing to be compared with.
    """
    pieces = measured.pieces
    pool = Pooling(summary.groups, samples=summary.bootstrap_samples)
    metrics: dict[str, Metric] = {}
    curves: Curves = {"coverage_level": _finite(uncertainty.central_levels(measured.members))}
    for suffix in ("", "_raw"):
        reason = why_uncalibrated if calibration is None and not suffix else ""
        for found in (
            _calibration(pool, pieces, suffix, measured.members),
            _scores(pool, pieces, suffix),
            _spread(pool, pieces, suffix),
        ):
            scalars, lines = found
            metrics |= {
                name: _metric(summary, name, pooled, pieces["crps_raw"], reason)
                for name, pooled in scalars.items()
            }
            curves |= lines
        if "crps_constant" not in pieces:
            name = f"crps_skill{suffix}"
            metrics[name] = summary.number(name, None, reason=why_uncalibrated)
    if "first" in pieces:
        scale = None if calibration is None else calibration.at(measured.members).scale
        curves |= _bins(pool, pieces, None, measured.members).rows("spread_skill_binned_raw")
        binned = _bins(pool, pieces, scale, measured.members)
        curves |= binned.rows("spread_skill_binned")
        for name, place in (("lowest", binned.value.argmin()), ("highest", binned.value.argmax())):
            key = f"spread_skill_{name}_bin"
            one = Pooled(binned.value[place], binned.low[place], binned.high[place])
            metrics[key] = _metric(summary, key, one, pieces["crps_raw"], "")
    return metrics, curves


def late_gain_and_curves(summary: Summary, nrmse: Tensor, operator: Tensor) -> tuple[Metric, Curves]:
    """Of the point forecast's nrmse per frame (B, T): the gain over the second half of the rollout, and curves.

    Per lead time `nrmse_point` and `nrmse_operator` on the same trajectories, and the paired gain
    `point_gain` = 1 - mean nrmse / mean nrmse_operator with its interval; what a trajectory does
    not define at a lead time is left out of both.
    """
    known = (~(nrmse.isnan() | operator.isnan())).double()
    ours, alone = (values.double().nan_to_num(nan=0.0) * known for values in (nrmse, operator))

    def gain(weights: Tensor) -> Tensor:
        weights = weights.to(ours)
        return 1 - (weights @ ours) / (weights @ alone)

    count = known.sum(dim=0)
    curves = {
        "nrmse_point": _finite(ours.sum(dim=0) / count),
        "nrmse_operator": _finite(alone.sum(dim=0) / count),
    }
    pool = Pooling(summary.groups, samples=summary.bootstrap_samples)
    late = slice(nrmse.shape[1] // 2, None)
    metric = gain_over_operator(
        summary, nrmse[:, late].nanmean(dim=1), operator[:, late].nanmean(dim=1), name="point_gain_late"
    )
    return metric, curves | pool(gain).rows("point_gain")


def gain_over_operator(summary: Summary, nrmse: Tensor, operator: Tensor, *, name: str) -> Metric:
    """1 - mean nrmse / mean nrmse_operator over the trajectories (B,) that define both, paired."""
    kept = ~(nrmse.isnan() | operator.isnan())
    groups = [group for group, keep in zip(summary.groups, kept.tolist(), strict=True) if keep]
    if not groups:
        return summary.number(name, None, reason="no trajectory defines it")
    pair = torch.stack([nrmse[kept], operator[kept]], dim=1)

    def estimate(weights: Tensor) -> Tensor:
        ours, alone = uncertainty.pooled(pair, weights).unbind(-1)
        return 1 - ours / alone

    pooled = Pooling(groups, samples=summary.bootstrap_samples)(estimate)
    return _metric(summary, name, pooled, pair, "")


Found = tuple[dict[str, Pooled], Curves]


def _calibration(pool: Pooling, pieces: Mapping[str, Tensor], suffix: str, members: int) -> Found:
    covered, levels = pieces[f"coverage{suffix}"], uncertainty.central_levels(members)
    scalar = pool(lambda w: uncertainty.ece(covered, levels, w), unbias=True)
    frames = pool(lambda w: uncertainty.ece_frames(covered, levels, w), unbias=True)
    mean = pool(lambda w: uncertainty.pooled(covered.mean(dim=1), w))
    ranks = pieces[f"ranks{suffix}"]
    shares = pool(lambda w: uncertainty.pooled(ranks / ranks.sum(dim=1, keepdim=True), w))
    curves = frames.rows(f"ece{suffix}") | mean.rows(f"coverage{suffix}")
    return {f"ece{suffix}": scalar}, curves | shares.rows(f"rank_histogram{suffix}")


def _scores(pool: Pooling, pieces: Mapping[str, Tensor], suffix: str) -> Found:
    crps, width = pieces[f"crps{suffix}"], pieces[f"sharpness{suffix}"]
    scalars = {
        f"crps_fair{suffix}": pool(lambda w: uncertainty.pooled(crps.mean(dim=1), w)),
        f"sharpness{suffix}": pool(lambda w: uncertainty.pooled(width.mean(dim=1), w)),
    }
    curves = pool(lambda w: uncertainty.pooled(crps, w)).rows(f"crps_fair{suffix}")
    if "crps_constant" in pieces:
        reference = pieces["crps_constant"]
        scalars[f"crps_skill{suffix}"] = pool(
            lambda w: uncertainty.crps_skill(crps.mean(dim=1), reference.mean(dim=1), w)
        )
        curves |= pool(lambda w: uncertainty.crps_skill(crps, reference, w)).rows(f"crps_skill{suffix}")
    return scalars, curves


def _spread(pool: Pooling, pieces: Mapping[str, Tensor], suffix: str) -> Found:
    spread, error = pieces[f"spread{suffix}"], pieces["error"]
    name = f"spread_skill{suffix}"
    scalar = pool(lambda w: uncertainty.spread_skill(spread.mean(dim=1), error.mean(dim=1), w))
    return {name: scalar}, pool(lambda w: uncertainty.spread_skill(spread, error, w)).rows(name)


def _bins(pool: Pooling, pieces: Mapping[str, Tensor], scale: Tensor | None, members: int) -> Pooled:
    """Spread over error per bin; recalibrated where there is a scale: it multiplies variances by its square."""
    factor = 1.0 if scale is None else scale.to(pieces["first"].device).square().reshape(-1, 1, 1)
    spread, error = uncertainty.bin_spread(
        pieces["first"].double() * factor,
        pieces["second"].double() * factor,
        pieces["squares"],
        members=members,
        bins=BINS,
    )
    return pool(lambda w: uncertainty.spread_skill(spread, error, w))


def _metric(summary: Summary, name: str, pooled: Pooled, per_sample: Tensor, reason: str) -> Metric:
    """Missing where a member or the truth is not finite: nothing is averaged away."""
    value, low, high = (float(v) for v in (pooled.value, pooled.low, pooled.high))
    if not math.isfinite(value):
        broken = int((~torch.isfinite(per_sample).flatten(1).all(dim=1)).sum())
        where = f" on {broken} of {len(per_sample)} trajectories" if broken else ""
        return summary.number(name, None, reason=f"not finite{where}")
    metric = summary.number(name, value, reason=reason)
    known = math.isfinite(low) and math.isfinite(high)
    return metric.model_copy(update={"low": low, "high": high}) if known else metric


def _finite(values: Tensor) -> tuple[float | None, ...]:
    return tuple(v if math.isfinite(v) else None for v in values.double().flatten().tolist())
