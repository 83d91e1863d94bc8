"""One evaluation: a predictor under a protocol -> one result per parameter regime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.device import synchronise
from universal_simulator.errors import UserError
from universal_simulator.evaluation import accuracy, protocols
from universal_simulator.evaluation.contract import EnsemblePredictor, FieldPredictor, stochastic
from universal_simulator.evaluation.ensemble import (
    EnsembleMeasurement,
    EnsembleRules,
    bins_stride,
    joined_ensembles,
    refuse_batch_dependence,
    rows_at_once,
    sample,
)
from universal_simulator.evaluation.measurement import (
    Measurement,
    joined_measurements,
    measure,
    nrmse_of,
    spectrum_frames,
)
from universal_simulator.evaluation.probes import probe
from universal_simulator.evaluation.references import Rows
from universal_simulator.evaluation.regime import regime_result
from universal_simulator.run_record import EvaluationResult, Predictor, Protocol, RegimeResult


@dataclass(frozen=True)
class Examples:
    """What the pictures of one regime are drawn from: a median, a p95 and the worst trajectory.

    rows: of the whole truth. predicted (3, T, C, X), guarded. spectra: truth and prediction,
    mean over trajectories, (F, K) at the predicted frames `frames`. members (3, m, F, C, X): some
    guarded members at those frames, of a stochastic predictor.
    """

    names: tuple[str, ...]
    rows: Tensor
    nrmse: tuple[float, ...]
    predicted: Tensor
    frames: tuple[int, ...]
    spectra: dict[str, Tensor]
    members: Tensor | None = None
    #: the same of those trajectories that ensembles were asked for, where these are not all
    sampled: Examples | None = None


@dataclass(frozen=True)
class _Part:
    """One batch, measured; guarded (B, T, C, X)."""

    measured: Measurement
    guarded: Tensor
    ensemble: EnsembleMeasurement | None
    seconds: float

    def to(self, device: torch.device) -> _Part:
        ensemble = None if self.ensemble is None else self.ensemble.to(device)
        return _Part(self.measured.to(device), self.guarded.to(device), ensemble, self.seconds)


class Evaluator:
    """Holds the truth of one protocol; frame 0 of the truth is what predictors are given.

    references: rows, or who makes them, asked when the first regime has been rolled out.
    """

    def __init__(
        self,
        truth: Trajectories,
        references: Rows | Callable[[], Rows],
        *,
        batch_size: int,
        bootstrap_samples: int,
        on_batch: Callable[[int, int], None] | None = None,
        ensemble: EnsembleRules | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.truth = truth
        self.references = references
        self.batch_size = batch_size
        self.bootstrap_samples = bootstrap_samples
        self.on_batch = on_batch
        self.rules = ensemble or EnsembleRules()
        #: where batches are rolled out and measured; what is kept of them comes back to the truth's
        self.device = torch.device(device)
        #: regime -> seconds per trajectory of the last rollout: an observation, not a result
        self.rollout_s: dict[str, float] = {}

    def run(self, predictor: FieldPredictor) -> tuple[dict[str, RegimeResult], dict[str, Examples]]:
        """(regime -> result, regime -> what its pictures show).

        Where the rules limit ensembles to some initial conditions, every deterministic figure is of
        the whole truth and the ensembles' own figures are of those, and say so.
        """
        sampler, limit = stochastic(predictor), self.rules.groups
        if sampler is None or limit is None:
            return self._run(self.truth, predictor, sampler)
        results, examples = self._run(self.truth, predictor, None)
        rows = self.truth.rows_of_first_groups(limit)
        sampled, shown = self._run(self.truth.subset(rows), predictor, sampler)
        return (
            {label: with_ensembles(result, sampled[label], limit) for label, result in results.items()},
            {
                label: replace(one, sampled=replace(shown[label], rows=rows[shown[label].rows]))
                for label, one in examples.items()
            },
        )

    def _run(
        self, truth: Trajectories, predictor: FieldPredictor, sampler: EnsemblePredictor | None
    ) -> tuple[dict[str, RegimeResult], dict[str, Examples]]:
        results, examples, done = {}, {}, 0
        for label, rows in truth.regimes().items():
            regime = truth.subset(rows)
            parts: list[_Part] = []
            for batch in self._batches(regime, sampler):
                if sampler is not None and not done:
                    refuse_batch_dependence(sampler, batch, seed=self.rules.noise_seed)
                parts.append(self._measure(predictor, sampler, batch, label, bins_stride(regime)))
                done += len(batch)
                if self.on_batch is not None:
                    self.on_batch(done, len(truth))
            self.rollout_s[label] = sum(part.seconds for part in parts) / len(rows)
            measured = joined_measurements([part.measured for part in parts])
            predicted = torch.cat([part.guarded for part in parts])
            ensembles = [part.ensemble for part in parts if part.ensemble is not None]
            ensemble = joined_ensembles(ensembles) if ensembles else None
            results[label] = regime_result(
                regime,
                measured,
                predicted,
                references=self._rows().get(label, {}),
                bootstrap_samples=self.bootstrap_samples,
                ensemble=ensemble,
                calibration=self.rules.calibrations.get(label),
                why_uncalibrated=self.rules.why_uncalibrated(label),
            )
            examples[label] = _examples(rows, measured, predicted, ensemble)
        return results, examples

    def _rows(self) -> Rows:
        return self.references() if callable(self.references) else self.references

    def _measure(
        self,
        predictor: FieldPredictor,
        sampler: EnsemblePredictor | None,
        batch: Trajectories,
        label: str,
        x_stride: int,
    ) -> _Part:
        """The headline's fields, measured; of a stochastic predictor its members and operator too."""
        started = time.perf_counter()
        raw = _rollout(predictor, batch)
        synchronise(self.device)
        seconds = time.perf_counter() - started
        guarded = predictor.guard(raw, batch.fields[:, 0], batch.parameters)
        per_sample, ensemble = probe(predictor, batch), None
        per_frame: dict[str, Tensor] = {}
        if sampler is not None:
            sampled = sample(
                sampler,
                batch,
                seed=self.rules.noise_seed,
                calibration=self.rules.calibrations.get(label),
                x_stride=x_stride,
                operator=(raw, guarded),
            )
            ensemble = sampled.measured
            per_sample |= sampled.per_sample
            answers = {
                "nrmse_operator": guarded,
                "nrmse_point": sampled.guarded,
                "nrmse_ensemble_mean": sampled.mean,
            }
            for name, answer in answers.items():
                per_sample[name], per_frame[name] = nrmse_of(batch, answer)
            if self.rules.headline == "ensemble_mean":
                raw, guarded, seconds = sampled.raw, sampled.guarded, sampled.seconds
        measured = measure(batch, raw, guarded)
        measured = replace(
            measured,
            per_sample=measured.per_sample | per_sample,
            per_frame=measured.per_frame | per_frame,
        )
        return _Part(measured, guarded, ensemble, seconds).to(self.truth.fields.device)

    def _batches(self, part: Trajectories, sampler: EnsemblePredictor | None) -> Iterator[Trajectories]:
        size = self.batch_size
        if sampler is not None:
            size = min(size, rows_at_once(sampler.members, part))
        for start in range(0, len(part), size):
            yield part.subset(torch.arange(start, min(start + size, len(part)))).to(self.device)


def with_ensembles(result: RegimeResult, sampled: RegimeResult, groups: int) -> RegimeResult:
    """`result` with the ensembles' own figures, measured on the first `groups` initial conditions."""
    told = f"on the first {groups} initial conditions"
    own = {name for name in sampled.metrics if name not in result.metrics} | {"ece"}
    metrics = {
        name: metric.model_copy(update={"reason": "; ".join(filter(None, [metric.reason, told]))})
        for name, metric in sampled.metrics.items()
        if name in own
    }
    return result.model_copy(
        update={
            "metrics": dict(sorted((result.metrics | metrics).items())),
            "curves": sampled.curves | result.curves,
            "draws": sampled.draws,
        }
    )


def evaluate(
    predict: FieldPredictor,
    truth: Trajectories,
    *,
    protocol: Protocol,
    predictor: Predictor,
    references: Rows,
    batch_size: int = 64,
    bootstrap_samples: int = 2000,
    on_batch: Callable[[int, int], None] | None = None,
    ensemble: EnsembleRules | None = None,
) -> tuple[EvaluationResult, dict[str, Examples]]:
    """The whole result document; a truth that is not what the protocol names is refused."""
    problem = protocols.mismatch(protocol, truth)
    if problem:
        raise UserError(f"{problem}; build the protocol from the trajectories that are evaluated")
    evaluator = Evaluator(
        truth,
        references,
        batch_size=batch_size,
        bootstrap_samples=bootstrap_samples,
        on_batch=on_batch,
        ensemble=ensemble,
    )
    regimes, examples = evaluator.run(predict)
    result = EvaluationResult(protocol=protocol, predictor=predictor, regimes=regimes, references=references)
    return result, examples


def _rollout(predictor: FieldPredictor, batch: Trajectories) -> Tensor:
    """Predicted frame k (from 0) is compared with frame k + 1 of the truth."""
    truth = batch.fields[:, 1:]
    raw = predictor.rollout(batch.fields[:, 0], batch.parameters, truth.shape[1])
    if raw.shape != truth.shape:
        raise UserError(
            f"the predictor's rollout is {tuple(raw.shape)}, expected decoded fields "
            f"(B, T, C, X) = {tuple(truth.shape)}"
        )
    return raw.to(truth)


def _examples(
    rows: Tensor, measured: Measurement, predicted: Tensor, ensemble: EnsembleMeasurement | None
) -> Examples:
    errors = measured.per_sample["nrmse"].nan_to_num(nan=-1.0)
    order = errors.argsort()
    names = ("median", "95th percentile", "worst")
    picks = [int(order[round(share * (len(order) - 1))]) for share in (0.5, 0.95, 1.0)]
    spectra = {name: values.nanmean(dim=0) for name, values in measured.spectra.items()}
    return Examples(
        names=names,
        rows=rows[picks],
        nrmse=tuple(float(measured.per_sample["nrmse"][i].clamp_max(accuracy.DIVERGED)) for i in picks),
        predicted=predicted[picks],
        frames=spectrum_frames(predicted.shape[1]),
        spectra=spectra,
        members=None if ensemble is None else ensemble.pieces["shown"][picks],
    )
