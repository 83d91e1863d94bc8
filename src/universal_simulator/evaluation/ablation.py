"""Predictors compared on the same trajectories: what each part is worth, and whether it only added capacity.

An answer keeps its errors per trajectory and lead time, so that any two are compared in pairs, over
all seeds together, over any part of the rollout:

    gain = 1 - mean_{s, b, t} e_ours / mean_{s, b, t} e_theirs

s: seeds, b: groups of initial conditions, t: lead times. The interval resamples groups, the same for
both and for all seeds; what seeds alone do is listed beside. CRPS counts relative to each frame's
rms, as nrmse does; a single answer's is its mean absolute error. It is that of the raw members: fair
CRPS takes the sampling noise of their mean out, which a centre moved to the operator does not have, so
recalibrated it would be up to 1 / (2 M) too low.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from universal_simulator.data.batch import Trajectories
from universal_simulator.device import synchronise
from universal_simulator.errors import UserError
from universal_simulator.evaluation.accuracy import relative_frames
from universal_simulator.evaluation.contract import FieldPredictor, stochastic
from universal_simulator.evaluation.ensemble import (
    EnsembleRules,
    bins_stride,
    joined_ensembles,
    rollout_members,
    rows_at_once,
    sample,
)
from universal_simulator.evaluation.ensemble_metrics import Curves, Pooling, ensemble_metrics
from universal_simulator.evaluation.measurement import nrmse_of
from universal_simulator.evaluation.summary import Summary
from universal_simulator.run_record import Metric

Error = Literal["nrmse", "nrmse_raw", "crps"]
Verdict = Literal["better", "worse", "indistinguishable", "not evaluable"]


@dataclass(frozen=True)
class Answer:
    """One predictor, one regime, one seed.

    nrmse, nrmse_raw, crps (B, T): of the recalibrated centre or the single answer; of the members' own
    mean; of the members as they are. metrics, curves: of the ensemble (`ensemble_metrics`). seconds,
    flops: per trajectory.
    """

    nrmse: Tensor
    nrmse_raw: Tensor
    crps: Tensor
    metrics: Mapping[str, Metric]
    curves: Curves
    seconds: float
    flops: float

    def __post_init__(self) -> None:
        if not self.nrmse.shape == self.nrmse_raw.shape == self.crps.shape or self.nrmse.ndim != 2:
            raise ValueError(
                f"errors must be (B, T), got {tuple(self.nrmse.shape)} and {tuple(self.crps.shape)}"
            )


def answer(
    predictor: FieldPredictor,
    regime: Trajectories,
    label: str,
    *,
    rules: EnsembleRules,
    batch_size: int,
    bootstrap_samples: int,
) -> Answer:
    """What a predictor says of one regime's trajectories, all of one length and one label."""
    sampler = stochastic(predictor)
    size = batch_size if sampler is None else min(batch_size, rows_at_once(sampler.members, regime))
    nrmse, nrmse_raw, crps, measured, seconds = [], [], [], [], 0.0
    for start in range(0, len(regime), size):
        batch = regime.subset(torch.arange(start, min(start + size, len(regime))))
        started = time.perf_counter()
        raw = predictor.rollout(batch.fields[:, 0], batch.parameters, batch.fields.shape[1] - 1)
        synchronise(raw.device)
        alone_s = time.perf_counter() - started
        guarded = mean = predictor.guard(raw, batch.fields[:, 0], batch.parameters)
        if sampler is None:
            seconds += alone_s
            score = (guarded - batch.fields[:, 1:]).abs().double().mean(dim=(-2, -1))
        else:
            calibration = rules.calibrations.get(label)
            found = sample(
                sampler,
                batch,
                seed=rules.noise_seed,
                calibration=calibration,
                x_stride=bins_stride(regime),
                operator=(raw, guarded),
            )
            guarded, mean, score = found.guarded, found.mean, found.measured.pieces["crps_raw"]
            measured.append(found.measured)
            # a centre between mean and operator needs the operator's rollout too
            seconds += found.seconds + (alone_s if calibration is not None and calibration.centre else 0.0)
        nrmse.append(nrmse_of(batch, guarded)[1].double())
        nrmse_raw.append(nrmse_of(batch, mean)[1].double())
        whole = batch.fields.double()
        crps.append(relative_frames(score.double(), whole[:, 0], whole[:, 1:]))
    metrics: dict[str, Metric] = {}
    curves: Curves = {}
    if measured:
        metrics, curves = ensemble_metrics(
            Summary(
                regime.groups,
                field_unit=regime.equation.fields[0].unit,
                bootstrap_samples=bootstrap_samples,
            ),
            joined_ensembles(measured),
            calibration=rules.calibrations.get(label),
            why_uncalibrated=rules.why_uncalibrated(label),
        )
    return Answer(
        torch.cat(nrmse),
        torch.cat(nrmse_raw),
        torch.cat(crps),
        metrics,
        curves,
        seconds / len(regime),
        inference_flops(predictor, regime),
    )


def inference_flops(predictor: FieldPredictor, regime: Trajectories) -> float:
    """Floating-point operations of one trajectory's rollout, of all members where it samples."""
    one, sampler = regime.subset(torch.tensor([0])), stochastic(predictor)
    with FlopCounterMode(display=False) as counter:
        if sampler is None:
            predictor.rollout(one.fields[:, 0], one.parameters, one.fields.shape[1] - 1)
        else:
            rollout_members(sampler, one, seed=0)
    return float(counter.get_total_flops())


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
    known = ~(mine.isnan() | other.isnan())
    mine, other = (torch.where(known, v, torch.zeros_like(v)).flatten(1).sum(dim=1) for v in (mine, other))

    def gain(weights: Tensor) -> Tensor:
        return 1 - (weights @ mine) / (weights @ other)

    pooled = Pooling(groups, samples=samples)(gain)
    value, low, high = (float(v) for v in (pooled.value, pooled.low, pooled.high))
    if not torch.isfinite(torch.tensor(value)):
        return Metric(
            value=None, better="higher", reason="not finite: an answer broke or there is nothing to save"
        )
    interval = {} if low != low or high != high else {"low": low, "high": high}
    return Metric(value=value, better="higher", **interval)  # type: ignore[arg-type] # floats by name


def verdict(gain: Metric) -> Verdict:
    """Better or worse where the interval excludes zero."""
    if gain.value is None or gain.low is None or gain.high is None:
        return "not evaluable"
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "indistinguishable"
