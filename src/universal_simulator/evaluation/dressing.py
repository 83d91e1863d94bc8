"""A point forecast with a width of its own: the zero of every gain in CRPS.

    p_t(x) = N(f_t(x), w_t^2),    w_t = a_t  or  a_t rms_x(f_t)

A single answer's CRPS is its mean absolute error, which any sensible width cuts (a Gaussian error of
the right width: by 29 %), so a distribution compared with a bare point has won before it knows anything.
a_t is fitted on calibration data, per regime, lead time and channel, by `best_constant_width`; of the two
forms the one with the lower relative CRPS there is kept. It knows nothing of where the errors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.accuracy import relative_frames
from universal_simulator.evaluation.uncertainty import best_constant_width, crps_gaussian


@dataclass(frozen=True, eq=False)
class Dressing:
    """width (T, C), float64: in the field's unit, or, relative, in units of each forecast frame's rms."""

    width: Tensor
    relative: bool

    @classmethod
    def fit(cls, forecast: Float[Tensor, "B T C X"], truth: Float[Tensor, "B T+1 C X"]) -> Dressing:
        """forecast (B, T, C, X), truth (B, T + 1, C, X) with the given frame first: of calibration samples.

        A forecast that is not finite leaves widths that are not finite, and so is every score.
        """
        target, unit = truth[:, 1:].double(), _rms(forecast)
        made = (
            cls(best_constant_width(forecast, target), relative=False),
            cls(best_constant_width(forecast.double() / unit, target / unit), relative=True),
        )
        return min(made, key=lambda one: float(one.relative_crps(forecast, truth).mean()))

    def crps(
        self, forecast: Float[Tensor, "B T C X"], target: Float[Tensor, "B T C X"]
    ) -> Float[Tensor, "B T"]:
        """CRPS per sample and lead time, (B, T), in the field's unit; both (B, T, C, X).

        A rollout shorter than the fit's takes the beginning.
        """
        steps = forecast.shape[1]
        if steps > len(self.width):
            raise ValueError(f"widths of {len(self.width)} lead times do not dress {steps}")
        width = self.width[:steps].to(forecast.device)[None, :, :, None]
        if self.relative:
            width = width * _rms(forecast)
        return crps_gaussian(forecast, width, target).mean(dim=(-2, -1))

    def relative_crps(
        self, forecast: Float[Tensor, "B T C X"], truth: Float[Tensor, "B T+1 C X"]
    ) -> Float[Tensor, "B T"]:
        """The same over the rms of each frame of truth (B, T + 1, C, X), as nrmse is."""
        whole = truth.double()
        return relative_frames(self.crps(forecast, whole[:, 1:]), whole[:, 0], whole[:, 1:])


@dataclass(frozen=True)
class Dressings:
    """One dressing per regime; `pooled` for a regime that the fit did not see."""

    regimes: Mapping[str, Dressing]
    pooled: Dressing

    @classmethod
    def fit(cls, forecast: Tensor, truth: Trajectories) -> Dressings:
        """forecast (B, T, C, X): of the truth's frames 1 .. T, in its order."""
        steps = forecast.shape[1] + 1
        return cls(
            {
                label: Dressing.fit(forecast[rows], truth.fields[rows, :steps])
                for label, rows in truth.regimes().items()
            },
            Dressing.fit(forecast, truth.fields[:, :steps]),
        )

    def of(self, label: str) -> Dressing:
        return self.regimes.get(label, self.pooled)

    def relative_crps(self, forecast: Float[Tensor, "B T C X"], truth: Trajectories) -> Float[Tensor, "B T"]:
        """(B, T), each trajectory dressed as its regime."""
        steps = forecast.shape[1] + 1
        out = forecast.new_empty(forecast.shape[:2], dtype=torch.float64)
        for label, rows in truth.regimes().items():
            out[rows] = self.of(label).relative_crps(forecast[rows], truth.fields[rows, :steps])
        return out


def _rms(forecast: Tensor) -> Tensor:
    """Of each frame, at least 1e-6 of the trajectory's largest: (B, T, 1, 1), float64."""
    rms = forecast.double().square().mean(dim=(-2, -1), keepdim=True).sqrt()
    return torch.maximum(rms, 1e-6 * rms.amax(dim=1, keepdim=True)).clamp_min(1e-30)
