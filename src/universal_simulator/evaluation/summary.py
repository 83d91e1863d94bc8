"""Per-sample values -> one `Metric`: mean over groups, interval, direction, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from universal_simulator.evaluation.bootstrap import group_means, mean_interval
from universal_simulator.evaluation.glossary import entry
from universal_simulator.run_record import Metric


class Summary:
    """Summarises values of one regime: one group per sample, one unit for the fields."""

    def __init__(self, groups: Sequence[str], *, field_unit: str, bootstrap_samples: int) -> None:
        self.groups = tuple(groups)
        self.field_unit = field_unit
        self.bootstrap_samples = bootstrap_samples

    def number(self, name: str, value: float | None, *, reason: str = "") -> Metric:
        """A single value; what is not finite is missing and says so."""
        about = entry(name)
        unit = self.field_unit if about.unit == "field" else about.unit
        if value is None or not math.isfinite(value):
            return Metric(value=None, unit=unit, better=about.better, reason=reason or "not finite")
        return Metric(value=value, unit=unit, better=about.better, reason=reason)

    def mean(self, name: str, values: Tensor, *, reason: str = "", exclude_nan: bool = False) -> Metric:
        """Mean over groups with its interval.

        A value that is not finite makes the metric missing: a broken trajectory is never
        averaged away. exclude_nan: NaN means "not defined on this trajectory"; those are left
        out, and how many is written into the reason.
        """
        rows = values.detach().double().cpu().numpy()
        groups, left_out = self.groups, 0
        if exclude_nan:
            kept = ~np.isnan(rows)
            left_out = int((~kept).sum())
            rows, groups = rows[kept], tuple(g for g, k in zip(groups, kept, strict=True) if k)
        if left_out:
            reason = "; ".join(filter(None, [reason, f"{left_out} of {len(kept)} trajectories excluded"]))
        if not len(rows):
            return self.number(name, None, reason=reason or "no trajectory defines it")
        broken = int((~np.isfinite(rows)).sum())
        if broken:
            return self.number(name, None, reason=f"not finite on {broken} of {len(rows)} trajectories")
        means = group_means(rows, groups)[1]
        low, high = mean_interval(means, samples=self.bootstrap_samples)
        metric = self.number(name, float(means.mean()), reason=reason)
        return metric if math.isnan(low) else metric.model_copy(update={"low": low, "high": high})


def undeclared(name: str, reason: str) -> Metric:
    """Nothing to measure: not applicable, shown with its reason, never blocking."""
    return Metric(value=None, better=entry(name).better, applicable=False, reason=reason)
