"""One run: data -> operator stage -> small-eval -> record. The science side of the door."""

from __future__ import annotations

import functools
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from universal_simulator.assessment import evaluate
from universal_simulator.configuration import LoadedConfig
from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import DATA_FILES, find
from universal_simulator.configuration.schema import RunConfig
from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.generator import generate
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.data.sufficiency import require_enough
from universal_simulator.data.symmetries import refuse_undeclared
from universal_simulator.data.windows import StreamingWindowSource, WindowSource
from universal_simulator.device import describe, peak_memory_gib, resolve, warning
from universal_simulator.errors import UserError, UsimError
from universal_simulator.identity import code_version, commit, input_hash, package_versions, run_identity
from universal_simulator.model.surrogate import (
    Architecture,
    Surrogate,
    save_surrogate,
)
from universal_simulator.run_record import (
    Origin,
    RunFolder,
    RunRecord,
    TrainingRecord,
    TrainingResult,
    read_document,
    write_json,
)
from universal_simulator.sampler_choice import make_sampler
from universal_simulator.source_tree import archive_hash, lock_hash
from universal_simulator.stages import train_stages
from universal_simulator.training.batches import CanonicalBatches
from universal_simulator.training.combination import fit_combination
from universal_simulator.training.loop import StageOutcome
from universal_simulator.training.reward import train_reward

Progress = Callable[[str, int, int], None]
#: every k-th frame of the training sample enters the normalisation
STATISTICS_STRIDE = 10
#: training groups that enter the normalisation, the same whether data are resident or streamed
STATISTICS_GROUPS = 256


def dataset_path(folder: Path, name: str) -> Path:
    return folder / "data" / f"{name}.hdf5"


def ensure_dataset(name: str | Path, path: Path, *, progress: Progress | None = None) -> Dataset:
    """Generate the named data set where it is missing or unfinished."""
    source = find("configs/data", name)
    spec = validate(DatasetSpec, read_mapping(source), str(source))
    report = None if progress is None else lambda done, total: progress("data", done, total)
    return generate(spec, path, progress=report)


def prepare_dataset(named: str, folder: Path, *, progress: Progress | None = None) -> Dataset:
    """What a config or plan calls its data, ready for use: audited, its content what its identity says.

    named: a specification in `configs/data` (or the path of one), generated into `folder` where it
    is missing or unfinished; or the path of a data file (.hdf5, .h5), taken where it lies.
    """
    if Path(named).suffix in DATA_FILES:
        dataset = open_dataset(named)
        dataset.require_unchanged()
    else:
        dataset = ensure_dataset(named, dataset_path(folder, Path(named).stem), progress=progress)
    dataset.audit()
    return dataset


def run(
    loaded: LoadedConfig,
    folder: Path,
    *,
    run_id: str | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Train and small-evaluate one config in `folder`; a finished run is returned as it is.

    A killed run goes on from its last training state when called again. dataset: the config's data,
    ready for use, where the caller has them; else they are prepared as the config says.
    """
    config = loaded.config
    torch.set_num_threads(config.threads or torch.get_num_threads())
    if dataset is None:
        refuse_undeclared(config)
        dataset = prepare_dataset(str(config.data.file or config.data.dataset), folder, progress=progress)
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
            "data": _stored_path(dataset.path, folder),
            "config": config.model_dump(mode="json"),
        },
    )
    try:
        record = _train(config, loaded.hash, dataset, files, progress)
    except UsimError as error:
        failed = RunRecord(
            run_id=expected,
            status="failed",
            failure=str(error),
            failure_kind=type(error).__name__,
            tags=config.tags,
            origin=_origin(dataset),
        )
        write_json(files.summary, failed)
        raise
    write_json(files.summary, record)
    evaluate(files.path, suite="small", progress=progress)
    if config.ttc.enabled:
        evaluate(files.path, suite="small", search=True, progress=progress)
    return read_document(files.summary, RunRecord)


def _origin(dataset: Dataset) -> Origin:
    stated = dataset.header.specification
    return Origin(
        specification=None if stated is None else json.loads(stated),
        commit=commit(),
        packages=package_versions(),
        archive=archive_hash(),
        lock=lock_hash(),
    )


def _stored_path(data: Path, folder: Path) -> str:
    """Relative to the experiment where it lies inside, so that the folder can be moved."""
    data, folder = data.resolve(), folder.resolve()
    return str(data.relative_to(folder)) if data.is_relative_to(folder) else str(data)


def _train(
    config: RunConfig, config_hash: str, dataset: Dataset, files: RunFolder, progress: Progress | None
) -> RunRecord:
    started = time.monotonic()
    inputs = input_hash(config_hash=config_hash, data_identity=dataset.identity, seed=config.seed)
    device = _device(config)
    windows, sample = _training_data(config, dataset, device)
    surrogate = _new_surrogate(config, dataset, sample)
    require_enough(config, dataset, stochastic=surrogate.member.token_shape() is not None)
    groups = config.training.validation_groups
    stride = config.data.time_stride
    validation = dataset.load("validation", time_stride=stride, max_groups=groups, device=device)
    on_step = None if progress is None else functools.partial(progress, "train")
    outcomes = train_stages(
        config,
        surrogate,
        _batches(config, windows, surrogate),
        validation,
        files=files,
        inputs=inputs,
        on_step=on_step,
    )
    surrogate.architecture = surrogate.architecture.model_copy(
        update={"weights": outcomes["operator"].progress.best_weights}
    )
    trained = time.monotonic()
    stochastic_result, spent = make_sampler(
        config, dataset, surrogate, validation, outcomes, progress=progress
    )
    calibration_s = time.monotonic() - trained
    _learn_reward(config, dataset, surrogate)
    reward_s = time.monotonic() - trained - calibration_s
    model_hash = save_surrogate(
        surrogate,
        files.model,
        plain_checkpoint=files.operator_ema,
        corrector_checkpoint=None if surrogate.corrector is None else files.diffusion_ema,
    )
    flops = {name: outcome.progress.training_flops for name, outcome in outcomes.items()} | spent
    result = _training_result(config, config_hash, dataset, surrogate, outcomes, model_hash)
    made = {"stochastic": stochastic_result, **_cost(config, surrogate, flops)}
    result = result.model_copy(update=made)
    seconds = {name: outcome.progress.seconds for name, outcome in outcomes.items()}
    seconds |= {"calibration": calibration_s} | ({"reward": reward_s} if config.ttc.enabled else {})
    observation = {
        "wall_clock_s": sum(seconds.values()),
        "wall_clock_s_by_stage": seconds,
        "training_flops_by_stage": flops,
        "process_s": time.monotonic() - started,
        "stopped_early": outcomes["operator"].progress.stopped_early,
        **_surroundings(config, device),
    }
    return RunRecord(
        run_id=files.run_id,
        status="finished",
        tags=config.tags,
        origin=_origin(dataset),
        training=TrainingRecord(result=result, observation=observation),
    )


def _device(config: RunConfig) -> torch.device:
    """Where the run trains; said aloud where that is not what its profile is for."""
    device = resolve(config.device)
    if (words := warning(config.device, device, config.profile)) is not None:
        print(words, file=sys.stderr, flush=True)
    return device


def _batches(config: RunConfig, windows: WindowSource, surrogate: Surrogate) -> CanonicalBatches:
    return CanonicalBatches(
        windows,
        surrogate,
        start_fraction=config.training.windows_from_start,
        augmentation=config.training.augmentation,
    )


def _cost(config: RunConfig, surrogate: Surrogate, flops: dict[str, float]) -> dict[str, float]:
    """Operations of all stages and of what makes the headline's nrmse, and the parameters of the latter."""
    decided_by_members = surrogate.corrector is not None and config.evaluation.headline == "ensemble_mean"
    made_by = flops if decided_by_members else flops.keys() & {"codec", "operator"}
    return {
        "training_flops": sum(flops.values()),
        "headline_flops": sum(flops[name] for name in made_by),
        "params": surrogate.num_parameters() if decided_by_members else surrogate.deterministic_parameters(),
    }


def _surroundings(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Where and with what a training ran, when it has ended."""
    return {
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "peak_device_memory_gib": peak_memory_gib(device),
        "device": describe(device),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": config.profile,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _learn_reward(config: RunConfig, dataset: Dataset, surrogate: Surrogate) -> None:
    """The learned reward of test-time compute, where it is on, on the other half of calibration."""
    ttc = config.ttc
    if not ttc.enabled or not (ttc.reward_steps or ttc.combine == "regress"):
        return
    truth = dataset.load(
        CALIBRATION_HALVES[1], time_stride=config.data.time_stride, device=surrogate.offset.device
    )
    if ttc.reward_steps:
        train_reward(surrogate, ttc, config.guards, truth, dataset, seed=config.seed)
    if ttc.combine == "regress":
        fit_combination(surrogate, ttc, config.guards, truth, dataset, seed=config.seed)


def _training_data(
    config: RunConfig, dataset: Dataset, device: torch.device
) -> tuple[WindowSource, Trajectories]:
    """Window source, and a sample for the statistics."""
    stride, groups = config.data.time_stride, config.data.train_groups
    rows = len(dataset.rows("train", max_groups=groups))
    sampled = STATISTICS_GROUPS if groups is None else min(groups, STATISTICS_GROUPS)
    frames = -(-dataset.header.shape[1] // stride)
    needed_gib = rows * frames * dataset.grid.points[0] * 4 / 2**30
    if needed_gib <= config.data.resident_gib:
        train = dataset.load("train", time_stride=stride, max_groups=groups, device=device)
        return WindowSource(train), train.of_first_groups(sampled)
    source = StreamingWindowSource(
        dataset, split="train", time_stride=stride, max_groups=groups, device=device
    )
    return source, dataset.load("train", time_stride=stride, max_groups=sampled, device=device)


def _new_surrogate(config: RunConfig, dataset: Dataset, sample: Trajectories) -> Surrogate:
    equation = dataset.equation
    values = sample.parameters
    architecture = Architecture(
        import_path=config.model.import_path,
        options=config.model.options,
        canonical_frame=config.model.canonical_frame,
        reencode_every=config.model.reencode_every,
        member_representations=config.model.member_representations,
        equation=equation.name,
        field_names=tuple(spec.name for spec in equation.fields),
        parameter_names=tuple(spec.name for spec in equation.parameters),
        lengths=dataset.grid.lengths,
        points=dataset.grid.points,
        origin=dataset.grid.origin,
        dt_s=sample.frame_spacing_s,
        time_stride=config.data.time_stride,
        data_identity=dataset.identity,
        seen_groups=seen_groups(dataset, config.data.train_groups),
        parameter_range=tuple(
            (float(low), float(high)) for low, high in zip(values.amin(0), values.amax(0), strict=True)
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        surrogate = Surrogate(architecture).to(sample.fields.device)
    fields = sample.fields[:, ::STATISTICS_STRIDE]
    flat = fields.flatten(0, 1)
    frame = surrogate.frame_of(flat)
    canonical = surrogate.frame.to_canonical(frame, flat[:, None], flat.new_zeros(len(flat), 1))
    parameters = sample.parameters.repeat_interleave(fields.shape[1], 0)
    surrogate.fit_normalisation(canonical, surrogate.conditions(frame, parameters))
    return surrogate


def seen_groups(dataset: Dataset, train_groups: int | None) -> tuple[str, ...]:
    """What training and validation look at, as beginnings of group hashes, sorted."""
    rows = [*dataset.rows("train", max_groups=train_groups), *dataset.rows("validation")]
    return tuple(sorted({dataset.groups[row][:GROUP_DIGITS] for row in rows}))


def _training_result(
    config: RunConfig,
    config_hash: str,
    dataset: Dataset,
    surrogate: Surrogate,
    outcomes: dict[str, StageOutcome],
    model_hash: str,
) -> TrainingResult:
    done = outcomes["operator"].progress
    validation: dict[str, float | None] = {
        "best_nrmse": done.best_score,
        "best_step": done.best_step,
        "last_nrmse": min(done.validations[-1][1:]),
    }
    if "codec" in outcomes:
        validation["reconstruction"] = outcomes["codec"].progress.best_score
    for stage in ("diff_residual", "consistency_distill"):
        if stage in outcomes:
            validation[f"crps_{stage}"] = outcomes[stage].progress.best_score
    return TrainingResult(
        config_name=config.name,
        config_hash=config_hash,
        effective_config=config.model_dump(mode="json"),
        data_identity=dataset.identity,
        code_version=code_version(),
        seed=config.seed,
        params=surrogate.deterministic_parameters(),
        params_corrector=surrogate.corrector_parameters(),
        optimiser_steps=done.step,
        training_flops=sum(outcome.progress.training_flops for outcome in outcomes.values()),
        model_hash=model_hash,
        weights_kept="raw" if done.best_weights == "raw" else "ema",
        validation=validation,
        stages=tuple(outcomes),
    )
