"""What each part of test-time compute is worth, at counted evaluations and measured seconds.

    python benchmarks/ttc_ablation.py MODEL DATA --groups 16 --out FILE

MODEL is a run's model.safetensors with corrector (and student); a learned reward is trained on its half
of the calibration split where the file has none. Figures are guarded rollout nrmse on the validation split, per regime, from
frame 0 to the end, with 95 % intervals over initial conditions; gains are paired. Rows:

    operator; ensembles of 1, 2 and 8 members; partial trajectories whose mean is the answer (no
    reward); the same with the learned reward, physics alone, a random reward; the plan's own values
    (threshold, 150 evaluations); solver in the loop; the classical solver on the same grid.

Seconds per trajectory are those of this machine under its load at the time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.evaluation.bootstrap import group_means, mean_interval, paired_interval
from universal_simulator.evaluation.search_diagnostics import spearman
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.rewards import CostFunction, Question
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.solver_in_the_loop import solved
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.run_record import write_atomically
from universal_simulator.training.reward import log_relative_error, train_reward

SAMPLES = 2000
FREE: dict[str, Any] = {"residual_threshold": 0.0, "max_evaluations": 10**6}


@dataclass(frozen=True)
class Row:
    """One predictor's answer: nrmse per trajectory, evaluations and seconds per trajectory, diagnostics."""

    nrmse: Tensor
    evaluations: float
    seconds: float
    about: dict[str, float]


def score(predicted: Tensor, truth: Trajectories) -> Tensor:
    error, valid, _ = nrmse_frames(predicted, truth.fields[:, 1:], truth.fields[:, 0])
    return mean_valid(error, valid, dims=(1, 2))


def mean_alone(question: Question) -> Tensor:
    """No reward: the mean of the partial trajectories is the answer."""
    chosen = torch.arange(question.fields.shape[1]) == question.reference
    return torch.where(chosen & question.finite(), 1.0, torch.inf)


def random_reward(seed: int = 0) -> CostFunction:
    generator = torch.Generator().manual_seed(seed)
    return lambda question: 0.5 + torch.rand(question.fields.shape[:2], generator=generator)


def searched(
    surrogate: Surrogate, truth: Trajectories, settings: dict[str, Any], cost: CostFunction | None
) -> Row:
    decisions: list[Decision] = []
    predictor = SearchingPredictor(
        surrogate, GuardsConfig(), TTCSection(**settings), cost=cost, observe=decisions.append
    )
    initial, steps = truth.fields[:, 0], truth.fields.shape[1] - 1
    started = time.perf_counter()
    raw = predictor.rollout(initial, truth.parameters, steps)
    seconds = (time.perf_counter() - started) / len(truth)
    pieces: dict[str, list[Tensor]] = {"spearman": [], "oracle": [], "answer": [], "mean": []}
    for decision in decisions:
        target = truth.fields[decision.rows, decision.step]
        error = log_relative_error(decision.question.fields, target)
        pieces["spearman"].append(spearman(-decision.cost, -error, torch.isfinite(decision.cost)))
        pieces["oracle"].append(error.amin(dim=1).exp())
        pieces["mean"].append(error[:, decision.question.reference].exp())
        pieces["answer"].append(log_relative_error(decision.answer[:, None], target)[:, 0].exp())
    about = {}
    if decisions:
        joined = {name: torch.cat(values).double() for name, values in pieces.items()}
        about = {
            "spearman": float(joined["spearman"].mean()),
            "oracle_gain": float(1 - joined["oracle"].sum() / joined["mean"].sum()),
            "answer_gain": float(1 - joined["answer"].sum() / joined["mean"].sum()),
        }
    extra = float(predictor.accounts.evaluations.double().mean())
    return Row(score(predictor.guard(raw, initial), truth), extra, seconds, about)


def rows_of(surrogate: Surrogate, truth: Trajectories, *, quick: bool) -> dict[str, Row]:
    initial, steps = truth.fields[:, 0], truth.fields.shape[1] - 1
    sampler = StochasticPredictor(surrogate, GuardsConfig(), members=8)
    started = time.perf_counter()
    plain = sampler.guard(sampler.rollout(initial, truth.parameters, steps), initial)
    rows = {"operator": Row(score(plain, truth), 0.0, (time.perf_counter() - started) / len(truth), {})}
    started = time.perf_counter()
    members = sampler.rollout_members(initial, truth.parameters, steps, seed=0)
    each = (time.perf_counter() - started) / len(truth) / 8
    for count in (1, 2, 8):
        mean = sampler.guard(members[:, :count].mean(dim=1), initial)
        rows[f"ensemble mean of {count}"] = Row(score(mean, truth), steps * (2 * count - 1), each * count, {})
    searches: dict[str, tuple[dict[str, Any], CostFunction | None]] = {
        "representations, beam 2": ({**FREE, "beam": 2}, mean_alone),
        "representations, beam 3": (FREE, mean_alone),
        "TTC learned, beam 2": ({**FREE, "beam": 2}, None),
        "TTC learned, beam 3": (FREE, None),
        "TTC random reward, beam 3": (FREE, random_reward()),
        "TTC learned, beam 3, guidance 1": ({**FREE, "guidance_lambda": 1.0}, None),
        "TTC learned, plan values": ({}, None),
        "TTC learned, plan values, beam 2": ({"beam": 2}, None),
        "TTC solver residual, beam 3": ({**FREE, "solver": "residual"}, None),
        "TTC solver correction, beam 3": ({**FREE, "solver": "correction"}, None),
    }
    for name, (settings, cost) in searches.items():
        if quick and name.split(",")[0] in ("TTC random reward", "representations") and "2" in name:
            continue
        rows[name] = searched(surrogate, truth, settings, cost)
        print(name, float(rows[name].nrmse.mean()), rows[name].evaluations, rows[name].about, flush=True)
    rows["classical solver, same grid"] = classical(surrogate, truth)
    return rows


def classical(surrogate: Surrogate, truth: Trajectories) -> Row:
    """The solver of the loop alone, from the first frame."""
    field, frames = truth.fields[:, 0, 0], []
    started = time.perf_counter()
    for _ in range(truth.fields.shape[1] - 1):
        field = solved(surrogate, field, truth.parameters, surrogate.architecture.dt_s)
        frames.append(field[:, None])
    seconds = (time.perf_counter() - started) / len(truth)
    return Row(score(torch.stack(frames, dim=1), truth), 0.0, seconds, {})


def table(rows: dict[str, Row], groups: tuple[str, ...]) -> dict[str, Any]:
    reference = {"ensemble mean of 2": rows["ensemble mean of 2"], "operator": rows["operator"]}
    means = {name: group_means(row.nrmse.double().numpy(), groups)[1] for name, row in rows.items()}
    found: dict[str, Any] = {}
    for name, row in rows.items():
        low, high = mean_interval(means[name], samples=SAMPLES)
        entry: dict[str, Any] = {
            "nrmse": float(means[name].mean()),
            "interval": [low, high],
            "median": float(row.nrmse.median()),
            "extra_evaluations": row.evaluations,
            "seconds_per_trajectory": row.seconds,
            **row.about,
        }
        for other in reference:
            scale = float(means[other].mean())
            gain = (scale - float(means[name].mean())) / scale
            span = [v / scale for v in paired_interval(means[name], means[other], samples=SAMPLES)]
            entry[f"gain_over_{other}"] = [gain, *span]
        found[name] = entry
    return found


def with_reward(surrogate: Surrogate, dataset: Dataset) -> float:
    """Seconds of training the learned reward, 0 where the model brings one."""
    if surrogate.reward is not None:
        return 0.0
    half = dataset.load("calibration_rewards", time_stride=surrogate.architecture.time_stride)
    started = time.perf_counter()
    train_reward(surrogate, TTCSection(), GuardsConfig(), half, dataset, seed=0)
    return time.perf_counter() - started


def main(report: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--regime", help="one regime, e.g. nu=0.01 (default: all)")
    parser.add_argument("--quick", action="store_true", help="without two rows")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    surrogate, dataset = load_surrogate(given.model), open_dataset(given.data)
    spent = with_reward(surrogate, dataset)
    truth = dataset.load(
        "validation", time_stride=surrogate.architecture.time_stride, max_groups=given.groups
    )
    regimes = {k: v for k, v in truth.regimes().items() if given.regime in (None, k)}
    tables = {}
    for label, index in regimes.items():
        part = truth.subset(index)
        tables[label] = table(rows_of(surrogate, part, quick=given.quick), part.groups)
    document = {"model": str(given.model.name), "reward_training_s": spent, "regimes": tables}
    text = json.dumps(document, indent=1)
    if given.out is not None:
        write_atomically(given.out, text + "\n")
    report(text)


if __name__ == "__main__":
    main()
