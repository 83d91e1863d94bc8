"""Parameter regimes: what gets a row of its own, and how a parameter with many values is cut.

A parameter with at most MANY distinct values in its data set makes one regime per value
(`nu=0.01`): twelve published viscosities stay twelve rows. One with more, such as a value drawn
for every trajectory, is cut at the quantiles of the trajectories' values into at most BINS regimes of
nearly equal count, each labelled by the smallest and largest value in it (`nu=0.0102..0.0287`).
The cuts belong to the whole data set, so every split and every subset has the same labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from universal_simulator.physics.equations import Equation

#: distinct values above which a parameter is cut into bins
MANY = 16
BINS = 4

#: smallest and largest value of each bin, rising
Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RegimeRule:
    """Per parameter its bins, or None where every value is a regime."""

    spans: tuple[Spans | None, ...]

    @classmethod
    def of(cls, parameters: np.ndarray) -> RegimeRule:
        """The rule of a whole data set's parameters (N, P)."""
        return cls(tuple(_spans(column) for column in _as_stored(parameters).T))

    def rows(self, parameters: Tensor, equation: Equation) -> dict[str, Tensor]:
        """Rows of parameters (B, P) by regime label, ascending; regimes without a row are left out."""
        values = _as_stored(parameters.detach().cpu().numpy())
        if not values.shape[1]:
            return {"all": torch.arange(len(values))}
        places = [
            np.unique(column, return_inverse=True)[1] if spans is None else _bin_of(column, spans)
            for column, spans in zip(values.T, self.spans, strict=True)
        ]
        kinds, inverse = np.unique(np.stack(places, axis=1), axis=0, return_inverse=True)
        found: dict[str, list[np.ndarray]] = {}
        for index in range(len(kinds)):
            rows = np.flatnonzero(inverse.reshape(-1) == index)
            # values that print alike are one regime
            found.setdefault(self._label(values[rows[0]], equation), []).append(rows)
        return {label: torch.from_numpy(np.sort(np.concatenate(parts))) for label, parts in found.items()}

    def _label(self, values: np.ndarray, equation: Equation) -> str:
        parts = []
        for spec, value, spans in zip(equation.parameters, values, self.spans, strict=True):
            if spans is None:
                parts.append(f"{spec.name}={value:.6g}")
            else:
                low, high = spans[int(_bin_of(value[None], spans)[0])]
                parts.append(f"{spec.name}={low:.4g}..{high:.4g}")
        return ",".join(parts)


def _as_stored(parameters: np.ndarray) -> np.ndarray:
    """float32 values, as trajectories carry them, in float64."""
    return parameters.astype(np.float32).astype(np.float64)


def _spans(column: np.ndarray) -> Spans | None:
    values = np.sort(column)
    if len(np.unique(values)) <= MANY:
        return None
    # one value that many trajectories share is never cut: its bin then holds more than its part
    lows = np.unique([values[len(values) * part // BINS] for part in range(BINS)])
    return tuple(
        (float(low), float(values[_bin(values, lows) == place].max())) for place, low in enumerate(lows)
    )


def _bin_of(column: np.ndarray, spans: Spans) -> np.ndarray:
    return _bin(column, np.array([low for low, _ in spans]))


def _bin(values: np.ndarray, lows: np.ndarray) -> np.ndarray:
    """The last bin that begins at or below each value; what lies below all is in the first."""
    return np.maximum(np.searchsorted(lows, values, side="right") - 1, 0)
