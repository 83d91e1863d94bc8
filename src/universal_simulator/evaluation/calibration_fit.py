"""Fits what a model's ensembles need to be read rightly, on one half of the calibration split only."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.errors import DataError, LeakageError, UserError
from universal_simulator.evaluation.contract import EnsemblePredictor
from universal_simulator.evaluation.ensemble import guard_members, rollout_members, rows_at_once
from universal_simulator.evaluation.recalibration import Recalibration
from universal_simulator.evaluation.uncertainty import best_constant_width, ensemble_mean
from universal_simulator.model.calibration import Calibration, CalibrationEntry

#: members' values of a regime that are held for the fit (256 MiB in float32): every k-th cell beyond
HELD_VALUES = 64 * 1024**2
#: lead times to either side over which log scales are averaged against the noise of few samples
SMOOTH = 2


def fit_calibration(
    predictor: EnsemblePredictor,
    truth: Trajectories,
    dataset: Dataset,
    *,
    first_frame: int = 0,
    batch_size: int = 64,
    noise_seed: int = 0,
    smooth: int = SMOOTH,
    on_batch: Callable[[int, int], None] | None = None,
) -> Calibration:
    """One scale per regime and lead time, and the constant width that CRPS skill is measured against.

    truth: `dataset.load("calibration_uncertainty", ...)`, or a part of it, with the frames that will
    be evaluated; first_frame is its first one in the file. Trajectories of any other split, or of
    the half kept for learned rewards, are a LeakageError. Scales have the lowest ece of guarded
    members (`Recalibration.fit`). A regime whose members are not all finite is a DataError: an
    ensemble that diverges on calibration data is not calibrated by leaving those out.
    """
    if predictor.members < 2:
        raise UserError("a deterministic predictor has no spread to calibrate")
    _refuse_others(truth, dataset)
    scales, widths, done = [], [], 0
    for label, rows in truth.regimes().items():
        regime = truth.subset(rows)
        members, held_truth = [], []
        stride = _stride(predictor.members, regime)
        size = min(batch_size, rows_at_once(predictor.members, regime))
        for start in range(0, len(regime), size):
            batch = regime.subset(torch.arange(start, min(start + size, len(regime))))
            raw = rollout_members(predictor, batch, seed=noise_seed)
            members.append(guard_members(predictor, raw, batch.fields[:, 0])[..., ::stride].clone())
            held_truth.append(batch.fields[:, 1:, :, ::stride])
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(truth))
        scale, width = _fitted(label, torch.cat(members), torch.cat(held_truth), smooth)
        scales.append(scale)
        widths.append(width)
    entry = CalibrationEntry(
        regimes=tuple(truth.regimes()),
        members=predictor.members,
        first_frame=first_frame,
        spacing_s=truth.frame_spacing_s,
        steps=truth.fields.shape[1] - 1,
        groups=tuple(sorted({group[:GROUP_DIGITS] for group in truth.groups})),
    )
    return Calibration(entry, torch.stack(scales), torch.stack(widths))


def _fitted(label: str, ensemble: Tensor, truth: Tensor, smooth: int) -> tuple[Tensor, Tensor]:
    finite = torch.isfinite(ensemble).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise DataError(
            f"{label}: members of {int((~finite).sum())} of {len(finite)} calibration trajectories are not "
            "finite; the model diverges there, train it longer or more carefully before calibrating it"
        )
    scale = Recalibration.fit(ensemble, truth, smooth=smooth).scale
    return scale, best_constant_width(ensemble_mean(ensemble), truth)


def _stride(members: int, regime: Trajectories) -> int:
    return math.ceil(members * regime.fields[:, 1:].numel() / HELD_VALUES)


def _refuse_others(truth: Trajectories, dataset: Dataset) -> None:
    half = CALIBRATION_HALVES[0]
    allowed = {dataset.groups[row] for row in dataset.rows(half)}
    others = set(truth.groups) - allowed
    if others:
        raise LeakageError(
            f"{dataset.path}: {len(others)} of {len(set(truth.groups))} initial conditions given for "
            f"recalibration lie outside its half of the calibration split; load {half!r}"
        )
