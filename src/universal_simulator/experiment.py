"""One run: data -> operator stage -> small-eval -> record. The science side of the door."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from universal_simulator.assessment import evaluate
from universal_simulator.configuration import LoadedConfig
from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import find
from universal_simulator.configuration.schema import GuardsConfig, RunConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.generator import generate
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.data.windows import StreamingWindowSource, WindowSource
from universal_simulator.errors import UserError, UsimError
from universal_simulator.evaluation.accuracy import mean_valid, nrmse_frames
from universal_simulator.identity import code_version, input_hash, run_identity
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.surrogate import (
    Architecture,
    Surrogate,
    save_surrogate,
)
from universal_simulator.run_record import (
    RunFolder,
    RunRecord,
    TrainingRecord,
    TrainingResult,
    read_document,
    write_json,
)
from universal_simulator.training.batches import CanonicalBatches
from universal_simulator.training.loop import OperatorTraining, StageOutcome

Progress = Callable[[str, int, int], None]


def dataset_path(folder: Path, name: str) -> Path:
    return folder / "data" / f"{name}.hdf5"


def ensure_dataset(name: str | Path, path: Path, *, progress: Progress | None = None) -> Dataset:
    """Generate the named data set where it is missing or unfinished."""
    source = find("configs/data", name)
    spec = validate(DatasetSpec, read_mapping(source), str(source))
    report = None if progress is None else lambda done, total: progress("data", done, total)
    return generate(spec, path, progress=report)


def run(
    loaded: LoadedConfig,
    folder: Path,
    *,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Train and small-evaluate one config in `folder`; a finished run is returned as it is.

    A killed run goes on from its last training state when called again.
    """
    config = loaded.config
    torch.set_num_threads(config.threads or torch.get_num_threads())
    if config.data.file is not None:
        dataset = open_dataset(config.data.file)
    else:
        name = str(config.data.dataset)
        dataset = ensure_dataset(name, dataset_path(folder, name), progress=progress)
    dataset.audit()
    expected = run_identity(
        config.name, config_hash=loaded.hash, data_identity=dataset.identity, seed=config.seed
    )
    if run_id is not None and run_id != expected:
        raise UserError(
            f"run id {run_id} was asked for, but this config, data, code and seed are {expected}; "
            "something changed since the sweep was planned"
        )
    files = RunFolder(folder, expected)
    if files.summary.exists():
        record = read_document(files.summary, RunRecord)
        if record.status == "finished" and "small_eval" in record.evaluations:
            return record
    files.path.mkdir(parents=True, exist_ok=True)
    write_json(
        files.config,
        {
            "hash": loaded.hash,
            "source": config.name,
            "data": str(dataset.path),
            "config": config.model_dump(mode="json"),
        },
    )
    try:
        record = _train(config, loaded.hash, dataset, files, progress)
    except UsimError as error:
        failed = RunRecord(run_id=expected, status="failed", failure=str(error), tags=config.tags)
        write_json(files.summary, failed)
        raise
    write_json(files.summary, record)
    evaluate(files.path, suite="small", progress=progress)
    return read_document(files.summary, RunRecord)


def _train(
    config: RunConfig, config_hash: str, dataset: Dataset, files: RunFolder, progress: Progress | None
) -> RunRecord:
    started = time.monotonic()
    inputs = input_hash(config_hash=config_hash, data_identity=dataset.identity, seed=config.seed)
    source, initial, sample = _training_data(config, dataset)
    surrogate = _new_surrogate(config, dataset, sample)
    validation = dataset.load(
        "validation",
        time_stride=config.data.time_stride,
        max_groups=config.training.validation_groups,
        device=config.device,
    )
    training = OperatorTraining(
        surrogate,
        config.training,
        seed=config.seed,
        batches=CanonicalBatches(
            source, surrogate, initial=initial, start_fraction=config.training.windows_from_start
        ),
        validate=lambda model: rollout_score(model, config.guards, validation),
        state_path=files.training_state,
        log_path=files.metrics_log,
        input_hash=inputs,
        on_step=None if progress is None else lambda done, total: progress("train", done, total),
    )
    outcome = training.run()
    surrogate.load_state_dict(outcome.weights)
    surrogate.architecture = surrogate.architecture.model_copy(
        update={"weights": outcome.progress.best_weights}
    )
    model_hash = save_surrogate(surrogate, files.model, plain_checkpoint=files.operator_ema)
    result = _training_result(config, config_hash, dataset, surrogate, outcome, model_hash)
    observation = {
        "wall_clock_s": outcome.progress.seconds,
        "process_s": time.monotonic() - started,
        "stopped_early": outcome.stopped_early,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": config.profile,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return RunRecord(
        run_id=files.run_id,
        status="finished",
        tags=config.tags,
        training=TrainingRecord(result=result, observation=observation),
    )


def _training_data(config: RunConfig, dataset: Dataset) -> tuple[WindowSource, torch.Tensor, Trajectories]:
    """Window source, first frames of its rows, and a sample for the statistics."""
    stride, groups = config.data.time_stride, config.data.train_groups
    rows = len(dataset.rows("train", max_groups=groups))
    frames = -(-dataset.header.shape[1] // stride)
    needed_gib = rows * frames * dataset.grid.points[0] * 4 / 2**30
    if needed_gib <= config.data.resident_gib:
        train = dataset.load("train", time_stride=stride, max_groups=groups, device=config.device)
        return WindowSource(train), train.fields[:, 0], train
    source = StreamingWindowSource(dataset, split="train", time_stride=stride, max_groups=groups)
    sample = dataset.load("train", time_stride=stride, max_groups=64, device=config.device)
    return source, source.initial(), sample


def _new_surrogate(config: RunConfig, dataset: Dataset, sample: Trajectories) -> Surrogate:
    equation = dataset.equation
    values = sample.parameters
    architecture = Architecture(
        import_path=config.model.import_path,
        options=config.model.options,
        canonical_frame=config.model.canonical_frame,
        equation=equation.name,
        field_names=tuple(spec.name for spec in equation.fields),
        parameter_names=tuple(spec.name for spec in equation.parameters),
        lengths=dataset.grid.lengths,
        points=dataset.grid.points,
        origin=dataset.grid.origin,
        dt_s=sample.frame_spacing_s,
        time_stride=config.data.time_stride,
        data_identity=dataset.identity,
        parameter_range=tuple(
            (float(low), float(high)) for low, high in zip(values.amin(0), values.amax(0), strict=True)
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        surrogate = Surrogate(architecture)
    frame = surrogate.frame_of(sample.fields[:, 0])
    times = sample.times_s.to(sample.fields).expand(len(sample), -1)
    canonical = surrogate.frame.to_canonical(frame, sample.fields, times)
    surrogate.fit_normalisation(canonical, surrogate.conditions(frame, sample.parameters))
    return surrogate.to(config.device)


def rollout_score(surrogate: Surrogate, guards: GuardsConfig, truth: Trajectories) -> float:
    """Mean guarded rollout nrmse over regimes: what early stopping watches."""
    predictor = SurrogatePredictor(surrogate, guards)
    initial = truth.fields[:, 0]
    raw = predictor.rollout(initial, truth.parameters, truth.fields.shape[1] - 1)
    error, valid, _ = nrmse_frames(predictor.guard(raw, initial), truth.fields[:, 1:], initial)
    return float(mean_valid(error, valid, dims=(1, 2)).nanmean())


def _training_result(
    config: RunConfig,
    config_hash: str,
    dataset: Dataset,
    surrogate: Surrogate,
    outcome: StageOutcome,
    model_hash: str,
) -> TrainingResult:
    done = outcome.progress
    return TrainingResult(
        config_name=config.name,
        config_hash=config_hash,
        effective_config=config.model_dump(mode="json"),
        data_identity=dataset.identity,
        code_version=code_version(),
        seed=config.seed,
        params=surrogate.num_parameters(),
        optimiser_steps=done.step,
        training_flops=done.training_flops,
        model_hash=model_hash,
        weights_kept="raw" if done.best_weights == "raw" else "ema",
        validation={
            "best_nrmse": done.best_score,
            "best_step": done.best_step,
            "last_nrmse": min(done.validations[-1][1:]),
        },
        stages=config.training.stages,
    )
