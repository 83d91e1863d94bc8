"""Brings a folder's mirrors up to date, within a deadline, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from universal_simulator.errors import SweepLockedError, UserError, UsimError
from universal_simulator.run_record import RunFolder
from universal_simulator.tracking.destination import Destination, decide
from universal_simulator.tracking.ledger import Ledger, read_ledger
from universal_simulator.tracking.snapshot import run_folders, stamp
from universal_simulator.tracking.worker import Request

#: after SIGTERM, before SIGKILL
GRACE_S = 5.0
#: share of the deadline that one connection may wait for its server
_INIT_SHARE = 0.4


@dataclass
class Report:
    """What one sync did; `failed`: run id -> reason."""

    destination: Destination
    mirrored: dict[str, str] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return not self.failed


def sync(
    folder: Path,
    *,
    mode: str | None = None,
    out: Path | None = None,
    deadline_s: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Mirror every run of `folder` that changed since it was last mirrored.

    Returns within `deadline_s` plus GRACE_S seconds, whatever W&B or its server does. Raises
    UserError for what the user can mend (no `wandb` installed, an unknown mode, no key, a folder
    that cannot be written) and SweepLockedError while another sync is at work there.

    out: where ledger, staged files and offline runs lie (default: `folder`/tracking).
    """
    environment = os.environ if environment is None else environment
    runs = run_folders(folder)
    destination = decide(environment, requested=mode)
    report = Report(destination)
    if destination.mode == "disabled":
        return report
    if importlib.util.find_spec("wandb") is None:
        raise UserError("wandb is not installed: pip install 'universal-simulator[wandb]'")
    out = (out or _default_out(folder)).absolute()
    with _locked(out):
        root = Path(environment.get("WANDB_DIR") or out).absolute()
        ledger = read_ledger(out)
        _tidy(out, root, ledger, runs)
        changed = [files for files in runs if not _is_current(ledger, files, destination)]
        report.unchanged = [files.run_id for files in runs if files not in changed]
        if changed:
            request = Request(
                mode=destination.mode,
                destination=destination.name,
                entity=destination.entity,
                out=out,
                root=root,
                init_timeout_s=max(1.0, _INIT_SHARE * deadline_s),
                runs=tuple(files.path.absolute() for files in changed),
            )
            _work(request, report, deadline_s, _worker_environment(environment, destination))
            _tidy(out, root, read_ledger(out), runs)
    return report


def watch(
    folder: Path,
    *,
    until: Callable[[], bool],
    every_s: float = 30.0,
    tell: Callable[[Report | UsimError | OSError], None] = lambda _: None,
    **options: Any,
) -> None:
    """`sync` every `every_s` seconds until `until()`, and once more after it; its errors are told.

    A disk that is full or gone for a while ends nothing, also where it cannot even be told.
    """
    while True:
        last = until()
        told: Report | UsimError | OSError | None
        try:
            told = sync(folder, **options) if (folder / "artifacts" / "runs").is_dir() else None
        except (UsimError, OSError) as error:
            told = error
        if told is not None:
            with contextlib.suppress(OSError):
                tell(told)
        if last:
            return
        waited = time.monotonic()
        while time.monotonic() - waited < every_s and not until():
            time.sleep(0.2)


def start_detached(folder: Path, *, every_s: float = 30.0, deadline_s: float = 120.0) -> str | None:
    """Start `usim track watch` beside a sweep, ending with this process; None, or why it did not start.

    Nothing is waited for and nothing raised: a mirror that cannot start is no reason not to train.
    """
    words = ["track", "watch", str(folder), "--every", str(every_s), "--deadline", str(deadline_s)]
    words += ["--parent", str(os.getpid())]
    try:
        out = _default_out(folder)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "watch.log", "ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "universal_simulator.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        return f"the mirror was not started: {error}"
    return None


def _default_out(folder: Path) -> Path:
    inside = folder.absolute()
    return (inside.parents[2] if inside.parent.name == "runs" else inside) / "tracking"


def _is_current(ledger: Ledger, files: RunFolder, destination: Destination) -> bool:
    entry = ledger.runs.get(files.run_id)
    if entry is None or entry.destination != destination.name or entry.stamp != stamp(files):
        return False
    return destination.mode == "online" or Path(entry.where).is_dir()


def _tidy(out: Path, root: Path, ledger: Ledger, runs: list[RunFolder]) -> None:
    """Remove what a killed sync left: half-written mirrors and staged files the ledger does not know.

    Only below our own `out`; in a WANDB_DIR of the user's nothing is removed but what the ledger
    replaced.
    """
    known = {files.run_id for files in runs}
    kept = {Path(entry.where).name for entry in ledger.runs.values()}
    for path in (root / "wandb").glob("*run-*") if root == out else ():
        match = re.fullmatch(r"(?:offline-)?run-\d{8}_\d{6}-(.+)", path.name)
        if match and match.group(1) in known and path.name not in kept:
            # W&B's own process may still be writing there for a moment; the next sync looks again
            shutil.rmtree(path, ignore_errors=True)
    for run_id in known:
        entry = ledger.runs.get(run_id)
        for path in (out / "files" / run_id).glob("*"):
            if entry is None or path.name != entry.stamp[:12]:
                shutil.rmtree(path, ignore_errors=True)


def _worker_environment(environment: Mapping[str, str], destination: Destination) -> dict[str, str]:
    """The user's own settings, and where they say nothing: no telemetry, nothing staged elsewhere."""
    chosen = {"WANDB_ERROR_REPORTING": "false", "WANDB_BASE_URL": destination.url, "WANDB_SILENT": "true"}
    return {**chosen, **environment, "WANDB_MODE": destination.mode}


def _work(request: Request, report: Report, deadline_s: float, environment: dict[str, str]) -> None:
    """Run the worker to its end or the deadline; files, not pipes: W&B's own process may outlive it."""
    told, log = request.out / "worker.jsonl", request.out / "worker.log"
    with open(told, "wb") as answers, open(log, "ab") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "universal_simulator.tracking.worker"],
            stdin=subprocess.PIPE,
            stdout=answers,
            stderr=words,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(request.model_dump_json().encode())
            process.stdin.close()
            process.wait(timeout=deadline_s)
            reason = f"the mirror ended with exit code {process.returncode}; see {log}"
        except (subprocess.TimeoutExpired, BrokenPipeError):
            reason = f"not done within {deadline_s:g} s; type the command again to go on"
        finally:
            _end(process)
    for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            answer = json.loads(line)
            if answer["outcome"] == "mirrored":
                report.mirrored[answer["run"]] = answer["where"]
            else:
                report.failed[answer["run"]] = answer["reason"]
                reason = f"not tried after {answer['run']} failed"
    for path in request.runs:
        if path.name not in report.mirrored and path.name not in report.failed:
            report.failed[path.name] = reason


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=patience_s)
            except subprocess.TimeoutExpired:
                continue


class _locked:
    """One sync at a time per `out`; a folder that cannot be written is told with its cure."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.lock = FileLock(out / ".lock")

    def __enter__(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise SweepLockedError(f"another sync is at work in {self.out}; wait for it or end it") from None
        except OSError as error:
            raise UserError(f"{self.out} cannot be written ({error}); give another --out") from error

    def __exit__(self, *_: object) -> None:
        self.lock.release()
