"""Predictors compared on the same trajectories: what each part is worth, and whether it only added capacity.

An answer keeps its errors per trajectory and lead time, so that any two are compared in pairs, over
all seeds together, over any part of the rollout:

    gain = 1 - mean_{s, b, t} e_ours / mean_{s, b, t} e_theirs

s: seeds, b: groups of initial conditions, t: lead times. The interval resamples groups, the same for
both and for all seeds; what seeds alone do is listed beside. CRPS counts relative to each frame's
rms, as nrmse does: of an ensemble as its members are (`crps`) and recalibrated, both about their own mean;
of a point forecast its mean absolute error, or, dressed (`dressing.py`), that of its Gaussian. What is said
of a distribution's worth is said against the dressed ones: a bare point loses to any width.

`horizon` counts rollout steps before the mean correlation falls below .8, and is compared in pairs too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.device import synchronise
from universal_simulator.errors import UserError
from universal_simulator.evaluation.accuracy import relative_frames
from universal_simulator.evaluation.contract import FieldPredictor, stochastic
from universal_simulator.evaluation.dressing import Dressing
from universal_simulator.evaluation.ensemble import (
    EnsembleMeasurement,
    EnsembleRules,
    bins_stride,
    joined_ensembles,
    rollout_members,
    rows_at_once,
    sample,
)
from universal_simulator.evaluation.ensemble_metrics import Curves, Pooled, Pooling, ensemble_metrics
from universal_simulator.evaluation.measurement import nrmse_of
from universal_simulator.evaluation.stability import CORRELATION_FLOOR, correlation
from universal_simulator.evaluation.summary import Summary
from universal_simulator.inference.counting import OperationCounter
from universal_simulator.run_record import Metric

Error = Literal["nrmse", "nrmse_mean", "crps", "crps_recalibrated"]
Likeness = Literal["correlation", "correlation_mean"]
#: of an answer, per trajectory and lead time
PER_FRAME = ("nrmse", "nrmse_mean", "crps", "crps_recalibrated", "correlation", "correlation_mean")
Verdict = Literal["better", "worse", "indistinguishable", "not evaluable"]


@dataclass(frozen=True)
class Answer:
    """One predictor, one regime, one seed.

    All (B, T). nrmse, correlation: of the point forecast, an ensemble's or the single answer; nrmse_mean,
    correlation_mean: of the members' own mean; crps, crps_recalibrated: of the members as they are and
    about the same mean under their scale. Of what has no members each pair is equal.
    metrics, curves: of the ensemble (`ensemble_metrics`). seconds, flops: per trajectory.
    """

    nrmse: Tensor
    nrmse_mean: Tensor
    crps: Tensor
    crps_recalibrated: Tensor
    correlation: Tensor
    correlation_mean: Tensor
    metrics: Mapping[str, Metric]
    curves: Curves
    seconds: float
    flops: float

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in PER_FRAME}
        if len(set(shapes.values())) > 1 or self.nrmse.ndim != 2:
            raise ValueError(f"what is kept per trajectory and lead time must be (B, T) alike, got {shapes}")


def answer(
    predictor: FieldPredictor,
    regime: Trajectories,
    label: str,
    *,
    rules: EnsembleRules,
    batch_size: int,
    bootstrap_samples: int,
    dressing: Dressing | None = None,
) -> Answer:
    """What a predictor says of one regime's trajectories, all of one length and one label.

    dressing: the width of a predictor without members; without one its CRPS is its mean absolute error.
    """
    sampler = stochastic(predictor)
    size = batch_size if sampler is None else min(batch_size, rows_at_once(sampler.members, regime))
    calibration = rules.calibrations.get(label)
    kept: dict[str, list[Tensor]] = {name: [] for name in PER_FRAME}
    measured, seconds = [], 0.0
    for start in range(0, len(regime), size):
        batch = regime.subset(torch.arange(start, min(start + size, len(regime))))
        started = time.perf_counter()
        raw = predictor.rollout(batch.fields[:, 0], batch.parameters, batch.fields.shape[1] - 1)
        synchronise(raw.device)
        alone_s = time.perf_counter() - started
        point = mean = predictor.guard(raw, batch.fields[:, 0], batch.parameters)
        if sampler is None:
            seconds += alone_s
            score = recalibrated = _point_crps(point, batch.fields[:, 1:], dressing)
        else:
            found = sample(
                sampler,
                batch,
                seed=rules.noise_seed,
                calibration=calibration,
                x_stride=bins_stride(regime),
                operator=(raw, point),
            )
            point, mean = found.guarded, found.mean
            score, recalibrated = (found.measured.pieces[name] for name in ("crps_raw", "crps"))
            measured.append(found.measured)
            # a point between mean and operator needs the operator's rollout too
            seconds += found.seconds + (alone_s if calibration is not None and calibration.centre else 0.0)
        for name, values in _errors(batch, point, mean, score, recalibrated).items():
            kept[name].append(values.double())
    metrics, curves = _of_members(measured, regime, label, rules, bootstrap_samples)
    return Answer(
        **{name: torch.cat(parts) for name, parts in kept.items()},
        metrics=metrics,
        curves=curves,
        seconds=seconds / len(regime),
        flops=inference_flops(predictor, regime),
    )


def _of_members(
    measured: list[EnsembleMeasurement],
    regime: Trajectories,
    label: str,
    rules: EnsembleRules,
    bootstrap_samples: int,
) -> tuple[dict[str, Metric], Curves]:
    """Metrics and curves of an ensemble from its batches; empty of what has no members."""
    if not measured:
        return {}, {}
    return ensemble_metrics(
        Summary(
            regime.groups,
            field_unit=regime.equation.fields[0].unit,
            bootstrap_samples=bootstrap_samples,
        ),
        joined_ensembles(measured),
        calibration=rules.calibrations.get(label),
        why_uncalibrated=rules.why_uncalibrated(label),
    )


def _point_crps(point: Tensor, truth: Tensor, dressing: Dressing | None) -> Tensor:
    if dressing is None:
        return (point - truth).abs().double().mean(dim=(-2, -1))
    return dressing.crps(point, truth)


def _errors(
    batch: Trajectories, point: Tensor, mean: Tensor, score: Tensor, recalibrated: Tensor
) -> dict[str, Tensor]:
    """PER_FRAME of one batch; point, mean (B, T, C, X); score, recalibrated (B, T): CRPS in the field's unit."""
    whole = batch.fields.double()
    initial, truth = whole[:, 0], whole[:, 1:]
    return {
        "nrmse": nrmse_of(batch, point)[1],
        "nrmse_mean": nrmse_of(batch, mean)[1],
        "crps": relative_frames(score.double(), initial, truth),
        "crps_recalibrated": relative_frames(recalibrated.double(), initial, truth),
        "correlation": correlation(point.double(), truth, initial),
        "correlation_mean": correlation(mean.double(), truth, initial),
    }


def inference_flops(predictor: FieldPredictor, regime: Trajectories) -> float:
    """Floating-point operations of one trajectory's rollout, of all members where it samples."""
    one, sampler = regime.subset(torch.tensor([0])), stochastic(predictor)
    with OperationCounter() as counter:
        if sampler is None:
            predictor.rollout(one.fields[:, 0], one.parameters, one.fields.shape[1] - 1)
        else:
            rollout_members(sampler, one, seed=0)
    return float(counter.total)


def paired_gain(
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    groups: Sequence[str],
    *,
    of: Error,
    frames: slice = slice(None),
    samples: int,
) -> Metric:
    """Share of their error that ours saves over `frames`, pooled over seeds; interval over groups.

    ours, theirs: one answer per seed, of the same trajectories; groups: of each. What either does
    not define at a lead time is left out of both.
    """
    mine, other = _paired(ours, theirs, groups, of=of, frames=frames)
    known = ~(mine.isnan() | other.isnan())
    mine, other = (torch.where(known, v, torch.zeros_like(v)).flatten(1).sum(dim=1) for v in (mine, other))

    def gain(weights: Tensor) -> Tensor:
        return 1 - (weights @ mine) / (weights @ other)

    return _metric(Pooling(groups, samples=samples)(gain), "an answer broke or there is nothing to save")


def kept_share(
    zero: Sequence[Answer],
    ours: Sequence[Answer],
    whole: Sequence[Answer],
    groups: Sequence[str],
    *,
    of: Error,
    samples: int,
) -> Metric:
    """(e_zero - e_ours) / (e_zero - e_whole), pooled over seeds: what ours keeps of the whole's gain."""
    start, mine = _paired(zero, ours, groups, of=of, frames=slice(None))
    _, best = _paired(zero, whole, groups, of=of, frames=slice(None))
    known = ~(start.isnan() | mine.isnan() | best.isnan())
    start, mine, best = (
        torch.where(known, v, torch.zeros_like(v)).flatten(1).sum(dim=1) for v in (start, mine, best)
    )

    def share(weights: Tensor) -> Tensor:
        return (weights @ (start - mine)) / (weights @ (start - best))

    return _metric(Pooling(groups, samples=samples)(share), "an answer broke or there is nothing to keep")


def horizon_of(
    answers: Sequence[Answer], groups: Sequence[str], *, of: Likeness = "correlation", samples: int
) -> Metric:
    """Rollout steps before the mean correlation falls below .8, mean over seeds; interval over groups.

    At most the trajectory's length, which the reason then tells for one seed at least.
    """
    curves = torch.stack([getattr(answer, of) for answer in answers], dim=1)
    found = _metric(Pooling(groups, samples=samples)(lambda w: _horizons(curves, w)), "an answer broke")
    steps = curves.shape[2]
    each = [_horizons(curves[:, [seed]], torch.ones(1, len(curves))) for seed in range(curves.shape[1])]
    if any(float(one) == steps for one in each):
        found = found.model_copy(update={"reason": f">=: a trajectory of {steps} steps ends before"})
    return found.model_copy(update={"unit": "steps"})


def paired_horizon(
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    groups: Sequence[str],
    *,
    of: Likeness = "correlation",
    samples: int,
) -> Metric:
    """Steps that ours stays useful for longer than theirs, mean over seeds; interval over groups, paired."""
    mine, other = _paired(ours, theirs, groups, of=of, frames=slice(None))
    pooled = Pooling(groups, samples=samples)(lambda w: _horizons(mine, w) - _horizons(other, w))
    return _metric(pooled, "an answer broke").model_copy(update={"unit": "steps"})


def _horizons(curves: Tensor, weights: Tensor) -> Tensor:
    """Of correlations (B, S, T) under weights (R, B): steps before a seed's mean curve falls below the
    floor, mean over seeds, (R,). What a trajectory does not define is left out of its mean; a lead time that
    none defines crosses nothing."""
    known = ~curves.isnan()
    values = torch.where(known, curves, torch.zeros_like(curves))
    weights = weights.to(values)
    mean = torch.einsum("rb,bst->rst", weights, values) / torch.einsum(
        "rb,bst->rst", weights, known.to(values)
    )
    crossed = mean < CORRELATION_FLOOR
    first = torch.where(crossed.any(dim=-1), crossed.int().argmax(dim=-1), curves.shape[2])
    return first.double().mean(dim=1)


def _paired(
    ours: Sequence[Answer], theirs: Sequence[Answer], groups: Sequence[str], *, of: str, frames: slice
) -> tuple[Tensor, Tensor]:
    """Both sides' values, (trajectories, seeds, lead times)."""
    if len(ours) != len(theirs) or not ours:
        raise UserError(
            f"{len(ours)} answers cannot be paired with {len(theirs)}: give one of each for every seed"
        )
    mine, other = (torch.stack([getattr(a, of)[:, frames] for a in side], dim=1) for side in (ours, theirs))
    if mine.shape != other.shape or len(mine) != len(groups):
        raise UserError(
            f"answers of {tuple(mine.shape)} and {tuple(other.shape)} (trajectories, seeds, lead times) "
            f"to {len(groups)} trajectories: compare answers to the same question"
        )
    return mine, other


def _metric(pooled: Pooled, why_not: str) -> Metric:
    value, low, high = (float(v) for v in (pooled.value, pooled.low, pooled.high))
    if not math.isfinite(value):
        return Metric(value=None, better="higher", reason=f"not finite: {why_not}")
    if math.isnan(low) or math.isnan(high):
        return Metric(value=value, better="higher")
    return Metric(value=value, better="higher", low=low, high=high)


def verdict(gain: Metric) -> Verdict:
    """Better or worse where the interval excludes zero."""
    if gain.value is None or gain.low is None or gain.high is None:
        return "not evaluable"
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "indistinguishable"
