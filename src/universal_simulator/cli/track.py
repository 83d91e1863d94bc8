"""usim track sync | watch"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from universal_simulator.cli.options import Json
from universal_simulator.credentials import masked

app = typer.Typer(
    help="Mirror runs to Weights & Biases; the run folders stay the truth.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(help="a sweep's or experiment's folder, or one run's")]
Mode = Annotated[
    str | None,
    typer.Option(help="online, offline or disabled (default: your W&B settings, else offline without a key)"),
]
Out = Annotated[
    Path | None, typer.Option(help="for ledger, staged files and offline runs (default: FOLDER/tracking)")
]
Deadline = Annotated[float, typer.Option(min=1, help="seconds after which an unfinished sync is ended")]


@app.command()
def sync(
    folder: Folder,
    mode: Mode = None,
    out: Out = None,
    deadline: Deadline = 120.0,
    as_json: Json = False,
) -> None:
    """Mirror what changed, finished or running. Typed again, or after a kill, nothing is there twice.

    Example: usim track sync runs/embedded --mode offline
    """
    from universal_simulator.tracking.mirror import sync as sync_folder

    report = sync_folder(folder, mode=mode, out=out, deadline_s=deadline)
    if as_json:
        typer.echo(json.dumps(_values(report), indent=1))
    else:
        typer.echo(_sentence(report))
    if not report.whole:
        raise typer.Exit(1)


@app.command()
def watch(
    folder: Folder,
    mode: Mode = None,
    every: Annotated[float, typer.Option(min=1, help="seconds between two syncs")] = 30.0,
    deadline: Deadline = 120.0,
    parent: Annotated[int | None, typer.Option(help="end when this process has ended")] = None,
) -> None:
    """Sync again and again while a sweep runs; `usim sweep run --track` starts it beside itself.

    Example: usim track watch runs/embedded --every 60
    """
    from universal_simulator.tracking.mirror import watch as watch_folder

    os.nice(10)
    watch_folder(
        folder,
        until=lambda: parent is not None and not _alive(parent),
        every_s=every,
        tell=lambda told: typer.echo(masked(str(told)) if isinstance(told, Exception) else _sentence(told)),
        mode=mode,
        deadline_s=deadline,
    )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _values(report: Any) -> dict[str, Any]:
    return {
        "mode": report.destination.mode,
        "reason": report.destination.reason,
        "mirrored": report.mirrored,
        "unchanged": report.unchanged,
        "failed": report.failed,
    }


def _sentence(report: Any) -> str:
    lines = [
        f"{report.destination.mode} ({report.destination.reason}): {len(report.mirrored)} mirrored, "
        f"{len(report.unchanged)} unchanged, {len(report.failed)} failed"
    ]
    lines += [f"  {where}" for where in report.mirrored.values()]
    lines += [f"  FAILED {run}: {reason}" for run, reason in report.failed.items()]
    return "\n".join(lines)
