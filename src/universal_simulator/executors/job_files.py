"""What a job takes to another machine, how its words read there, and what it may bring back.

    there: SWEEP/artifacts/runs/RUN_ID    its own run folder, so that it goes on from its checkpoint
           SWEEP/artifacts/runs/*/summary.json, references/, journal.jsonl    what its pages and its
                                          permission to open the test split refer to; never brought back
           SWEEP/data/*.hdf5              data, unless they are made there
           inputs/                        configs that were given by path

What comes back is foreign until it is this job's: files outside its own run are refused, and a record
must be of this run, this code, and the training that is already known.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from universal_simulator.errors import ExecutorError, IntegrityError, UserError
from universal_simulator.executors.transport import WrongResult
from universal_simulator.identity import code_version
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.state import result_hashes

RUNS = "artifacts/runs"
#: brought back from the sweep's folder
RESULTS = ("artifacts", "reports", "references")
INPUTS = "inputs"
#: suite as asked for -> the evaluation that a finished job must have added
_ADDS = {"small": "small_eval", "full": "full_eval", "test": "test"}


@dataclass(frozen=True)
class Errand:
    """A job as its words tell it. `suite`: what a finished record must hold, None where unknown."""

    job: Job
    folder: Path
    run_id: str | None
    suite: str | None

    @property
    def has_record(self) -> bool:
        return self.suite is not None


def read_errand(job: Job) -> Errand:
    """Raises ExecutorError for a job that cannot leave this machine, saying why."""
    if job.folder is None:
        raise ExecutorError(
            f"{job.job_id}: a rented instance needs to know the sweep's folder; give Job.folder"
        )
    words = list(job.arguments)
    for word in words:
        if word.startswith("data.file="):
            raise UserError(
                f"{job.job_id}: {word} names a file of this machine and is part of the run's identity; rented "
                "instances take data sets by name (data.dataset=NAME, configs/data/NAME.yaml)"
            )
    run_id, suite = None, None
    if words[:1] == ["run"]:
        run_id = _option(words, "--run-id")
        suite = "small_eval"
    elif words[:1] == ["evaluate"] and len(words) > 1:
        run_id = RunFolder.of_path(words[1]).run_id
        suite = _ADDS.get(_option(words, "--suite") or "small")
    return Errand(job, job.folder, run_id, suite)


def _option(words: Sequence[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words[:-1] else None


def words_there(errand: Errand, sweep: str) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The job's words with `sweep` for the sweep's folder, and the files they name (path there -> here)."""
    here = {str(errand.folder), str(errand.folder.absolute()), str(errand.folder.resolve())}
    words, inputs = [], {}
    for position, word in enumerate(errand.job.arguments):
        inside = next((p for p in here if word == p or word.startswith(p + os.sep)), None)
        if inside is not None:
            word = sweep + word[len(inside) :]
        elif position > 0 and word.endswith((".yaml", ".yml")) and Path(word).is_file():
            there = f"{INPUTS}/{position}/{Path(word).name}"
            inputs[there] = Path(word)
            word = there
        words.append(word)
    return tuple(words), inputs


def cargo(errand: Errand, *, made: Collection[str] = ()) -> dict[str, Path]:
    """What goes to the sweep's folder there; data sets named in `made` are made there."""
    data = {f"data/{name}.hdf5" for name in made}
    sent = {name: path for name, path in data_files(errand).items() if name not in data}
    return own_files(errand) | context_files(errand) | sent


def own_files(errand: Errand) -> dict[str, Path]:
    """What the job goes on from: its run folder as it lies here, without logs and unfinished files."""
    return {} if errand.run_id is None else _files(errand.folder, f"{RUNS}/{errand.run_id}")


def context_files(errand: Errand) -> dict[str, Path]:
    """What it reads and does not own."""
    folder, own = errand.folder, f"{RUNS}/{errand.run_id}/"
    found = _files(folder, "references")
    for path in sorted((folder / RUNS).glob("*/summary.json")):
        found[path.relative_to(folder).as_posix()] = path
    if (folder / "journal.jsonl").is_file():
        found["journal.jsonl"] = folder / "journal.jsonl"
    return {name: path for name, path in found.items() if not name.startswith(own)}


def data_files(errand: Errand) -> dict[str, Path]:
    return {
        path.relative_to(errand.folder).as_posix(): path
        for path in sorted((errand.folder / "data").glob("*.hdf5"))
    }


def _files(folder: Path, below: str) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() and not path.is_symlink() and _kept(path.name)
    }


def _kept(name: str) -> bool:
    return not name.startswith(".") and not name.endswith((".log", ".partial"))


def check_results(errand: Errand, staging: Path, arrived: Mapping[str, str], *, finished: bool) -> None:
    """Raise WrongResult unless what arrived is this job's own and, when `finished`, whole."""
    known = {p.name for p in (errand.folder / RUNS).glob("*")} if errand.run_id is None else set()
    runs = set()
    for name in arrived:
        parts = PurePosixPath(name).parts
        if parts[:2] == ("artifacts", "runs") and len(parts) > 3:
            runs.add(parts[2])
        elif parts[0] == "reports" and len(parts) == 2 and parts[1].startswith("eval_"):
            runs.add(PurePosixPath(parts[1]).stem.removeprefix("eval_"))
        elif parts[0] != "references" or len(parts) != 2:
            raise WrongResult(f"{errand.job.job_id}: the instance sent {name!r}, which is no result of it")
        if not _kept(parts[-1]):
            raise WrongResult(f"{errand.job.job_id}: the instance sent {name!r}, which no run leaves")
    strangers = runs - {errand.run_id} if errand.run_id is not None else set()
    if strangers:
        raise WrongResult(f"{errand.job.job_id}: the instance sent files of another run, {min(strangers)}")
    if finished and errand.has_record and not runs:
        raise WrongResult(f"{errand.job.job_id}: it told success and left no run behind")
    for run_id in sorted(runs - known):
        _check_record(errand, staging, run_id, finished=finished)


def _check_record(errand: Errand, staging: Path, run_id: str, *, finished: bool) -> None:
    path = RunFolder(staging, run_id).summary
    if not path.exists():
        if finished and errand.has_record:
            raise WrongResult(f"{errand.job.job_id}: it told success and left no record of {run_id}")
        return
    try:
        record = read_document(path, RunRecord)
    except IntegrityError as error:
        raise WrongResult(f"{errand.job.job_id}: {error}") from None
    names = {record.run_id, *(e.run_id for e in record.evaluations.values())}
    if names != {run_id}:
        raise WrongResult(f"{errand.job.job_id}: the record that came back is of {', '.join(sorted(names))}")
    if record.training is not None and record.training.result.code_version != code_version():
        raise WrongResult(f"{errand.job.job_id}: the record that came back is of other code")
    if finished and (record.status != "finished" or errand.suite not in record.evaluations):
        raise WrongResult(f"{errand.job.job_id}: it told success, its record says otherwise")
    ours = RunFolder(errand.folder, run_id).summary
    if ours.exists():
        before, after = result_hashes(read_document(ours, RunRecord)), result_hashes(record)
        changed = [name for name, digest in before.items() if name in after and after[name] != digest]
        if changed or before.keys() - after.keys():
            raise WrongResult(f"{errand.job.job_id}: results that were known came back changed or missing")


def install(errand: Errand, staging: Path, arrived: Mapping[str, str]) -> None:
    """Move what was checked into the sweep's folder, file by file whole, records last."""
    for name in sorted(arrived, key=lambda name: (name.endswith("summary.json"), name)):
        target = errand.folder / name
        if name.startswith("references/") and target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(staging / name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(staging / name, target)
    shutil.rmtree(staging, ignore_errors=True)
