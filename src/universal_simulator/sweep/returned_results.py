"""What a job left in its run's record: believed and journalled, or set aside, so that no lie costs a finished run.

An evaluation writes into the record of a training that is done. The record is therefore kept before each
evaluation, in a file that does not travel, and put back where the evaluation is not believed, failed, or
left no end: then the next attempt starts from what the journal saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from universal_simulator.errors import IntegrityError
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_atomically
from universal_simulator.sweep.executor import JobEnd
from universal_simulator.sweep.jobs import decides_nothing
from universal_simulator.sweep.score_records import score_falsehoods
from universal_simulator.sweep.state import SweepState, result_hashes
from universal_simulator.sweep.testimony import falsehoods

#: failures of a training itself, which another try would repeat
FINAL_FAILURES = ("DivergenceError", "MemoryExhaustedError", "RewardError")
TRAININGS = ("canary", "train")
#: what a finished job adds to its run's record
ADDED = {
    "canary": ("training", "small_eval"),
    "train": ("training", "small_eval"),
    "full": ("full_eval",),
    "test": ("test",),
}


@dataclass(frozen=True)
class Returned:
    """lies: why it cannot be the job's own, in words. results: run id -> hash of each result that it added."""

    lies: Sequence[str] = ()
    results: dict[str, dict[str, str]] = field(default_factory=dict)


class ReturnedResults:
    """Of the jobs of one sweep, as they lie in its folder."""

    def __init__(self, state: SweepState) -> None:
        self.state = state

    def keep(self, job_id: str) -> None:
        """Before an evaluation is launched: its run's record, as the journal saw it."""
        files = self._evaluated(job_id)
        if files is None:
            return
        self._put_back(job_id, files)
        if files.summary.exists():
            write_atomically(_kept(job_id, files), files.summary.read_bytes())

    def of(self, end: JobEnd) -> Returned:
        """What came back with this end; nothing of a job that did not end well."""
        what, _, run_id = end.job_id.partition(":")
        if end.exit_code != 0 or (what not in ADDED and self._evaluated(end.job_id) is None):
            return Returned()
        files = RunFolder(self.state.folder, run_id)
        if not files.summary.exists():
            return Returned(["no record came back"])
        try:
            record = read_document(files.summary, RunRecord)
        except IntegrityError as error:
            return Returned([str(error)])
        found, added = result_hashes(record), ADDED.get(what, ())
        lies = [] if files.model.exists() else [f"{files.model.name} did not come back"]
        if added:
            lies += falsehoods(record, run_id, data_identity=self.state.data_identity)
        lies += [f"its {name} is not in the record" for name in added if name not in found]
        seen = self.state.journalled_results(run_id)
        lies += [
            f"its {name} is not the one the journal saw" for name in seen if found.get(name) != seen[name]
        ]
        if not lies and decides_nothing(end.job_id):
            lies = score_falsehoods(self.state, end.job_id)
        if lies:
            return Returned(lies)
        return Returned((), {run_id: {name: found[name] for name in added}} if added else {})

    def settle(self, end: JobEnd, *, believed: bool) -> None:
        """After the end is journalled. A record that is not believed is kept as evidence, out of the way."""
        what, _, run_id = end.job_id.partition(":")
        files = self._evaluated(end.job_id)
        if files is not None:
            if not believed:
                self._put_back(end.job_id, files)
            _kept(end.job_id, files).unlink(missing_ok=True)
        elif what in TRAININGS and end.exit_code == 0 and not believed:
            self._set_aside(end.job_id, RunFolder(self.state.folder, run_id))

    def is_final(self, end: JobEnd) -> bool:
        """The training itself failed (it diverged, memory is too small); anything else can be mended."""
        what, _, run_id = end.job_id.partition(":")
        path = RunFolder(self.state.folder, run_id).summary if what == "train" else None
        if end.exit_code < 0 or path is None or not path.exists():
            return False
        try:
            return read_document(path, RunRecord).failure_kind in FINAL_FAILURES
        except IntegrityError:
            return False  # what a failed training left is no finding where it cannot be read

    def failed_unsaid(self, job_id: str) -> bool:
        """The training itself failed, and its driver died before it gave the job up."""
        end = self.state.unanswered_end(job_id)
        return end is not None and self.is_final(JobEnd(job_id, end.data["exit_code"], end.data["seconds"]))

    def _evaluated(self, job_id: str) -> RunFolder | None:
        """The run that an evaluation is of; None of any other job."""
        what, _, run_id = job_id.partition(":")
        if what in TRAININGS or self.state.run(run_id) is None:
            return None
        return RunFolder(self.state.folder, run_id)

    def _put_back(self, job_id: str, files: RunFolder) -> None:
        """The record kept before this evaluation, unless the journal has seen more results since."""
        kept = _kept(job_id, files)
        if not self.state.holds(kept, files.run_id):
            return
        before = kept.read_bytes()
        if not files.summary.exists() or files.summary.read_bytes() != before:
            self._set_aside(job_id, files)
            write_atomically(files.summary, before)

    def _set_aside(self, job_id: str, files: RunFolder) -> None:
        what = job_id.partition(":")[0]
        if files.summary.exists():
            name = f"refused-{what}-{self.state.attempts(job_id)}.json"
            files.summary.replace(files.summary.with_name(name))


def _kept(job_id: str, files: RunFolder) -> Path:
    return files.kept_before(job_id.partition(":")[0])
