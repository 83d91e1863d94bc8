"""What test-time compute could gain, what its reward knows, and what it gains at equal cost.

Per regime, over the first pass of every segment acted on (a candidate *set*), with the truth y:

    ttc_oracle_gain       1 - sum min_i |c_i - y| / sum |mean - y|: the bound, read first
    ttc_answer_gain       the same of the answer in the place of the oracle's pick
    ttc_spread_over_error rms distance of a set's candidates from its mean over that mean's error
    ttc_spearman          rank correlation of reward and -error within a set, mean over sets; a random
                          reward scores 0, and `reward_informs` asks its interval to exclude that
    ttc_gain_equal_evaluations  1 - nrmse / nrmse of the ensemble's mean with as many evaluations or more
    ttc_gain_over_operator      1 - nrmse / nrmse of the plain operator

Whole rollouts are guarded. Evaluations are operator steps and corrector samples; the reward's own are
counted beside. The gain at equal seconds belongs to one machine: it is an observation.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.evaluation.bootstrap import group_means, resample_weights
from universal_simulator.evaluation.glossary import entry
from universal_simulator.evaluation.summary import Summary, undeclared
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.run_record import Metric, RegimeResult

#: an ensemble compared at equal cost has at most this many members
MOST_MEMBERS = 32


@dataclass(frozen=True)
class Diagnosis:
    """metrics: deterministic. observed: seconds of this machine and what depends on them."""

    metrics: dict[str, Metric]
    observed: dict[str, float]


def diagnose(
    predictor: SearchingPredictor, truth: Trajectories, *, bootstrap_samples: int, noise_seed: int
) -> dict[str, Diagnosis]:
    """By regime. The predictor's own observer is set aside while it is watched."""
    return {
        label: _diagnose(predictor, truth.subset(rows), bootstrap_samples, noise_seed)
        for label, rows in truth.regimes().items()
    }


def _diagnose(
    predictor: SearchingPredictor, truth: Trajectories, bootstrap_samples: int, noise_seed: int
) -> Diagnosis:
    summary = Summary(truth.groups, field_unit="1", bootstrap_samples=bootstrap_samples)
    steps = truth.fields.shape[1] - 1
    decisions: list[Decision] = []
    before, predictor.observe = predictor.observe, decisions.append
    started = time.perf_counter()
    try:
        raw = predictor.rollout(truth.fields[:, 0], truth.parameters, steps)
    finally:
        predictor.observe = before
    seconds = time.perf_counter() - started
    found = _nrmse(predictor, raw, truth)
    metrics = _of_sets(decisions, truth, summary, predictor.substeps)
    accounts = predictor.accounts
    for name, values in (
        ("ttc_evaluations", accounts.evaluations),
        ("ttc_reward_evaluations", accounts.reward_evaluations),
        ("ttc_dropped", accounts.dropped),
        ("ttc_segments", accounts.acted),
    ):
        metrics[name] = summary.mean(name, values)
    operator = SurrogatePredictor.rollout(predictor, truth.fields[:, 0], truth.parameters, steps)
    metrics["ttc_gain_over_operator"] = _gain(
        "ttc_gain_over_operator", found, _nrmse(predictor, operator, truth), truth.groups, bootstrap_samples
    )
    observed = {"seconds_per_trajectory": seconds / len(truth)}
    equal, more = _against_ensembles(predictor, truth, found, seconds, noise_seed, bootstrap_samples)
    return Diagnosis(metrics | equal, observed | more)


def _of_sets(
    decisions: list[Decision], truth: Trajectories, summary: Summary, substeps: int
) -> dict[str, Metric]:
    """Gains, spread and rank correlation of the sets at frames that the truth has."""
    rows: list[Tensor] = []
    pieces: dict[str, list[Tensor]] = {"oracle": [], "answer": [], "mean": [], "spread": [], "spearman": []}
    for decision in decisions:
        if decision.index or decision.step % substeps:
            continue
        target = truth.fields[decision.rows, decision.step // substeps].to(decision.answer)
        fields, reference = decision.question.fields, decision.question.reference
        error = _rms(fields - target[:, None])
        centre = fields[:, reference]
        usable = torch.isfinite(decision.cost) & torch.isfinite(error)
        kept = usable[:, reference] & (usable.sum(dim=1) > 2)
        if not bool(kept.any()):
            continue
        error = error.masked_fill(~usable, torch.inf)
        rows.append(decision.rows[kept])
        pieces["oracle"].append(error[kept].amin(dim=1))
        pieces["answer"].append(_rms(decision.answer - target)[kept])
        pieces["mean"].append(error[kept, reference])
        away = _rms(fields - centre[:, None]).square().masked_fill(~usable, 0.0)
        pieces["spread"].append((away.sum(dim=1) / usable.sum(dim=1)).sqrt()[kept])
        pieces["spearman"].append(spearman(-decision.cost, -error, usable)[kept])
    if not rows:
        reason = "test-time compute acted on no segment: nothing exceeded its threshold, or nothing was left to spend"
        return {name: undeclared(name, reason) for name in SET_METRICS}
    owner = torch.cat(rows).cpu()
    joined = {name: torch.cat(values).double().cpu() for name, values in pieces.items()}
    per_sample = {name: _per_sample(values, owner, len(truth)) for name, values in joined.items()}
    ratio = {
        "ttc_oracle_gain": 1 - per_sample["oracle"] / per_sample["mean"],
        "ttc_answer_gain": 1 - per_sample["answer"] / per_sample["mean"],
        "ttc_spread_over_error": per_sample["spread"] / per_sample["mean"],
        "ttc_spearman": per_sample["spearman"],
    }
    metrics = {name: summary.mean(name, values, exclude_nan=True) for name, values in ratio.items()}
    for name, kind in (("ttc_oracle_gain", "oracle"), ("ttc_answer_gain", "answer")):
        pooled = _pooled(per_sample[kind], per_sample["mean"], summary)
        metrics[name] = metrics[name].model_copy(update=pooled)
    return metrics


def with_diagnoses(
    regimes: dict[str, RegimeResult], found: dict[str, Diagnosis]
) -> tuple[dict[str, RegimeResult], dict[str, dict[str, float]]]:
    """Regimes with the diagnoses' metrics among theirs, and what was observed of each.

    A regime that none of the diagnosed initial conditions belongs to stays as it is.
    """
    joined = {
        label: regime
        if label not in found
        else regime.model_copy(update={"metrics": {**regime.metrics, **found[label].metrics}})
        for label, regime in regimes.items()
    }
    return joined, {label: diagnosis.observed for label, diagnosis in found.items()}


SET_METRICS = ("ttc_oracle_gain", "ttc_answer_gain", "ttc_spread_over_error", "ttc_spearman")


def reward_informs(metrics: dict[str, Metric]) -> tuple[bool, str]:
    """Does the reward know anything within a set? Passes only where the whole interval says so."""
    metric = metrics["ttc_spearman"]
    if metric.value is None:
        return False, f"ttc_spearman is missing: {metric.reason}"
    known = metric.low is not None and metric.low > 0
    bound = "no interval" if metric.low is None else f"95 % interval from {metric.low:.3f}"
    return known, (
        f"rank correlation of reward and -error within a set {metric.value:.3f}, {bound}: "
        + ("the reward ranks candidates" if known else "no better than a random reward")
    )


def spearman(reward: Tensor, quality: Tensor, usable: Tensor) -> Tensor:
    """Rank correlation (B,) of two scores (B, n) over each row's `usable` entries; mean ranks for ties,
    0 where one of them is constant: a score that prefers nothing knows nothing."""
    ranks = []
    for values in (reward, quality):
        less = (values[:, :, None] > values[:, None, :]) & usable[:, None, :]
        equal = (values[:, :, None] == values[:, None, :]) & usable[:, None, :]
        rank = less.sum(dim=2).double() + 0.5 * equal.sum(dim=2).double()
        rank = torch.where(usable, rank, 0.0)
        centre = rank.sum(dim=1, keepdim=True) / usable.sum(dim=1, keepdim=True).clamp_min(1)
        ranks.append(torch.where(usable, rank - centre, 0.0))
    product = (ranks[0] * ranks[1]).sum(dim=1)
    size = ranks[0].square().sum(dim=1).sqrt() * ranks[1].square().sum(dim=1).sqrt()
    return torch.where(size > 1e-9, product / size.clamp_min(1e-9), 0.0)


def _against_ensembles(
    predictor: SearchingPredictor,
    truth: Trajectories,
    found: Tensor,
    seconds: float,
    noise_seed: int,
    bootstrap_samples: int,
) -> tuple[dict[str, Metric], dict[str, float]]:
    """The ensemble's mean with at least as many evaluations, and with at least as many seconds."""
    name = "ttc_gain_equal_evaluations"
    corrector = predictor.surrogate.corrector
    if corrector is None:
        return {name: undeclared(name, "the model is deterministic: it has no ensemble")}, {}
    steps = (truth.fields.shape[1] - 1) * predictor.substeps
    student = predictor.surrogate.architecture.sampler == "student"
    options = corrector.options
    sampled = options.student_evaluations if student else 2 * options.teacher_steps
    spent = steps + float(predictor.accounts.evaluations.double().mean())
    by_evaluations = _members(spent / (steps * (1 + sampled)))
    score, elapsed = _ensemble(predictor, truth, by_evaluations, noise_seed)
    metrics = {name: _gain(name, found, score, truth.groups, bootstrap_samples)}
    metrics["ttc_equal_members"] = Summary(
        truth.groups, field_unit="1", bootstrap_samples=bootstrap_samples
    ).number("ttc_equal_members", by_evaluations)
    by_seconds = _members(seconds * by_evaluations / elapsed)
    at_seconds = (
        score if by_seconds == by_evaluations else _ensemble(predictor, truth, by_seconds, noise_seed)[0]
    )
    return metrics, {
        "equal_seconds_members": float(by_seconds),
        "gain_equal_seconds": _ratio_gain(found, at_seconds, truth.groups),
        "ensemble_seconds_per_member": elapsed / by_evaluations,
    }


def _members(exact: float) -> int:
    """Rounded up: in case of doubt the ensemble has more."""
    return min(MOST_MEMBERS, max(1, math.ceil(exact - 1e-9)))


def _ensemble(
    predictor: SearchingPredictor, truth: Trajectories, members: int, noise_seed: int
) -> tuple[Tensor, float]:
    """(nrmse of its mean per trajectory, seconds)."""
    sampler = StochasticPredictor(
        predictor.surrogate,
        predictor.guards_config,
        members=max(2, members),
        frame_spacing_s=predictor.frame_spacing_s,
    )
    sampler.members = members
    started = time.perf_counter()
    drawn = sampler.rollout_members(
        truth.fields[:, 0], truth.parameters, truth.fields.shape[1] - 1, seed=noise_seed
    )
    seconds = time.perf_counter() - started
    return _nrmse(predictor, drawn.mean(dim=1), truth), seconds


def _gain(name: str, found: Tensor, reference: Tensor, groups: tuple[str, ...], samples: int) -> Metric:
    """1 - mean(found) / mean(reference) over groups, resampled in pairs."""
    weights = resample_weights(groups, samples=samples)
    ours, theirs = (weights @ v.double().cpu().numpy() for v in (found, reference))
    gains = 1 - ours / theirs
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    about = entry(name)
    if not np.isfinite(gains).all():
        return Metric(value=None, unit=about.unit, better=about.better, reason="not finite")
    return Metric(
        value=float(gains[0]), low=float(low), high=float(high), unit=about.unit, better=about.better
    )


def _ratio_gain(found: Tensor, reference: Tensor, groups: tuple[str, ...]) -> float:
    ours, theirs = (group_means(v.double().cpu().numpy(), groups)[1].mean() for v in (found, reference))
    return float(1 - ours / theirs)


def _pooled(part: Tensor, whole: Tensor, summary: Summary) -> dict[str, float]:
    """1 - sum part / sum whole with its interval: large errors count as much as they are."""
    kept = torch.isfinite(part) & torch.isfinite(whole)
    groups = tuple(g for g, k in zip(summary.groups, kept.tolist(), strict=True) if k)
    weights = resample_weights(groups, samples=summary.bootstrap_samples)
    gains = 1 - (weights @ part[kept].numpy()) / (weights @ whole[kept].numpy())
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    return {"value": float(gains[0]), "low": float(low), "high": float(high)}


def _per_sample(values: Tensor, owner: Tensor, size: int) -> Tensor:
    """Mean over the sets of each sample; NaN where it has none."""
    total = torch.zeros(size, dtype=torch.float64).index_add_(0, owner, values)
    count = torch.bincount(owner, minlength=size)
    return torch.where(count > 0, total / count.clamp_min(1), torch.nan)


def _nrmse(predictor: SurrogatePredictor, raw: Tensor, truth: Trajectories) -> Tensor:
    initial = truth.fields[:, 0]
    error, valid, _ = nrmse_frames(predictor.guard(raw, initial), truth.fields[:, 1:], initial)
    return mean_valid(error, valid, dims=(1, 2)).nan_to_num()


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=(-2, -1)).sqrt()
