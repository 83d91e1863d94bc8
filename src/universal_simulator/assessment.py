"""Answers about a trained model: every evaluation suite and its record."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.schema import EvaluationConfig, GuardsConfig, RunConfig, TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import OFFICIAL_TEST, open_dataset
from universal_simulator.device import describe, resolve
from universal_simulator.errors import IntegrityError, UserError
from universal_simulator.evaluation.answering import asked_predictor, described
from universal_simulator.evaluation.contract import FieldPredictor, stochastic
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.evaluator import Evaluator, Examples
from universal_simulator.evaluation.protocols import PDEBENCH, FrameChoice, protocol_of, rollout_frames
from universal_simulator.evaluation.references import (
    LateReferences,
    Rows,
    cached_reference_rows,
    reference_rows,
)
from universal_simulator.evaluation.refusals import refuse_calibrated, refuse_foreign, refuse_seen
from universal_simulator.evaluation.report import write_report
from universal_simulator.evaluation.search_diagnostics import diagnose, with_diagnoses
from universal_simulator.identity import code_version
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, hash_of, load_surrogate
from universal_simulator.physics.reference import classical_method
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Protocol,
    RegimeResult,
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
    _refuse_unasked(suite, data_file, opening, members, search=search)
    subject = subject_of(path)
    file = data_file or subject.data_file
    if file is None:
        raise UserError(f"{path} is a model without its run; give --data FILE")
    started, evaluation = time.monotonic(), subject.evaluation
    truth, protocol = question_of(subject, file, suite, data_file is not None, parameter)
    place = resolve(device or subject.device)
    subject.surrogate.to(place)
    references = LateReferences(lambda: references_of(truth, protocol, evaluation, subject.folder, place))
    label = SUITES[suite][0] + ("_ttc" if search else "")
    configured = evaluation.small_members if suite == "small" else evaluation.members
    predictor, rules = _asked(subject, truth, protocol, members=members or configured, search=search)
    refuse_members(predictor, members)
    on_batch = None if progress is None else functools.partial(progress, label)
    evaluator = _evaluator(truth, references, evaluation, rules, place, on_batch)
    regimes, examples = evaluator.run(predictor)
    regimes, searched = _diagnosed(predictor, regimes, truth, evaluation, rules, place)
    record = EvaluationRecord(
        suite=label,
        run_id=subject.name,
        result=EvaluationResult(
            protocol=protocol,
            predictor=described(subject.surrogate, predictor, predictor.guards.names, rules),
            regimes=regimes,
            references=references(),
        ),
        observation={
            "wall_clock_s": time.monotonic() - started - references.seconds,
            "opening": opening,
            **_observed(evaluator, references, place),
            **searched,
        },
    )
    folder, as_configured = subject.folder, members in (None, configured)
    if folder is not None and as_configured and (data_file is None or suite in PDEBENCH_SUITES):
        # the page keeps showing what decided: the opened test split stands on the sweep's page
        _keep(folder, record, truth, examples, on_page=suite != "test" and not search)
    return record


def _asked(
    subject: Subject, truth: Trajectories, protocol: Protocol, *, members: int, search: bool
) -> tuple[SurrogatePredictor, EnsembleRules]:
    """Who answers about a subject, and how its ensembles are read."""
    evaluation = subject.evaluation
    predictor = asked_predictor(
        subject.surrogate,
        subject.guards,
        truth.frame_spacing_s,
        members=members,
        noise_seed=evaluation.noise_seed,
        ttc=subject.ttc if search else None,
    )
    rules = EnsembleRules.of(
        truth,
        subject.surrogate.calibration,
        first_frame=protocol.first_frame,
        headline=evaluation.headline,
        noise_seed=evaluation.noise_seed,
        groups=evaluation.ensemble_groups,
    )
    return predictor, rules


def _evaluator(
    truth: Trajectories,
    references: LateReferences,
    evaluation: EvaluationConfig,
    rules: EnsembleRules,
    place: torch.device,
    on_batch: Callable[[int, int], None] | None,
) -> Evaluator:
    return Evaluator(
        truth,
        references,
        batch_size=evaluation.batch_size,
        bootstrap_samples=evaluation.bootstrap_samples,
        ensemble=rules,
        device=place,
        on_batch=on_batch,
    )


def _diagnosed(
    predictor: SurrogatePredictor,
    regimes: dict[str, RegimeResult],
    truth: Trajectories,
    evaluation: EvaluationConfig,
    rules: EnsembleRules,
    place: torch.device,
) -> tuple[dict[str, RegimeResult], dict[str, Any]]:
    """The results of test-time compute with its diagnostics, and what was observed; else as they are."""
    if not isinstance(predictor, SearchingPredictor):
        return regimes, {}
    found = diagnose(
        predictor,
        truth.to(place).of_first_groups(DIAGNOSED_GROUPS),
        bootstrap_samples=evaluation.bootstrap_samples,
        noise_seed=evaluation.noise_seed,
        calibrations=rules.calibrations,
    )
    told, observed = with_diagnoses(regimes, found)
    return told, {"ttc": observed}


def _observed(evaluator: Evaluator, references: LateReferences, place: torch.device) -> dict[str, Any]:
    return {
        "references_s": references.seconds,
        "classical_s_per_trajectory": references.seconds_per_trajectory,
        "code_version": code_version(),
        "rollout_s_per_trajectory": evaluator.rollout_s,
        "device": describe(place),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _keep(
    folder: RunFolder,
    record: EvaluationRecord,
    truth: Trajectories,
    examples: Mapping[str, Examples],
    *,
    on_page: bool,
) -> None:
    """Write the answer into its run: beside the others, into the summary and the reports."""
    label = record.suite
    write_json(folder.evaluation(label), record)
    summary = read_document(folder.summary, RunRecord)
    summary = summary.model_copy(update={"evaluations": {**summary.evaluations, label: record}})
    write_json(folder.summary, summary)
    peers = _peers(folder, label, record.result.protocol)
    write_report(folder, summary, label if on_page else None, truth=truth, predictions=examples, peers=peers)


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


def _refuse_unasked(
    suite: str, data_file: Path | None, opening: str | None, members: int | None, *, search: bool
) -> None:
    if search and (members is not None or suite == "test"):
        raise UserError(
            "--ttc is one predictor without members, and the sealed split answers the headline's alone"
        )
    if suite not in SUITES:
        raise UserError(f"no suite {suite!r}; suites: {', '.join(name for name in SUITES if name != 'test')}")
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
    refuse_calibrated(subject.surrogate, truth, file)
    if split != "validation":
        refuse_seen(subject.surrogate, truth, file)
    return truth, protocol_of(frames, truth, dataset_identity=dataset.identity, split=split)


def _frames(subject: Subject, suite: str) -> FrameChoice:
    if suite in PDEBENCH_SUITES:
        return PDEBENCH
    return rollout_frames(
        time_stride=subject.surrogate.architecture.time_stride,
        first_frame=subject.evaluation.first_frame,
        steps=subject.evaluation.steps,
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
