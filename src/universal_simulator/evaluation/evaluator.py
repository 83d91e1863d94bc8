"""One evaluation: a predictor under a protocol -> one result per parameter regime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol as TypingProtocol

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import UserError
from universal_simulator.evaluation import accuracy, protocols
from universal_simulator.evaluation.measurement import Measurement, joined, measure, spectrum_frames
from universal_simulator.evaluation.probes import probe
from universal_simulator.evaluation.references import Rows
from universal_simulator.evaluation.regime import regime_result
from universal_simulator.run_record import EvaluationResult, Predictor, Protocol, RegimeResult


class FieldPredictor(TypingProtocol):
    """What the evaluator asks of a model; fields physical, (B, [T,] C, X).

    A predictor may also answer `boundary_query(fields, parameters, distance) -> (B, C, 6)`:
    its own decoded u at -d, 0, d, L - d, L, L + d after one step. Without it the seam is
    judged on the grid.
    """

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor: ...
    def guard(self, fields: Tensor, initial: Tensor) -> Tensor: ...
    def step(self, fields: Tensor, parameters: Tensor) -> Tensor: ...
    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Examples:
    """What the pictures of one regime are drawn from: a median, a p95 and the worst trajectory.

    rows: of the whole truth. predicted (3, T, C, X), guarded. spectra: truth and prediction,
    mean over trajectories, (F, K) at the predicted frames `frames`.
    """

    names: tuple[str, ...]
    rows: Tensor
    nrmse: tuple[float, ...]
    predicted: Tensor
    frames: tuple[int, ...]
    spectra: dict[str, Tensor]


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
        #: regime -> seconds per trajectory of the last rollout: an observation, not a result
        self.rollout_s: dict[str, float] = {}

    def run(self, predictor: FieldPredictor) -> tuple[dict[str, RegimeResult], dict[str, Examples]]:
        """(regime -> result, regime -> what its pictures show)."""
        results, examples = {}, {}
        done = 0
        for label, rows in self.truth.regimes().items():
            parts: list[tuple[Measurement, dict[str, Tensor], Tensor]] = []
            self.rollout_s[label] = 0.0
            for batch in self._batches(self.truth.subset(rows)):
                started = time.perf_counter()
                raw = _rollout(predictor, batch)
                self.rollout_s[label] += (time.perf_counter() - started) / len(rows)
                guarded = predictor.guard(raw, batch.fields[:, 0])
                parts.append((measure(batch, raw, guarded), probe(predictor, batch), guarded))
                done += len(batch)
                if self.on_batch is not None:
                    self.on_batch(done, len(self.truth))
            measured = Measurement(
                joined([m.per_sample for m, _, _ in parts]) | joined([p for _, p, _ in parts]),
                joined([m.per_frame for m, _, _ in parts]),
                joined([m.spectra for m, _, _ in parts]),
            )
            predicted = torch.cat([guarded for _, _, guarded in parts])
            results[label] = regime_result(
                self.truth.subset(rows),
                measured,
                predicted,
                references=self.references.get(label, {}),
                bootstrap_samples=self.bootstrap_samples,
            )
            examples[label] = _examples(rows, measured, predicted)
        return results, examples

    def _batches(self, part: Trajectories) -> Iterator[Trajectories]:
        for start in range(0, len(part), self.batch_size):
            yield part.subset(torch.arange(start, min(start + self.batch_size, len(part))))


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
) -> tuple[EvaluationResult, dict[str, Examples]]:
    """The whole result document; a truth that is not what the protocol names is refused."""
    problem = protocols.mismatch(protocol, truth)
    if problem:
        raise UserError(f"{problem}; build the protocol from the trajectories that are evaluated")
    evaluator = Evaluator(
        truth, references, batch_size=batch_size, bootstrap_samples=bootstrap_samples, on_batch=on_batch
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


def _examples(rows: Tensor, measured: Measurement, predicted: Tensor) -> Examples:
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
    )
