"""Which sampler corrects a run's rollouts: noise chosen for teacher and student alike, then the student gated.

The noise is chosen on the first groups of validation, which chose the weights too; operator, teacher
and student are then judged on as many others (where validation has them, else on the same), with
the same members, seed and steps. The zero is the *dressed* operator (`evaluation/dressing.py`, its width
fitted where the noise was chosen): against a bare one, which scores its mean absolute error, any width
gains. With the relative CRPS of dressed operator d, teacher t and student s, the teacher's gain and what
the student keeps of it are

    gain = 1 - t / d,        share = (d - s) / (d - t)

Location and scale are common to both, so a student whose network outputs nothing still samples a Gaussian
of the learned moments. That Gaussian m, under the student's noise, is the second zero:

    flow_gain = 1 - t / m,   flow_share = (m - s) / (m - t)

each with its interval over groups, paired. A student is cheap, not better: where the teacher's gain
excludes zero and the student keeps less than `SHARE` of it, or where the flow's gain excludes zero and
the interval of what the student keeps of it lies below `SHARE`, the teacher stays the predictor's
corrector, at more evaluations, and the record says so. Where the teacher's gain cannot be told from
zero there is nothing to keep, and the cheap one stays. On fewer than `GATE_GROUPS` groups that
interval says nothing: the gate is not evaluable, and the cheap one stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from universal_simulator.configuration.schema import EnsembleValidation, GuardsConfig, RunConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.errors import BrokenEnsembleError
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.contract import stochastic
from universal_simulator.evaluation.ensemble_metrics import Pooled, Pooling
from universal_simulator.evaluation.uncertainty import pooled
from universal_simulator.inference.counting import rollout_operations
from universal_simulator.inference.ensemble import predictor_of
from universal_simulator.model.corrector import Corrector
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.run_record import Metric, NoiseChoice, StochasticResult
from universal_simulator.stages import dressed_operator_errors, ensemble_errors, operator_errors
from universal_simulator.training.loop import StageOutcome, ranked

Sampler = Literal["teacher", "student"]
#: (name of what is done, done, total)
Progress = Callable[[str, int, int], None]
Gate = Literal["pass", "fail", "not evaluable", "not applicable"]
#: of the teacher's gain in CRPS, that a student must keep
SHARE = 0.9
#: initial conditions below which an interval of that gain is no judge
GATE_GROUPS = 8


@dataclass(frozen=True)
class NoiseNumber:
    """A number's first value, those tried after it, and those beyond while the best is at an edge.

    ends: values beyond which there is nothing to try.
    """

    start: float
    tried: tuple[float, ...]
    below: tuple[float, ...] = ()
    above: tuple[float, ...] = ()
    ends: tuple[float, ...] = ()


#: what becomes of the corrector's noise (`model/corrector.py`), chosen one after the other
NOISE = {
    "carried": NoiseNumber(1.0, (0.7, 0.4), below=(0.2, 0.0), ends=(0.0, 1.0)),
    "persistence": NoiseNumber(0.0, (0.5, 0.8), above=(0.9, 0.95), ends=(0.0,)),
    "temperature": NoiseNumber(1.0, (0.7, 1.3), below=(0.5, 0.35), above=(1.7, 2.2)),
}


def make_sampler(
    config: RunConfig,
    dataset: Dataset,
    surrogate: Surrogate,
    validation: Trajectories,
    outcomes: Mapping[str, StageOutcome],
    *,
    progress: Progress | None = None,
) -> tuple[StochasticResult | None, dict[str, float]]:
    """Of a model with a corrector: who answers, with which noise, recalibrated; and the operations of both."""
    if surrogate.corrector is None:
        return None, {}
    found, flops = choose_sampler(
        surrogate,
        guards=config.guards,
        truth=validation,
        rules=config.training.ensemble_validation,
        bootstrap_samples=config.evaluation.bootstrap_samples,
        weights={
            stage: "raw" if outcomes[stage].progress.best_weights == "raw" else "ema"
            for stage in ("diff_residual", "consistency_distill")
            if stage in outcomes
        },
    )
    calibration_flops, why_not = _calibrate(config, dataset, surrogate, progress)
    entry = surrogate.architecture.calibration
    chosen = {} if entry is None else dict(zip(entry.regimes, entry.choices, strict=True))
    found = found.model_copy(update={"calibration": chosen, "uncalibrated": why_not})
    return found, {"sampler_choice": flops, "calibration": calibration_flops}


def _calibrate(
    config: RunConfig, dataset: Dataset, surrogate: Surrogate, progress: Progress | None
) -> tuple[float, str]:
    """Recalibrate the ensembles on their half of the calibration split.

    Returns the floating-point operations spent, and why the model stays uncalibrated, where members
    are not finite there: operator and deterministic headline stand without.
    """
    predictor = stochastic(predictor_of(surrogate, config.guards, members=config.evaluation.members))
    if predictor is None:
        return 0.0, ""
    steps = config.evaluation.steps
    truth = dataset.load(
        CALIBRATION_HALVES[0],
        time_stride=config.data.time_stride,
        first_frame=config.evaluation.first_frame,
        num_frames=None if steps is None else steps + 1,
        max_groups=config.evaluation.calibration_groups,
        device=surrogate.offset.device,
    )
    rolled, why_not = 0, ""

    def on_batch(done: int, total: int) -> None:
        nonlocal rolled
        rolled = done
        if progress is not None:
            progress("calibration", done, total)

    try:
        calibration = fit_calibration(
            predictor,
            truth,
            dataset,
            first_frame=config.evaluation.first_frame,
            batch_size=config.evaluation.batch_size,
            noise_seed=config.evaluation.noise_seed,
            on_batch=on_batch,
        )
    except BrokenEnsembleError as error:
        why_not = str(error)
    else:
        surrogate.calibrate(calibration)
    # counted on one trajectory
    one = sum(
        _operations(surrogate, config.guards, truth, members, size=1, steps=truth.fields.shape[1] - 1)
        for members in (predictor.members, 1)
    )
    return rolled * one, why_not


def _operations(
    surrogate: Surrogate, guards: GuardsConfig, truth: Trajectories, members: int, *, size: int, steps: int
) -> float:
    """Of rollouts from `size` initial conditions: of so many members, or of the operator alone (1)."""
    predictor = predictor_of(surrogate, guards, members=members)
    sampler = stochastic(predictor)

    def rolled(count: int, length: int) -> Tensor:
        given = truth.fields[:1, 0].repeat(count, 1, 1), truth.parameters[:1].repeat(count, 1)
        if sampler is None:
            return predictor.rollout(*given, length)
        return sampler.rollout_members(*given, length, seed=0)

    segment = surrogate.architecture.reencode_every
    return rollout_operations(rolled, size=size, steps=steps, segment=segment)


def choose_sampler(
    surrogate: Surrogate,
    *,
    guards: GuardsConfig,
    truth: Trajectories,
    rules: EnsembleValidation,
    bootstrap_samples: int,
    weights: Mapping[str, Literal["raw", "ema"]],
) -> tuple[StochasticResult, float]:
    """Leave `surrogate` with the sampler and the noise that answer; what was found, and the operations spent.

    weights: stage -> which were kept, for the record. A student that loses is dropped from the model.
    """
    alone = _corrector(surrogate).student is None
    samplers: tuple[Sampler, ...] = ("teacher",) if alone else ("student", "teacher")
    first, judged, judged_on = divided(truth, rules.groups)
    counted = {"size": len(judged), "steps": rules.steps or truth.fields.shape[1] - 1}
    asked_of: dict[str, Any] = {"guards": guards, "truth": judged, "rules": rules}
    errors = {
        "operator": operator_errors(surrogate, **asked_of),
        "dressed_operator": dressed_operator_errors(surrogate, fitted_on=first, **asked_of),
    }
    noise: dict[str, NoiseChoice] = {}
    # bare on what is judged; dressed on that and on what it was fitted on
    flops = (2 + len(first) / len(judged)) * _operations(surrogate, guards, judged, 1, **counted)
    for sampler in samplers:
        surrogate.use_sampler(sampler)
        if rules.teacher_noise == "of_student" and "student" in noise:
            noise[sampler], asked = noise["student"], 0
        else:
            noise[sampler], asked = choose_noise(surrogate, guards=guards, truth=first, rules=rules)
        errors[sampler] = ensemble_errors(surrogate, **asked_of)
        once = _operations(surrogate, guards, judged, rules.members, **counted)
        flops += (asked * len(first) / len(judged) + 1) * once
        if sampler == samplers[0]:
            # the Gaussian that a student with nothing to say would leave, under that student's noise
            surrogate.use_sampler("moments")
            errors["moments"] = ensemble_errors(surrogate, **asked_of)
            flops += _operations(surrogate, guards, judged, rules.members, **counted)
    groups = len(set(judged.groups))
    crps, gains = compared(Pooling(judged.groups, samples=bootstrap_samples), errors)
    kept, gate, decision = decided(crps, gains, groups=groups)
    _keep(surrogate, kept, noise[kept])
    result = StochasticResult(
        sampler=kept,
        decision=decision,
        crps=crps,
        teacher_gain=gains.teacher,
        student_share=gains.share,
        flow_gain=gains.flow,
        flow_share=gains.flow_share,
        noise=noise,
        weights=dict(weights),
        groups=groups,
        members=rules.members,
        steps=rules.steps,
        judged_on=judged_on,
        gate=gate,
    )
    return result, flops


def _keep(surrogate: Surrogate, sampler: Sampler, noise: NoiseChoice) -> None:
    """That sampler answers, with that noise; a student that lost leaves the model."""
    if sampler == "teacher":
        surrogate.keep_teacher()
    else:
        surrogate.use_sampler(sampler)
    for name in NOISE:
        _corrector(surrogate).get_buffer(name).fill_(getattr(noise, name))


def divided(truth: Trajectories, groups: int) -> tuple[Trajectories, Trajectories, Literal["other", "same"]]:
    """What the noise is chosen on, what the gate is judged on, and whether that is other or the same.

    The first `groups` initial conditions and as many after them, or the first again where there are
    not so many.
    """
    first = truth.rows_of_first_groups(groups)
    both = truth.rows_of_first_groups(2 * groups)
    later = both[~torch.isin(both, first)]
    if len({truth.groups[row] for row in later.tolist()}) < groups:
        return truth.subset(first), truth.subset(first), "same"
    return truth.subset(first), truth.subset(later), "other"


@dataclass(frozen=True)
class Gains:
    """The teacher's gain over the dressed operator and over the moments alone, and the student's share of each."""

    teacher: Metric
    share: Metric | None
    flow: Metric
    flow_share: Metric | None


def compared(pool: Pooling, errors: Mapping[str, Tensor]) -> tuple[dict[str, Metric], Gains]:
    """Relative CRPS of each, and the gains; errors (B,) of each."""
    table = torch.stack(list(errors.values()), dim=1)
    place = {name: column for column, name in enumerate(errors)}

    def ratio(weights: Tensor, zero: str, name: str, other: str) -> Tensor:
        """(zero - name) / zero, or / (zero - other)"""
        mean = pooled(table, weights)
        start, own = mean[..., place[zero]], mean[..., place[name]]
        return (start - own) / (start if other == zero else start - mean[..., place[other]])

    def gain(zero: str) -> Metric:
        return _metric(pool(lambda w: ratio(w, zero, "teacher", zero)))

    def share(zero: str) -> Metric | None:
        return _metric(pool(lambda w: ratio(w, zero, "student", "teacher"))) if "student" in errors else None

    crps = {
        name: _metric(pool(lambda w, n=name: pooled(table[:, place[n]], w)), better="lower")  # type: ignore[misc] # mypy gives a bound default no type
        for name in errors
    }
    zeros = ("dressed_operator", "moments")
    teacher, flow = (gain(zero) for zero in zeros)
    kept, flow_kept = (share(zero) for zero in zeros)
    return crps, Gains(teacher, kept, flow, flow_kept)


def decided(crps: Mapping[str, Metric], gains: Gains, *, groups: int) -> tuple[Sampler, Gate, str]:
    """The sampler that stays, the gate's verdict on the student, and why in a sentence.

    groups: initial conditions they were judged on. A student whose members are not finite fails on
    any number of them.
    """
    gain, share = gains.teacher, gains.share
    if share is None:
        return "teacher", "not applicable", "no student was trained"
    if crps["student"].value is None:
        return (
            "teacher",
            "fail",
            "the student's members are not finite; the teacher stays, at more evaluations",
        )
    told = (
        ""
        if gain.value is None
        else f"the teacher saves {100 * gain.value:.1f} % of the dressed operator's CRPS"
    )
    if groups < GATE_GROUPS:
        return (
            "student",
            "not evaluable",
            f"on {groups} initial condition{'' if groups == 1 else 's'} what the teacher gains and the "
            f"student keeps is noise (at least {GATE_GROUPS} are needed): the student, cheaper, stays unjudged",
        )
    if gain.low is None or gain.low <= 0:
        return (
            "student",
            "not applicable",
            f"{told or 'the teacher has no figure'}, which cannot be told from nothing: the student, cheaper, stays",
        )
    kept = f"{told}, the student keeps {100 * (share.value or 0):.0f} % of that"
    if share.value is None or share.value < SHARE:
        less = f"{kept}, less than {100 * SHARE:.0f} %: the teacher stays, at more evaluations"
        return "teacher", "fail", less
    flow, own = gains.flow, gains.flow_share
    if own is not None and (flow.low or 0) > 0 and (own.high is None or own.high < SHARE):
        less = (
            f"{kept}, but of what its flow saves of the moments alone ({100 * (flow.value or 0):.1f} %) only "
            f"{100 * (own.value or 0):.0f} %: the teacher stays, at more evaluations"
        )
        return "teacher", "fail", less
    return "student", "pass", f"{kept} at fewer evaluations"


def choose_noise(
    surrogate: Surrogate, *, guards: GuardsConfig, truth: Trajectories, rules: EnsembleValidation
) -> tuple[NoiseChoice, int]:
    """Set what becomes of the corrector's noise to the lowest CRPS of validation rollouts; how often it asked."""
    corrector = _corrector(surrogate)
    asked = 0

    def score() -> float:
        nonlocal asked
        asked += 1
        return ranked(float(ensemble_errors(surrogate, guards=guards, truth=truth, rules=rules).mean()))

    for name, number in NOISE.items():
        corrector.get_buffer(name).fill_(number.start)
    best, edges = score(), []
    chosen: dict[str, float] = {}
    for name, number in NOISE.items():
        buffer = corrector.get_buffer(name)
        found = {number.start: best}
        for value in number.tried:
            buffer.fill_(value)
            found[value] = score()
        for beyond, edge in ((number.below, min), (number.above, max)):
            for value in beyond:
                if min(found, key=found.__getitem__) != edge(found):
                    break
                buffer.fill_(value)
                found[value] = score()
        chosen[name] = min(found, key=found.__getitem__)
        best = found[chosen[name]]
        buffer.fill_(chosen[name])
        if chosen[name] in (min(found), max(found)) and chosen[name] not in number.ends:
            edges.append(name)
    return NoiseChoice(**chosen, at_edge=tuple(edges)), asked


def _corrector(surrogate: Surrogate) -> Corrector:
    assert surrogate.corrector is not None, "the stage diff_residual adds it"
    return surrogate.corrector


def _metric(found: Pooled, *, better: Literal["lower", "higher"] = "higher") -> Metric:
    value, low, high = (float(v) for v in (found.value, found.low, found.high))
    if not math.isfinite(value):
        return Metric(value=None, better=better, reason="not finite")
    known = math.isfinite(low) and math.isfinite(high)
    return Metric(value=value, better=better, low=low if known else None, high=high if known else None)
