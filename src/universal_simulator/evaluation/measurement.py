"""Everything measured on one batch of rollouts, per sample; nothing is averaged over samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation import accuracy, conservation
from universal_simulator.evaluation.stability import correlation
from universal_simulator.physics.invariants import pde_residual
from universal_simulator.physics.spectral import energy_spectrum


@dataclass(frozen=True)
class Measurement:
    """per_sample: metric -> (B,). per_frame: name -> (B, T), NaN where not defined.

    spectra: truth and prediction -> mean(u^2) per mode (B, F, K) at `spectrum_frames`.
    """

    per_sample: dict[str, Tensor]
    per_frame: dict[str, Tensor]
    spectra: dict[str, Tensor]

    def to(self, device: torch.device) -> Measurement:
        per_sample, per_frame, spectra = (
            {name: values.to(device) for name, values in part.items()}
            for part in (self.per_sample, self.per_frame, self.spectra)
        )
        return Measurement(per_sample, per_frame, spectra)


def spectrum_frames(steps: int) -> tuple[int, ...]:
    """Predicted frames (from 0) whose spectra are kept: an early, the middle and the last one."""
    return tuple(dict.fromkeys((min(steps - 1, steps // 10), steps // 2, steps - 1)))


def measure(batch: Trajectories, raw: Tensor, guarded: Tensor) -> Measurement:
    """batch holds the given frame and the truth; raw and guarded (B, T, C, X) the rollout."""
    initial, truth = batch.fields[:, 0], batch.fields[:, 1:]
    error, valid, diverged = accuracy.nrmse_frames(guarded, truth, initial)
    raw_error, raw_valid, _ = accuracy.nrmse_frames(raw, truth, initial)
    held = accuracy.nrmse_frames(initial[:, None].expand_as(truth), truth, initial)[0]
    per_sample = {
        "nrmse": accuracy.mean_valid(error, valid, dims=(1, 2)),
        "nrmse_raw": accuracy.mean_valid(raw_error, raw_valid, dims=(1, 2)),
        "failure_rate": diverged.double(),
        "excluded_frames": (~valid).double().flatten(1).mean(dim=1),
        "rel_l2": accuracy.relative_l2(guarded, truth),
        "vrmse": accuracy.vrmse(guarded, truth),
        "rmse": accuracy.rmse(guarded, truth),
        "max_error": accuracy.max_error(guarded, truth),
        "rmse_boundary": accuracy.rmse_boundary(guarded, truth),
        "rmse_conserved": accuracy.rmse_conserved(guarded, truth),
    }
    per_sample |= {f"rmse_fourier_{k}": v for k, v in accuracy.rmse_fourier(guarded, truth).items()}
    per_sample |= conservation.spectrum_error(guarded, truth) | _physics(batch, raw, guarded)
    frames = list(spectrum_frames(truth.shape[1]))
    return Measurement(
        per_sample,
        {
            "nrmse": accuracy.mean_valid(error, valid, dims=(2,)),
            "persistence": accuracy.mean_valid(held, valid, dims=(2,)),
            "correlation": correlation(guarded, truth, initial),
        },
        {
            "truth": energy_spectrum(truth[:, frames]).sum(dim=2),
            "prediction": energy_spectrum(guarded[:, frames]).sum(dim=2),
        },
    )


def _physics(batch: Trajectories, raw: Tensor, guarded: Tensor) -> dict[str, Tensor]:
    """What the equation declares, of the prediction and (`... reference`) of the data itself."""
    initial, truth, grid, equation = batch.fields[:, 0], batch.fields[:, 1:], batch.grid, batch.equation
    out: dict[str, Tensor] = {}
    for name, fields in (
        ("conservation_gap", raw),
        ("conservation_gap_guarded", guarded),
        ("conservation_gap_reference", truth),
    ):
        gap = conservation.conservation_gap(fields, initial, grid, equation)
        if gap is not None:
            out[name] = gap
    for suffix, fields in (("", guarded), (" reference", truth)):
        for name, value in conservation.dissipation_violation(fields, initial, grid, equation).items():
            out[f"dissipation_violation_{name}{suffix}"] = value
        whole = torch.cat([initial[:, None], fields], dim=1)
        residual = pde_residual(whole, batch.parameters, batch.frame_spacing_s, grid, equation)
        if residual is not None:
            out[f"pde_residual{suffix}"] = residual
    return out


def nrmse_of(batch: Trajectories, guarded: Tensor) -> tuple[Tensor, Tensor]:
    """nrmse (B,), and per frame (B, T), of another answer to the same batch."""
    error, valid, _ = accuracy.nrmse_frames(guarded, batch.fields[:, 1:], batch.fields[:, 0])
    return accuracy.mean_valid(error, valid, dims=(1, 2)), accuracy.mean_valid(error, valid, dims=(2,))


def joined_measurements(parts: Sequence[Measurement]) -> Measurement:
    """Batches of one regime, in order."""
    return Measurement(
        joined([part.per_sample for part in parts]),
        joined([part.per_frame for part in parts]),
        joined([part.spectra for part in parts]),
    )


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches of per-sample values, concatenated name by name."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
