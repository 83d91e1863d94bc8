"""Trivial predictors and the coarse classical solver under the same protocol, once per protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.device import synchronise
from universal_simulator.errors import IntegrityError
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.evaluation.conservation import conservation_gap
from universal_simulator.evaluation.summary import Summary
from universal_simulator.evaluation.trivial import trivial_predictions
from universal_simulator.identity import code_version
from universal_simulator.physics.reference import solve
from universal_simulator.run_record import (
    Document,
    Metric,
    Protocol,
    content_hash,
    read_document,
    write_json,
)

#: regime -> predictor name -> metric name -> Metric
Rows = dict[str, dict[str, dict[str, Metric]]]
#: trajectories solved together
BATCH = 128


class LateReferences:
    """Rows that are made, or found made by another evaluation of the protocol, when they are first asked for.

    That is after rollouts: evaluations that began together do not solve the same references twice.
    """

    def __init__(self, make: Callable[[], tuple[Rows, dict[str, float]]]) -> None:
        self._make = make
        self._rows: Rows | None = None
        #: `regime/predictor` -> seconds per trajectory, as `reference_rows`
        self.seconds_per_trajectory: dict[str, float] = {}
        #: what asking took
        self.seconds = 0.0

    def __call__(self) -> Rows:
        if self._rows is None:
            started = time.monotonic()
            self._rows, self.seconds_per_trajectory = self._make()
            self.seconds = time.monotonic() - started
        return self._rows


class ReferenceRecord(Document):
    """What `references/{protocol_hash}.json` holds; seconds are an observation, not a result."""

    schema_version: Literal[1] = 1
    protocol: Protocol
    inputs_hash: str
    rows: Rows
    seconds_per_trajectory: dict[str, float]


def reference_rows(
    truth: Trajectories,
    *,
    classical_points: Sequence[int],
    bootstrap_samples: int,
    method: str,
    device: torch.device | str = "cpu",
) -> tuple[Rows, dict[str, float]]:
    """(regime -> predictor -> metric, `regime/predictor` -> seconds per trajectory).

    The classical solver starts from the same given frame, brought to `points` cells, and its
    answer is brought back to the truth's grid; resolutions above it are left out.
    """
    rows: Rows = {}
    seconds: dict[str, float] = {}
    for label, indices in truth.regimes().items():
        part = truth.subset(indices).to(device)
        trivial = trivial_predictions(
            part.equation, part.fields[:, 0], part.parameters, part.times_s[1:], part.grid
        )
        rows[label] = {name: _score(found, part, bootstrap_samples) for name, found in trivial.items()}
        for points in classical_points:
            if points > part.grid.points[0]:
                continue
            started = time.perf_counter()
            solution = torch.cat(list(_solutions(part, method=method, points=points)))
            synchronise(part.fields.device)
            seconds[f"{label}/classical_{points}"] = (time.perf_counter() - started) / len(part)
            rows[label][f"classical_{points}"] = _score(solution, part, bootstrap_samples)
    return rows, seconds


def cached_reference_rows(
    experiment: Path,
    protocol: Protocol,
    truth: Trajectories,
    *,
    classical_points: Sequence[int],
    bootstrap_samples: int,
    method: str,
    device: torch.device | str = "cpu",
) -> tuple[Rows, dict[str, float]]:
    """`reference_rows`, kept in `{experiment}/references/{protocol_hash}.json`.

    Reused only where the full input hash (protocol, resolutions, bootstrap, method, code) is
    equal; a file of another protocol under this name is an IntegrityError, an older one of the
    same protocol is computed again and replaced.
    """
    path = experiment / "references" / f"{protocol.hash}.json"
    inputs = content_hash(
        {
            "protocol": protocol.hash,
            "classical_points": list(classical_points),
            "bootstrap_samples": bootstrap_samples,
            "method": method,
            "code": code_version(),
        }
    )
    if path.exists():
        record = read_document(path, ReferenceRecord)
        if record.protocol.hash != protocol.hash:
            raise IntegrityError(
                f"{path} holds the references of protocol {record.protocol.hash[:12]}, not of the one it "
                "is named after; delete it to compute them again"
            )
        if record.inputs_hash == inputs:
            return record.rows, record.seconds_per_trajectory
    rows, seconds = reference_rows(
        truth,
        classical_points=classical_points,
        bootstrap_samples=bootstrap_samples,
        method=method,
        device=device,
    )
    write_json(
        path,
        ReferenceRecord(protocol=protocol, inputs_hash=inputs, rows=rows, seconds_per_trajectory=seconds),
    )
    return rows, seconds


def _solutions(part: Trajectories, *, method: str, points: int) -> Iterator[Tensor]:
    for start in range(0, len(part), BATCH):
        rows = slice(start, start + BATCH)
        solution = solve(
            part.equation,
            part.fields[rows, 0],
            part.parameters[rows],
            part.times_s,
            part.grid,
            method=method,
            points=points,
        )
        yield solution[:, 1:]


def _score(prediction: Tensor, part: Trajectories, samples: int) -> dict[str, Metric]:
    initial, truth = part.fields[:, 0], part.fields[:, 1:]
    error, valid, diverged = nrmse_frames(prediction, truth, initial)
    per_sample = mean_valid(error, valid, dims=(1, 2))
    summary = Summary(part.groups, field_unit=part.equation.fields[0].unit, bootstrap_samples=samples)
    defined = per_sample[~per_sample.isnan()].double()
    quantiles = {
        name: summary.number(name, float(defined.quantile(share)) if len(defined) else None)
        for name, share in (("nrmse_median", 0.5), ("nrmse_p95", 0.95))
    }
    out = {
        "nrmse": summary.mean("nrmse", per_sample, exclude_nan=True),
        "failure_rate": summary.mean("failure_rate", diverged.double()),
    } | quantiles
    gap = conservation_gap(prediction, initial, part.grid, part.equation)
    return out if gap is None else out | {"conservation_gap": summary.mean("conservation_gap", gap)}
