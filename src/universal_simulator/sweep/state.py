"""What a journal and its run records add up to."""

from __future__ import annotations

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
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.plan import Plan

JOURNAL = "journal.jsonl"


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
    """A run as planned: `role` is baseline, reference or member."""

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


class SweepState:
    """Replayed from the folder alone."""

    def __init__(self, folder: Path, journal: Journal | None = None) -> None:
        self.folder = folder
        self.journal = journal or Journal(folder / JOURNAL)
        started = self.journal.of("sweep_started")
        if not started:
            raise IntegrityError(f"{folder} holds no sweep (no {JOURNAL} that starts one)")
        self.plan = Plan.model_validate(started[0].data["plan"])
        if self.plan.hash != started[0].data["plan_hash"]:
            raise IntegrityError(f"{folder}: the journalled plan does not match its hash")
        planned = [item for e in self.journal.of("runs_planned") for item in e.data["runs"]]
        planned += [e.data["run"] for e in self.journal.of("run_healed")]
        self.runs = [Run(**{**item, "overrides": tuple(item.get("overrides", ()))}) for item in planned]

    def done(self, job_id: str) -> bool:
        return any(e.data["job"] == job_id and e.data["exit_code"] == 0 for e in self.journal.of("job_ended"))

    def failed(self, job_id: str) -> bool:
        """Given up and never done since."""
        return not self.done(job_id) and any(e.data["job"] == job_id for e in self.journal.of("job_given_up"))

    def failed_for_good(self, job_id: str) -> bool:
        """Trying again would end the same: the run itself failed, not what was around it."""
        return self.failed(job_id) and any(
            e.data["job"] == job_id and e.data["final"] for e in self.journal.of("job_given_up")
        )

    def running(self, job_id: str) -> bool:
        """Begun and not ended (or its driver died)."""
        begun = sum(e.data["job"] == job_id for e in self.journal.of("job_intent"))
        return begun > self.attempts(job_id)

    def attempts(self, job_id: str) -> int:
        return sum(e.data["job"] == job_id for e in self.journal.of("job_ended"))

    def record(self, run_id: str) -> RunRecord | None:
        """The run's record; its results must be those that the journal saw when its job ended."""
        path = RunFolder(self.folder, run_id).summary
        if not path.exists():
            return None
        record = read_document(path, RunRecord)
        found = result_hashes(record)
        for event in self.journal.of("job_ended"):
            for name, digest in event.data.get("results", {}).get(run_id, {}).items():
                if found.get(name) != digest:
                    raise IntegrityError(
                        f"{path}: the results of {name!r} are not those the journal saw when the job "
                        "ended; the file was changed or restored from elsewhere: bring back the "
                        "original, or start a new folder"
                    )
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

    def generation(self, run: Run) -> int:
        """How many healings lead to this run."""
        if run.parent is None:
            return 0
        return 1 + self.generation(next(r for r in self.runs if r.run_id == run.parent))

    def baselines(self) -> list[str]:
        return [run.run_id for run in self.runs if run.role == "baseline"]

    def decision(self, kind: str) -> dict[str, Any] | None:
        events = self.journal.of(kind)
        return events[-1].data if events else None
