"""A run again from its record alone, anywhere, held against what the record says.

The record holds what the result follows from: effective config, seed, code version, the data's
identity and, for generated data, their whole specification. Each is checked before anything is
trained, and the repeated results are compared with the recorded ones part by part. Bit-for-bit
equality needs the same hardware class, the same torch version and the same number of threads; the
last is taken from the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from universal_simulator.assessment import evaluate
from universal_simulator.configuration.documents import flatten
from universal_simulator.configuration.loader import LoadedConfig, config_of_values
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.generator import generate
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.errors import DataError, IntegrityError, UserError
from universal_simulator.experiment import dataset_path, ensure_dataset, run
from universal_simulator.identity import code_version, commit, package_versions
from universal_simulator.run_record import Origin, RunFolder, RunRecord, content_hash, read_document
from universal_simulator.source_tree import archive_hash, lock_hash

Progress = Callable[[str, int, int], None]
#: suites that a record's run can be asked again on its own data; the sealed test split stays sealed
REPEATED_SUITES = {"small_eval": "small", "full_eval": "full"}
#: of a difference, so many keys are told
TOLD_KEYS = 8


@dataclass(frozen=True)
class Comparison:
    """part of the record (training, small_eval, ...) -> what differs; empty: identical bit for bit.

    surroundings: what differs of what the result was made with (code archive, lock, packages, commit);
    told beside, since a result can be the same all the same.
    """

    run_id: str
    parts: dict[str, tuple[str, ...]]
    not_repeated: tuple[str, ...]
    surroundings: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        return not any(self.parts.values())

    def sentences(self) -> list[str]:
        same = [part for part, differences in self.parts.items() if not differences]
        told = [f"identical bit for bit: {', '.join(same)}"] if same else []
        for part, differences in self.parts.items():
            if differences:
                told.append(f"{part} differs in {len(differences)} value(s):")
                told += [f"  {line}" for line in differences[:TOLD_KEYS]]
        if self.not_repeated:
            told.append(f"not repeated: {', '.join(self.not_repeated)}")
        return told + [f"made with other {line}" for line in self.surroundings]


def repeat(
    record_file: Path,
    folder: Path,
    *,
    data_file: Path | None = None,
    other_code: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run what `record_file` (a run's summary.json) says in `folder`, and compare.

    data_file: where the run's data lie here, if they were no generated data set. other_code: go on
    although the code differs; then the code version is left out of the comparison. Raises UserError
    for what cannot be repeated, IntegrityError for a record that contradicts itself, DataError where
    the data here are others than the run's. Interrupted and called again, it goes on.
    """
    record = read_document(record_file, RunRecord)
    if record.training is None:
        raise UserError(f"{record_file}: {record.run_id} has not finished its training; nothing to repeat")
    if RunFolder(folder, record.run_id).summary.resolve() == record_file.resolve():
        raise UserError(f"{folder} is where this run lies; give another --folder to repeat it in")
    result = record.training.result
    _check_code(record, other_code)
    loaded = _config(record, record_file, other_code)
    _use_threads(record)
    dataset = _data(record, loaded, folder, data_file, progress)
    dataset.require_unchanged()
    dataset.audit()
    if dataset.identity != result.data_identity:
        raise DataError(
            f"{dataset.path} has identity {dataset.identity[:12]}, the run's data had "
            f"{result.data_identity[:12]}: other data"
            + (", or made with another torch version or on other hardware" if data_file is None else "")
        )
    run_id = record.run_id if result.code_version == code_version() else None
    again = run(loaded, folder, run_id=run_id, dataset=dataset, progress=progress)
    for label, suite in REPEATED_SUITES.items():
        if label in record.evaluations and label not in again.evaluations:
            path = RunFolder(folder, again.run_id).path
            again = again.model_copy(
                update={
                    "evaluations": {
                        **again.evaluations,
                        label: evaluate(path, suite=suite, progress=progress),
                    }
                }
            )
    return compare(record, again)


def compare(record: RunRecord, again: RunRecord) -> Comparison:
    """The deterministic part of both, part by part; the code version aside where it is known to differ."""
    recorded, repeated = _results(record), _results(again)
    parts = {
        name: tuple(_differences(recorded[name], repeated[name])) for name in recorded if name in repeated
    }
    not_repeated = tuple(name for name in recorded if name not in repeated)
    return Comparison(again.run_id, parts, not_repeated, _surroundings(record.origin, again.origin))


def _surroundings(before: Origin | None, after: Origin | None) -> tuple[str, ...]:
    """What two runs were made with and in which they differ; what either does not know is left out."""
    if before is None or after is None:
        return ()
    names = {"code archive": "archive", "lock (constraints.txt)": "lock", "commit": "commit"}
    pairs = {words: (getattr(before, name), getattr(after, name)) for words, name in names.items()}
    for name in sorted(before.packages.keys() | after.packages.keys()):
        pairs[name] = (before.packages.get(name), after.packages.get(name))
    return tuple(
        f"{words}: {old[:12]} recorded, {new[:12]} now"
        for words, (old, new) in pairs.items()
        if old is not None and new is not None and old != new
    )


def _results(record: RunRecord) -> dict[str, dict[str, Any]]:
    parts: dict[str, BaseModel] = {} if record.training is None else {"training": record.training.result}
    parts |= {name: evaluation.result for name, evaluation in record.evaluations.items()}
    values = {name: part.model_dump(mode="json") for name, part in parts.items()}
    if "training" in values:
        values["training"].pop("code_version")
    return values


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    if content_hash(before) == content_hash(after):
        return []
    old, new = flatten(before), flatten(after)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {_short(old.get(key))} recorded, {_short(new.get(key))} now" for key in keys]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_code(record: RunRecord, other_code: bool) -> None:
    assert record.training is not None
    theirs, ours = record.training.result.code_version, code_version()
    if theirs == ours or other_code:
        return
    theirs_at = record.origin.commit if record.origin else None
    hint = f"check out commit {theirs_at[:12]}" if theirs_at else "bring that code (and torch version) back"
    here = Origin(commit=commit(), packages=package_versions(), archive=archive_hash(), lock=lock_hash())
    others = "".join(f"; other {line}" for line in _surroundings(record.origin, here))
    raise UserError(
        f"{record.run_id} was made by code {theirs[:12]}, this is {ours[:12]}: {hint}, or add --other-code "
        f"to repeat it with this one and see what differs{others}"
    )


def _config(record: RunRecord, source: Path, other_code: bool) -> LoadedConfig:
    """The effective config as recorded; its hash must be the recorded one, if the code is."""
    assert record.training is not None
    result = record.training.result
    loaded = config_of_values(result.effective_config, str(source))
    if loaded.config.seed != result.seed or loaded.config.name != result.config_name:
        raise IntegrityError(
            f"{source} contradicts itself: its config has another name or seed than its result"
        )
    if loaded.hash != result.config_hash and not other_code:
        raise IntegrityError(
            f"{source}: its config has hash {loaded.hash[:12]}, recorded was {result.config_hash[:12]}; the "
            "record was changed, or the user's own model has other source here"
        )
    return loaded


def _use_threads(record: RunRecord) -> None:
    assert record.training is not None
    threads = record.training.observation.get("threads")
    if isinstance(threads, int) and 1 <= threads <= 1024:
        torch.set_num_threads(threads)


def _data(
    record: RunRecord, loaded: LoadedConfig, folder: Path, data_file: Path | None, progress: Progress | None
) -> Dataset:
    """The run's data: the file named here, generated from the recorded specification, or by its name."""
    config = loaded.config.data
    if data_file is not None or config.file is not None:
        path = data_file or Path(str(config.file))
        if not path.is_file():
            raise UserError(f"the run's data file {path} is not here; say where it lies with --data FILE")
        return open_dataset(path)
    name = str(config.dataset)
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise IntegrityError(f"the record's data set {name!r} is no plain name")
    path = dataset_path(folder, name)
    specification = record.origin.specification if record.origin else None
    if specification is None:
        return ensure_dataset(name, path, progress=progress)
    try:
        spec = DatasetSpec.model_validate(specification)
    except ValidationError as error:
        raise IntegrityError(f"the record's data specification is unreadable: {error}") from error
    report = None if progress is None else lambda done, total: progress("data", done, total)
    return generate(spec, path, progress=report)
