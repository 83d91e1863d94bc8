"""A full disk, a folder that cannot be written: nothing is lost, the message says what to do."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bad_disks import only_reading, room_for
from tests.training.tiny_runs import TINY
from universal_simulator import cli
from universal_simulator.data import generator
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.generator import generate
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.repetition import compare
from universal_simulator.run_record import (
    RunFolder,
    RunRecord,
    read_document,
    write_atomically,
    write_json,
)
from universal_simulator.sweep.journal import Journal


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


#: two chunks of 32 and 6 groups, 48 KiB a group
SPEC = DatasetSpec.model_validate(
    {
        "name": "full",
        "equation": "advection",
        "solver": "exact",
        "parameter_values": [0.4, 1.0],
        "groups": {"train": 30, "calibration": 2, "validation": 2, "selection": 2, "test": 2},
        "grid_points": 64,
        "solver_refinement": [1, 1],
        "frames": 96,
        "frame_spacing_s": 0.01,
    }
)


def test_a_disk_too_small_for_data_is_told_before_anything_is_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data" / "burgers_smoke.hdf5"
    words = ["usim", "data", "generate", "burgers_smoke", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(generator, "_write_chunk", lambda *_: pytest.fail("solved for nothing"))
    with room_for(2_000_000), pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "File too large" in told
    assert f"{path}.partial" in told
    assert "make room and type the command again" in told
    assert "damaged" not in told
    assert len(told.splitlines()) == 1, told


def test_a_disk_that_fills_up_while_data_are_made_costs_no_chunk(tmp_path: Path) -> None:
    """Where room cannot be reserved; with room again the rest is made, to the same content."""
    whole = generate(SPEC, tmp_path / "whole.hdf5")
    path = tmp_path / "parts.hdf5"
    steps: list[int] = []

    def filled(done: int, total: int) -> None:
        steps.append(done)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_600_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with (
        room_for(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        pytest.raises(OSError, match="too large") as full,
    ):
        generate(SPEC, path, progress=filled)
    assert full.value.filename == f"{path}.partial"
    assert generate(SPEC, path, progress=lambda done, _: steps.append(done)).identity == whole.identity
    assert steps == [32, 38], "the first chunk is not made again"


def test_finished_chunks_outlive_a_lock_and_only_a_damaged_file_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "parts.hdf5"
    partial = tmp_path / "parts.hdf5.partial"

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        generate(SPEC, path, progress=stop)
    steps: list[int] = []
    with open(partial, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="partial"):
            generate(SPEC, path)
    with pytest.raises(Stopped):
        generate(SPEC.model_copy(update={"seed": 5}), tmp_path / "other.hdf5", progress=stop)
    os.truncate(tmp_path / "other.hdf5.partial", 100_000)
    generate(
        SPEC.model_copy(update={"seed": 5}), tmp_path / "other.hdf5", progress=lambda n, _: steps.append(n)
    )
    assert steps == [32, 38], "what is no HDF5 any more is made anew"
    steps.clear()
    generate(SPEC, path, progress=lambda done, _: steps.append(done))
    assert steps == [38], "what was only locked is not"


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
