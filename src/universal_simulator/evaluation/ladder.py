"""Everyone's nrmse under one protocol on one logarithmic line: who stands where, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from universal_simulator.evaluation.trivial import TRIVIAL
from universal_simulator.run_record import Metric


@dataclass(frozen=True)
class Rung:
    """One predictor; `at`, `low_at` and `high_at` are per cent of the line's width.

    kind: prediction (this one), trivial, classical or neural.
    """

    name: str
    kind: str
    metrics: Mapping[str, Metric]
    seconds: float | None
    at: float | None
    low_at: float
    high_at: float


def ladder(
    own: Mapping[str, Metric],
    references: Mapping[str, Mapping[str, Metric]],
    seconds: Mapping[str, float],
) -> tuple[Rung, ...]:
    """Best first; those without a value last. `seconds[""]` is this predictor's."""
    everyone = {"": own, **references}
    ends = [
        bound
        for metrics in everyone.values()
        for bound in (metrics["nrmse"].value, metrics["nrmse"].low, metrics["nrmse"].high)
        if bound
    ]
    low, high = math.log10(min(ends, default=0.1)), math.log10(max(ends, default=1.0))

    def place(value: float | None) -> float | None:
        return None if not value else 2 + 96 * (math.log10(value) - low) / max(high - low, 1e-9)

    rungs = []
    for name, metrics in everyone.items():
        metric = metrics["nrmse"]
        at = place(metric.value)
        ends_at = (place(metric.low) or at or 0.0, place(metric.high) or at or 0.0)
        rungs.append(
            Rung(_readable(name), _kind(name), metrics, seconds.get(name), at, ends_at[0], ends_at[1])
        )
    return tuple(sorted(rungs, key=lambda rung: _order(rung.metrics["nrmse"].value)))


def _order(value: float | None) -> float:
    return math.inf if value is None else value


def _readable(name: str) -> str:
    if name.startswith("classical_"):
        return f"classical solver, {name.removeprefix('classical_')} cells"
    return name.replace("_", " ") or "this predictor"


def _kind(name: str) -> str:
    if not name:
        return "prediction"
    return "trivial" if name in TRIVIAL else "classical" if name.startswith("classical") else "neural"
