"""The command line: the only place that wires the wings together. Imports nothing heavy."""

from __future__ import annotations

import errno
import os
import sys

import typer

from universal_simulator import __version__
from universal_simulator.cli import (
    calibrate,
    cloud,
    config,
    data,
    doctor,
    leaderboard,
    model,
    run,
    sweep,
    track,
)
from universal_simulator.credentials import masked
from universal_simulator.errors import UsimError

app = typer.Typer(
    name="usim",
    help="A neural simulator for time-dependent PDEs, and the gated sweep that improves it.\n\n"
    "First steps:  usim doctor  |  usim sweep run smoke --folder runs/smoke",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(sweep.app, name="sweep")
app.add_typer(cloud.app, name="cloud")
app.add_typer(track.app, name="track")
app.command("run")(run.run)
app.command("evaluate")(model.evaluate)
app.command("rollout")(model.rollout)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("calibrate", hidden=True)(calibrate.calibrate)
app.command("doctor")(doctor.doctor)


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


_NO_ROOM = "make room and type the command again: it goes on where it was"
_NO_WRITING = "this place cannot be written; give another folder"
_CURES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EROFS: _NO_WRITING,
    errno.EACCES: _NO_WRITING,
    errno.EAGAIN: "another process has this file open: type the command again when that one is done",
}


def main() -> None:
    """Entry point: one clear message per failure, exit code 2 for usage, 1 for a failed run."""
    try:
        app()
    except UsimError as error:
        if os.environ.get("USIM_DEBUG"):
            raise
        print(masked(f"usim: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if os.environ.get("USIM_DEBUG"):
            raise
        cure = _CURES.get(error.errno or 0, "set USIM_DEBUG=1 for the traceback")
        print(masked(f"usim: {error} ({cure})"), file=sys.stderr)
        sys.exit(1)
