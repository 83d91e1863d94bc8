"""One run of a steady problem: pairs -> codec -> prior (and its control) -> evaluation -> record."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import find
from universal_simulator.configuration.steady import SteadyLoaded, SteadyRunConfig
from universal_simulator.data.steady import SteadyDataset, SteadyPairs, SteadySpec, generate_steady
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.evaluation.steady import SteadyAnswer, classical_answers, measure_steady
from universal_simulator.evaluation.summary import Summary
from universal_simulator.evaluation.uncertainty import best_constant_width
from universal_simulator.identity import code_version, commit, package_versions, run_identity
from universal_simulator.inference.noise import generator_of
from universal_simulator.model.steady_prior import SteadyModel, SteadyRegressor, save_steady
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Metric,
    Origin,
    Predictor,
    Protocol,
    RegimeResult,
    RunFolder,
    RunRecord,
    TrainingRecord,
    TrainingResult,
    content_hash,
    read_document,
    write_json,
)
from universal_simulator.source_tree import archive_hash, lock_hash
from universal_simulator.training.loop import step_seed
from universal_simulator.training.steady import (
    SteadyBatches,
    codec_loss,
    control_loss,
    prior_loss,
    train_steady,
)

Progress = Callable[[str, int, int], None]
STAGES = ("codec", "steady_prior")
#: the split that is reported, and the one on which the reference of crps_skill is fitted
REPORTED, FITTED = "selection", "calibration"


def prepare_pairs(name: str, folder: Path) -> SteadyDataset:
    """The named specification, generated below `folder` where it is missing."""
    source = find("configs/data", name)
    values = read_mapping(source)
    if values.get("equation") != "darcy":
        raise ConfigurationError(
            str(source),
            [
                f"equation: {values.get('equation')!r} depends on time; the steady prior is for a steady "
                "equation (darcy), for the others its epochs are 0"
            ],
        )
    return generate_steady(validate(SteadySpec, values, str(source)), folder / "data" / f"{source.stem}.hdf5")


def run_steady(
    loaded: SteadyLoaded,
    folder: Path,
    *,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Train and evaluate one steady config in `folder`; a finished run is returned as it is."""
    config = loaded.config
    torch.set_num_threads(config.threads or torch.get_num_threads())
    dataset = prepare_pairs(config.data.dataset, folder)
    expected = run_identity(
        config.name, config_hash=config.hash, data_identity=dataset.identity, seed=config.seed
    )
    if run_id is not None and run_id != expected:
        raise UserError(f"run id {run_id} was asked for, but this config, data, code and seed are {expected}")
    files = RunFolder(folder, expected)
    if files.summary.exists():
        return read_document(files.summary, RunRecord)
    cells = dataset.sensors(config.data.observed_every)
    if len(cells) % config.model.latent_tokens:
        raise UserError(
            f"{len(cells)} sensors do not share out among model.latent_tokens {config.model.latent_tokens}; "
            "give a count that divides them, or another data.observed_every"
        )
    started = time.monotonic()
    trained = train(config, dataset, cells, progress=progress)
    ended = time.monotonic()
    about = {"config": config.model_dump(mode="json"), "data_identity": dataset.identity}
    digest = save_steady(trained.model, files.model, about=about)
    evaluation = EvaluationRecord(
        suite="small_eval",
        run_id=expected,
        result=evaluate_steady(config, dataset, cells, trained, model_hash=digest),
        observation={"wall_clock_s": time.monotonic() - ended, "code_version": code_version()},
    )
    record = RunRecord(
        run_id=expected,
        status="finished",
        tags=config.tags,
        origin=Origin(
            specification=json.loads(dataset.spec.model_dump_json()),
            commit=commit(),
            packages=package_versions(),
            archive=archive_hash(),
            lock=lock_hash(),
        ),
        training=TrainingRecord(
            result=_training_result(config, dataset, trained, model_hash=digest),
            observation={"wall_clock_s": ended - started, "threads": torch.get_num_threads()},
        ),
        evaluations={"small_eval": evaluation},
    )
    write_json(files.summary, record)
    return record


def _training_result(
    config: SteadyRunConfig, dataset: SteadyDataset, trained: TrainedSteady, *, model_hash: str
) -> TrainingResult:
    return TrainingResult(
        config_name=config.name,
        config_hash=config.hash,
        effective_config=config.model_dump(mode="json"),
        data_identity=dataset.identity,
        code_version=code_version(),
        seed=config.seed,
        params=_count(trained.model),
        optimiser_steps=trained.steps,
        training_flops=trained.flops,
        model_hash=model_hash,
        weights_kept="ema",
        validation={"params_control": float(_count(trained.control))},
        stages=STAGES,
    )


@dataclass(frozen=True)
class TrainedSteady:
    """steps and flops: of the model, its control left out."""

    model: SteadyModel
    control: SteadyRegressor
    steps: int
    flops: float


def train(
    config: SteadyRunConfig, dataset: SteadyDataset, cells: Tensor, *, progress: Progress | None = None
) -> TrainedSteady:
    """Codec, then the prior and its control on the codec's latents, from the training split alone."""
    pairs, options = dataset.splits["train"], config.model
    batches = SteadyBatches(pairs.observed(cells), pairs.pressure)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = SteadyModel(
            options, dataset.grid, sensors=len(cells), wall_value=dataset.equation.boundary_value
        )
        control = SteadyRegressor(
            options.generator,
            sensors=len(cells),
            tokens=options.latent_tokens,
            latent_dim=options.latent_dim,
        )

    def report(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else functools.partial(progress, stage)

    model.codec.fit(batches.pressure)
    codec = train_steady(
        model.codec,
        config.codec,
        batches,
        loss=codec_loss,
        seed=step_seed(config.seed, 0),
        on_step=report("codec"),
    )
    model.codec = codec.model
    with torch.no_grad():
        model.prior.fit(batches.observed, model.codec.encode(batches.pressure))
    control.reading.fit(batches.observed)
    prior = train_steady(
        model.prior,
        config.steady_prior,
        batches,
        loss=functools.partial(prior_loss, codec=model.codec),
        seed=step_seed(config.seed, 1),
        on_step=report("steady_prior"),
    )
    model.prior = prior.model
    regressed = train_steady(
        control,
        config.steady_prior,
        batches,
        loss=functools.partial(control_loss, codec=model.codec),
        seed=step_seed(config.seed, 1),
        on_step=report("control"),
    )
    return TrainedSteady(
        model.eval(), regressed.model.eval(), codec.steps + prior.steps, codec.flops + prior.flops
    )


@torch.no_grad()
def answers(
    config: SteadyRunConfig, pairs: SteadyPairs, cells: Tensor, trained: TrainedSteady
) -> dict[str, SteadyAnswer]:
    """The prior's ensemble, what its codec alone would lose, and the control's single answer."""
    model, seed = trained.model, config.evaluation.noise_seed
    observed = pairs.observed(cells)
    tokens, latent_dim = model.prior.shape
    noise = torch.stack(
        [
            torch.randn(
                config.evaluation.members, tokens, latent_dim, generator=generator_of(seed, row[None])
            )
            for row in observed
        ]
    )
    codec, basis = model.codec, model.codec.basis()
    return {
        "steady_prior": SteadyAnswer.decoded(model.members(observed, noise)),
        "codec": SteadyAnswer.decoded(codec.decode(codec.encode(pairs.pressure), basis)[:, None]),
        "control": SteadyAnswer.decoded(codec.decode(trained.control(observed), basis)[:, None]),
    }


def evaluate_steady(
    config: SteadyRunConfig, dataset: SteadyDataset, cells: Tensor, trained: TrainedSteady, *, model_hash: str
) -> EvaluationResult:
    """The reported split, with every reference beside it; widths come from the calibration split."""
    rules, pairs = config.evaluation, dataset.splits[REPORTED]
    summary = Summary(
        pairs.groups, field_unit=dataset.equation.fields[0].unit, bootstrap_samples=rules.bootstrap_samples
    )
    learned = answers(config, pairs, cells, trained)
    classical = classical_answers(pairs, dataset, cells, members=rules.members, seed=rules.noise_seed)
    fitted = dataset.splits[FITTED]
    fitted_mean = answers(config, fitted, cells, trained)["steady_prior"].members.mean(dim=1)
    width = best_constant_width(fitted_mean[:, None], fitted.pressure[:, None])

    def measured(answer: SteadyAnswer) -> dict[str, Metric]:
        return measure_steady(answer, pairs, dataset, summary=summary, width=width)

    ours = measured(learned.pop("steady_prior"))
    references = {name: measured(answer) for name, answer in {**learned, **classical}.items()}
    regime = dataset.equation.name
    return EvaluationResult(
        protocol=Protocol(
            name="steady",
            dataset_identity=dataset.identity,
            split=REPORTED,
            first_frame=0,
            time_stride=config.data.observed_every,
            steps=0,
            points=dataset.spec.grid_points,
            num_groups=len(pairs.groups),
            groups_hash=content_hash(sorted(pairs.groups)),
        ),
        predictor=Predictor(
            model_hash=model_hash,
            weights="ema",
            guards=(),
            members=rules.members,
            kind="ensemble_mean",
            noise_seed=rules.noise_seed,
        ),
        regimes={regime: RegimeResult(parameters={}, metrics=ours, groups=pairs.groups, per_group={})},
        references={regime: references},
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
