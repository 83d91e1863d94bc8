"""Answers about a trained model: every evaluation suite and its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.schema import EvaluationConfig, GuardsConfig, RunConfig, TTCSection
from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import OFFICIAL_TEST, Dataset, open_dataset
from universal_simulator.device import describe, resolve
from universal_simulator.errors import DataError, IntegrityError, LeakageError, UserError
from universal_simulator.evaluation.answering import asked_predictor, described
from universal_simulator.evaluation.contract import FieldPredictor, stochastic
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.protocols import PDEBENCH, FrameChoice, protocol_of, rollout_frames
from universal_simulator.evaluation.references import Rows, cached_reference_rows, reference_rows
from universal_simulator.evaluation.report import write_report
from universal_simulator.evaluation.search_diagnostics import diagnose, with_diagnoses
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, hash_of, load_surrogate
from universal_simulator.physics.reference import classical_method
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Protocol,
    RunFolder,
    RunRecord,
    read_document,
    write_json,
)

Progress = Callable[[str, int, int], None]
#: initial conditions on which test-time compute is diagnosed: its ensembles of equal cost are dear
DIAGNOSED_GROUPS = 64
#: suites of PDEBench's own protocol, always about a file of its own
PDEBENCH_SUITES = ("pdebench", "pdebench-official")
#: suite -> (label in records, split)
SUITES = {
    "small": ("small_eval", "validation"),
    "full": ("full_eval", "selection"),
    "test": ("test", "test"),
    "pdebench": ("pdebench", "all"),
    "pdebench-official": ("pdebench_official", OFFICIAL_TEST),
}


@dataclass(frozen=True)
class Subject:
    """A trained model, with its run where it has one."""

    surrogate: Surrogate
    folder: RunFolder | None
    name: str
    evaluation: EvaluationConfig
    guards: GuardsConfig
    data_file: Path | None
    #: as the run was configured; a model without its run takes what is there
    device: str = "auto"
    ttc: TTCSection = field(default_factory=TTCSection)


def evaluate(
    path: Path,
    *,
    suite: str,
    data_file: Path | None = None,
    parameter: float | None = None,
    members: int | None = None,
    device: str | None = None,
    opening: str | None = None,
    search: bool = False,
    progress: Progress | None = None,
) -> EvaluationRecord:
    """Evaluate a run folder, or a released model file on `data_file`.

    members: of a stochastic model's ensemble (None: as configured). A run's own record takes the
    answer, unless it is about another file (but for pdebench, which is always about one) or about
    another number of members. search: with test-time compute, a predictor of its own whose record
    stands beside the plain one as `{suite}_ttc` with its diagnostics. device: as in a config (None: the run's own). The test split answers only to a sweep's journalled `opening`.
    """
    _refuse_unasked(suite, data_file, opening)
    if search and (members is not None or suite == "test"):
        raise UserError(
            "--ttc is one predictor without members, and the sealed split answers the headline's alone"
        )
    subject = subject_of(path)
    file = data_file or subject.data_file
    if file is None:
        raise UserError(f"{path} is a model without its run; give --data FILE")
    started, evaluation = time.monotonic(), subject.evaluation
    truth, protocol = question_of(subject, file, suite, data_file is not None, parameter)
    place = resolve(device or subject.device)
    subject.surrogate.to(place)
    rows, seconds = references_of(truth, protocol, evaluation, subject.folder, place)
    references_s = time.monotonic() - started
    label = SUITES[suite][0] + ("_ttc" if search else "")
    configured = evaluation.small_members if suite == "small" else evaluation.members
    predictor = asked_predictor(
        subject.surrogate,
        subject.guards,
        truth.frame_spacing_s,
        members=members or configured,
        noise_seed=evaluation.noise_seed,
        ttc=subject.ttc if search else None,
    )
    refuse_members(predictor, members)
    rules = EnsembleRules.of(
        truth,
        subject.surrogate.calibration,
        first_frame=protocol.first_frame,
        headline=evaluation.headline,
        noise_seed=evaluation.noise_seed,
        groups=evaluation.ensemble_groups,
    )
    evaluator = Evaluator(
        truth,
        rows,
        batch_size=evaluation.batch_size,
        bootstrap_samples=evaluation.bootstrap_samples,
        ensemble=rules,
        device=place,
        on_batch=None if progress is None else lambda done, total: progress(label, done, total),
    )
    regimes, examples = evaluator.run(predictor)
    observed: dict[str, dict[str, float]] = {}
    if isinstance(predictor, SearchingPredictor):
        regimes, observed = with_diagnoses(
            regimes,
            diagnose(
                predictor,
                truth.to(place).of_first_groups(DIAGNOSED_GROUPS),
                bootstrap_samples=evaluation.bootstrap_samples,
                noise_seed=evaluation.noise_seed,
            ),
        )
    record = EvaluationRecord(
        suite=label,
        run_id=subject.name,
        result=EvaluationResult(
            protocol=protocol,
            predictor=described(subject.surrogate, predictor, predictor.guards.names, rules),
            regimes=regimes,
            references=rows,
        ),
        observation={
            "wall_clock_s": time.monotonic() - started - references_s,
            "references_s": references_s,
            "classical_s_per_trajectory": seconds,
            "rollout_s_per_trajectory": evaluator.rollout_s,
            "device": describe(place),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "opening": opening,
            **({"ttc": observed} if search else {}),
        },
    )
    folder, as_configured = subject.folder, members in (None, configured)
    if folder is not None and as_configured and (data_file is None or suite in PDEBENCH_SUITES):
        write_json(folder.evaluation(label), record)
        summary = read_document(folder.summary, RunRecord)
        summary = summary.model_copy(update={"evaluations": {**summary.evaluations, label: record}})
        write_json(folder.summary, summary)
        peers = _peers(folder, label, protocol)
        # the page keeps showing what decided: the opened test split stands on the sweep's page
        drawn = label if suite != "test" and not search else None
        write_report(folder, summary, drawn, truth=truth, predictions=examples, peers=peers)
    return record


def refuse_members(predictor: FieldPredictor, members: int | None) -> None:
    """Members asked of a model that cannot sample are no ensemble."""
    if members is not None and members > 1 and stochastic(predictor) is None:
        raise UserError(
            f"--members {members}: this model is deterministic, it has no corrector to sample from; "
            "leave --members out, or train the stage diff_residual"
        )


def _peers(folder: RunFolder, label: str, protocol: Protocol) -> dict[str, EvaluationRecord]:
    """The experiment's reference models that answered the same question, by config name."""
    found = {}
    for path in sorted(folder.path.parent.glob("*/summary.json")):
        record = read_document(path, RunRecord)
        evaluation = record.evaluations.get(label)
        if (
            record.run_id != folder.run_id
            and "reference" in record.tags
            and "ablation" not in record.tags
            and record.training is not None
            and evaluation is not None
            and evaluation.result.protocol.hash == protocol.hash
        ):
            found[record.training.result.config_name] = evaluation
    return found


def _refuse_unasked(suite: str, data_file: Path | None, opening: str | None) -> None:
    if suite not in SUITES:
        raise UserError(f"no suite {suite!r}; suites: {', '.join(SUITES)}")
    if suite == "test" and not opening:
        raise UserError(
            "the test split is sealed: it is opened once, by a sweep, for its final champion; "
            "use --suite full (the selection split)"
        )
    if suite in PDEBENCH_SUITES and data_file is None:
        raise UserError(f"--suite {suite} needs --data FILE (a PDEBench file)")


def subject_of(path: Path) -> Subject:
    if not path.is_dir():
        return Subject(load_surrogate(path), None, path.stem, EvaluationConfig(), GuardsConfig(), None)
    folder = RunFolder.of_path(path)
    surrogate = load_surrogate(folder.model)
    summary = read_document(folder.summary, RunRecord)
    trained = None if summary.training is None else summary.training.result.model_hash
    if hash_of(surrogate) != trained:
        raise IntegrityError(
            f"{folder.model} is not the model that {folder.run_id} trained (hash "
            f"{hash_of(surrogate)[:12]}, recorded {str(trained)[:12]}); bring the original back"
        )
    stored = read_mapping(folder.config)
    config = validate(RunConfig, stored["config"], str(folder.config))
    return Subject(
        surrogate,
        folder,
        folder.run_id,
        config.evaluation,
        config.guards,
        folder.experiment / str(stored["data"]),
        config.device,
        config.ttc,
    )


def question_of(
    subject: Subject, file: Path, suite: str, other_file: bool, parameter: float | None
) -> tuple[Trajectories, Protocol]:
    """The trajectories of a suite, and the protocol that names them."""
    frames = _frames(subject, suite)
    dataset = open_dataset(file, parameter=parameter, points=frames.points)
    architecture, evaluation = subject.surrogate.architecture, subject.evaluation
    dataset.require_unchanged()
    refuse_foreign(subject.surrogate, dataset)
    split = SUITES[suite][1]
    foreign = dataset.identity != architecture.data_identity
    if foreign and not other_file:
        raise IntegrityError(
            f"{file} holds other data than {subject.name} was trained on (content {dataset.identity[:12]}, "
            f"recorded {architecture.data_identity[:12]}); bring the original back, or name the file with --data"
        )
    if split == OFFICIAL_TEST and not foreign:
        raise UserError(
            f"{file} is what the model was trained on, and PDEBench's test set (its first tenth) holds "
            "training trajectories; use --suite pdebench, which keeps the splits apart"
        )
    if split != OFFICIAL_TEST and (split == "all" or (other_file and foreign)):
        # what the model was trained on keeps its splits; another file without any is used whole
        split = "all" if foreign and dataset.header.split is None else "selection"
    truth = dataset.load(
        split,
        time_stride=frames.time_stride,
        first_frame=frames.first_frame,
        num_frames=frames.num_frames,
        max_groups={"small": evaluation.small_groups, "full": evaluation.full_groups}.get(suite),
    )
    _refuse_calibrated(subject.surrogate, truth, file)
    if split != "validation":
        _refuse_seen(subject.surrogate, truth, file)
    return truth, protocol_of(frames, truth, dataset_identity=dataset.identity, split=split)


def _refuse_seen(surrogate: Surrogate, truth: Trajectories, file: Path) -> None:
    """Only small-eval is about a split that training looked at (validation), and only of its own data."""
    seen = set(surrogate.architecture.seen_groups)
    shared = {group for group in truth.groups if group[:GROUP_DIGITS] in seen}
    if shared:
        raise LeakageError(
            f"{file}: {len(shared)} of {len(set(truth.groups))} initial conditions were trained or validated "
            "on; evaluate on others"
        )


def _refuse_calibrated(surrogate: Surrogate, truth: Trajectories, file: Path) -> None:
    """Uncertainty and rewards are never scored where they were fitted, whatever the suite."""
    entries = (surrogate.architecture.calibration, surrogate.architecture.reward)
    fitted = {group for entry in entries if entry is not None for group in entry.groups}
    used = {group for group in truth.groups if group[:GROUP_DIGITS] in fitted}
    if used:
        raise LeakageError(
            f"{file}: the model's ensembles or rewards were calibrated on {len(used)} of {len(set(truth.groups))} initial "
            "conditions; evaluate on others"
        )


def _frames(subject: Subject, suite: str) -> FrameChoice:
    if suite in PDEBENCH_SUITES:
        return PDEBENCH
    return rollout_frames(
        time_stride=subject.surrogate.architecture.time_stride,
        first_frame=subject.evaluation.first_frame,
        steps=subject.evaluation.steps,
    )


def refuse_foreign(surrogate: Surrogate, dataset: Dataset) -> None:
    """A data set of another equation, grid or parameter range is not what the model knows."""
    architecture = surrogate.architecture
    if dataset.equation.name != architecture.equation:
        raise DataError(
            f"{dataset.path} holds {dataset.equation.name!r}, the model was trained on "
            f"{architecture.equation!r}"
        )
    if dataset.grid.points != architecture.points:
        raise DataError(
            f"{dataset.path} has {dataset.grid.points} points, the model was trained on {architecture.points}"
        )
    length = dataset.grid.lengths[0]
    if abs(length - architecture.lengths[0]) > 1e-3 * architecture.lengths[0]:
        raise DataError(
            f"{dataset.path} is {length:g} m long, the model was trained on {architecture.lengths[0]:g} m"
        )
    names = tuple(spec.name for spec in dataset.equation.parameters)
    fields = tuple(spec.name for spec in dataset.equation.fields)
    if (fields, names) != (architecture.field_names, architecture.parameter_names):
        raise DataError(
            f"{dataset.path} holds fields {fields} under parameters {names}, the model knows "
            f"{architecture.field_names} under {architecture.parameter_names}"
        )
    if dataset.identity == architecture.data_identity:
        return  # splits of one data set need not have the same extremes
    for name, column, (low, high) in zip(
        names, dataset.header.parameters.T, architecture.parameter_range, strict=True
    ):
        if column.min() < low - 1e-6 * abs(low) or column.max() > high + 1e-6 * abs(high):
            raise DataError(
                f"{dataset.path}: {name} {column.min():g} to {column.max():g} leaves the trained "
                f"range {low:g} to {high:g}"
            )


def references_of(
    truth: Trajectories,
    protocol: Protocol,
    evaluation: EvaluationConfig,
    folder: RunFolder | None,
    device: torch.device,
) -> tuple[Rows, dict[str, float]]:
    """Once per experiment and protocol; a model without its run has no place to keep them."""
    points, samples = evaluation.classical_points, evaluation.bootstrap_samples
    method = classical_method(truth.equation)
    if method == "none":
        points = ()  # nothing can solve what nobody declared
    if folder is None:
        return reference_rows(
            truth, classical_points=points, bootstrap_samples=samples, method=method, device=device
        )
    return cached_reference_rows(
        folder.experiment,
        protocol,
        truth,
        classical_points=points,
        bootstrap_samples=samples,
        method=method,
        device=device,
    )
