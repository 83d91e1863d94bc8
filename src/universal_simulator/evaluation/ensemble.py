"""An ensemble of rollouts, measured some trajectories at a time: its members are never kept.

Everything is of guarded fields. Recalibration moves members along straight lines from their mean,
so order statistics keep their place and the recalibrated ensemble is scored without being made
(`Recalibration.seen_from_raw`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.device import synchronise
from universal_simulator.errors import UserError
from universal_simulator.evaluation import uncertainty
from universal_simulator.evaluation.conservation import conservation_gap
from universal_simulator.evaluation.contract import EnsemblePredictor
from universal_simulator.evaluation.measurement import spectrum_frames
from universal_simulator.evaluation.recalibration import Recalibration
from universal_simulator.model.calibration import Calibration, RegimeCalibration

Headline = Literal["ensemble_mean", "deterministic"]
#: members' values rolled out and measured together (64 MiB in float32)
VALUES_AT_ONCE = 16 * 1024**2
#: points of a regime that are sorted into bins of spread, at most: every k-th cell beyond
BINNED_POINTS = 4 * 1024**2
#: members kept for the pictures, at the frames of the spectra
SHOWN_MEMBERS = 8
#: what a member may differ by when its trajectory is rolled out alone, in units of the spread
BATCH_TOLERANCE = 1e-2


@dataclass(frozen=True)
class EnsembleRules:
    """How a stochastic predictor is read. headline: whose nrmse it is, the ensemble's point forecast or the
    operator; calibrations: per regime, and for regimes without one why."""

    headline: Headline = "ensemble_mean"
    noise_seed: int = 0
    #: ensembles are asked for on this many initial conditions only (None: on all)
    groups: int | None = None
    calibrations: Mapping[str, RegimeCalibration] = field(default_factory=dict)
    uncalibrated: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        truth: Trajectories,
        calibration: Calibration | None,
        *,
        first_frame: int,
        steps: int | None = None,
        spacing_s: float | None = None,
        headline: Headline = "ensemble_mean",
        noise_seed: int = 0,
        groups: int | None = None,
    ) -> EnsembleRules:
        """The rules for rollouts of these trajectories, with what of a model's calibration is about them.

        steps, spacing_s: the rollout's, where they are not those of the truth's frames.
        """
        if calibration is None:
            return cls(headline, noise_seed, groups)
        found, reasons = {}, {}
        steps, spacing_s = steps or truth.fields.shape[1] - 1, spacing_s or truth.frame_spacing_s
        for label in truth.regimes():
            why = calibration.why_not(label, first_frame=first_frame, spacing_s=spacing_s, steps=steps)
            if why is None:
                found[label] = calibration.of_regime(label, steps)
            else:
                reasons[label] = f"not recalibrated: {why}"
        return cls(headline, noise_seed, groups, found, reasons)

    def why_uncalibrated(self, label: str) -> str:
        return self.uncalibrated.get(label, "not recalibrated: the model holds no calibration")


@dataclass(frozen=True)
class EnsembleMeasurement:
    """Pieces of one batch of B trajectories, per sample; M members.

    As in `uncertainty`, `_raw` and recalibrated: coverage (B, T, P); crps, spread, sharpness (B, T);
    ranks (B, M + 1). Both kinds are about the members' own mean, so one error (B, T) serves both.
    crps_constant (B, T) where a constant width was fitted; first, second (raw), squares (B, T, C, X')
    at every `x_stride`-th cell, for bins of spread; shown (B, m, F, C, X) members for the pictures.
    Without a calibration both kinds are equal.
    """

    members: int
    pieces: dict[str, Tensor]

    def to(self, device: torch.device) -> EnsembleMeasurement:
        return EnsembleMeasurement(self.members, {name: v.to(device) for name, v in self.pieces.items()})


@dataclass(frozen=True)
class Sampled:
    """raw, guarded (B, T, C, X): the ensemble's point forecast before and after the guards; mean: of the
    guarded members, about which its distribution stays; equal to `guarded` where nothing is calibrated."""

    raw: Tensor
    guarded: Tensor
    mean: Tensor
    measured: EnsembleMeasurement
    per_sample: dict[str, Tensor]
    seconds: float


def rows_at_once(members: int, truth: Trajectories) -> int:
    """Trajectories whose members fit VALUES_AT_ONCE, at least one."""
    return max(1, VALUES_AT_ONCE // (members * max(1, truth.fields[0, 1:].numel())))


def bins_stride(part: Trajectories) -> int:
    """Every how manyeth cell of a regime enters the bins of spread."""
    return math.ceil(part.fields[:, 1:].numel() / BINNED_POINTS)


def sample(
    predictor: EnsemblePredictor,
    batch: Trajectories,
    *,
    seed: int,
    calibration: RegimeCalibration | None,
    x_stride: int,
    operator: tuple[Tensor, Tensor],
) -> Sampled:
    """Roll out all members of a batch from its first frames and measure them.

    operator: the deterministic rollout of the same batch, raw and guarded, (B, T, C, X).
    """
    started = time.perf_counter()
    raw = rollout_members(predictor, batch, seed=seed)
    synchronise(raw.device)
    seconds = time.perf_counter() - started
    guarded = guard_members(predictor, raw, batch.fields[:, 0], batch.parameters)
    per_sample = {}
    gap = conservation_gap(
        raw.flatten(0, 1), _repeated(batch.fields[:, 0], raw.shape[1]), batch.grid, batch.equation
    )
    if gap is not None:
        per_sample["conservation_gap_members"] = gap.unflatten(0, raw.shape[:2]).mean(dim=1)
    points = means = (uncertainty.ensemble_mean(raw), uncertainty.ensemble_mean(guarded))
    if calibration is not None:
        points = (calibration.centred(means[0], operator[0]), calibration.centred(means[1], operator[1]))
    return Sampled(
        *points,
        means[1],
        measure_ensemble(guarded, batch.fields[:, 1:], calibration, x_stride=x_stride),
        per_sample,
        seconds,
    )


def rollout_members(predictor: EnsemblePredictor, batch: Trajectories, *, seed: int) -> Tensor:
    """Members (B, M, T, C, X) of the truth's frames 1 .. T, unguarded; another shape is refused."""
    truth = batch.fields[:, 1:]
    fields = predictor.rollout_members(batch.fields[:, 0], batch.parameters, truth.shape[1], seed=seed)
    expected = (len(batch), predictor.members, *truth.shape[1:])
    if tuple(fields.shape) != expected:
        raise UserError(
            f"the predictor's members are {tuple(fields.shape)}, expected (B, M, T, C, X) = {expected}"
        )
    return fields.to(truth)


def guard_members(
    predictor: EnsemblePredictor, fields: Tensor, initial: Tensor, parameters: Tensor
) -> Tensor:
    """Guards act on every member on its own."""
    members = fields.shape[1]
    repeated = _repeated(initial, members), _repeated(parameters, members)
    return predictor.guard(fields.flatten(0, 1), *repeated).unflatten(0, (-1, members))


def refuse_batch_dependence(predictor: EnsemblePredictor, batch: Trajectories, *, seed: int) -> None:
    """A trajectory's members must be those it has alone: at lead time 1, where chaos has not begun.

    Raises UserError where they differ by more than 1 % of their own spread (and round-off): such
    results would depend on the batch size. One extra rollout of the batch's last trajectory.
    """
    if len(batch) < 2:
        return
    short = Trajectories(
        batch.fields[:, :2], batch.times_s[:2], batch.parameters, batch.groups, batch.grid, batch.equation
    )
    together = rollout_members(predictor, short, seed=seed)[-1:]
    alone = rollout_members(predictor, short.subset(torch.tensor([len(batch) - 1])), seed=seed)
    size = together.double().square().mean().sqrt()
    allowed = BATCH_TOLERANCE * together.double().std(dim=1).square().mean().sqrt() + 1e-5 * size
    difference = (together - alone).double().square().mean().sqrt()
    if bool(difference > allowed):
        raise UserError(
            f"the predictor's members depend on the batch they are rolled out in (a trajectory alone differs "
            f"by {float(difference):.3g}, allowed {float(allowed):.3g}); draw the noise of each trajectory "
            "from (seed, initial condition) alone, as `inference.noise.generator_of` does"
        )


def measure_ensemble(
    ensemble: Tensor,
    truth: Tensor,
    calibration: RegimeCalibration | None,
    *,
    x_stride: int,
) -> EnsembleMeasurement:
    """ensemble (B, M, T, C, X), truth (B, T, C, X), guarded -> what pooled metrics need."""
    rising = ensemble.sort(dim=1).values
    spread, error = uncertainty.spread_and_error(ensemble, truth)
    width = uncertainty.sharpness_frames(rising, truth, ordered=True)
    pieces = {"error": error, "spread_raw": spread, "sharpness_raw": width}
    pieces |= {f"{name}_raw": values for name, values in _scores(rising, truth).items()}
    if calibration is None:
        pieces |= {name.removesuffix("_raw"): pieces[name] for name in list(pieces) if name.endswith("_raw")}
    else:
        calibration = calibration.at(ensemble.shape[1])
        scale = calibration.scale.to(spread)
        seen = Recalibration(scale).seen_from_raw(ensemble.double().mean(dim=1), truth)
        pieces |= _scores(rising, seen)
        pieces["crps"] = scale * pieces["crps"]
        pieces["spread"] = scale.square() * spread
        pieces["sharpness"] = scale * width
        pieces["crps_constant"] = uncertainty.crps_constant_frames(ensemble, truth, calibration.width)
    if ensemble.shape[1] >= 4:
        thin = (ensemble[..., ::x_stride], truth[..., ::x_stride])
        halves = uncertainty.spread_halves(*thin)
        pieces |= {n: v.float() for n, v in zip(("first", "second", "squares"), halves, strict=True)}
    frames = list(spectrum_frames(truth.shape[1]))
    pieces["shown"] = ensemble[:, :SHOWN_MEMBERS][:, :, frames]
    return EnsembleMeasurement(ensemble.shape[1], pieces)


def _scores(rising: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """What depends on where the truth lies among the members, which ascend at each point."""
    ranks = uncertainty.rank_frames(rising, truth)
    return {
        "coverage": uncertainty.shares_covered(ranks),
        "crps": uncertainty.crps_frames(rising, truth, ordered=True),
        "ranks": ranks.sum(dim=1),
    }


def joined_ensembles(parts: Sequence[EnsembleMeasurement]) -> EnsembleMeasurement:
    """Batches of one regime, concatenated piece by piece."""
    names = parts[0].pieces
    return EnsembleMeasurement(
        parts[0].members, {name: torch.cat([part.pieces[name] for part in parts]) for name in names}
    )


def _repeated(initial: Tensor, members: int) -> Tensor:
    return initial.repeat_interleave(members, 0)
