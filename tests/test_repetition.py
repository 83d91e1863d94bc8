"""A run again from its record alone, in another folder, without the files it was made with."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny_runs import TINY, nothing
from universal_simulator import assessment, experiment, repetition
from universal_simulator.assessment import evaluate
from universal_simulator.configuration import load_config
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import DataError, IntegrityError, UserError
from universal_simulator.executors.code_archive import pack_code
from universal_simulator.repetition import Comparison, compare, repeat
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_json
from universal_simulator.source_tree import checkout_root

pytestmark = pytest.mark.usefixtures("without_pages")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, smoke_data: Dataset) -> Path:
    """summary.json of a finished tiny run on generated data, with small- and full-eval."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "data").mkdir()
    shutil.copy(smoke_data.path, folder / "data" / "burgers_smoke.hdf5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "write_report", nothing)
        record = experiment.run(load_config("rerun_txxoc8a8", [*TINY, "seed=3"], profile="smoke"), folder)
        evaluate(RunFolder(folder, record.run_id).path, suite="full")
    return RunFolder(folder, record.run_id).summary


def with_data(folder: Path, data: Dataset) -> Path:
    """A folder where the generated data already lie (their generation has tests of its own)."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "burgers_smoke.hdf5").symlink_to(data.path)
    return folder


def changed(original: Path, path: Path, **values: Any) -> Path:
    """A copy of the record with dotted keys of its training result (or `origin`) changed."""
    document = json.loads(original.read_text())
    for key, value in values.items():
        *sections, last = key.split("__")
        target = document if sections[:1] == ["origin"] else document["training"]["result"]
        for section in sections:
            target = target[section]
        target[last] = value
    path.write_text(json.dumps(document))
    return path


def test_the_record_says_where_its_data_come_from(original: Path) -> None:
    record = read_document(original, RunRecord)
    assert record.schema_version == 3
    assert record.origin is not None
    assert record.origin.specification is not None
    assert record.origin.specification["name"] == "burgers_smoke"
    assert record.origin.packages["torch"] == torch.__version__
    assert record.origin.archive == pack_code().hash, "what a rented instance would be sent"
    assert (
        record.origin.lock == hashlib.sha256((checkout_root() / "constraints.txt").read_bytes()).hexdigest()
    )
    before = json.loads(original.read_text())
    del before["origin"]
    before["schema_version"] = 1
    old = RunRecord.model_validate(before)
    assert (old.schema_version, old.origin) == (1, None)


@pytest.fixture(scope="module")
def repeated(
    original: Path, smoke_data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Comparison]:
    """The folder and outcome of a repetition from a copy of the record alone: nothing is looked up by name."""
    base = tmp_path_factory.mktemp("repeated")
    shutil.copy(original, base / "summary.json")
    folder = with_data(base / "elsewhere", smoke_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "ensure_dataset", None)
        patch.setattr(experiment, "find", None)
        patch.setattr(assessment, "write_report", nothing)
        return folder, repeat(base / "summary.json", folder)


def test_identical_bit_for_bit_elsewhere(original: Path, repeated: tuple[Path, Comparison]) -> None:
    folder, comparison = repeated
    record = read_document(original, RunRecord)
    assert comparison.run_id == record.run_id
    assert comparison.identical
    assert comparison.sentences() == ["identical bit for bit: training, full_eval, small_eval"]
    again = read_document(RunFolder(folder, record.run_id).summary, RunRecord)
    assert again.training is not None
    assert record.training is not None
    assert again.training.observation["finished_at"] >= record.training.observation["finished_at"]
    assert not (folder / "artifacts" / "runs" / record.run_id / "model.safetensors").is_symlink()


def test_differences_are_told_value_by_value(original: Path) -> None:
    record = read_document(original, RunRecord)
    assert record.training is not None
    result = record.training.result.model_copy(update={"params": 1})
    other = record.model_copy(update={"training": record.training.model_copy(update={"result": result})})
    told = compare(other, record)
    assert not told.identical
    assert told.parts["training"] == (f"params: 1 recorded, {record.training.result.params} now",)
    assert told.sentences()[1:] == ["training differs in 1 value(s):", f"  {told.parts['training'][0]}"]
    fewer = record.model_copy(update={"evaluations": {}})
    assert compare(record, fewer).sentences()[-1] == "not repeated: full_eval, small_eval"


def test_what_a_run_was_made_with_is_compared_and_told(
    original: Path, tmp_path: Path, repeated: tuple[Path, Comparison]
) -> None:
    """Other pins or another configs folder change no result here, and are said all the same."""
    assert repeated[1].surroundings == ()
    file = changed(original, tmp_path / "summary.json", origin__archive="a" * 64, origin__lock="b" * 64)
    document = json.loads(file.read_text())
    document["origin"]["packages"]["numpy"] = "1.0"
    file.write_text(json.dumps(document))
    comparison = repeat(file, repeated[0])
    assert comparison.identical
    told = comparison.sentences()[1:]
    assert [line.partition(":")[0] for line in told] == [
        "made with other code archive",
        "made with other lock (constraints.txt)",
        "made with other numpy",
    ]
    assert "aaaaaaaaaaaa recorded" in told[0]
    document["training"]["result"]["code_version"] = "f" * 64
    file.write_text(json.dumps(document))
    with pytest.raises(
        UserError, match=r"--other-code.*other lock \(constraints.txt\): bbbbbbbbbbbb recorded"
    ):
        repeat(file, repeated[0])
    document["schema_version"] = 2
    del document["origin"]["archive"], document["origin"]["lock"]
    old = RunRecord.model_validate(document)
    assert compare(old, read_document(original, RunRecord)).surroundings[0].startswith("numpy: 1.0 recorded")


def test_other_code_is_refused_unless_it_is_wanted(
    original: Path, tmp_path: Path, repeated: tuple[Path, Comparison]
) -> None:
    record = changed(original, tmp_path / "summary.json", code_version="f" * 64)
    with pytest.raises(UserError, match=r"made by code ffffffffffff.*--other-code"):
        repeat(record, repeated[0])
    comparison = repeat(record, repeated[0], other_code=True)
    assert comparison.identical, "the code is the same in truth, and its version is not compared"


def test_a_record_that_contradicts_itself_is_refused(
    original: Path, tmp_path: Path, smoke_data: Dataset
) -> None:
    folder = with_data(tmp_path / "elsewhere", smoke_data)
    file = tmp_path / "summary.json"
    with pytest.raises(IntegrityError, match="record was changed"):
        repeat(changed(original, file, effective_config__training__operator__learning_rate=0.5), folder)
    with pytest.raises(IntegrityError, match="another name or seed"):
        repeat(changed(original, file, seed=4), folder)
    with pytest.raises(IntegrityError, match="no plain name"):
        repeat(changed(original, file, effective_config__data__dataset="../../x"), folder, other_code=True)
    with pytest.raises(IntegrityError, match="specification is unreadable"):
        repeat(changed(original, file, origin__specification__frames="many"), folder)
    with pytest.raises(DataError, match="other data"):
        repeat(changed(original, file, data_identity="0" * 64), folder)
    assert not (folder / "artifacts").exists(), "nothing is trained before all of it is checked"


def test_what_cannot_be_repeated_is_told(original: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="where this run lies"):
        repeat(original, original.parents[3])
    failed = tmp_path / "summary.json"
    write_json(failed, RunRecord(run_id="x-s0-1", status="failed", failure="loss nan"))
    with pytest.raises(UserError, match="not finished"):
        repeat(failed, tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="does not exist"):
        repeat(tmp_path / "nothing.json", tmp_path)


@pytest.mark.slow
def test_a_run_on_a_file_asks_where_it_lies_here(tmp_path: Path, smoke_data: Dataset) -> None:
    moved = tmp_path / "there.hdf5"
    shutil.copy(smoke_data.path, moved)
    config = load_config("rerun_txxoc8a8", [*TINY, f"data.file={moved}"], profile="smoke")
    record = experiment.run(config, tmp_path / "original")
    file = RunFolder(tmp_path / "original", record.run_id).summary
    moved.rename(tmp_path / "here.hdf5")
    with pytest.raises(UserError, match="--data"):
        repeat(file, tmp_path / "elsewhere")
    comparison = repeat(file, tmp_path / "elsewhere", data_file=tmp_path / "here.hdf5")
    assert comparison.identical
    assert comparison.run_id == record.run_id


@pytest.mark.slow
def test_the_command_line_repeats_generated_data_and_all(original: Path, tmp_path: Path) -> None:
    """In a process of its own, in an empty folder, the data made anew from the recorded specification."""
    command = [sys.executable, "-m", "universal_simulator.cli", "run", "--from-record", str(original)]
    answer = subprocess.run(
        [*command, "--folder", "again"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "identical bit for bit: " in answer.stdout
    assert (tmp_path / "again" / "data" / "burgers_smoke.hdf5").is_file()
    for words in (["x", "--from-record", str(original)], []):
        wrong = subprocess.run(
            [*command[:4], *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert wrong.returncode == 2
        assert "--from-record" in wrong.stderr
