"""One regime's measurements -> its result: metrics with intervals, groups, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.bootstrap import group_means
from universal_simulator.evaluation.ensemble import EnsembleMeasurement
from universal_simulator.evaluation.ensemble_metrics import (
    ensemble_metrics,
    gain_over_operator,
    late_gain_and_curves,
)
from universal_simulator.evaluation.measurement import Measurement
from universal_simulator.evaluation.paired_draws import ece_draws
from universal_simulator.evaluation.pdebench_metrics import pdebench_metrics
from universal_simulator.evaluation.stability import CORRELATION_FLOOR, NRMSE_CEILING, horizon
from universal_simulator.evaluation.summary import Summary, undeclared
from universal_simulator.evaluation.trivial import best_trivial
from universal_simulator.model.calibration import RegimeCalibration
from universal_simulator.physics.domain import BoundaryCondition
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.invariants import RESIDUALS
from universal_simulator.run_record import Metric, RegimeResult

ECE_REASON = "the predictor is deterministic: it has no members whose spread could be calibrated"
#: rollout steps at which the error is also quoted
QUOTED_STEPS = (1, 10, 50)
#: compared in pairs, or drawn, group by group
PER_GROUP = ("nrmse", "nrmse_raw", "nrmse_operator", "conservation_gap")
#: NaN means "not defined on this trajectory" (no energy left), not "broken"
MAY_BE_UNDEFINED = (
    "nrmse",
    "nrmse_raw",
    "nrmse_step",
    "nrmse_operator",
    "nrmse_point",
    "nrmse_ensemble_mean",
    "reconstruction",
    "spectrum_error",
)


def regime_result(
    part: Trajectories,
    measured: Measurement,
    predicted: Tensor,
    *,
    references: Mapping[str, Mapping[str, Metric]],
    bootstrap_samples: int,
    ensemble: EnsembleMeasurement | None = None,
    calibration: RegimeCalibration | None = None,
    why_uncalibrated: str = "",
) -> RegimeResult:
    """part: the regime's trajectories; predicted (B, T, C, X): guarded, in the same order; ensemble:
    of a stochastic predictor, on the same trajectories."""
    # what is wholly without energy has no relative error: excluded, counted and shown
    defined = ~measured.per_sample["nrmse"].isnan()
    kept = [group for group, keep in zip(part.groups, defined.tolist(), strict=True) if keep]
    unit = part.equation.fields[0].unit
    summary = Summary(part.groups, field_unit=unit, bootstrap_samples=bootstrap_samples)
    metrics = _means(summary, measured.per_sample) | _undeclared(part.equation)
    metrics["excluded_groups"] = summary.number("excluded_groups", len(set(part.groups)) - len(set(kept)))
    nrmse = measured.per_sample["nrmse"][defined]
    metrics |= _spread(summary, nrmse) | _stability(summary, measured.per_frame)
    metrics["trivial_ratio"] = _trivial_ratio(summary, metrics["nrmse"], references)
    pooled = pdebench_metrics(predicted, part.fields[:, 1:], length=part.grid.lengths[0])
    metrics |= {name: summary.number(name, value) for name, value in pooled.items()}
    curves = _curves(measured.per_frame)
    if ensemble is None:
        metrics["ece"] = undeclared("ece", ECE_REASON)
    else:
        uncertain, lines = ensemble_metrics(
            summary, ensemble, calibration=calibration, why_uncalibrated=why_uncalibrated
        )
        metrics |= uncertain
        curves |= lines
        share = 0.0 if calibration is None else calibration.centre
        metrics["point_operator_share"] = summary.number("point_operator_share", share)
        for name, ours in (("point_gain", "nrmse_point"), ("ensemble_gain", "nrmse_ensemble_mean")):
            metrics[name] = gain_over_operator(
                summary, measured.per_sample[ours], measured.per_sample["nrmse_operator"], name=name
            )
        metrics["point_gain_late"], lines = late_gain_and_curves(
            summary, measured.per_frame["nrmse_point"], measured.per_frame["nrmse_operator"]
        )
        curves |= lines
    per_group = {
        name: _per_group(measured.per_sample[name][defined], kept)
        for name in PER_GROUP
        if name in measured.per_sample
    }
    return RegimeResult(
        parameters=_parameters(part),
        metrics=dict(sorted(metrics.items())),
        groups=tuple(dict.fromkeys(kept)),
        per_group={name: values for name, values in per_group.items() if values is not None},
        curves=curves,
        draws={} if ensemble is None else ece_draws(part.groups, ensemble),
    )


def _means(summary: Summary, per_sample: Mapping[str, Tensor]) -> dict[str, Metric]:
    """Mean and interval of everything; the data's own value stands in the reason of what has one."""
    out = {}
    for name, values in per_sample.items():
        if name.endswith(" reference"):
            continue
        own = per_sample.get(f"{name} reference")
        reason = "" if own is None else f"the reference data itself: {float(own.mean()):.3g}"
        out[name] = summary.mean(name, values, reason=reason, exclude_nan=name.startswith(MAY_BE_UNDEFINED))
    return out


def _spread(summary: Summary, nrmse: Tensor) -> dict[str, Metric]:
    if not len(nrmse):
        return {name: summary.number(name, None) for name in ("nrmse_median", "nrmse_p95")}
    return {
        "nrmse_median": summary.number("nrmse_median", float(nrmse.double().quantile(0.5))),
        "nrmse_p95": summary.number("nrmse_p95", float(nrmse.double().quantile(0.95))),
    }


def _stability(summary: Summary, per_frame: Mapping[str, Tensor]) -> dict[str, Metric]:
    """Horizons of the mean curves; where no trajectory defines a frame the curve has ended."""
    error, likeness = per_frame["nrmse"].nanmean(dim=0), per_frame["correlation"].nanmean(dim=0)
    out = {
        f"nrmse@{step}": summary.mean(f"nrmse@{step}", per_frame["nrmse"][:, step - 1], exclude_nan=True)
        for step in QUOTED_STEPS
        if step <= len(error)
    }
    for name, curve, threshold, falls in (
        ("horizon", likeness, CORRELATION_FLOOR, True),
        ("horizon_nrmse20", error, NRMSE_CEILING, False),
    ):
        curve = curve[: _defined_length(curve)]
        steps, capped = horizon(curve, threshold, falls_below=falls)
        reason = f">= {steps}: the trajectory ends before it is reached" if capped else ""
        out[name] = summary.number(name, float(steps), reason=reason)
    return out


def _defined_length(curve: Tensor) -> int:
    """Frames up to the last one that any trajectory defines."""
    defined = torch.isfinite(curve).nonzero()
    return int(defined[-1]) + 1 if len(defined) else 0


def _trivial_ratio(summary: Summary, nrmse: Metric, references: Mapping[str, Mapping[str, Metric]]) -> Metric:
    name, value = best_trivial(references)
    if nrmse.value is None or not value > 0:
        return summary.number(
            "trivial_ratio", None, reason=f"best trivial predictor: {name}, nrmse {value:g}"
        )
    ratio = summary.number(
        "trivial_ratio", nrmse.value / value, reason=f"against {name.replace('_', ' ')}, {value:.4g}"
    )
    if nrmse.low is None or nrmse.high is None:
        return ratio
    return ratio.model_copy(update={"low": nrmse.low / value, "high": nrmse.high / value})


def _undeclared(equation: Equation) -> dict[str, Metric]:
    """What this equation does not declare: not applicable, with the reason."""
    out = {}
    if not equation.conserved:
        reason = f"{equation.name} declares nothing conserved"
        for name in ("conservation_gap", "conservation_gap_guarded", "conservation_gap_reference"):
            out[name] = undeclared(name, reason)
    if not equation.dissipated:
        reason = f"{equation.name} declares nothing that may only decrease"
        out["dissipation_violation_energy"] = undeclared("dissipation_violation_energy", reason)
    if equation.boundary is not BoundaryCondition.PERIODIC:
        out["bc_violation"] = undeclared("bc_violation", f"{equation.name} declares no boundary condition")
    if equation.name not in RESIDUALS:
        out["pde_residual"] = undeclared("pde_residual", f"no residual is written for {equation.name}")
    return out


def _per_group(values: Tensor, groups: list[str]) -> tuple[float, ...] | None:
    """One value per group; None where any is not finite (the metric is then missing as well)."""
    if not bool(torch.isfinite(values).all()) or not groups:
        return None
    return tuple(float(v) for v in group_means(values.double().cpu().numpy(), groups)[1])


def _parameters(part: Trajectories) -> dict[str, float]:
    """Short decimals as they were given, not as float32 holds them; of a bin of values the median."""
    pairs = zip(part.equation.parameters, part.parameters.median(dim=0).values.tolist(), strict=True)
    return {spec.name: float(f"{value:.6g}") for spec, value in pairs}


def _curves(per_frame: Mapping[str, Tensor]) -> dict[str, tuple[float | None, ...]]:
    nrmse = per_frame["nrmse"].double()
    curves = {
        "nrmse": nrmse.nanmean(dim=0),
        "nrmse_median": nrmse.nanquantile(0.5, dim=0),
        "nrmse_p95": nrmse.nanquantile(0.95, dim=0),
        "correlation": per_frame["correlation"].nanmean(dim=0),
        "nrmse_persistence": per_frame["persistence"].nanmean(dim=0),
    }
    if "nrmse_ensemble_mean" in per_frame:
        curves["nrmse_ensemble_mean"] = per_frame["nrmse_ensemble_mean"].double().nanmean(dim=0)
    return {
        name: tuple(v if math.isfinite(v) else None for v in curve.tolist()) for name, curve in curves.items()
    }
