"""The process that talks to W&B, and the only file that imports it. It may block, fail or be killed.

`python -m universal_simulator.tracking.worker` reads one `Request` from standard input, mirrors its
runs one after the other and prints one line of JSON per run. `mirror.py` starts it and ends it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

from universal_simulator.credentials import masked
from universal_simulator.errors import IntegrityError, UsimError
from universal_simulator.run_record import RunFolder, write_atomically
from universal_simulator.tracking.destination import Mode
from universal_simulator.tracking.ledger import Entry, note, read_ledger, rows_uploaded
from universal_simulator.tracking.snapshot import Snapshot, read_snapshot, stamp
from universal_simulator.tracking.transaction_log import records

#: seconds in which W&B's own process must have written what it took
WRITE_PATIENCE_S = 10.0


class Request(BaseModel):
    """`root`: where W&B keeps its run folders; `out`: where staged files and the ledger lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode
    destination: str
    entity: str | None
    out: Path
    root: Path
    init_timeout_s: float
    runs: tuple[Path, ...]


def main() -> int:
    _die_with_parent()
    request = Request.model_validate_json(sys.stdin.read())
    signal.signal(signal.SIGTERM, _end)
    failed = 0
    for path in request.runs:
        files = RunFolder.of_path(path)
        told: dict[str, Any] = {"run": files.run_id}
        try:
            entry = _mirror(request, files)
            note(request.out, files.run_id, entry)
            told |= {"outcome": "mirrored", "rows": entry.rows, "where": entry.where}
        except (UsimError, OSError) as error:
            told |= {"outcome": "failed", "reason": masked(str(error))}
        except Exception as error:  # noqa: BLE001 (whatever W&B raises is told, and ends this process only)
            told |= {"outcome": "failed", "reason": masked(f"{type(error).__name__}: {error}")}
        failed += told["outcome"] == "failed"
        print(json.dumps(told), flush=True)
        if told["outcome"] == "failed" and request.mode == "online":
            break  # the next one would wait as long for the same server
    return min(failed, 1)


def _die_with_parent() -> None:
    """Whoever started this holds the folder's lock; without it another sync may be at work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _mirror(request: Request, files: RunFolder) -> Entry:
    """One run; its stamp is taken before it is read, so what is written meanwhile comes next time."""
    before = stamp(files)
    snapshot = read_snapshot(files)
    staged = _stage(snapshot, request.out / "files" / snapshot.run_id / before[:12])
    run = _started(request, snapshot)
    uploaded = rows_uploaded(read_ledger(request.out).runs.get(snapshot.run_id))
    done = run.step if request.mode == "online" else uploaded
    try:
        _send(run, snapshot, staged, done)
    finally:
        run.finish(exit_code=0 if snapshot.status != "failed" else 1)
    log = Path(run.settings.sync_file)
    if request.mode == "offline":
        _verify(log, len(snapshot.rows) - done)
    else:
        shutil.rmtree(log.parent, ignore_errors=True)
    where = run.url or "" if request.mode == "online" else str(log.parent)
    return Entry(
        stamp=before,
        destination=request.destination,
        rows=len(snapshot.rows),
        where=where,
        uploaded=uploaded,
    )


def _stage(snapshot: Snapshot, folder: Path) -> dict[str, Path]:
    """Copies that do not change while W&B looks at them; an upload may come days later."""
    staged = {}
    for name, path in snapshot.files.items():
        if path.is_file():
            write_atomically(folder / name, path.read_bytes())
            staged[name] = folder / name
    for picture in snapshot.pictures():
        name = f"{picture.name}.png"
        write_atomically(folder / name, picture.png)
        staged[name] = folder / name
    return staged


def _started(request: Request, snapshot: Snapshot) -> Any:
    import wandb

    request.root.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        mode="online" if request.mode == "online" else "offline",
        root_dir=str(request.root),
        init_timeout=request.init_timeout_s,
        x_transaction_log_flush_interval=1.0,
        x_update_finish_state=snapshot.finished,
        console="off",
        silent=True,
        symlink=False,
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    return wandb.init(
        id=snapshot.run_id,
        name=snapshot.run_id,
        project=snapshot.project,
        entity=request.entity,
        group=snapshot.group or None,
        tags=[tag[:64] for tag in snapshot.tags],
        config=snapshot.config,
        # online, the server says which rows it has; offline, the user's uploads do (`rows_uploaded`)
        resume="allow" if request.mode == "online" else None,
        settings=settings,
    )


def _send(run: Any, snapshot: Snapshot, staged: dict[str, Path], done: int) -> None:
    """Rows from index `done` on; figures, page and pictures replace what was there."""
    import wandb

    for stage in snapshot.stages:
        run.define_metric(f"{stage}/step")
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    for index in range(done, len(snapshot.rows)):
        run.log(snapshot.rows[index], step=index, commit=True)
    run.summary.update(snapshot.figures)
    if not snapshot.finished:
        return
    page = staged.get("evaluation.html")
    if page is not None:
        run.summary["page"] = wandb.Html(str(page), inject=False)
    for picture in snapshot.pictures():
        run.summary[picture.name] = wandb.Image(str(staged[f"{picture.name}.png"]), caption=picture.caption)
    artifact = wandb.Artifact(
        f"run-{snapshot.run_id}", type="run-record", metadata={"checkpoints": snapshot.checkpoints}
    )
    for name, path in staged.items():
        artifact.add_file(str(path.absolute()), name=name, policy="immutable")
    run.log_artifact(artifact)


def _verify(log: Path, rows: int) -> None:
    """Is every row on disk, and the end? W&B's `finish` returns before its own process has written all,
    and does not say when a write failed."""
    patience_s, found = WRITE_PATIENCE_S, "nothing readable"
    while patience_s > 0:
        try:
            kinds = _kinds(log)
            if kinds.count("history") == rows and kinds[-1:] == ["exit"]:
                return
            found = f"{kinds.count('history')} of {rows} rows"
        except (IntegrityError, OSError) as error:
            found = str(error)
        time.sleep(0.05)
        patience_s -= 0.05
    raise IntegrityError(f"{log} is not whole: {found}; is the disk full? Make room and sync again")


def _kinds(log: Path) -> list[str]:
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    kinds = []
    for content in records(log):
        record = messages.Record()
        record.ParseFromString(content)
        kinds.append(str(record.WhichOneof("record_type")))
    return kinds


if __name__ == "__main__":
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    started = time.monotonic()
    code = main()
    print(f"ended after {time.monotonic() - started:.1f} s", file=sys.stderr)
    sys.exit(code)
