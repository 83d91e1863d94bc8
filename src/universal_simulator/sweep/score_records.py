"""Records of scored settings of test-time compute, held to what was asked: when the job ends, and whenever they are read.

They lie beside the run's own record, which knows nothing of them, one file for each setting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from universal_simulator.configuration import load_config
from universal_simulator.configuration.inference_settings import (
    score_label,
    settings_hash,
    with_settings,
    words_of,
)
from universal_simulator.errors import IntegrityError
from universal_simulator.identity import code_version
from universal_simulator.run_record import EvaluationRecord, RunFolder, read_document
from universal_simulator.sweep.jobs import SETTING, config_words
from universal_simulator.sweep.state import Run, SweepState

#: what a score is read for beside its metrics
COST = ("wall_clock_s", "evaluations_per_sample")


def score_falsehoods(state: SweepState, job_id: str) -> list[str]:
    """What of the settings that a job was asked for last did not come back, or is not of it; empty where all holds."""
    run = state.run(job_id.partition(":")[2])
    asked = [e.data["arguments"] for e in state.journal.of("job_intent") if e.data["job"] == job_id]
    if run is None or not asked:
        return []
    found = []
    for word, setting in itertools.pairwise(asked[-1]):
        if word == SETTING:
            try:
                scored_record(state, run, words_of(setting))
            except IntegrityError as error:
                found.append(str(error))
    return found


def scored_record(state: SweepState, subject: Run, words: Sequence[str]) -> EvaluationRecord:
    """The evaluation of one setting, held to what was asked; raises IntegrityError for another one."""
    plan = state.plan
    config = load_config(
        subject.config,
        config_words(plan, seed=subject.seed, overrides=subject.overrides),
        profile=plan.profile,
    ).config
    ttc = with_settings(config.ttc, words)
    path = RunFolder(state.folder, subject.run_id).evaluation(score_label(ttc))
    record, run = read_document(path, EvaluationRecord), state.record(subject.run_id)
    assert run is not None
    assert run.training is not None
    plain = run.evaluations["small_eval"].result
    asked = {
        "run": (record.run_id, subject.run_id),
        "model": (record.result.predictor.model_hash, run.training.result.model_hash),
        "settings": (record.result.predictor.search_hash, settings_hash(ttc)),
        "protocol": (record.result.protocol.hash, plain.protocol.hash),
        "code": (record.code_version, code_version()),
    }
    wrong = [name for name, (found, expected) in asked.items() if found != expected]
    if wrong:
        raise IntegrityError(
            f"{path} is of another {', '.join(wrong)} than was asked for ({' '.join(words)})"
        )
    missing = [label for label in plain.regimes if "nrmse" not in _metrics(record, label)]
    missing += [name for name in COST if not _number(record.observation.get(name))]
    if missing:
        raise IntegrityError(f"{path} does not tell {', '.join(missing)} ({' '.join(words)})")
    return record


def _metrics(record: EvaluationRecord, regime: str) -> Sequence[str]:
    found = record.result.regimes.get(regime)
    return () if found is None else list(found.metrics)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
