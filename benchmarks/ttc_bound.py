"""How much of the error of a search's mean lies among its candidates, and how much of that can be known.

    python benchmarks/ttc_bound.py DATA MODEL --regime nu=0.01 [--beam 3] [--groups 64]

At the end of every segment of rollouts that answer with their mean m, let e = y - m and D_k the directions
of the candidates from m (partial trajectories, corrector's residual, shift, warp, amplitude). Printed as
shares of sum rms(e) saved:

    pick            the best single candidate (what a ranking could reach at most)
    span            the best signed combination m + sum_k a_k D_k of each set: no weighing of these candidates
                    reaches more
    constant        one a for all sets, fitted on the calibration split, measured on the validation split
    state           a = W f, linear in features f of the state (time, amplitudes, steepness, skewness, sizes and
                    angles of the directions), ridge-fitted on calibration: what is known *before* seeing y

`state` is measured on the split it was not fitted on; several ridges are printed, so that none is chosen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import open_dataset
from universal_simulator.inference.rewards import Question
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, load_surrogate

RIDGES = (0.01, 0.1, 1.0, 10.0)
MOVED = ("shift", "warp", "amplitude")


@dataclass(frozen=True)
class Sets:
    """directions (S, k, X), error of the mean (S, X), features (S, f), error of each candidate (S, n)."""

    directions: Tensor
    error: Tensor
    features: Tensor
    candidates: Tensor


def mean_alone(question: Question) -> Tensor:
    chosen = torch.arange(question.fields.shape[1]) == question.reference
    return torch.where(chosen & question.finite(), 1.0, torch.inf)


def rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=-1).clamp_min(1e-20).sqrt()


def sets_of(surrogate: Surrogate, truth: Trajectories, *, beam: int) -> Sets:
    found: list[Sets] = []

    def note(decision: Decision) -> None:
        target = truth.fields[decision.rows, decision.step][:, 0].double()
        found.append(_set(decision, target))

    ttc = TTCSection(beam=beam, candidates=2 + 2 * len(MOVED), residual_threshold=0.0, max_evaluations=10**9)
    predictor = SearchingPredictor(surrogate, GuardsConfig(), ttc, cost=mean_alone, observe=note)
    predictor.rollout(truth.fields[:, 0], truth.parameters, truth.fields.shape[1] - 1)
    return Sets(*(torch.cat(parts) for parts in zip(*(vars(one).values() for one in found), strict=True)))


def _set(decision: Decision, target: Tensor) -> Sets:
    fields = decision.question.fields[:, :, 0].double()
    names, mean = decision.names, fields[:, decision.question.reference]
    ends = [fields[:, i] - mean for i, name in enumerate(names) if name.startswith("end")]
    taus = [fields[:, i] - mean for i, name in enumerate(names) if name.startswith("tau")]
    pairs = [(fields[:, names.index(f"{n}+")] - fields[:, names.index(f"{n}-")]) / 2 for n in MOVED]
    directions = torch.stack([*ends[:-1], *taus[-1:], *pairs], dim=1)
    start = decision.question.start[:, 0].double()
    features = features_of(start, mean, directions, decision.step)
    return Sets(directions, target - mean, features, rms(fields - target[:, None]))


def features_of(start: Tensor, mean: Tensor, directions: Tensor, step: int) -> Tensor:
    """(S, f): time, amplitudes, steepness, skewness, and sizes and cosines of the directions (S, k, X)."""
    about = mean - mean.mean(dim=-1, keepdim=True)
    slope = about.roll(-1, -1) - about.roll(1, -1)
    sizes = rms(directions)
    values = [torch.full_like(rms(mean), float(step)).log(), rms(about).log(), rms(slope).log()]
    values += [rms(start - start.mean(dim=-1, keepdim=True)).log(), rms(mean - start).log()]
    values += [(part**3).mean(dim=-1) / rms(part) ** 3 for part in (slope, about)]
    values += list(sizes.log().unbind(1))
    for one in range(directions.shape[1]):
        for other in range(one):
            product = (directions[:, one] * directions[:, other]).mean(dim=-1)
            values.append(product / (sizes[:, one] * sizes[:, other]))
    return torch.stack(values, dim=1)


def saved(weights: Tensor, sets: Sets) -> float:
    left = sets.error - torch.einsum("sk,skx->sx", weights, sets.directions)
    return float(1 - rms(left).sum() / rms(sets.error).sum())


def span(sets: Sets) -> Tensor:
    """The oracle's weights (S, k)."""
    solution = torch.linalg.lstsq(
        sets.directions.transpose(1, 2), sets.error[..., None], driver="gelsd"
    ).solution
    return solution[..., 0]


def regression(sets: Sets, fitted: Tensor, ridge: float) -> Tensor:
    """W (k, f) of a = W f that leaves the least relative square error, `fitted` (S, f) being the features."""
    share = 1 / rms(sets.error)
    points = sets.error.shape[1]
    directions, error = sets.directions * share[:, None, None], sets.error * share[:, None]
    gram = torch.einsum("skx,slx->skl", directions, directions) / points
    target = torch.einsum("skx,sx->sk", directions, error) / points
    size = sets.directions.shape[1] * fitted.shape[1]
    left = torch.einsum("sf,sg,skl->kflg", fitted, fitted, gram).reshape(size, size)
    right = torch.einsum("sf,sk->kf", fitted, target).reshape(size)
    diagonal = torch.diagonal(left)
    damped = left + ridge * torch.diag(diagonal + 1e-9 * diagonal.mean())
    return torch.linalg.solve(damped, right).reshape(-1, fitted.shape[1])


def bound(train: Sets, test: Sets) -> dict[str, float]:
    """The figures of the module, by name."""
    centre, unit = train.features.mean(dim=0), train.features.std(dim=0).clamp_min(1e-6)

    def lifted(sets: Sets) -> Tensor:
        scaled = ((sets.features - centre) / unit).clamp(-4, 4)
        return torch.cat([torch.ones_like(scaled[:, :1]), scaled], dim=1)

    found = {
        "pick": float(1 - test.candidates.amin(dim=1).sum() / rms(test.error).sum()),
        "span": saved(span(test), test),
    }
    constant = regression(train, torch.ones_like(train.features[:, :1]), 1e-9)
    found["constant"] = saved(constant[:, 0].expand(len(test.error), -1), test)
    for ridge in RIDGES:
        weights = regression(train, lifted(train), ridge)
        found[f"state, ridge {ridge:g}"] = saved(lifted(test) @ weights.T, test)
        found[f"state, ridge {ridge:g}, on its own training sets"] = saved(lifted(train) @ weights.T, train)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--regime", required=True)
    parser.add_argument("--beam", type=int, default=3)
    parser.add_argument("--groups", type=int, default=64, help="validation initial conditions")
    given = parser.parse_args()
    surrogate, dataset = load_surrogate(given.model), open_dataset(given.data)
    sets = []
    for split, most in (("calibration", None), ("validation", given.groups)):
        truth = dataset.load(split, time_stride=surrogate.architecture.time_stride, max_groups=most)
        sets.append(sets_of(surrogate, truth.subset(truth.regimes()[given.regime]), beam=given.beam))
    for name, value in bound(*sets).items():
        print(f"{name:48s} {value:+.4f}")


if __name__ == "__main__":
    main()
