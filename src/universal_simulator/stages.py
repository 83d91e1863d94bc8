"""The training stages: what each trains, on what, by which loss, and what it is judged by.

    codec                encoder and decoder on single frames, judged by reconstruction
    operator             the latent step on growing rollouts, judged by rollout nrmse
    diff_residual        the corrector on the operator's segments, judged by CRPS of rollouts
    consistency_distill  its student on the teacher's trajectories, judged by the same

Each goes on from the best weights of the one before and holds still what it does not train: a
codec rolled out together with the operator would learn to blur what the operator cannot place.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from universal_simulator.configuration.schema import (
    CorrectorStage,
    EnsembleValidation,
    GuardsConfig,
    RunConfig,
    Stage,
    TrainingConfig,
)
from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import DivergenceError
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames, relative_frames
from universal_simulator.evaluation.dressing import Dressings
from universal_simulator.evaluation.ensemble import guard_members
from universal_simulator.evaluation.uncertainty import crps_frames
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.corrector import Corrector
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.run_record import RunFolder
from universal_simulator.training.batches import CanonicalBatches
from universal_simulator.training.loop import (
    BatchSource,
    LossFunction,
    StageOutcome,
    StageTraining,
    rollout_length,
    step_seed,
)
from universal_simulator.training.losses import LossTerms, TrainingBatch, window_loss
from universal_simulator.training.segments import SegmentSource, segment_operations, segments
from universal_simulator.training.stochastic import consistency_loss, corrector_loss, fit_units

#: every k-th frame of validation is reconstructed
RECONSTRUCTION_STRIDE = 10
#: windows from which the corrector's units are measured
UNIT_WINDOWS = 256
#: seed of the noise of validation ensembles
VALIDATION_SEED = 0

#: score(surrogate, guards=..., truth=validation), lower is better
Score = Callable[..., float]


@dataclass(frozen=True)
class Begun:
    """What a stage trains and draws from; flops: spent before its first step."""

    parameters: Iterator[nn.Parameter]
    source: BatchSource
    flops: float = 0.0


@dataclass(frozen=True)
class StageWork:
    """One stage of one run."""

    name: str
    stage: Stage
    batch_size: int
    accumulation: int
    loss: LossFunction
    #: optimiser step -> steps of the windows it is trained on
    length: Callable[[int], int]
    score: Score
    validations: int
    #: called once when the stage begins: what of the surrogate it trains (parts may be added), on what
    begin: Callable[[Surrogate], Begun]


def train_stages(
    config: RunConfig,
    surrogate: Surrogate,
    batches: CanonicalBatches,
    validation: Trajectories,
    *,
    files: RunFolder,
    inputs: str,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, StageOutcome]:
    """Run the configured stages in order; resumable; `surrogate` ends with the best weights."""
    work = planned(config, surrogate, batches)
    total = sum(item.stage.steps for item in work)
    outcomes: dict[str, StageOutcome] = {}
    before = 0
    for index, item in enumerate(work):
        surrogate.requires_grad_(False)
        started = time.monotonic()
        begun = item.begin(surrogate)
        begun_s = time.monotonic() - started
        for parameter in begun.parameters:
            parameter.requires_grad_(True)

        def report(done: int, _: int, before: int = before) -> None:
            if on_step is not None:
                on_step(before + done, total)

        training = StageTraining(
            surrogate,
            config.training,
            item.stage,
            loss=item.loss,
            batch_size=item.batch_size,
            accumulation=item.accumulation,
            rollout_length=item.length,
            seed=step_seed(config.seed, index),
            batches=begun.source,
            flops_before=begun.flops,
            seconds_before=begun_s,
            validate=functools.partial(item.score, guards=config.guards, truth=validation),
            validations=item.validations,
            state_path=files.training_state(item.name),
            log_path=files.metrics_log(item.name),
            input_hash=inputs,
            on_step=report,
        )
        try:
            outcomes[item.name] = training.run()
        except DivergenceError as error:
            raise DivergenceError(f"{item.name}, {error}") from error
        surrogate.load_state_dict(outcomes[item.name].weights)
        before += item.stage.steps
    return outcomes


def planned(config: RunConfig, surrogate: Surrogate, batches: CanonicalBatches) -> list[StageWork]:
    """The stages of a config that this member has.

    Without a codec of its own it has no codec stage, without latent tokens no stochastic ones: it
    stays deterministic, and a live ece gate says so.
    """
    training, member = config.training, surrogate.member
    codec = list(member.codec_parameters())
    held = {id(parameter) for parameter in codec}
    alone = not codec or "codec" not in training.stages
    operator = [p for p in member.parameters() if alone or id(p) not in held]
    single_frames = functools.partial(_operator_loss, training)
    work = []
    if not alone:
        work.append(
            StageWork(
                "codec",
                training.codec,
                training.codec.batch_size,
                training.accumulation,
                single_frames,
                lambda step: 0,
                reconstruction_score,
                training.validations,
                lambda _: Begun(iter(codec), batches),
            )
        )
    work.append(
        StageWork(
            "operator",
            training.operator,
            training.batch_size,
            training.accumulation,
            single_frames,
            functools.partial(rollout_length, training),
            rollout_score,
            training.validations,
            lambda _: Begun(iter(operator), batches),
        )
    )
    return work if member.token_shape() is None else [*work, *_stochastic(config, surrogate, batches)]


def _stochastic(config: RunConfig, surrogate: Surrogate, batches: CanonicalBatches) -> list[StageWork]:
    """Those of corrector and student that the config names."""
    training, work = config.training, list[StageWork]()
    score = functools.partial(ensemble_score, rules=training.ensemble_validation)
    if "diff_residual" in training.stages:
        work.append(
            StageWork(
                "diff_residual",
                training.diff_residual,
                training.batch_size,
                training.accumulation,
                functools.partial(corrector_loss, residuals=training.diff_residual.residuals_per_window),
                lambda step: _segment_of(surrogate),
                score,
                training.ensemble_validation.validations,
                functools.partial(_begin_corrector, config=config, batches=batches),
            )
        )
    if "consistency_distill" in training.stages:
        student = training.consistency_distill
        work.append(
            StageWork(
                "consistency_distill",
                student,
                student.batch_size,
                student.accumulation,
                functools.partial(
                    consistency_loss, taus=student.taus, residuals=student.residuals_per_window
                ),
                lambda step: _segment_of(surrogate),
                score,
                training.ensemble_validation.validations,
                functools.partial(_begin_student, config=config, batches=batches),
            )
        )
    return work


def _operator_loss(training: TrainingConfig, surrogate: Surrogate, batch: TrainingBatch) -> LossTerms:
    return window_loss(surrogate, batch, training.loss)


def _begin_corrector(surrogate: Surrogate, *, config: RunConfig, batches: CanonicalBatches) -> Begun:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        corrector = surrogate.add_corrector(config.model.corrector)
    generator = torch.Generator().manual_seed(config.seed)
    measured = batches(generator, UNIT_WINDOWS, corrector.segment)
    fit_units(corrector, segments(surrogate, measured))
    source = _segment_source(surrogate, batches, config.training.diff_residual, generator)
    return Begun(corrector.parameters(), source, segment_operations(surrogate, measured) + source.flops)


def _begin_student(surrogate: Surrogate, *, config: RunConfig, batches: CanonicalBatches) -> Begun:
    surrogate.add_student()
    student = _corrector(surrogate).student
    assert student is not None
    generator = torch.Generator().manual_seed(step_seed(config.seed, 1))
    source = _segment_source(surrogate, batches, config.training.consistency_distill, generator)
    return Begun(student.parameters(), source, source.flops)


def _segment_source(
    surrogate: Surrogate, batches: CanonicalBatches, stage: CorrectorStage, generator: torch.Generator
) -> SegmentSource:
    return SegmentSource(
        batches,
        surrogate,
        cached=stage.latent_cache_windows,
        dtype=torch.float32 if stage.latent_cache_dtype == "float32" else torch.bfloat16,
        steps=_segment_of(surrogate),
        generator=generator,
    )


def _corrector(surrogate: Surrogate) -> Corrector:
    assert surrogate.corrector is not None, "the stage before adds it"
    return surrogate.corrector


def _segment_of(surrogate: Surrogate) -> int:
    return _corrector(surrogate).segment


def reconstruction_score(surrogate: Surrogate, guards: GuardsConfig, truth: Trajectories) -> float:
    """Mean nrmse of decode(encode(u)) over frames."""
    frames = truth.fields[:, ::RECONSTRUCTION_STRIDE]
    parameters = truth.parameters.repeat_interleave(frames.shape[1], 0)
    again = SurrogatePredictor(surrogate, guards).reconstruct(frames.flatten(0, 1), parameters)
    return _mean_nrmse(again.unflatten(0, frames.shape[:2]), frames)


def rollout_score(surrogate: Surrogate, guards: GuardsConfig, truth: Trajectories) -> float:
    """Mean guarded rollout nrmse over regimes: what early stopping watches."""
    predictor = SurrogatePredictor(surrogate, guards)
    initial = truth.fields[:, 0]
    raw = predictor.rollout(initial, truth.parameters, truth.fields.shape[1] - 1)
    return _mean_nrmse(predictor.guard(raw, initial, truth.parameters), truth.fields[:, 1:], initial=initial)


def ensemble_score(
    surrogate: Surrogate, *, guards: GuardsConfig, truth: Trajectories, rules: EnsembleValidation
) -> float:
    """Mean of `ensemble_errors`."""
    return float(ensemble_errors(surrogate, guards=guards, truth=truth, rules=rules).mean())


def ensemble_errors(
    surrogate: Surrogate, *, guards: GuardsConfig, truth: Trajectories, rules: EnsembleValidation
) -> Tensor:
    """Fair CRPS of guarded rollouts of each trajectory, relative to each frame's rms, (B,)."""
    part = truth.of_first_groups(rules.groups)
    predictor = StochasticPredictor(surrogate, guards, members=rules.members)
    initial, target = _asked(part, rules)
    members = predictor.rollout_members(initial, part.parameters, target.shape[1], seed=VALIDATION_SEED)
    guarded = guard_members(predictor, members, initial, part.parameters)
    return relative_frames(crps_frames(guarded, target), initial, target).mean(dim=1)


def operator_errors(
    surrogate: Surrogate, *, guards: GuardsConfig, truth: Trajectories, rules: EnsembleValidation
) -> Tensor:
    """`ensemble_errors` of the operator alone: the CRPS of a single answer is its mean absolute error."""
    part, fields = _operator_fields(surrogate, guards, truth, rules)
    initial, target = _asked(part, rules)
    error = (fields - target).abs().double().mean(dim=(-2, -1))
    return relative_frames(error, initial, target).mean(dim=1)


def dressed_operator_errors(
    surrogate: Surrogate,
    *,
    guards: GuardsConfig,
    fitted_on: Trajectories,
    truth: Trajectories,
    rules: EnsembleValidation,
) -> Tensor:
    """`ensemble_errors` of the operator dressed with the widths that are best on `fitted_on`."""
    known, forecast = _operator_fields(surrogate, guards, fitted_on, rules)
    dressings = Dressings.fit(forecast, known)
    part, fields = _operator_fields(surrogate, guards, truth, rules)
    return dressings.relative_crps(fields, part).mean(dim=1)


def _operator_fields(
    surrogate: Surrogate, guards: GuardsConfig, truth: Trajectories, rules: EnsembleValidation
) -> tuple[Trajectories, Tensor]:
    """The part that the rules ask about, and the operator's guarded rollout of it, (B, T, C, X)."""
    part = truth.of_first_groups(rules.groups)
    predictor = SurrogatePredictor(surrogate, guards)
    initial, target = _asked(part, rules)
    raw = predictor.rollout(initial, part.parameters, target.shape[1])
    return part, predictor.guard(raw, initial, part.parameters)


def _asked(part: Trajectories, rules: EnsembleValidation) -> tuple[Tensor, Tensor]:
    return part.fields[:, 0], part.fields[:, 1 : None if rules.steps is None else 1 + rules.steps]


def _mean_nrmse(prediction: Tensor, truth: Tensor, *, initial: Tensor | None = None) -> float:
    error, valid, _ = nrmse_frames(prediction, truth, truth[:, 0] if initial is None else initial)
    return float(mean_valid(error, valid, dims=(1, 2)).nanmean())
