"""An executor without processes: it writes the records that real runs would write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.sweep.records import evaluation, run_record
from universal_simulator.configuration import load_config
from universal_simulator.configuration.inference_settings import (
    score_label,
    settings_hash,
    with_settings,
    words_of,
)
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_json
from universal_simulator.sweep import run_planning
from universal_simulator.sweep.executor import Executor, Job, JobEnd, JobState
from universal_simulator.sweep.jobs import config_words
from universal_simulator.sweep.state import SweepState

RATE = "training.operator.learning_rate"
#: the member's effective rate under the smoke profile
BASE_RATE = 9e-4


def truthful(record: RunRecord, job: Job) -> RunRecord:
    """The record with the identity that a worker with this code, told these words, would give it."""
    words = list(job.arguments)
    given = [word for word in words[2:] if "=" in word]
    loaded = load_config(words[1], given, profile=words[words.index("--profile") + 1])
    assert record.training is not None
    changes = {
        "config_name": loaded.config.name,
        "config_hash": loaded.hash,
        "seed": loaded.config.seed,
        "code_version": run_planning.code_version(),
    }
    result = record.training.result.model_copy(update=changes)
    return record.model_copy(update={"training": record.training.model_copy(update={"result": result})})


class FakeExecutor(Executor):
    """Writes the records a real run would write. Quality of a config is fixed by its name."""

    slots = 2
    failure_kind: str | None = None
    #: what every calibration answers
    calibration: Mapping[str, float] = MappingProxyType(
        {
            "train_s": 100.0,
            "small_eval_s": 20.0,
            "full_eval_s": 60.0,
            "references_s": 5.0,
            "peak_memory_gib": 0.5,
        }
    )

    def __init__(self, *, exit_codes: dict[str, list[int]] | None = None, member: float = 0.05) -> None:
        self.ended: list[JobEnd] = []
        self.submitted: list[str] = []
        self.exit_codes = exit_codes or {}
        self.member = member

    def submit(self, job: Job) -> None:
        self.submitted.append(job.job_id)
        codes = self.exit_codes.get(job.job_id, [])
        code = codes.pop(0) if codes else 0
        if code == 0:
            self.work(job)
        elif job.arguments[0] == "run":
            self.fail(job)
        self.ended.append(JobEnd(job.job_id, code, 0.1))

    def work(self, job: Job) -> None:
        arguments = list(job.arguments)
        if arguments[0] == "data":
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(json.dumps({"identity": "d", "path": "p"}) + "\n")
            return
        if arguments[0] == "calibrate":
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(json.dumps(dict(self.calibration)) + "\n")
            return
        if arguments[0] == "run":
            folder, run_id = (
                Path(arguments[arguments.index("--folder") + 1]),
                arguments[arguments.index("--run-id") + 1],
            )
            seed = int(next(w for w in arguments if w.startswith("seed=")).removeprefix("seed="))
            value = self.quality(arguments[1], seed, arguments)
            record = run_record(run_id, arguments[1], seed, {"small_eval": evaluation(run_id, value)})
            files = RunFolder(folder, run_id)
            write_json(files.summary, truthful(record, job))
            for path in (files.model, files.operator_ema):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            return
        files = RunFolder.of_path(arguments[1])
        if "--ttc-set" in arguments:
            self.score(files, [w for w in arguments if w.startswith("ttc.")])
            return
        suite = {"full": "full_eval", "test": "test"}[arguments[3]]
        record = read_document(files.summary, RunRecord)
        value = record.evaluations["small_eval"].result.regimes["nu=0.05"].metrics["nrmse"].value
        assert value is not None
        added = evaluation(files.run_id, value, suite=suite)
        write_json(
            files.summary, record.model_copy(update={"evaluations": {**record.evaluations, suite: added}})
        )

    def quality(self, config: str, seed: int, words: list[str]) -> float:
        """nrmse of the run that these words of the command line ask for."""
        return 0.1 + 0.002 * seed if config.startswith("rerun") else self.member

    def score(self, files: RunFolder, settings: list[str]) -> None:
        """The evaluations that `usim evaluate --ttc-set` leaves: best at a threshold of 0.32."""
        state, record = SweepState(files.experiment), read_document(files.summary, RunRecord)
        run = state.run(files.run_id)
        assert run is not None
        words = config_words(state.plan, seed=run.seed, overrides=run.overrides)
        ttc = load_config(run.config, words, profile=state.plan.profile).config.ttc
        for setting in settings:
            own = with_settings(ttc, words_of(setting))
            plain = record.evaluations["small_eval"].result.regimes["nu=0.05"].metrics["nrmse"].value
            assert plain is not None
            found = evaluation(files.run_id, plain * (0.9 + (own.residual_threshold - 0.32) ** 2))
            asked = {"test_time_compute": True, "search_hash": settings_hash(own)}
            result = found.result.model_copy(
                update={"predictor": found.result.predictor.model_copy(update=asked)}
            )
            observed = found.observation | {"wall_clock_s": 0.5, "evaluations_per_sample": 40.0}
            scored = found.model_copy(
                update={"suite": score_label(own), "result": result, "observation": observed}
            )
            write_json(files.evaluation(scored.suite), scored)

    def fail(self, job: Job) -> None:
        words = list(job.arguments)
        run_id = words[words.index("--run-id") + 1]
        record = RunRecord(run_id=run_id, status="failed", failure="loss nan", failure_kind=self.failure_kind)
        write_json(RunFolder(Path(words[words.index("--folder") + 1]), run_id).summary, record)

    def wait(self, timeout_s: float) -> list[JobEnd]:
        ended, self.ended = self.ended, []
        return ended

    def attach(self, job_id: str, folder: Path | str) -> bool:
        return False

    def state(self, job_id: str) -> JobState:
        return "ended" if job_id in self.submitted else "unknown"

    def cancel(self, job_id: str) -> JobEnd | None:
        found = next((end for end in self.ended if end.job_id == job_id), None)
        self.ended = [end for end in self.ended if end is not found]
        return found

    def tail(self, job_id: str, lines: int = 12) -> str:
        return ""

    def cancel_all(self) -> None:
        self.ended = []


class KnowingExecutor(FakeExecutor):
    """nrmse 0.05 at the member's own rate, (rate / own)^2 of it elsewhere; depth helps by a third."""

    placebo = 1.0
    fresh_seeds = 1.0

    def quality(self, config: str, seed: int, words: list[str]) -> float:
        if config.startswith("rerun"):
            return 0.1 + 0.002 * min(seed, 10)
        given = dict(word.split("=", 1) for word in words if "=" in word)
        value = 0.05 * (float(given.get(RATE, BASE_RATE)) / BASE_RATE) ** 2
        value *= 0.67 if "model.options.operator.stochastic_depth" in given else 1.0
        if seed > 1000:
            return value * self.placebo
        return value * (self.fresh_seeds if seed > 100 else 1.0)
