"""Trains the learned reward of test-time compute on its own half of the calibration split.

Candidate sets are those of the search itself, on rollouts of its own (so that starts are as wrong
as they will be), from the initial condition to the end and from random frames on, each seen under
random exact symmetries. Target: the log relative error t_i of each candidate. With predictions p_i

    L = mean_i ((p_i - p) - (t_i - t))^2 + level_weight (p - t)^2 + level_weight (p_plain - t_plain)^2

p and t without index are means over the set: the first term ranks within a set, the others learn how
wrong the answer is at all, with candidates and of the plain rollout alone, which is what the threshold asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.errors import DataError, LeakageError
from universal_simulator.inference.rewards import Cost, Question, seen
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.contract import Conditions
from universal_simulator.model.reward import LearnedReward, RewardEntry, Seen
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.augmentation import Augmentation

LEVEL_WEIGHT = 0.1
BATCH_SETS = 32
LEARNING_RATE = 3e-3
WARMUP = 0.05
#: segments of rollouts that start at a random frame
SEGMENTS_FROM_ANYWHERE = 4
#: smallest relative error that is told apart
SMALLEST_ERROR = 1e-6
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class CandidateSets:
    """What the reward is given of S sets, with log errors (S, n); and of the plain answers, (S, 1).

    plain: start, end and parameters of the plain answers, which the threshold is measured on.
    """

    seen: Seen
    log_error: Tensor
    plain_seen: Seen
    plain_log_error: Tensor
    plain: Question


def train_reward(
    surrogate: Surrogate,
    ttc: TTCSection,
    guards: GuardsConfig,
    truth: Trajectories,
    dataset: Dataset,
    *,
    seed: int,
) -> None:
    """Add a learned reward to `surrogate`, trained on `truth`, which must lie in its half of calibration."""
    refuse_others(truth, dataset)
    sets = candidate_sets(surrogate, ttc, guards, truth, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reward = surrogate.add_reward()
        torch.nn.init.normal_(reward.network.project.weight, std=0.02)
        fit(reward, sets, steps=ttc.reward_steps)
    with torch.no_grad():
        cost = Cost(surrogate, ttc.reward_weights, gamma=ttc.gamma)(sets.plain)
    finite = cost[torch.isfinite(cost)]
    if not len(finite):
        raise DataError(
            "no plain rollout over the reward's training half is finite; train the operator longer"
        )
    entry = RewardEntry(
        plain_p95=float(torch.quantile(finite.double(), 0.95)),
        sets=len(sets.log_error),
        groups=tuple(sorted({group[:GROUP_DIGITS] for group in truth.groups})),
    )
    surrogate.architecture = surrogate.architecture.model_copy(update={"reward": entry})


@torch.no_grad()
def candidate_sets(
    surrogate: Surrogate, ttc: TTCSection, guards: GuardsConfig, truth: Trajectories, *, seed: int
) -> CandidateSets:
    """Sets of the search's first pass with their true errors, in order of time."""
    # every candidate weighs the same: what is chosen must not depend on what is being learned
    settings = {
        "residual_threshold": 0.0,
        "max_evaluations": 10**9,
        "steps": 1,
        "horizon": 1,
        "solver": "off",
    }
    plain = ttc.model_copy(update={**settings, "combine": "average", "guidance_lambda": 0.0})
    parts: list[CandidateSets] = []
    for frames, parameters in _rollouts(surrogate, truth, torch.Generator().manual_seed(seed)):

        def note(decision: Decision, frames: Tensor = frames) -> None:
            found = _labelled(surrogate, decision, frames[decision.rows, decision.step])
            if found is not None:
                parts.append(found)

        predictor = SearchingPredictor(
            surrogate, guards, plain, noise_seed=seed, cost=_indifferent, observe=note
        )
        predictor.rollout(frames[:, 0], parameters, frames.shape[1] - 1)
    if not parts:
        raise DataError("no candidate of the reward's training half is finite; train the operator longer")
    return _joined(parts)


def fit(reward: LearnedReward, sets: CandidateSets, *, steps: int) -> None:
    """AdamW with a cosine; draws come from torch's global generator, which the caller seeds."""
    reward.fit_units(sets.seen)
    with torch.no_grad():
        reward.level.fill_(float(sets.log_error.mean()))
    optimiser = torch.optim.AdamW(reward.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps + 1, pct_start=WARMUP, cycle_momentum=False
    )
    for _ in range(steps):
        rows = torch.randint(len(sets.log_error), (BATCH_SETS,), device=sets.log_error.device)
        loss = ranking_loss(reward, sets, rows)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reward.parameters(), 1.0)
        optimiser.step()
        rate.step()


def ranking_loss(reward: LearnedReward, sets: CandidateSets, rows: Tensor) -> Tensor:
    predicted, target = reward(sets.seen.rows(rows)), sets.log_error[rows]
    level = predicted.mean(dim=1, keepdim=True) - target.mean(dim=1, keepdim=True)
    ranking = predicted - target - level
    plain = reward(sets.plain_seen.rows(rows)) - sets.plain_log_error[rows]
    return ranking.square().mean() + LEVEL_WEIGHT * (level.square().mean() + plain.square().mean())


def _indifferent(question: Question) -> Tensor:
    finite = question.finite()
    return torch.where(finite, torch.ones_like(finite, dtype=question.fields.dtype), torch.inf)


def _rollouts(
    surrogate: Surrogate, truth: Trajectories, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """True frames (b, T, C, X), augmented, with parameters: whole, and short ones from anywhere."""
    augment = _augmentation(truth)
    frames = truth.fields.shape[1]
    segment = surrogate.architecture.reencode_every or frames - 1
    short = min(frames, SEGMENTS_FROM_ANYWHERE * segment + 1)
    for rows in torch.arange(len(truth)).split(ROWS_AT_ONCE):
        fields, parameters = truth.fields[rows], truth.parameters[rows]
        yield augment(fields, generator), parameters
        first = torch.randint(frames - short + 1, (len(rows),), generator=generator)
        window = (first[:, None] + torch.arange(short)).to(fields.device)
        chosen = fields[torch.arange(len(rows), device=fields.device)[:, None], window]
        yield augment(chosen, generator), parameters


def whole_rollouts(truth: Trajectories, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """True frames (b, T, C, X), augmented, with parameters, from the initial condition on."""
    augment = _augmentation(truth)
    for rows in torch.arange(len(truth)).split(ROWS_AT_ONCE):
        yield augment(truth.fields[rows], generator), truth.parameters[rows]


def _augmentation(truth: Trajectories) -> Augmentation:
    declared = [name for name in ("shift", "reflection") if name in truth.equation.symmetries]
    return Augmentation(declared, truth.equation, truth.grid)


def _labelled(surrogate: Surrogate, decision: Decision, truth: Tensor) -> CandidateSets | None:
    """The sets whose candidates are all finite, with the errors they turned out to have."""
    question = decision.question
    kept = question.finite().all(dim=1) & torch.isfinite(question.start).flatten(1).all(dim=1)
    if not bool(kept.any()):
        return None
    question = Question(
        question.start[kept],
        question.fields[kept],
        question.parameters[kept],
        question.elapsed_s[kept],
        question.reference,
    )
    plain = Question(question.start, question.fields[:, :1], question.parameters, question.elapsed_s, 0)
    return CandidateSets(
        seen(surrogate, question),
        log_relative_error(question.fields, truth[kept]),
        seen(surrogate, plain),
        log_relative_error(plain.fields, truth[kept]),
        plain,
    )


def log_relative_error(candidates: Tensor, truth: Tensor) -> Tensor:
    """log rms(c_i - y) / rms(y): (B, n, C, X), (B, C, X) -> (B, n)."""
    error = (candidates - truth[:, None]).square().mean(dim=(-2, -1)).sqrt()
    scale = truth.square().mean(dim=(-2, -1)).sqrt().clamp_min(torch.finfo(truth.dtype).tiny)
    return (error / scale[:, None]).clamp_min(SMALLEST_ERROR).log()


def _joined(parts: list[CandidateSets]) -> CandidateSets:
    """Without inference mode's mark, so that a reward can be trained on them."""

    def cat(read: Callable[[CandidateSets], Tensor]) -> Tensor:
        return torch.cat([read(part) for part in parts]).clone()

    def views(read: Callable[[CandidateSets], Seen]) -> Seen:
        conditions = Conditions(
            cat(lambda p: read(p).conditions.parameters), cat(lambda p: read(p).conditions.dt)
        )
        return Seen(
            cat(lambda p: read(p).start),
            cat(lambda p: read(p).reference),
            cat(lambda p: read(p).deviations),
            conditions,
        )

    plain = Question(
        cat(lambda p: p.plain.start),
        cat(lambda p: p.plain.fields),
        cat(lambda p: p.plain.parameters),
        cat(lambda p: p.plain.elapsed_s),
        0,
    )
    return CandidateSets(
        views(lambda p: p.seen),
        cat(lambda p: p.log_error),
        views(lambda p: p.plain_seen),
        cat(lambda p: p.plain_log_error),
        plain,
    )


def refuse_others(truth: Trajectories, dataset: Dataset) -> None:
    half = CALIBRATION_HALVES[1]
    allowed = {dataset.groups[row] for row in dataset.rows(half)}
    others = set(truth.groups) - allowed
    if others:
        raise LeakageError(
            f"{dataset.path}: {len(others)} of {len(set(truth.groups))} initial conditions given for the "
            f"learned reward lie outside its half of the calibration split; load {half!r}"
        )
