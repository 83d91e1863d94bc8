"""What test-time compute could gain, what its reward knows, and what it gains at equal cost.

Per regime, over the first pass of every segment acted on (a candidate *set*), with the truth y:

    ttc_oracle_gain       1 - sum min_i |c_i - y| / sum |mean - y|: the bound, read first
    ttc_answer_gain       the same of the answer in the place of the oracle's pick
    ttc_spread_over_error rms distance of a set's candidates from its mean over that mean's error
    ttc_spearman          rank correlation of reward and -error within a set, mean over sets; a random
                          reward scores 0, and `reward_informs` asks its interval to exclude that

A regressed answer picks and ranks nothing: its pool holds the answer itself and costs that no reward gave, so
bound and rank correlation are not applicable, and the spread is that of the others.

Whole guarded rollouts are compared with rivals that need no reward (`evaluation/equal_cost.py`): 1 - nrmse
over that of the operator, of the ensemble's centre, of representations alone, and of the best of them, at
equal evaluations and at equal operations; and of the same search acting as often at random, or in the first
segments. These two controls are told where to act: they ask no threshold and pay no question of it, so
operations are not equal, in the control's favour. The gain at equal seconds belongs to one machine: it is an
observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.bootstrap import resample_weights
from universal_simulator.evaluation.equal_cost import Answer, Rivals, best, gain
from universal_simulator.evaluation.summary import Summary, undeclared
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.search_controls import at_first, at_random, scheduled
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.calibration import RegimeCalibration
from universal_simulator.run_record import Metric, RegimeResult

#: why a rival is missing
MISSING = {
    "ensemble": "the model is deterministic: it has no ensemble",
    "representations": "the equation declares no symmetry to represent a field by",
}
#: why sets of a regressed answer have no bound and no rank correlation
REGRESSED = "the answer is regressed (ttc.combine): nothing is picked, and no reward ranks its candidates"


@dataclass(frozen=True)
class Diagnosis:
    """metrics: deterministic, of so many initial conditions. observed: seconds of this machine and what depends
    on them."""

    metrics: dict[str, Metric]
    observed: dict[str, float]
    groups: int


def diagnose(
    predictor: SearchingPredictor,
    truth: Trajectories,
    *,
    bootstrap_samples: int,
    noise_seed: int,
    calibrations: Mapping[str, RegimeCalibration] | None = None,
) -> dict[str, Diagnosis]:
    """By regime. The predictor's own observer is set aside while it is watched.

    calibrations: by regime, what places the rival ensemble's centre; its members' mean where there is none.
    """
    found = {}
    for label, rows in truth.regimes().items():
        rivals = Rivals(
            predictor,
            truth.subset(rows),
            noise_seed=noise_seed,
            calibration=(calibrations or {}).get(label),
        )
        found[label] = _diagnose(rivals, bootstrap_samples)
    return found


def _diagnose(rivals: Rivals, bootstrap_samples: int) -> Diagnosis:
    predictor, truth = rivals.predictor, rivals.truth
    summary = Summary(truth.groups, field_unit="1", bootstrap_samples=bootstrap_samples)
    decisions: list[Decision] = []
    before, predictor.observe = predictor.observe, decisions.append
    try:
        found = rivals.searched(predictor)
    finally:
        predictor.observe = before
    metrics = set_metrics(decisions, truth, bootstrap_samples=bootstrap_samples, substeps=predictor.substeps)
    metrics["ttc_reward_informs"] = _informs(metrics, summary)
    accounts = predictor.accounts
    for name, values in (
        ("ttc_evaluations", accounts.evaluations),
        ("ttc_reward_evaluations", accounts.reward_evaluations),
        ("ttc_operations", accounts.operations(predictor.prices)),
        ("ttc_dropped", accounts.dropped),
        ("ttc_reward_nans", accounts.reward_nans),
        ("ttc_segments", accounts.acted),
    ):
        metrics[name] = summary.mean(name, values)
    metrics |= _controls(predictor, rivals, found, summary)
    for kind in ("evaluations", "operations"):
        metrics |= _at_equal(rivals, found, kind, summary)
    return Diagnosis(metrics, _at_equal_seconds(rivals, found, summary), len(set(truth.groups)))


def _at_equal(
    rivals: Rivals, found: Answer, kind: Literal["evaluations", "operations"], summary: Summary
) -> dict[str, Metric]:
    """Gains over every rival of that budget and over the best of them, and how many members it had."""
    others = rivals.at(found.spent, kind)
    tail = "" if kind == "evaluations" else "_equal_operations"
    strongest = best(others, summary.groups)
    label = f"ttc_gain_equal_{kind}"
    reason = f"best rival: {strongest} ({others[strongest].size})"
    metrics = {label: _gain(label, found, others[strongest], summary, reason=reason)}
    for name in ("ensemble", "representations"):
        label = f"ttc_gain_over_{name}{tail}"
        if name in others:
            reason = f"{others[name].size} of them, {others[name].spent.of(kind):.0f} {kind} against "
            reason += f"{found.spent.of(kind):.0f}"
            metrics[label] = _gain(label, found, others[name], summary, reason=reason)
        else:
            metrics[label] = undeclared(label, MISSING[name])
    if kind == "evaluations":
        label = "ttc_gain_over_operator"
        metrics[label] = _gain(label, found, others["operator"], summary)
    return metrics


def _controls(
    predictor: SearchingPredictor, rivals: Rivals, found: Answer, summary: Summary
) -> dict[str, Metric]:
    """The same search acting as often at random, or in the first segments; neither pays threshold questions."""
    acts = predictor.accounts.acts
    metrics = {}
    for name, schedule in (("random", at_random(acts, seed=0)), ("first", at_first(acts))):
        label = f"ttc_gain_over_{name}"
        if bool(acts.all()) or not bool(acts.any()):
            where = "everywhere" if bool(acts.all()) else "nowhere"
            metrics[label] = undeclared(label, f"the search acted {where}: there is nothing to choose")
        else:
            control = rivals.searched(scheduled(predictor, schedule))
            metrics[label] = _gain(label, found, control, summary)
    return metrics


def _at_equal_seconds(rivals: Rivals, found: Answer, summary: Summary) -> dict[str, float]:
    """The same at equal seconds of this machine."""
    others = rivals.at(found.spent, "seconds")
    observed = {"seconds_per_trajectory": found.spent.seconds}
    for name, answer in others.items():
        observed |= {f"{name}_seconds_each": answer.each.seconds, f"equal_seconds_{name}": float(answer.size)}
    compared = {"gain_equal_seconds": others[best(others, summary.groups)]}
    compared |= {f"gain_over_{name}_equal_seconds": answer for name, answer in others.items()}
    for label, answer in compared.items():
        gained = gain(found.nrmse, answer.nrmse, summary.groups, samples=summary.bootstrap_samples)
        observed |= {label: gained.value, f"{label}_low": gained.low, f"{label}_high": gained.high}
    return observed


def set_metrics(
    decisions: list[Decision], truth: Trajectories, *, bootstrap_samples: int, substeps: int = 1
) -> dict[str, Metric]:
    """Gains, spread and rank correlation of the sets at frames that the truth has, SET_METRICS."""
    summary = Summary(truth.groups, field_unit="1", bootstrap_samples=bootstrap_samples)
    rows: list[Tensor] = []
    pieces: dict[str, list[Tensor]] = {"oracle": [], "answer": [], "mean": [], "spread": [], "spearman": []}
    regressed = any(decision.directions is not None for decision in decisions)
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
        asked = usable.clone()
        if regressed:
            asked[:, -1] = False  # its own answer
        away = _rms(fields - centre[:, None]).square().masked_fill(~asked, 0.0)
        pieces["spread"].append((away.sum(dim=1) / asked.sum(dim=1)).sqrt()[kept])
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
    if regressed:
        metrics |= {name: undeclared(name, REGRESSED) for name in ("ttc_oracle_gain", "ttc_spearman")}
    return metrics


def with_diagnoses(
    regimes: dict[str, RegimeResult], found: dict[str, Diagnosis]
) -> tuple[dict[str, RegimeResult], dict[str, dict[str, float]]]:
    """Regimes with the diagnoses' metrics among theirs, and what was observed of each.

    A regime that none of the diagnosed initial conditions belongs to stays as it is; diagnoses of
    fewer initial conditions than it has say so.
    """
    joined = {
        label: regime.model_copy(update={"metrics": {**regime.metrics, **_of_some(found[label], regime)}})
        if label in found
        else regime
        for label, regime in regimes.items()
    }
    return joined, {label: diagnosis.observed for label, diagnosis in found.items()}


def _of_some(diagnosis: Diagnosis, regime: RegimeResult) -> dict[str, Metric]:
    if diagnosis.groups >= len(regime.groups):
        return diagnosis.metrics
    told = f"on the first {diagnosis.groups} initial conditions"
    return {
        name: metric.model_copy(update={"reason": "; ".join(filter(None, [metric.reason, told]))})
        for name, metric in diagnosis.metrics.items()
    }


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


def _informs(metrics: dict[str, Metric], summary: Summary) -> Metric:
    """`reward_informs` as a metric: 1 or 0 with the sentence; not applicable where nothing was ranked."""
    ranked = metrics["ttc_spearman"]
    if not ranked.applicable:
        return undeclared("ttc_reward_informs", ranked.reason)
    known, sentence = reward_informs(metrics)
    return summary.number("ttc_reward_informs", float(known), reason=sentence)


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


def _gain(name: str, found: Answer, reference: Answer, summary: Summary, *, reason: str = "") -> Metric:
    """1 - mean(found) / mean(reference) over groups, resampled in pairs."""
    gained = gain(found.nrmse, reference.nrmse, summary.groups, samples=summary.bootstrap_samples)
    metric = summary.number(name, gained.value, reason=reason)
    if metric.value is None:
        return metric
    return metric.model_copy(update={"low": gained.low, "high": gained.high})


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


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=(-2, -1)).sqrt()
