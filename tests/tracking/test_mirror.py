"""The real W&B client: offline on disk, online against a loopback server and against nobody at all."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.bad_disks import only_reading
from tests.tracking.folders import write_rows, write_run
from tests.tracking.loopback_wandb import serving
from universal_simulator.errors import SweepLockedError, UserError
from universal_simulator.tracking.mirror import start_detached, sync, watch
from universal_simulator.tracking.transaction_log import records

KEY = "k" * 40


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing of the real user's W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"HOME": str(tmp_path / "home")}


def on_disk(folder: Path) -> list[tuple[str, Any]]:
    """(kind, message) of every record of the only offline run below `folder`."""
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for content in records(log):
        record = messages.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        found.append((kind, getattr(record, kind)))
    return found


def told(updates: Any) -> dict[str, Any]:
    return {(u.key or "/".join(u.nested_key)): json.loads(u.value_json) for u in updates}


def rows_of(log: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [told(message.item) for kind, message in log if kind == "history"]


def test_offline_everything_is_on_disk_once(tmp_path: Path, environment: dict[str, str]) -> None:
    folder, out = tmp_path / "sweep", tmp_path / "sweep" / "tracking"
    files = write_run(folder, rows=4, status="running")
    report = sync(folder, environment=environment)
    assert (report.destination.mode, list(report.mirrored)) == ("offline", [files.run_id])
    assert [row["_step"] for row in rows_of(on_disk(out))] == [0, 1, 2, 3]
    write_run(folder, rows=50)
    assert list(sync(folder, environment=environment).mirrored) == [files.run_id]
    log = on_disk(out)
    run = next(message for kind, message in log if kind == "run")
    assert (run.run_id, run.project, run.run_group) == (
        files.run_id,
        "universal-simulator",
        "sota-sweep-round-a",
    )
    assert "round-a" in run.tags
    assert told(run.config.update)["training"]["operator"]["betas"] == [0.9, 0.95]
    rows = rows_of(log)
    assert [row["_step"] for row in rows] == list(range(50))
    assert rows[2]["operator/total"] == pytest.approx(1 / 3)
    assert rows[3]["operator/total"] != rows[3]["operator/total"] or rows[3]["operator/total"] == "NaN"
    summary: dict[str, Any] = {}
    for kind, message in log:
        if kind == "summary":
            summary |= told(message.update)
    assert summary["small_eval/nu=0.05/nrmse"] == 0.05
    assert summary["page"]["_type"] == "html-file"
    assert summary["picture_1"]["caption"] == "error & time"
    artifact = next(message for kind, message in log if kind == "artifact")
    assert json.loads(artifact.metadata) == {"checkpoints": {"checkpoints/operator_ema.pt": 100}}
    names = {entry.path for entry in artifact.manifest.contents}
    assert names >= {"config.json", "summary.json", "metrics_operator.jsonl", "picture_1.png"}
    assert all(Path(entry.local_path).is_file() for entry in artifact.manifest.contents)
    assert log[-1][0] == "exit"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = sync(folder, environment=environment)
    assert (again.mirrored, again.unchanged) == ({}, [files.run_id])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["files/*/*/*", "wandb/offline-run-*", "wandb/offline-run-*/files/media/*"]
)
def test_killed_in_the_middle_and_typed_again(
    tmp_path: Path, environment: dict[str, str], moment: str
) -> None:
    folder = tmp_path / "sweep"
    write_run(folder, rows=400)
    process = subprocess.Popen(
        [sys.executable, "-m", "universal_simulator.cli", "track", "sync", str(folder), "--mode", "offline"],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not list((folder / "tracking").glob(moment)):
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sync(folder, environment=environment).whole
    log = on_disk(folder / "tracking")
    assert [row["_step"] for row in rows_of(log)] == list(range(400))
    assert len(list((folder / "tracking" / "files").glob("*/*"))) == 1
    assert wandb_processes() == []


def wandb_processes() -> list[str]:
    """Command lines of W&B's own processes started by this test session's children, after a moment."""
    until = time.monotonic() + 15
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().decode(errors="replace")
                if "wandb-core" in words or "tracking.worker" in words:
                    found.append(words)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def test_online_a_second_sync_adds_nothing_twice(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "sweep"
    files = write_run(folder, rows=4, status="running")
    with serving() as service:
        online = environment | {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY}
        assert sync(folder, environment=online, deadline_s=60).whole
        run = service.runs[files.run_id]
        assert [row["_step"] for row in run.history] == [0, 1, 2, 3]
        assert not run.complete
        write_run(folder, rows=50)
        (folder / "tracking" / "ledger.json").write_text("damaged")
        report = sync(folder, environment=online, deadline_s=60)
        assert report.mirrored == {files.run_id: f"{service.url}/me/universal-simulator/runs/{files.run_id}"}
        run = service.runs[files.run_id]
        assert [row["_step"] for row in run.history] == list(range(50))
        assert (run.project, run.group, run.complete) == ("universal-simulator", "sota-sweep-round-a", True)
        assert run.summary["small_eval/nu=0.05/nrmse"] == 0.05
        assert list(service.artifacts.values()) == [f"run-{files.run_id}"]
        asked = len(service.requests)
        assert sync(folder, environment=online).unchanged == [files.run_id]
        assert len(service.requests) == asked
    left = [path for path in (folder / "tracking").rglob("*") if path.is_file()]
    assert [path for path in left if KEY.encode() in path.read_bytes()] == []
    assert list((folder / "tracking" / "wandb").glob("*run-*")) == []


@pytest.mark.slow
def test_the_users_own_upload_of_offline_mirrors_doubles_no_row(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes"]
    with serving() as service:
        online = environment | {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY}
        for rows, status in ((4, "running"), (9, "running"), (30, "finished")):
            files = write_run(tmp_path, rows=rows, status=status)
            assert sync(tmp_path, environment=environment).whole
            if rows == 9:
                continue  # a mirror that was replaced before anybody uploaded it
            offline = [str(path) for path in (tmp_path / "tracking").glob("wandb/offline-run-*")]
            assert len(offline) == 1
            subprocess.run(
                [*command, *offline], env=online, cwd=tmp_path, check=True, capture_output=True, timeout=90
            )
            assert [row["_step"] for row in service.runs[files.run_id].history] == list(range(rows))


@pytest.mark.slow
def test_online_cut_off_in_the_middle_goes_on_after_what_the_server_has(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "sweep"
    files = write_run(folder, rows=3000)
    with serving() as service:
        service.hang_up_after = 1
        online = environment | {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY}
        started = time.monotonic()
        report = sync(folder, environment=online, deadline_s=8)
        assert time.monotonic() - started < 8 + 5 + 3
        assert "not done within 8 s" in report.failed[files.run_id]
        assert service.runs[files.run_id].history
        service.hang_up_after = None
        assert sync(folder, environment=online, deadline_s=60).whole
        assert [row["_step"] for row in service.runs[files.run_id].history] == list(range(3000))
    assert wandb_processes() == []


def test_nobody_answers_and_the_deadline_holds(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "sweep"
    first, second = write_run(folder), write_run(folder, "rerun_txxoc8a8")
    dead = environment | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    started = time.monotonic()
    report = sync(folder, environment=dead, deadline_s=6)
    seconds = time.monotonic() - started
    assert seconds < 6 + 5 + 2
    assert set(report.failed) == {first.run_id, second.run_id}
    assert KEY not in str(report)
    assert {path: path.read_bytes() for path in before} == before, "the runs themselves stay as they were"


def test_what_is_switched_off_starts_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    write_run(tmp_path)
    report = sync(tmp_path, environment=environment | {"WANDB_MODE": "disabled"})
    assert (report.mirrored, report.failed) == ({}, {})
    assert not (tmp_path / "tracking").exists()


def test_without_the_package_the_cure_is_told(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'universal-simulator\[wandb\]'"):
        sync(tmp_path, environment=environment)


def test_two_syncs_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    from filelock import FileLock

    write_run(tmp_path)
    (tmp_path / "tracking").mkdir()
    with FileLock(tmp_path / "tracking" / ".lock"), pytest.raises(SweepLockedError, match="another sync"):
        sync(tmp_path, environment=environment)


def test_a_read_only_folder_is_told_and_mirrored_elsewhere(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_run(folder)
        with only_reading(folder), pytest.raises(UserError, match="--out"):
            sync(folder, environment=environment | {"HOME": "/nonexistent"})
        before = sorted(folder.rglob("*"))
        report = sync(folder, environment=environment, out=tmp_path / "elsewhere")
        assert list(report.mirrored) == [files.run_id]
        assert sorted(folder.rglob("*")) == before
        assert len(rows_of(on_disk(tmp_path / "elsewhere"))) == 6


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_the_next_sync_makes_it_whole(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "sweep"
    write_run(folder, rows=2500)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-m", "universal_simulator.cli", "track", "sync", str(folder)]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = subprocess.run(
        [*command, "--mode", "offline", "--deadline", "40"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=no_room,
    )
    assert answer.returncode == 1, answer.stdout
    assert "FAILED" in answer.stdout
    assert "Traceback" not in answer.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert sync(folder, environment=environment).whole
    assert len(rows_of(on_disk(folder / "tracking"))) == 2500


def test_watching_follows_a_run_to_its_end_and_never_raises(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    files = write_run(tmp_path, rows=3, status="running")
    heard: list[Any] = []
    ended = threading.Event()

    def tell(what: Any) -> None:
        heard.append(what)
        write_rows(files, 9)
        ended.set()

    watch(tmp_path, until=ended.is_set, every_s=60, tell=tell, environment=environment)
    assert [type(item).__name__ for item in heard] == ["Report", "Report"]
    assert len(rows_of(on_disk(tmp_path / "tracking"))) == 9
    bad: Mapping[str, str] = environment | {"WANDB_MODE": "sometimes"}
    watch(tmp_path, until=ended.is_set, tell=heard.append, environment=bad)
    assert isinstance(heard[-1], UserError)


def test_watching_outlives_a_disk_that_is_full_for_a_while(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the worker's answers cannot be written, and where that cannot be told either."""
    write_run(tmp_path, rows=3)
    looks, heard = [], []

    def full(request: Any, *rest: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(request.out / "worker.jsonl"))

    def until() -> bool:
        looks.append(len(heard))
        if len(heard) == 2:
            monkeypatch.undo()
        return len(heard) == 3

    def tell(what: Any) -> None:
        heard.append(what)
        if len(heard) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "watch.log")

    monkeypatch.setattr("universal_simulator.tracking.mirror._work", full)
    watch(tmp_path, until=until, every_s=0.0, tell=tell, environment=environment)
    assert [type(item).__name__ for item in heard] == ["OSError", "OSError", "Report", "Report"]
    assert heard[2].whole
    assert len(rows_of(on_disk(tmp_path / "tracking"))) == 3


@pytest.mark.slow
def test_the_detached_mirror_ends_with_its_sweep(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", environment["HOME"])
    write_run(tmp_path, rows=3, status="running")
    code = (
        "import time; from pathlib import Path; from universal_simulator.tracking.mirror import start_detached\n"
        f"began = time.perf_counter(); told = start_detached(Path({str(tmp_path)!r}), every_s=1)\n"
        "print(told, time.perf_counter() - began, flush=True); time.sleep(1)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reason, seconds = answer.stdout.split()
    assert reason == "None"
    assert float(seconds) < 0.5
    until = time.monotonic() + 60
    while not (tmp_path / "tracking" / "ledger.json").exists():
        assert time.monotonic() < until, (tmp_path / "tracking" / "watch.log").read_text()
        time.sleep(0.1)
    assert wandb_processes() == []
    assert len(rows_of(on_disk(tmp_path / "tracking"))) == 3


def test_a_mirror_that_cannot_start_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("in the way")
    assert "was not started" in (start_detached(tmp_path) or "")
