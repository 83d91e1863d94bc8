"""What was learned about a model's ensembles on calibration data; stored with its weights.

R regimes, T lead times, C fields. Fitted by `evaluation.calibration_fit`, read by evaluation and
by whoever wants honest quantiles. An ensemble gives two answers. Its *distribution* stays about the
members' own mean: members x become

    mean + scale_t (x - mean)

Its *point forecast* is the centre c = mean + w (operator - mean). w, the regime's `centre`, is the
share of the deterministic operator: where sampling noise of few members costs the mean more than it
gains, calibration data moves the point to the operator. Members moved there as well would lose the
distribution's own score for it (7 to 15 % of CRPS on Burgers, LOG.md 2026-11-25).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

#: what a regime's members are given: nothing, one scale, or one for every lead time
Choice = Literal["none", "one_scale", "scale_per_lead_time"]


#: fields of an entry that older files do not have
LATER = ("choices", "operator_shares", "centres")


class CalibrationEntry(BaseModel):
    """On what it was fitted: part of the architecture, under the model's hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: labels such as `nu=0.01`, in the order of the tensors
    regimes: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]
    members: Annotated[int, Field(ge=2)]
    #: frame of the file that was given
    first_frame: Annotated[int, Field(ge=0)]
    #: lead time k is k times this
    spacing_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    #: lead times
    steps: Annotated[int, Field(ge=1, le=100_000)]
    #: beginnings of the hashes of the initial conditions; nothing is ever evaluated on them
    groups: tuple[str, ...]
    #: per regime, what leaving groups out chose; empty in files from before there was a choice
    choices: tuple[Choice, ...] = ()
    #: per regime, the operator's share of the point forecast; empty (no share) in files from before
    operator_shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    #: read, never written: of files whose scales belong to members moved to that centre
    centres: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()

    @model_serializer(mode="wrap")
    def _without_what_is_unsaid(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A file from before there was a choice keeps its bytes and its hash."""
        values: dict[str, Any] = written(self)
        return {k: v for k, v in values.items() if v or k not in LATER}


@dataclass(frozen=True, eq=False)
class RegimeCalibration:
    """scale (T,): factor on the members' distances from their mean. width (T, C): of the Gaussian
    of constant width about the mean with the lowest CRPS, in the field's unit. Both for `members`.
    centre: the operator's share of the point forecast."""

    scale: Tensor
    width: Tensor
    members: int
    centre: float = 0.0

    def centred(self, mean: Tensor, operator: Tensor) -> Tensor:
        """The point forecast mean + w (operator - mean), (B, T, C, X), in the mean's dtype; at w = 0 no
        operator is looked at, which may be broken where the members are not."""
        if not self.centre:
            return mean
        return torch.lerp(mean.double(), operator.double(), self.centre).to(mean)

    def at(self, members: int) -> RegimeCalibration:
        """The same for ensembles of another size; itself at its own.

        With v the members' variance and r v the squared error of the mean of infinitely many:

            (M + 1) / M  s_M^2 = r + 1 / M,    width_M^2 ~ r + 1 / M

        Exact for Gaussian spreads. Where the truth lay nearer to the mean than that can be known,
        r = 0. w is that of the calibrated size.
        """
        if members == self.members:
            return self
        own = self.members
        ratio = (((own + 1) * self.scale.square() - 1) / own).clamp_min(0)
        scale = ((1 + members * ratio) / (members + 1)).sqrt()
        width = self.width * ((ratio + 1 / members) / (ratio + 1 / own)).sqrt()[:, None]
        return RegimeCalibration(scale, width, members, self.centre)


@dataclass(frozen=True, eq=False)
class Calibration:
    """scale (R, T) and width (R, T, C), float64, with the entry that says on what."""

    entry: CalibrationEntry
    scale: Tensor
    width: Tensor

    def __post_init__(self) -> None:
        expected = (len(self.entry.regimes), self.entry.steps)
        if tuple(self.scale.shape) != expected or tuple(self.width.shape[:2]) != expected:
            raise ValueError(
                f"{expected[0]} regimes of {expected[1]} lead times need scales (R, T) and widths (R, T, C), "
                f"got {tuple(self.scale.shape)} and {tuple(self.width.shape)}"
            )
        shares = self.entry.operator_shares
        if shares and len(shares) != expected[0]:
            raise ValueError(f"{expected[0]} regimes, but {len(shares)} shares of the operator")
        if not bool(torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("scales must be positive and finite")
        if not bool(torch.isfinite(self.width).all() and (self.width >= 0).all()):
            raise ValueError("widths must be finite and not negative")

    @property
    def moved(self) -> tuple[str, ...]:
        """Regimes of an older file whose scales and widths are not about the members' own mean."""
        return tuple(
            label for label, share in zip(self.entry.regimes, self.entry.centres, strict=False) if share
        )

    def why_not(self, regime: str, *, first_frame: int, spacing_s: float, steps: int) -> str | None:
        """Why this says nothing about such rollouts, or None; a shorter rollout takes the beginning."""
        entry = self.entry
        if regime not in entry.regimes:
            return f"no calibration for {regime}, only for {', '.join(entry.regimes)}"
        if regime in self.moved:
            return (
                "this file's scales belong to members moved to a centre (an older version's); members stay about "
                "their own mean now: train the run again to calibrate it"
            )
        if first_frame != entry.first_frame or abs(spacing_s - entry.spacing_s) > 1e-6 * entry.spacing_s:
            return (
                f"calibrated from frame {entry.first_frame} in steps of {entry.spacing_s:g} s, "
                f"asked from frame {first_frame} in steps of {spacing_s:g} s"
            )
        if steps > entry.steps:
            return f"calibrated for {entry.steps} lead times, asked for {steps}"
        return None

    def of_regime(self, regime: str, steps: int) -> RegimeCalibration:
        row = self.entry.regimes.index(regime)
        centre = self.entry.operator_shares[row] if self.entry.operator_shares else 0.0
        return RegimeCalibration(self.scale[row, :steps], self.width[row, :steps], self.entry.members, centre)
