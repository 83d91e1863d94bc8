"""A full disk, a folder that cannot be written: nothing is lost, the message says what to do."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_repetition import TINY
from universal_simulator import cli
from universal_simulator.data.dataset import Dataset
from universal_simulator.repetition import compare
from universal_simulator.run_record import (
    RunFolder,
    RunRecord,
    read_document,
    write_atomically,
    write_json,
)
from universal_simulator.sweep.journal import Journal


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_on_a_full_disk_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, RunRecord(run_id="x-s0-1", status="running"))
    before = path.read_bytes()
    with room_for(1000), pytest.raises(OSError, match=r"too large.*summary\.json"):
        write_json(path, RunRecord(run_id="x-s0-1", status="failed", failure="y" * 5000))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_journal_on_a_full_disk_goes_on_afterwards_in_the_same_process(tmp_path: Path) -> None:
    """A half-written line must not become the damaged middle of the file."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("sweep_started", plan="p")
    whole = journal.path.read_bytes()
    with room_for(len(whole) + 40):
        for _ in range(2):
            with pytest.raises(OSError, match=r"too large.*journal\.jsonl"):
                journal.append("job_intent", job="train:a", arguments=["x" * 200])
    assert len(journal.events) == 1
    assert len(journal.path.read_bytes()) > len(whole), "the limit did cut a line"
    assert [event.kind for event in Journal(journal.path).events] == ["sweep_started"]
    journal.append("job_intent", job="train:a", arguments=[])
    again = Journal(journal.path)
    assert [event.kind for event in again.events] == ["sweep_started", "job_intent"]
    assert again.cut is None


@contextlib.contextmanager
def only_reading(folder: Path) -> Iterator[None]:
    """As a user who may read `folder` but not write it (the tests may run as root)."""
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def write() -> None:
            with only_reading(folder):
                write_atomically(folder / "runs" / "summary.json", "{}")

        monkeypatch.setattr(cli, "app", write)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 1
        told = capsys.readouterr().err
        assert str(folder / "runs") in told
        assert "give another folder" in told
        assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_in_training_costs_no_result(tmp_path: Path, smoke_data: Dataset) -> None:
    """The codec's checkpoint fits, the operator's does not; with room again the run ends the same."""
    folders = {name: tmp_path / name for name in ("whole", "full")}
    command = [sys.executable, "-m", "universal_simulator.cli", "run", "rerun_txxoc8a8", *TINY]
    command += ["--profile", "smoke", "--folder"]

    def run(folder: Path, limit: int | None) -> subprocess.CompletedProcess[str]:
        def no_room() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.run(
            [*command, str(folder)], preexec_fn=no_room, capture_output=True, text=True, check=False
        )

    for folder in folders.values():
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "burgers_smoke.hdf5").symlink_to(smoke_data.path)
    assert run(folders["whole"], None).returncode == 0
    (states,) = (folders["whole"] / "artifacts" / "runs").glob("*/checkpoints")
    sizes = {path.name: path.stat().st_size for path in states.glob("*_state.pt")}
    limit = (sizes["codec_state.pt"] + sizes["operator_state.pt"]) // 2
    answer = run(folders["full"], limit)
    assert answer.returncode == 1
    assert "operator_state.pt" in answer.stderr
    assert "make room and type the command again" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert run(folders["full"], None).returncode == 0
    run_id = states.parent.name
    records = [read_document(RunFolder(folder, run_id).summary, RunRecord) for folder in folders.values()]
    assert compare(*records).identical
