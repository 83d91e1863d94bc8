"""usim leaderboard"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from universal_simulator.cli.options import Json

#: a terminal this wide has room for the conservation gap and the parameters as well
WIDE = 110
Row = dict[str, str]


def leaderboard(
    folder: Annotated[Path, typer.Argument(help="the sweep's folder")],
    as_json: Json = False,
) -> None:
    """Every run, best nrmse first within suite and regime; all columns with --json or in the csv.

    Example: usim leaderboard runs/embedded
    """
    from universal_simulator.errors import UserError
    from universal_simulator.sweep.leaderboard import leaderboard_path

    path = leaderboard_path(folder)
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `usim sweep report {folder}` or finish the sweep")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for line in told(rows, width=shutil.get_terminal_size().columns):
        typer.echo(line)
    openings = max((int(row["test_openings"]) for row in rows), default=0)
    typer.echo(
        f"sealed test split: opened {openings} time{'' if openings == 1 else 's'}; every column: {path}"
    )


def told(rows: Sequence[Row], *, width: int) -> Iterator[str]:
    """Lines of one block per suite and regime, in the rows' order; run ids and nrmse are never cut."""
    wide = width >= WIDE
    for (suite, regime), block in groupby(rows, key=lambda row: (row["suite"], row["regime"])):
        yield f"{suite}, {regime}"
        further = f"{'cons. gap':>10} {'params':>9} " if wide else ""
        yield f"{'nrmse':>8} {'95 % interval':>16} {further} run"
        for row in block:
            interval = f"{_short(row['nrmse_low'], 3)}..{_short(row['nrmse_high'], 3)}"
            further = f"{_short(row['conservation_gap']):>10} {row['params']:>9} " if wide else ""
            label = "" if row["label"] == suite else f" {row['label']}"
            yield f"{_short(row['nrmse']):>8} {interval:>16} {further} {row['run_id']}{label}"
        yield ""


def _short(text: str, digits: int = 4) -> str:
    return f"{float(text):.{digits}g}" if text else "-"
