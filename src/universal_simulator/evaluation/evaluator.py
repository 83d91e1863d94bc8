"""One evaluation: a predictor under a protocol -> one result row per parameter regime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation import accuracy, conservation
from universal_simulator.evaluation.bootstrap import mean_interval
from universal_simulator.evaluation.references import Rows, best_trivial
from universal_simulator.physics.invariants import pde_residual
from universal_simulator.run_record import Metric, RegimeResult

ECE_REASON = "needs the stochastic stages, which are not part of this plan yet"
#: every k-th frame of the truth is reconstructed and stepped from
PROBE_STRIDE = 10


class FieldPredictor(TypingProtocol):
    """What the evaluator asks of a model; fields physical, (B, [T,] C, X)."""

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor: ...
    def guard(self, fields: Tensor, initial: Tensor) -> Tensor: ...
    def step(self, fields: Tensor, parameters: Tensor) -> Tensor: ...
    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor: ...
    def boundary_query(self, fields: Tensor, parameters: Tensor, distance: float) -> Tensor: ...


class Evaluator:
    """Holds the truth of one protocol; frame 0 of the truth is what predictors are given."""

    def __init__(
        self,
        truth: Trajectories,
        references: Rows,
        *,
        batch_size: int,
        bootstrap_samples: int,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.truth = truth
        self.references = references
        self.batch_size = batch_size
        self.bootstrap_samples = bootstrap_samples
        self.on_batch = on_batch

    def run(self, predictor: FieldPredictor) -> tuple[dict[str, RegimeResult], dict[str, Tensor]]:
        """(regime -> result, regime -> guarded prediction (B, T, C, X))."""
        results, pictures = {}, {}
        regimes = self.truth.regimes()
        total, done = len(self.truth), 0
        for label, rows in regimes.items():
            part = self.truth.subset(rows)
            chunks = []
            for start in range(0, len(part), self.batch_size):
                chosen = torch.arange(start, min(start + self.batch_size, len(part)))
                batch = part.subset(chosen)
                chunks.append(
                    predictor.rollout(batch.fields[:, 0], batch.parameters, batch.fields.shape[1] - 1)
                )
                done += len(chosen)
                if self.on_batch is not None:
                    self.on_batch(done, total)
            raw = torch.cat(chunks)
            guarded = predictor.guard(raw, part.fields[:, 0])
            results[label] = self._regime(label, part, raw, guarded, predictor)
            pictures[label] = guarded
        return results, pictures

    def _regime(
        self, label: str, part: Trajectories, raw: Tensor, guarded: Tensor, predictor: FieldPredictor
    ) -> RegimeResult:
        initial, truth = part.fields[:, 0], part.fields[:, 1:]
        error, valid, diverged = accuracy.nrmse_frames(guarded, truth, initial)
        raw_error, raw_valid, _ = accuracy.nrmse_frames(raw, truth, initial)
        per_sample = accuracy.mean_valid(error, valid, dims=(1, 2))
        per_frame = accuracy.mean_valid(error, valid, dims=(0, 2))
        correlation = accuracy.correlation(guarded, truth).mean(dim=0)
        trivial_name, trivial_value = best_trivial(self.references[label])
        metrics = {
            "nrmse": self._interval(per_sample),
            "nrmse_raw": self._interval(accuracy.mean_valid(raw_error, raw_valid, dims=(1, 2))),
            "nrmse_median": Metric(value=_finite(per_sample.median())),
            "nrmse_p95": Metric(value=_finite(per_sample.quantile(0.95))),
            "failure_rate": Metric(value=_finite(diverged.float().mean())),
            "excluded_frames": Metric(value=_finite((~valid).float().mean()), better="none"),
            "trivial_ratio": Metric(
                value=_finite(per_sample.mean() / trivial_value), reason=f"against {trivial_name}"
            ),
            "ece": Metric(value=None, applicable=False, reason=ECE_REASON),
        }
        metrics |= self._horizons(correlation, per_frame)
        metrics |= self._plain(guarded, truth, part)
        metrics |= self._physics(part, raw, guarded, predictor)
        metrics |= self._probes(part, predictor)
        for k in (1, 10, 50):
            if k <= len(per_frame):
                metrics[f"nrmse_at_{k}"] = Metric(value=_finite(per_frame[k - 1]))
        return RegimeResult(
            parameters={
                spec.name: float(value)
                for spec, value in zip(part.equation.parameters, part.parameters[0], strict=True)
            },
            metrics=metrics,
            groups=part.groups,
            per_group={"nrmse": tuple(float(v) for v in per_sample)},
            curves={
                "nrmse": tuple(_finite(v) for v in per_frame),
                "correlation": tuple(_finite(v) for v in correlation),
            },
        )

    def _interval(self, per_sample: Tensor, unit: str = "1") -> Metric:
        values = per_sample.double().numpy()
        if not np.isfinite(values).all():
            return Metric(value=None, unit=unit, reason="not finite")
        low, high = mean_interval(values, samples=self.bootstrap_samples)
        return Metric(value=float(values.mean()), unit=unit, low=low, high=high)

    def _horizons(self, correlation: Tensor, per_frame: Tensor) -> dict[str, Metric]:
        steps, capped = accuracy.horizon(correlation, 0.8, falls_below=True)
        steps20, capped20 = accuracy.horizon(per_frame, 0.2, falls_below=False)
        return {
            "horizon": Metric(value=steps, unit="steps", better="higher", reason=_at_least(capped)),
            "horizon_nrmse20": Metric(
                value=steps20, unit="steps", better="higher", reason=_at_least(capped20)
            ),
        }

    def _plain(self, guarded: Tensor, truth: Tensor, part: Trajectories) -> dict[str, Metric]:
        unit = part.equation.fields[0].unit
        out = {
            "rel_l2": Metric(value=_finite(accuracy.relative_l2(guarded, truth).mean())),
            "vrmse": Metric(value=_finite(accuracy.vrmse(guarded, truth).mean())),
            "rmse": Metric(value=_finite(accuracy.rmse(guarded, truth).mean()), unit=unit),
            "max_error": Metric(value=_finite(accuracy.max_error(guarded, truth).mean()), unit=unit),
            "rmse_boundary": Metric(value=_finite(accuracy.rmse_boundary(guarded, truth).mean()), unit=unit),
            "rmse_conserved": Metric(
                value=_finite(accuracy.rmse_conserved(guarded, truth).mean()), unit=unit
            ),
            "spectrum_error": Metric(value=_finite(conservation.spectrum_error(guarded, truth).mean())),
        }
        for band, value in accuracy.rmse_fourier(guarded, truth).items():
            out[f"rmse_fourier_{band}"] = Metric(value=_finite(value.mean()), unit=unit)
        return out

    def _physics(
        self, part: Trajectories, raw: Tensor, guarded: Tensor, predictor: FieldPredictor
    ) -> dict[str, Metric]:
        initial, equation, grid = part.fields[:, 0], part.equation, part.grid
        out: dict[str, Metric] = {}
        for name, fields in (
            ("conservation_gap", raw),
            ("conservation_gap_guarded", guarded),
            ("conservation_gap_reference", part.fields[:, 1:]),
        ):
            gap = conservation.conservation_gap(fields, initial, grid, equation)
            if gap is None:
                out[name] = _undeclared(f"{equation.name} declares nothing conserved")
            else:
                out[name] = self._interval(gap)
        for name, value in conservation.dissipation_violation(guarded, initial, grid, equation).items():
            out[f"dissipation_violation_{name}"] = Metric(value=_finite(value.mean()))
        if equation.boundary.value == "periodic":
            # a quarter of a cell: above float32 round-off of the difference, below the curvature
            distance = 0.25 * grid.spacing[0]
            seam = predictor.boundary_query(initial, part.parameters, distance)
            violation = conservation.boundary_violation(seam, distance, initial, grid)
            out["bc_violation"] = self._interval(violation)
        else:
            out["bc_violation"] = _undeclared(f"{equation.name} declares no boundary condition")
        residual = pde_residual(guarded, part.parameters, part.frame_spacing_s, grid, equation)
        out["pde_residual"] = (
            _undeclared(f"no residual is written for {equation.name}")
            if residual is None
            else Metric(value=_finite(residual.mean()))
        )
        return out

    def _probes(self, part: Trajectories, predictor: FieldPredictor) -> dict[str, Metric]:
        """One-step error from true frames and the codec's floor, on every tenth frame."""
        frames = part.fields[:, :-1:PROBE_STRIDE]
        following = part.fields[:, 1::PROBE_STRIDE][:, : frames.shape[1]]
        count = frames.shape[1]
        parameters = part.parameters.repeat_interleave(count, 0)
        stepped = predictor.step(frames.flatten(0, 1), parameters).unflatten(0, (-1, count))
        rebuilt = predictor.reconstruct(frames.flatten(0, 1), parameters).unflatten(0, (-1, count))
        initial = part.fields[:, 0]
        out = {}
        for name, values, target in (
            ("nrmse_step", stepped, following),
            ("reconstruction", rebuilt, frames),
        ):
            error, valid, _ = accuracy.nrmse_frames(values, target, initial)
            out[name] = Metric(value=_finite(accuracy.mean_valid(error, valid, dims=(0, 1, 2))))
        return out


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _undeclared(reason: str) -> Metric:
    return Metric(value=None, applicable=False, reason=reason)


def _at_least(capped: bool) -> str:
    return ">= (the trajectory ends here)" if capped else ""
