"""The loss of a stage, in physical space and aligned with the metric.

For a window of K steps with truth y_0..y_K (canonical frame) and denominators
d_k = rms(physical y_k) / amplitude (with a floor, `batches.DENOMINATOR_FLOOR`), so that
rms(p - y) / d is the physical nrmse:

    L = w_rec e_0 + (1/K) sum_k e_k + w_lat l + w_spec s

e_k: rms(p_k - y_k) / d_k, per sample; p_0 is the reconstruction of the first frame.
l:   |z_k - encode(y_k)| / |encode(y_k)|, relative, per sample: the rollout stays where the
     encoder would put it, which is what makes long latent rollouts stable.
s:   error of the amplitude spectrum, weighted by wavenumber, relative to d_k.

The codec stage sees windows without a step (K = 0): reconstruction and spectrum alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.configuration.schema import LossConfig
from universal_simulator.inference.rollout import repeat_conditions
from universal_simulator.model.contract import Conditions
from universal_simulator.model.surrogate import Surrogate

_TINY = 1e-12


@dataclass(frozen=True)
class TrainingBatch:
    """Canonical truth (B, K+1, C, X), denominators (B, K+1), conditions of the frame."""

    truth: Tensor
    denominators: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def device(self) -> torch.device:
        return self.truth.device

    def split(self, size: int) -> Iterator[TrainingBatch]:
        """Parts of at most `size` samples, in order; the last may be smaller."""
        for start in range(0, len(self.truth), size):
            rows = slice(start, start + size)
            conditions = Conditions(self.conditions.parameters[rows], self.conditions.dt[rows])
            yield TrainingBatch(self.truth[rows], self.denominators[rows], conditions)


@dataclass(frozen=True)
class LossTerms:
    """What is minimised, and the terms it is made of, for the log."""

    total: Tensor
    parts: dict[str, Tensor]

    def floats(self) -> dict[str, float]:
        named = {"total": self.total, **self.parts}
        return {name: float(value.detach()) for name, value in named.items()}


def weighted_mean(parts: Sequence[tuple[float, LossTerms]]) -> LossTerms:
    """Terms of a batch from those of its parts, weighted by their share of the samples."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        shares = [share for share, _ in parts]
        return torch.stack(
            [share * value.detach() for share, value in zip(shares, values, strict=True)]
        ).sum()

    return LossTerms(
        mean([terms.total for _, terms in parts]),
        {name: mean([terms.parts[name] for _, terms in parts]) for name in parts[0][1].parts},
    )


def window_loss(surrogate: Surrogate, batch: TrainingBatch, config: LossConfig) -> LossTerms:
    """Loss of one window batch; every term is a mean over samples."""
    member, conditions = surrogate.member, batch.conditions
    size, frames = batch.truth.shape[:2]
    normalised = surrogate.normalise(batch.truth)
    repeated = repeat_conditions(conditions, frames)
    targets = member.encode(normalised.flatten(0, 1), repeated).unflatten(0, (size, frames))
    states = [targets[:, 0]]
    for _ in range(frames - 1):
        states.append(member.advance(states[-1], conditions))
    trajectory = torch.stack(states, dim=1)
    decoded = member.decode(trajectory.flatten(0, 1), repeated).unflatten(0, (size, frames))
    predicted = surrogate.denormalise(decoded)
    relative = _rms(predicted - batch.truth, dims=(-2, -1)) / batch.denominators
    reconstruction = relative[:, 0].mean()
    rollout = latent = relative.new_zeros(())
    if frames > 1:
        rollout = relative[:, 1:].mean()
        latent = _latent_error(trajectory[:, 1:], targets[:, 1:])
    spectral = _spectral_error(predicted, batch.truth, batch.denominators)
    total = (
        config.lambda_reconstruction * reconstruction
        + rollout
        + config.lambda_latent * latent
        + config.lambda_spectral * spectral
    )
    parts = {"reconstruction": reconstruction, "rollout": rollout, "latent": latent, "spectral": spectral}
    return LossTerms(total, parts)


def _rms(values: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    return values.square().mean(dim=dims).add(_TINY).sqrt()


def _latent_error(states: Tensor, targets: Tensor) -> Tensor:
    dims = tuple(range(2, states.ndim))
    return (_rms(states - targets, dims=dims) / _rms(targets.detach(), dims=dims).clamp_min(1e-3)).mean()


def _spectral_error(predicted: Tensor, truth: Tensor, denominators: Tensor) -> Tensor:
    """sqrt(sum_k (1 + k) (|p_k| - |y_k|)^2) / d, Fourier amplitudes of the whole field."""
    difference = torch.fft.rfft(predicted, norm="forward").abs() - torch.fft.rfft(truth, norm="forward").abs()
    weight = 1 + torch.arange(difference.shape[-1], device=difference.device)
    per_frame = (weight * difference.square()).sum(-1).mean(-1).add(_TINY).sqrt()
    return (per_frame / denominators).mean()
