"""What a journal and its run records add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from universal_simulator.errors import IntegrityError, UserError
from universal_simulator.run_record import (
    EvaluationRecord,
    RunFolder,
    RunRecord,
    content_hash,
    read_document,
)
from universal_simulator.sweep.attempts import Attempt, Attempts
from universal_simulator.sweep.journal import Event, Journal
from universal_simulator.sweep.plan import Plan

JOURNAL = "journal.jsonl"
#: runs that stand beside the candidates and can win nothing
REFERENCE_ROLES = ("reference", "ablation", "compute_matched")


def refuse_unjournalled_opening(run_path: Path, opening: str) -> None:
    """The test split opens only for a run that the sweep's journal opened it for."""
    files = RunFolder.of_path(run_path)
    events = Journal(files.experiment / JOURNAL).of("test_opened")
    if not any(e.data["opening"] == opening and files.run_id in e.data["runs"] for e in events):
        raise UserError(
            f"no journalled opening {opening!r} of the test split for {files.run_id}; a sweep opens "
            "it once, for its final champion"
        )


def result_hashes(record: RunRecord) -> dict[str, str]:
    """Hash of each deterministic part of a record."""
    parts: dict[str, BaseModel] = {name: e.result for name, e in record.evaluations.items()}
    if record.training is not None:
        parts["training"] = record.training.result
    return {name: content_hash(part.model_dump(mode="json")) for name, part in parts.items()}


@dataclass(frozen=True)
class Run:
    """A run as planned.

    role: baseline, reference, ablation, compute_matched or member; in rounds after the written ones
    trial, refinement, placebo or confirmation. key: tells the members of a
    round apart (`Member.key`); a healed run has that of the one it heals.
    """

    run_id: str
    config: str
    seed: int
    role: str
    round: str
    cost: float
    #: what a healing changed, as words of the command line
    overrides: tuple[str, ...] = ()
    #: the failed run that this one heals
    parent: str | None = None
    key: str = ""
    #: class of machine, of the plan's `machines`
    machine: str = "small"


class SweepState:
    """Replayed from the folder alone; what is appended to the journal is seen at once."""

    def __init__(self, folder: Path, journal: Journal | None = None) -> None:
        self.folder = folder
        self.journal = journal or Journal(folder / JOURNAL)
        started = self.journal.of("sweep_started")
        if not started:
            raise IntegrityError(f"{folder} holds no sweep (no {JOURNAL} that starts one)")
        self.plan = self.read_plan()
        self._read = 0
        self._runs: list[Run] = []
        self._by_id: dict[str, Run] = {}
        self._baselines: list[str] = []
        self._attempts = Attempts()
        self._given_up: dict[str, list[Event]] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._about: dict[str, dict[str, Any]] = {}
        #: what a record was read from (time, size, results held to it) and the record
        self._records: dict[Path, tuple[tuple[int, int, int], RunRecord]] = {}

    def read_plan(self) -> Plan:
        """The plan as it was started or last amended; also what `self.plan` is from now on."""
        told = [*self.journal.of("sweep_started"), *self.journal.of("plan_amended")][-1].data
        if content_hash(told["plan"]) != told["plan_hash"]:
            raise IntegrityError(f"{self.folder}: the journalled plan does not match its hash")
        self.plan = Plan.model_validate(told["plan"])
        return self.plan

    @property
    def origin(self) -> str:
        """Hash of the plan as this sweep was begun, whatever was amended since."""
        return str(self.journal.of("sweep_started")[0].data["plan_hash"])

    def _absorb(self) -> None:
        """Take in the events since the last look."""
        for event in self.journal.events[self._read :]:
            data = event.data
            match event.kind:
                case "runs_planned":
                    for item in data["runs"]:
                        self._plan_run(item)
                case "run_healed" | "run_added":
                    self._plan_run(data["run"])
                    self._about[data["run"]["run_id"]] = data.get("about", {})
                case "job_intent" | "job_waiting" | "job_at_work" | "job_attached":
                    self._attempts.take(event)
                case "attempts_left":
                    self._attempts.left(event)
                case "job_ended" if self._attempts.take(event):
                    for run_id, found in data.get("results", {}).items():
                        self._hashes.setdefault(run_id, {}).update(found)
                case "job_given_up":
                    self._given_up.setdefault(data["job"], []).append(event)
        self._read = len(self.journal.events)

    def _plan_run(self, item: Mapping[str, Any]) -> None:
        run = _run(item)
        self._runs.append(run)
        self._by_id[run.run_id] = run
        if run.role == "baseline":
            self._baselines.append(run.run_id)

    @property
    def runs(self) -> list[Run]:
        """Every run planned so far, in the order of planning."""
        self._absorb()
        return list(self._runs)

    @property
    def data_identity(self) -> str:
        """Of the data that every run of this sweep is about."""
        return str(self.journal.of("runs_planned")[0].data["data_identity"])

    @property
    def seconds_spent(self) -> float:
        """Worker seconds of every attempt that ended, resumes included."""
        self._absorb()
        return self._attempts.seconds

    def seconds_by_job(self) -> dict[str, float]:
        """job id -> worker seconds of all its attempts that ended."""
        self._absorb()
        return {job: sum(e.data["seconds"] for e in ends) for job, ends in self._attempts.ends.items()}

    def usd_by_job(self) -> dict[str, float]:
        """job id -> dollars that the ends of its attempts told; older journals tell none."""
        self._absorb()
        ends = self._attempts.ends.items()
        return {job: sum(float(e.data.get("usd") or 0.0) for e in found) for job, found in ends}

    def paid(self) -> list[Event]:
        """Intents and their ends, each once, in the order of the journal: what spending is counted from."""
        self._absorb()
        return self._attempts.paid

    def run(self, run_id: str) -> Run | None:
        """The planned run of this id."""
        self._absorb()
        return self._by_id.get(run_id)

    def done(self, job_id: str) -> bool:
        self._absorb()
        ends = self._attempts.ends.get(job_id, ())
        return any(e.data["exit_code"] == 0 and not e.data.get("refused") for e in ends)

    def failed(self, job_id: str) -> bool:
        """Given up and never done since."""
        return not self.done(job_id) and job_id in self._given_up

    def failed_for_good(self, job_id: str) -> bool:
        """Trying again would end the same: the run itself failed, not what was around it.

        What a ceiling refused stands so until an amendment reopens it.
        """
        return self.failed(job_id) and any(
            e.data["final"] and not self._reopened(e) for e in self._given_up[job_id]
        )

    def refused_by_ceiling(self, job_id: str) -> str | None:
        """The ceiling's words where a job has no result because of one."""
        last = self._given_up[job_id][-1].data if self.failed(job_id) else {}
        return str(last["log"]) if last.get("ceiling") else None

    def refused_by_ceilings(self) -> list[str]:
        self._absorb()
        return [job for job in self._given_up if self.refused_by_ceiling(job)]

    def _reopened(self, given_up: Event) -> bool:
        amended = self.journal.of("plan_amended") if given_up.data.get("ceiling") else []
        return any(
            e.number > given_up.number and given_up.data["job"] in e.data.get("reopened_jobs", ())
            for e in amended
        )

    def last_words(self, job_id: str) -> str:
        """The end of the log of a job that was given up."""
        self._absorb()
        return str(self._given_up[job_id][-1].data["log"])

    def why_not(self, job_id: str) -> str:
        """Why a job that is over has no result: the last line of its last words."""
        words = self.last_words(job_id).strip() if self.failed(job_id) else ""
        return words.splitlines()[-1] if words else "it has no result to compare"

    def running(self, job_id: str) -> bool:
        """Begun and not ended (or its driver died)."""
        return self.attempt(job_id) is not None

    def attempt(self, job_id: str) -> Attempt | None:
        """The attempt that no end is journalled of."""
        self._absorb()
        return self._attempts.open.get(job_id)

    def open_attempts(self) -> dict[str, Attempt]:
        """job id -> its attempt that no end is journalled of."""
        self._absorb()
        return dict(self._attempts.open)

    def told_before(self, job_id: str, submission: str) -> bool:
        """Whether the end of this submission is journalled already; never of an unnamed one."""
        self._absorb()
        return bool(submission) and any(
            e.data.get("submission") == submission for e in self._attempts.ends.get(job_id, ())
        )

    def unanswered_end(self, job_id: str) -> Event | None:
        """The last end of a job that failed, where its driver died before it said what follows from it."""
        self._absorb()
        ends = self._attempts.ends.get(job_id, ())
        if not ends or self.attempt(job_id) is not None or ends[-1].data["exit_code"] <= 0:
            return None
        said = self._given_up.get(job_id, ())
        return None if said and said[-1].number > ends[-1].number else ends[-1]

    def attempts(self, job_id: str) -> int:
        """Those that ended."""
        self._absorb()
        return len(self._attempts.ends.get(job_id, ()))

    def record(self, run_id: str) -> RunRecord | None:
        """The run's record; its results must be those that the journal saw when its job ended.

        What an evaluation without an end may have spoiled is read from the copy kept before it.
        """
        files = RunFolder(self.folder, run_id)
        try:
            if files.summary.exists():
                return self._held(files.summary, run_id)
        except IntegrityError:
            if self._kept(files) is None:
                raise
        kept = self._kept(files)
        return None if kept is None else self._held(kept, run_id)

    def journalled_results(self, run_id: str) -> dict[str, str]:
        """Result of a run -> its hash, as the journal saw it when its job ended."""
        self._absorb()
        return dict(self._hashes.get(run_id, {}))

    def holds(self, path: Path, run_id: str) -> bool:
        """Whether a record lies there with every result that the journal saw of the run, and it saw some."""
        try:
            return path.exists() and bool(self.journalled_results(run_id)) and bool(self._held(path, run_id))
        except IntegrityError:
            return False

    def _kept(self, files: RunFolder) -> Path | None:
        kept = files.kept_before("*")
        return next((p for p in sorted(kept.parent.glob(kept.name)) if self.holds(p, files.run_id)), None)

    def _held(self, path: Path, run_id: str) -> RunRecord:
        """Raises IntegrityError where the record there has not the results that the journal saw."""
        self._absorb()
        about = path.stat()
        seen = (about.st_mtime_ns, about.st_size, len(self._hashes.get(run_id, {})))
        kept = self._records.get(path)
        if kept is not None and kept[0] == seen:
            return kept[1]
        record = read_document(path, RunRecord)
        found = result_hashes(record)
        for name, digest in self._hashes.get(run_id, {}).items():
            if found.get(name) != digest:
                raise IntegrityError(
                    f"{path}: the results of {name!r} are not those the journal saw when the job "
                    "ended; the file was changed or restored from elsewhere: bring back the "
                    "original, or start a new folder"
                )
        self._records[path] = (seen, record)
        return record

    def records(self) -> dict[str, RunRecord]:
        found = {run.run_id: self.record(run.run_id) for run in self.runs}
        return {run_id: record for run_id, record in found.items() if record is not None}

    def evaluations(self, suite: str) -> dict[str, EvaluationRecord]:
        return {
            run_id: record.evaluations[suite]
            for run_id, record in self.records().items()
            if suite in record.evaluations
        }

    def trained(self, config: str) -> RunRecord | None:
        """The record of the latest finished run of a config as this plan has it (or as it was healed)."""
        for run in reversed(self.runs):
            if run.config == config and run.role != "compute_matched" and self.done(f"train:{run.run_id}"):
                return self.record(run.run_id)
        return None

    def about(self, run_id: str) -> dict[str, Any]:
        """What was journalled with a run that was planned later, e.g. where a trial lies."""
        self._absorb()
        return dict(self._about.get(run_id, {}))

    def generation(self, run: Run) -> int:
        """How many healings lead to this run."""
        if run.parent is None:
            return 0
        return 1 + self.generation(self._by_id[run.parent])

    @property
    def finished(self) -> bool:
        """Its end was reached, and nothing was amended since."""
        kinds = ("sweep_finished", "sweep_stopped", "plan_amended")
        last = next((e for e in reversed(self.journal.events) if e.kind in kinds), None)
        return last is not None and last.kind == "sweep_finished"

    def members(self, round_name: str | None = None) -> list[Run]:
        """Members of all rounds, or of one; a healed run comes after the one it heals."""
        return [
            run
            for run in self.runs
            if run.role == "member" and (round_name is None or run.round == round_name)
        ]

    def baselines(self) -> list[str]:
        self._absorb()
        return list(self._baselines)

    def decision(self, kind: str) -> dict[str, Any] | None:
        events = self.journal.of(kind)
        return events[-1].data if events else None

    def decided(self, kind: str) -> dict[str, Any] | None:
        """A decision about the written rounds, unless an amendment reopened it since."""
        reopened = [e.number for e in self.journal.of("plan_amended") if e.data.get("reopened_decisions")]
        events = [e for e in self.journal.of(kind) if e.number > max(reopened, default=-1)]
        return events[-1].data if events else None

    def skipped(self, round_name: str) -> dict[str, Any] | None:
        """How a round was skipped, unless an amendment lets it ask again."""
        amended = [
            e.number
            for e in self.journal.of("plan_amended")
            if round_name in e.data.get("reopened_rounds", ())
        ]
        events = [e for e in self.journal.of("round_skipped") if e.data["round"] == round_name]
        return events[-1].data if events and events[-1].number > max(amended, default=-1) else None

    def gates(self, suite: str) -> dict[str, list[dict[str, Any]]]:
        """run id -> its gates as journalled, small_eval or full_eval."""
        found: dict[str, list[dict[str, Any]]] = {}
        for event in self.journal.of(f"{suite}_gates"):
            found.update(event.data["gates"])
        return found


def _run(item: Mapping[str, Any]) -> Run:
    """As journalled; a journal from before members had keys knew them by their config."""
    return Run(**{"key": item["config"], **item, "overrides": tuple(item.get("overrides", ()))})
