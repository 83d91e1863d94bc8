"""What settings that only inference reads are worth on one trained model: scored by evaluation alone.

Each setting of test-time compute is one predictor, asked the run's small suite (validation split) and
written beside its evaluations as `evaluations/small_eval_ttc_{8 hex digits of the settings}.json`, with the
diagnostics of every such evaluation on its first initial conditions. The
run's record, its model file and its headline stay what they are.

A threshold is a share of the learned reward's 95th percentile. A model that was trained with `ttc.enabled`
has that reward in its file. For any other one it is trained here, once for all settings, by the
same code, with the run's own settings and seed on the same half of calibration, and kept in memory: its seconds
are counted (`reward_s`). So is the combination of a regressed answer (`ttc.combine: regress`), for each setting
that changes its fit. The predictor is named by the stored model and its settings, of which the
reward is a function.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from universal_simulator.assessment import Subject, question_of, references_of, subject_of
from universal_simulator.configuration.inference_settings import score_label, with_settings, words_of
from universal_simulator.configuration.schema import TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.device import describe, resolve
from universal_simulator.errors import UserError
from universal_simulator.evaluation.answering import described
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.references import Rows
from universal_simulator.evaluation.search_diagnostics import diagnose, with_diagnoses
from universal_simulator.identity import code_version
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import hash_of
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
from universal_simulator.training.combination import fit_combination
from universal_simulator.training.reward import train_reward

#: initial conditions on which each setting is diagnosed
DIAGNOSED_GROUPS = 16
#: progress(label of the setting, batches done, of how many)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Asked:
    """A model with its rewards, and what every setting is asked."""

    subject: Subject
    truth: Trajectories
    protocol: Protocol
    rows: Rows
    place: torch.device
    #: hash of the model as it is stored
    stored: str
    #: seconds of a reward trained here, a setting's share
    reward_s: float
    #: initial conditions that are diagnosed
    groups: int


def score_settings(
    path: Path,
    settings: Sequence[str],
    *,
    groups: int = DIAGNOSED_GROUPS,
    reward_groups: int | None = None,
    progress: Progress | None = None,
) -> list[EvaluationRecord]:
    """One record for each setting (some `ttc.key=value` words), in their order.

    groups: initial conditions of each that are diagnosed. reward_groups: of the rewards' half that is
    learned from here, at most; None: all of it.

    Raises ConfigurationError for a word that is no such setting, UserError for a model without its run.
    """
    if not path.is_dir():
        raise UserError(f"{path} is a model without its run; settings are scored on a run folder")
    subject = subject_of(path)
    assert subject.folder is not None
    assert subject.data_file is not None
    wanted = [with_settings(subject.ttc, words_of(setting)) for setting in settings]
    stored, started = hash_of(subject.surrogate), time.monotonic()
    half = _Half(subject, subject.folder, subject.data_file, reward_groups)
    if subject.surrogate.architecture.reward is None and subject.ttc.reward_steps:
        half.learn_reward()
    reward_s = (time.monotonic() - started) / max(1, len(wanted))
    truth, protocol = question_of(subject, subject.data_file, "small", False, None)
    place = resolve(subject.device)
    subject.surrogate.to(place)
    rows, _ = references_of(truth, protocol, subject.evaluation, subject.folder, place)
    asked = _Asked(subject, truth, protocol, rows, place, stored, reward_s, groups)
    records = []
    for ttc in wanted:
        started = time.monotonic()
        if ttc.combine == "regress":
            half.fit_combination(ttc)
        fitting_s = time.monotonic() - started
        records.append(_scored(asked, ttc, fitting_s=fitting_s, progress=progress))
        write_json(subject.folder.evaluation(records[-1].suite), records[-1])
    return records


def _spent(regimes: dict[str, RegimeResult]) -> float:
    """Evaluations beyond the plain rollout, mean over the regimes' diagnosed rollouts: the evaluator's own also
    take single steps, which search nothing."""
    found = [r.metrics["ttc_evaluations"].value for r in regimes.values() if "ttc_evaluations" in r.metrics]
    known = [value for value in found if value is not None]
    return sum(known) / max(1, len(known))


class _Half:
    """The rewards' half of calibration of a run, and what is learned on it in memory."""

    def __init__(self, subject: Subject, folder: RunFolder, data_file: Path, groups: int | None) -> None:
        self.subject, self.groups = subject, groups
        record = read_document(folder.summary, RunRecord)
        assert record.training is not None
        self.seed = record.training.result.seed
        self.data_file = data_file
        self.stored = subject.surrogate.architecture.combination
        self.fitted_for: TTCSection | None = None

    @functools.cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.data_file)

    def truth(self) -> Trajectories:
        surrogate = self.subject.surrogate
        return self.dataset.load(
            CALIBRATION_HALVES[1],
            time_stride=surrogate.architecture.time_stride,
            max_groups=self.groups,
            device=surrogate.offset.device,
        )

    def learn_reward(self) -> None:
        train_reward(
            self.subject.surrogate,
            self.subject.ttc,
            self.subject.guards,
            self.truth(),
            self.dataset,
            seed=self.seed,
        )

    def fit_combination(self, ttc: TTCSection) -> None:
        """Where the model file holds none; one that it holds is asked as it is, and refuses another beam."""
        # where it acts is nothing to the fit, which acts everywhere
        like = ttc.model_copy(update={"residual_threshold": 0.0, "max_evaluations": 0})
        if self.stored is not None or self.fitted_for == like:
            return
        self.fitted_for = like
        fit_combination(
            self.subject.surrogate, ttc, self.subject.guards, self.truth(), self.dataset, seed=self.seed
        )


def _scored(
    asked: _Asked, ttc: TTCSection, *, fitting_s: float, progress: Progress | None
) -> EvaluationRecord:
    evaluation, label = asked.subject.evaluation, score_label(ttc)
    predictor = SearchingPredictor(
        asked.subject.surrogate,
        asked.subject.guards,
        ttc,
        frame_spacing_s=asked.truth.frame_spacing_s,
        noise_seed=evaluation.noise_seed,
    )
    evaluator = Evaluator(
        asked.truth,
        asked.rows,
        batch_size=evaluation.batch_size,
        bootstrap_samples=evaluation.bootstrap_samples,
        device=asked.place,
        on_batch=None if progress is None else lambda done, total: progress(label, done, total),
    )
    started = time.monotonic()
    regimes, _ = evaluator.run(predictor)
    evaluated_s = time.monotonic() - started
    calibration = asked.subject.surrogate.calibration
    rules = EnsembleRules.of(asked.truth, calibration, first_frame=asked.protocol.first_frame)
    regimes, observed = with_diagnoses(
        regimes,
        diagnose(
            predictor,
            asked.truth.to(asked.place).of_first_groups(asked.groups),
            bootstrap_samples=evaluation.bootstrap_samples,
            noise_seed=evaluation.noise_seed,
            calibrations=rules.calibrations,
        ),
    )
    about = described(asked.subject.surrogate, predictor, predictor.guards.names, EnsembleRules())
    return EvaluationRecord(
        suite=label,
        run_id=asked.subject.name,
        result=EvaluationResult(
            protocol=asked.protocol,
            predictor=about.model_copy(update={"model_hash": asked.stored}),
            regimes=regimes,
            references=asked.rows,
        ),
        observation={
            "wall_clock_s": evaluated_s,
            "diagnosis_s": time.monotonic() - started - evaluated_s,
            "ttc": observed,
            "reward_s": asked.reward_s + fitting_s,
            "rollout_s_per_trajectory": evaluator.rollout_s,
            "evaluations_per_sample": _spent(regimes),
            "device": describe(asked.place),
            "code_version": code_version(),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
