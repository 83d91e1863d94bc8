"""Rollouts as NetCDF files, of one rollout or of an ensemble with its quantiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from universal_simulator.assessment import Subject, refuse_members, subject_of
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import open_dataset
from universal_simulator.errors import UserError
from universal_simulator.evaluation.contract import EnsemblePredictor, stochastic
from universal_simulator.evaluation.ensemble import EnsembleRules, guard_members
from universal_simulator.evaluation.recalibration import Recalibration
from universal_simulator.evaluation.refusals import refuse_foreign
from universal_simulator.evaluation.uncertainty import ensemble_mean
from universal_simulator.inference.ensemble import predictor_of
from universal_simulator.model.surrogate import hash_of

#: probabilities of the quantiles that stand beside the members
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Variables = dict[str, Any]


@dataclass(frozen=True)
class RolloutRequest:
    """Trajectories index .. index + count - 1 of a data file, `steps` model steps from frame 0.

    members: above 1, an ensemble of a model that can sample; seed: of its noise.
    """

    steps: int
    index: int = 0
    count: int = 1
    parameter: float | None = None
    members: int = 1
    seed: int = 0


def rollout_to_file(path: Path, data_file: Path, out: Path, request: RolloutRequest) -> None:
    """Write NetCDF: dimensions trajectory, [member,] time, x; names and units.

    Of an ensemble the field holds the members, recalibrated where the model was calibrated for
    such rollouts (the attribute `recalibrated` says so), beside their `FIELD_mean`, `FIELD_quantile`
    (quantile, trajectory, time, x), and the point forecast `FIELD_point`, which lies between mean and
    operator where calibration data put it there. Time 0 is the given frame.
    """
    import xarray

    if out.suffix != ".nc":
        raise UserError(f"--out {out}: the file is NetCDF, end its name in .nc")
    subject = subject_of(path)
    surrogate = subject.surrogate
    first = _first_frames(subject, data_file, request)
    predictor = predictor_of(surrogate, subject.guards, members=request.members)
    refuse_members(predictor, request.members)
    sampler = stochastic(predictor)
    attributes: dict[str, Any] = {}
    if sampler is None:
        initial = first.fields[:, 0]
        raw = predictor.rollout(initial, first.parameters, request.steps)
        fields = predictor.guard(raw, initial, first.parameters)
        variables = _single(first, torch.cat([initial[:, None], fields], dim=1))
    else:
        variables, attributes = _ensemble(subject, sampler, first, request)
    for column, spec in enumerate(surrogate.equation.parameters):
        variables[spec.name] = (("trajectory",), first.parameters[:, column].numpy(), {"units": spec.unit})
    times = torch.arange(request.steps + 1, dtype=torch.float64).numpy() * surrogate.architecture.dt_s
    coordinates: Variables = {
        "time": ("time", times, {"units": "s"}),
        "x": ("x", first.grid.coordinates().numpy(), {"units": "m"}),
    }
    if sampler is not None:
        coordinates["quantile"] = ("quantile", np.array(QUANTILES))
    xarray.Dataset(
        variables,
        coords=coordinates,
        attrs={
            "model_hash": hash_of(surrogate),
            "equation": surrogate.equation.name,
            "guards": " ".join(predictor.guards.names),
            **attributes,
        },
    ).to_netcdf(out, engine="h5netcdf")


def quantiles(members: Tensor) -> np.ndarray:
    """(B, M, ...) -> (Q, B, ...) at plotting positions k / (M + 1), as `ece` reads an ensemble.

    The k-th smallest of M exchangeable members is exceeded by the truth with probability
    1 - k / (M + 1); probabilities beyond the outermost take the outermost member.
    """
    return np.quantile(members.numpy(), QUANTILES, axis=1, method="weibull").astype(np.float32)


def _first_frames(subject: Subject, data_file: Path, request: RolloutRequest) -> Trajectories:
    dataset = open_dataset(data_file, parameter=request.parameter)
    refuse_foreign(subject.surrogate, dataset)
    first = dataset.load("all", num_frames=2)
    index, count = request.index, request.count
    if index + count > len(first):
        raise UserError(
            f"{data_file} holds {len(first)} trajectories, asked for {index} to {index + count - 1}"
        )
    return first.subset(torch.arange(index, index + count))


def _single(first: Trajectories, whole: Tensor) -> Variables:
    """whole (B, T + 1, C, X), the given frame first."""
    return {
        spec.name: (("trajectory", "time", "x"), whole[:, :, channel].numpy(), {"units": spec.unit})
        for channel, spec in enumerate(first.equation.fields)
    }


def _ensemble(
    subject: Subject, sampler: EnsemblePredictor, first: Trajectories, request: RolloutRequest
) -> tuple[Variables, dict[str, Any]]:
    initial = first.fields[:, 0]
    raw = sampler.rollout_members(initial, first.parameters, request.steps, seed=request.seed)
    members = guard_members(sampler, raw, initial, first.parameters)
    mean = torch.cat([initial[:, None], ensemble_mean(members)], dim=1)
    point, members, reasons = _recalibrated(subject, sampler, first, members)
    given = initial[:, None, None].expand(-1, members.shape[1], -1, -1, -1)
    whole = torch.cat([given, members], dim=2)
    point = torch.cat([initial[:, None], point], dim=1)
    found = quantiles(whole)
    variables: Variables = {}
    for channel, spec in enumerate(first.equation.fields):
        units = {"units": spec.unit}
        variables[spec.name] = (("trajectory", "member", "time", "x"), whole[:, :, :, channel].numpy(), units)
        for name, single in (("mean", mean), ("point", point)):
            values = single[:, :, channel].numpy()
            variables[f"{spec.name}_{name}"] = (("trajectory", "time", "x"), values, units)
        variables[f"{spec.name}_quantile"] = (
            ("quantile", "trajectory", "time", "x"),
            found[:, :, :, channel],
            units,
        )
    return variables, {"noise_seed": request.seed, "recalibrated": reasons or "yes"}


def _recalibrated(
    subject: Subject, sampler: EnsemblePredictor, first: Trajectories, members: Tensor
) -> tuple[Tensor, Tensor, str]:
    """Their regime's point forecast, members (B, M, T, C, X) under its scales, and why where it has none.

    The operator is only rolled out where it has a share in the point forecast.
    """
    rules = EnsembleRules.of(
        first,
        subject.surrogate.calibration,
        first_frame=0,
        steps=members.shape[2],
        spacing_s=subject.surrogate.architecture.dt_s,
    )
    mean = ensemble_mean(members)
    points, out, reasons = mean.clone(), members.clone(), []
    for label, rows in first.regimes().items():
        calibration = rules.calibrations.get(label)
        if calibration is None:
            reasons.append(f"{label}: {rules.why_uncalibrated(label)}")
        else:
            scale = calibration.at(members.shape[1]).scale
            out[rows] = Recalibration(scale).apply(members[rows]).to(members)
            if calibration.centre:
                initial = first.fields[rows, 0]
                alone = sampler.rollout(initial, first.parameters[rows], members.shape[2])
                points[rows] = calibration.centred(
                    mean[rows], sampler.guard(alone, initial, first.parameters[rows])
                )
    return points, out, "; ".join(reasons)
