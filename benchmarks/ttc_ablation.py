"""What each part of test-time compute is worth at equal cost, on several seeds of one model together.

    python benchmarks/ttc_ablation.py DATA MODEL [MODEL ...] --controls MODEL [MODEL ...] --out FILE
        [--groups 32] [--regime nu=0.01]

Each MODEL is a run's model.safetensors with corrector (and student), one for each seed, all trained on
DATA; where it brings no learned reward or combination they are fitted on their half of the calibration split.
--controls are the capacity controls of these runs, one for each, in their order. Guarded rollouts from frame 0 to
the end on the selection split, one table per regime:

    operator; capacity control alone, with representations and with a regressed answer; teacher and student,
    each the members' own mean of 2 and 8; the recalibrated centre of the stored sampler's 2 and 8;
    representations alone; the search with the learned reward, or with a regressed answer; the first acting at
    random or in the first segments as often; representations alone where the reward would act, at random and
    first; solver in the loop; the classical solver on the same grid.

nrmse is the mean over seeds of each initial condition; intervals are 95 % over initial conditions, gains are
paired. Each search stands beside the operator, the ensemble and representations of at least its own
evaluations, operations (in operator steps, the reward's included) and seconds; `best` is the strongest
of the model's own. The control alone and its representations stand beside them at the same budgets. Seconds are those of this machine under its load at the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ttc_rivals import REGRESSED, Control, control_of, sampler_rows, samplers_of

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.errors import LeakageError
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.evaluation.bootstrap import group_means, mean_interval
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.equal_cost import KINDS, Answer, Rivals, Spent, best, gain
from universal_simulator.evaluation.search_diagnostics import SET_METRICS, set_metrics
from universal_simulator.identity import code_version, commit, package_versions
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.search_controls import (
    at_first,
    at_random,
    representations_alone,
    scheduled,
)
from universal_simulator.inference.solver_in_the_loop import solved
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, hash_of, load_surrogate
from universal_simulator.run_record import write_json
from universal_simulator.training.combination import fit_combination
from universal_simulator.training.reward import train_reward

SAMPLES = 2000
FREE: dict[str, Any] = {"residual_threshold": 0.0, "max_evaluations": 10**6}
#: searches by name: what differs from the plan's values
SEARCHES: dict[str, dict[str, Any]] = {
    "TTC learned, plan values": {},
    "TTC learned, plan values, everywhere": FREE,
    "TTC learned, beam 2": {"beam": 2},
    "TTC learned, beam 2, everywhere": {"beam": 2, **FREE},
    "TTC regressed, beam 2": {"beam": 2, "combine": "regress"},
    "TTC regressed, beam 2, everywhere": {"beam": 2, "combine": "regress", **FREE},
    "TTC solver residual, beam 2": {"beam": 2, "solver": "residual"},
    "TTC solver correction, beam 2": {"beam": 2, "solver": "correction"},
}
#: whose acts the controls repeat
CONTROLLED = "TTC learned, beam 2"
#: gains of one row over another that differs in one thing only
PAIRS = (
    ("TTC learned, beam 2", "TTC learned, beam 2, at random"),
    ("TTC learned, beam 2", "TTC learned, beam 2, first"),
    ("TTC learned, beam 2", "representations 2 where the reward acts"),
    ("TTC learned, beam 2, everywhere", "representations 2"),
    ("TTC learned, plan values, everywhere", "representations 3"),
    ("TTC regressed, beam 2, everywhere", "representations 2"),
    ("TTC regressed, beam 2", "representations 2 where the reward acts"),
    ("representations 2 where the reward acts", "representations 2 at random"),
    ("representations 2 where the reward acts", "representations 2 first"),
    ("representations 2", "representations 2 where the reward acts"),
    ("student, mean of 2", "teacher, mean of 2"),
    ("student, mean of 8", "teacher, mean of 8"),
    ("student, mean of 8", "capacity control"),
    ("TTC learned, beam 2", "capacity control"),
    ("TTC regressed, beam 2, everywhere", "capacity control"),
    ("TTC learned, beam 2", "student, mean of 2"),
    ("TTC learned, beam 2", "student, mean of 8"),
    ("control, representations 2", "capacity control"),
    (REGRESSED, "control, representations 2"),
)
#: rivals of a budget that are not the model's own
OF_CONTROLS = ("control", "control representations")


@dataclass(frozen=True)
class Seed:
    """One model's rows; of searches also the rivals of each budget and what their sets show."""

    rows: dict[str, Answer]
    rivals: dict[str, dict[str, dict[str, Answer]]]
    sets: dict[str, dict[str, float | None]]


def seed_of(
    surrogate: Surrogate,
    truth: Trajectories,
    label: str,
    *,
    samplers: Mapping[str, Surrogate] | None = None,
    control: Surrogate | None = None,
) -> Seed:
    plan = SearchingPredictor(surrogate, GuardsConfig(), TTCSection())
    calibrations = EnsembleRules.of(truth, surrogate.calibration, first_frame=0).calibrations
    asked = Rivals(plan, truth, noise_seed=0, calibration=calibrations.get(label))
    rows = {"operator": asked.named("operator", 1)}
    other = None
    if control is not None:
        other = Control.of(control, truth, step_flops=plan.prices.step_flops)
        rows |= other.rows()
    rows |= sampler_rows(samplers or {}, truth)
    for count in (2, 8):
        rows[f"ensemble centre of {count}"] = asked.named("ensemble", count)
    for count in (2, 3):
        rows[f"representations {count}"] = asked.named("representations", count)
    rivals: dict[str, dict[str, dict[str, Answer]]] = {}
    sets: dict[str, dict[str, float | None]] = {}
    searches = {
        name: SearchingPredictor(surrogate, GuardsConfig(), TTCSection(**settings))
        for name, settings in SEARCHES.items()
    }
    for name, predictor in searches.items():
        decisions: list[Decision] = []
        predictor.observe = decisions.append
        rows[name] = asked.searched(predictor)
        measured = set_metrics(decisions, truth, bootstrap_samples=SAMPLES)
        sets[name] = {key: measured[key].value for key in SET_METRICS}
    for name, predictor in controls(searches[CONTROLLED]).items():
        rows[name] = asked.searched(predictor)
    for name in searches:
        rivals[name] = {kind: asked.at(rows[name].spent, kind) for kind in KINDS}
        if other is not None:
            for kind in KINDS:
                rivals[name][kind] |= other.at(rows[name].spent, kind)
    rows["classical solver, same grid"] = classical(surrogate, truth)
    return Seed(rows, rivals, sets)


def controls(search: SearchingPredictor) -> dict[str, SearchingPredictor]:
    """The same search, and representations alone, acting as often elsewhere."""
    acts = search.accounts.acts
    places = {"at random": at_random(acts, seed=0), "first": at_first(acts)}
    found = {f"{CONTROLLED}, {name}": scheduled(search, where) for name, where in places.items()}
    for name, where in {"where the reward acts": acts, **places}.items():
        found[f"representations 2 {name}"] = representations_alone(search, copies=2, schedule=where)
    return found


def classical(surrogate: Surrogate, truth: Trajectories) -> Answer:
    """The solver of the loop alone, from the first frame; it has no evaluations."""
    field, frames = truth.fields[:, 0, 0], []
    started = time.perf_counter()
    for _ in range(truth.fields.shape[1] - 1):
        field = solved(surrogate, field, truth.parameters, surrogate.architecture.dt_s)
        frames.append(field[:, None])
    seconds = (time.perf_counter() - started) / len(truth)
    error, valid, _ = nrmse_frames(torch.stack(frames, dim=1), truth.fields[:, 1:], truth.fields[:, 0])
    return Answer(mean_valid(error, valid, dims=(1, 2)).nan_to_num(), Spent(0.0, 0.0, seconds), 1)


def joint(seeds: list[Seed], groups: tuple[str, ...]) -> dict[str, Any]:
    """The rows of all seeds in one table."""
    rows: dict[str, Any] = {}
    for name in seeds[0].rows:
        answers = [seed.rows[name] for seed in seeds]
        means = group_means(pooled(answers).numpy(), groups)[1]
        entry: dict[str, Any] = {
            "nrmse": float(means.mean()),
            "interval": mean_interval(means, samples=SAMPLES),
            "nrmse_by_seed": [
                float(group_means(a.nrmse.double().numpy(), groups)[1].mean()) for a in answers
            ],
            **{kind: sum(a.spent.of(kind) for a in answers) / len(answers) for kind in KINDS},
            "gain_over_operator": paired(answers, [seed.rows["operator"] for seed in seeds], groups),
        }
        if name in seeds[0].rivals:
            entry["at_equal"] = {kind: at_equal(seeds, name, kind, groups) for kind in KINDS}
            entry["sets"] = {k: [seed.sets[name][k] for seed in seeds] for k in SET_METRICS}
        rows[name] = entry
    pairs = {
        f"{one} / {other}": paired([s.rows[one] for s in seeds], [s.rows[other] for s in seeds], groups)
        for one, other in PAIRS
        if one in seeds[0].rows and other in seeds[0].rows
    }
    return {"rows": rows, "pairs": pairs}


def at_equal(seeds: list[Seed], name: str, kind: str, groups: tuple[str, ...]) -> dict[str, Any]:
    """Paired gains over each rival of the budget; best: the model's own strongest, of all seeds together."""
    others = [seed.rivals[name][kind] for seed in seeds]
    ours = [seed.rows[name] for seed in seeds]
    together = {
        rival: Answer(pooled([o[rival] for o in others]), others[0][rival].spent, others[0][rival].size)
        for rival in others[0]
    }
    strongest = best({k: v for k, v in together.items() if k not in OF_CONTROLS}, groups)
    found: dict[str, Any] = {"best": strongest}
    for rival in together:
        found[rival] = {
            "sizes": [o[rival].size for o in others],
            **paired(ours, [o[rival] for o in others], groups),
        }
    return found


def pooled(answers: list[Answer]) -> Tensor:
    return torch.stack([answer.nrmse.double() for answer in answers]).mean(dim=0)


def paired(ours: list[Answer], theirs: list[Answer], groups: tuple[str, ...]) -> dict[str, Any]:
    """Gain of the means over seeds with its interval; and each seed's own."""
    by_seed = [
        gain(a.nrmse, b.nrmse, groups, samples=SAMPLES).value for a, b in zip(ours, theirs, strict=True)
    ]
    whole = gain(pooled(ours), pooled(theirs), groups, samples=SAMPLES)
    return {"gain": whole.value, "low": whole.low, "high": whole.high, "by_seed": by_seed}


def prepared(path: Path, dataset: Dataset) -> tuple[Surrogate, dict[str, Any]]:
    """A model with a learned reward, trained here where it brings none, and what it is."""
    surrogate = load_surrogate(path)
    about: dict[str, Any] = {"file": str(path), "hash": hash_of(surrogate), "reward_training_s": 0.0}
    half = dataset.load("calibration_rewards", time_stride=surrogate.architecture.time_stride)
    started = time.perf_counter()
    if surrogate.reward is None:
        train_reward(surrogate, TTCSection(), GuardsConfig(), half, dataset, seed=0)
        about["reward_training_s"] = time.perf_counter() - started
    if surrogate.combination is None:
        regress = TTCSection(beam=2, combine="regress")
        fit_combination(surrogate, regress, GuardsConfig(), half, dataset, seed=0)
        about["fitting_s"] = time.perf_counter() - started - about["reward_training_s"]
    entry = surrogate.architecture.reward
    if entry is not None:
        about |= {"hash_with_reward": hash_of(surrogate), "plain_p95": entry.plain_p95, "sets": entry.sets}
    prices = SearchingPredictor(surrogate, GuardsConfig(), TTCSection()).prices
    return surrogate, {**about, "prices": dataclasses.asdict(prices)}


def refuse_seen(surrogate: Surrogate, truth: Trajectories, path: Path) -> None:
    architecture = surrogate.architecture
    entries = (architecture.calibration, architecture.reward, architecture.combination)
    fitted = [entry.groups for entry in entries if entry is not None]
    known = set(architecture.seen_groups).union(*fitted)
    shared = {group for group in truth.groups if group[:GROUP_DIGITS] in known}
    if shared:
        raise LeakageError(f"{path}: trained, validated or calibrated on {len(shared)} of these conditions")


def told(label: str, table: dict[str, Any]) -> None:
    print(f"\n{label}\n{'row':44s} nrmse   evals   ops   s/traj  gain over operator")
    for name, row in table["rows"].items():
        over = row["gain_over_operator"]
        print(
            f"{name:44s} {row['nrmse']:.4f} {row['evaluations']:6.0f} {row['operations']:6.0f} "
            f"{row['seconds']:7.3f}  {over['gain']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f})"
        )
        for kind, found in row.get("at_equal", {}).items():
            parts = [
                f"{rival} {found[rival]['sizes']} {found[rival]['gain']:+.3f} "
                f"({found[rival]['low']:+.3f} to {found[rival]['high']:+.3f})"
                for rival in found
                if rival != "best"
            ]
            print(f"    at equal {kind}: {'; '.join(parts)}; best {found['best']}")
    for name, found in table["pairs"].items():
        print(f"{name}: {found['gain']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--groups", type=int, default=32, help="initial conditions (default 32)")
    parser.add_argument("--split", choices=("selection", "validation"), default="selection")
    parser.add_argument("--regime", help="one regime, e.g. nu=0.01 (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--controls", type=Path, nargs="+", default=[], help="capacity controls, one for each MODEL"
    )
    given = parser.parse_args(words)
    if given.controls and len(given.controls) != len(given.models):
        parser.error("--controls needs one model for each MODEL, in their order")
    torch.set_num_threads(given.threads)
    dataset = open_dataset(given.data)
    seeds: dict[str, list[Seed]] = {}
    groups: dict[str, tuple[str, ...]] = {}
    models: list[dict[str, Any]] = []
    for index, path in enumerate(given.models):
        surrogate, about = prepared(path, dataset)
        parts: dict[str, Any] = {}
        if (path.parent / "summary.json").is_file():  # what its samplers' noise is stands there
            parts["samplers"] = samplers_of(path)
        if given.controls:
            control = given.controls[index]
            parts["control"] = control_of(control, dataset)
            about |= {"control": str(control), "control_hash": hash_of(load_surrogate(control))}
        models.append(about)
        truth = dataset.load(
            given.split, time_stride=surrogate.architecture.time_stride, max_groups=given.groups
        )
        if given.split != "validation":
            refuse_seen(surrogate, truth, path)
        for label, rows in truth.regimes().items():
            if given.regime in (None, label):
                part = truth.subset(rows)
                groups[label] = part.groups
                started = time.perf_counter()
                seeds.setdefault(label, []).append(seed_of(surrogate, part, label, **parts))
                print(f"{path.parent.name} {label}: {time.perf_counter() - started:.0f} s", flush=True)
        # after every seed: a long run that is cut off keeps what it has
        tables = {label: joint(found, groups[label]) for label, found in seeds.items()}
        write_json(given.out, described(given, dataset, models, tables))
    for label, table in tables.items():
        told(label, table)


def described(
    given: argparse.Namespace, dataset: Dataset, models: list[dict[str, Any]], tables: dict[str, Any]
) -> dict[str, Any]:
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "code_version": code_version(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "threads": given.threads,
        "load_average": os.getloadavg(),
        "data_identity": dataset.identity,
        "split": given.split,
        "groups": given.groups,
        "models": models,
        "regimes": tables,
    }


if __name__ == "__main__":
    main()
