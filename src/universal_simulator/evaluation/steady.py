"""Answers to a steady problem, measured: accuracy, the walls, the flux, calibration.

Every answer is an ensemble in physical units, the classical ones of a single member. Beside the
prior stand: the training mean (knows nothing), the classical solver on the sensors' own coarse grid
and on the coefficient interpolated between them, the deterministic control, the exact posterior
(`physics/darcy.py:conditioned`: what could be known at best), and the data themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.data.steady import SteadyDataset, SteadyPairs
from universal_simulator.evaluation import accuracy, conservation, uncertainty
from universal_simulator.evaluation.ensemble_metrics import Pooled, Pooling
from universal_simulator.evaluation.summary import Summary
from universal_simulator.physics.darcy import darcy_flux_residual, solve_darcy
from universal_simulator.run_record import Metric


@dataclass(frozen=True)
class SteadyAnswer:
    """members (B, M, 1, X); walls (B, M, 1, 2): the decoder's own, None where there is no decoder."""

    members: Tensor
    walls: Tensor | None = None

    @classmethod
    def decoded(cls, values: Tensor) -> SteadyAnswer:
        """From (B, M, 1, X + 2), the walls last."""
        return cls(values[..., :-2], values[..., -2:])


def measure_steady(
    answer: SteadyAnswer,
    pairs: SteadyPairs,
    dataset: SteadyDataset,
    *,
    summary: Summary,
    width: Tensor | None = None,
) -> dict[str, Metric]:
    """Metrics with intervals over groups; width (1, 1) of `crps_skill`'s reference, from calibration.

    nrmse: of the members' mean. bc_violation and pde_residual: of single members, mean over them;
    the residual is against the true mobility everywhere, also where the answer could not see it.
    """
    members, truth = answer.members.double(), pairs.pressure.double()
    count = members.shape[1]
    mean = members.mean(dim=1)
    error, valid, _ = accuracy.nrmse_frames(mean[:, None], truth[:, None], truth)
    metrics = {
        "nrmse": summary.mean("nrmse", accuracy.mean_valid(error, valid, dims=(1, 2)), exclude_nan=True)
    }
    flat = members.flatten(0, 1)
    walls = conservation.grid_wall_values(flat) if answer.walls is None else answer.walls.flatten(0, 1)
    repeated = truth.repeat_interleave(count, 0)
    found = conservation.wall_violation(walls, dataset.equation.boundary_value, repeated)
    mobility = pairs.mobility.double().repeat_interleave(count, 0)
    found["pde_residual"] = darcy_flux_residual(flat[:, 0], mobility, dataset.spec.source_per_s, dataset.grid)
    for name, values in found.items():
        metrics[name] = summary.mean(name, values.unflatten(0, (-1, count)).mean(dim=1))
    if count > 1:
        metrics |= _uncertainty(members[:, :, None], truth[:, None], summary, width)
    return metrics


def _uncertainty(
    ensemble: Tensor, truth: Tensor, summary: Summary, width: Tensor | None
) -> dict[str, Metric]:
    """Raw figures: nothing here is recalibrated."""
    pool, members = Pooling(summary.groups, samples=summary.bootstrap_samples), ensemble.shape[1]
    levels, covered = uncertainty.central_levels(members), uncertainty.coverage(ensemble, truth)
    crps = uncertainty.crps_fair(ensemble, truth)
    spread, error = (part.mean(dim=1) for part in uncertainty.spread_and_error(ensemble, truth))
    pooled = {
        "ece_raw": pool(lambda w: uncertainty.ece(covered, levels, w), unbias=True),
        "crps_fair_raw": pool(lambda w: uncertainty.pooled(crps, w)),
        "spread_skill_raw": pool(lambda w: uncertainty.spread_skill(spread, error, w)),
    }
    if width is not None:
        constant = uncertainty.crps_constant_frames(ensemble, truth, width).mean(dim=1)
        pooled["crps_skill_raw"] = pool(lambda w: uncertainty.crps_skill(crps, constant, w))
    metrics = {name: _metric(summary, name, value) for name, value in pooled.items()}
    metrics["sharpness_raw"] = summary.mean("sharpness_raw", uncertainty.sharpness(ensemble, truth))
    return metrics


def _metric(summary: Summary, name: str, pooled: Pooled) -> Metric:
    value, low, high = (float(part) for part in (pooled.value, pooled.low, pooled.high))
    metric = summary.number(name, value)
    if metric.value is None or low != low:
        return metric
    return metric.model_copy(update={"low": low, "high": high})


def classical_answers(
    pairs: SteadyPairs, dataset: SteadyDataset, cells: Tensor, *, members: int, seed: int
) -> dict[str, SteadyAnswer]:
    """The predictors that learn nothing from solutions, by name."""
    spec, grid = dataset.spec, dataset.grid
    observed, fractions = pairs.observed(cells).double(), dataset.fractions(cells)
    centres = dataset.fractions(torch.arange(spec.grid_points))
    training = dataset.splits["train"].pressure.double()
    coarse = solve_darcy(observed.exp(), spec.source_per_s, grid.with_points(len(cells)))
    # a coarse cell's centre is its own, not the sensor's within it
    own = (torch.arange(len(cells), dtype=torch.float64) + 0.5) / len(cells)
    wall = torch.full_like(coarse[:, :1], dataset.equation.boundary_value)
    places = torch.cat([torch.zeros(1), own, torch.ones(1)]).double()
    lines = interpolate(torch.cat([wall, coarse, wall], dim=1), places, centres)
    between = solve_darcy(interpolate(observed, fractions, centres).exp(), spec.source_per_s, grid)
    generator = torch.Generator().manual_seed(seed)
    drawn = spec.mobility.conditioned(observed, fractions, members=members, generator=generator)
    mobility = spec.mobility.log_mobility(drawn.flatten(0, 1), centres).exp()
    posterior = solve_darcy(mobility, spec.source_per_s, grid).unflatten(0, (-1, members))
    return {
        "training_mean": SteadyAnswer(training.mean(dim=0).expand(len(observed), 1, 1, -1)),
        f"classical_{len(cells)}": SteadyAnswer(lines[:, None, None]),
        "classical_interpolated": SteadyAnswer(between[:, None, None]),
        "exact_posterior": SteadyAnswer(posterior[:, :, None]),
        "data": SteadyAnswer(pairs.pressure.double()[:, None]),
    }


def interpolate(values: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """Linear between places (S,), constant beyond the outermost: (B, S) -> (B, Q)."""
    right = torch.searchsorted(places, wanted).clamp(1, len(places) - 1)
    low, high = places[right - 1], places[right]
    share = ((wanted - low) / (high - low)).clamp(0, 1)
    return values[:, right - 1] * (1 - share) + values[:, right] * share
