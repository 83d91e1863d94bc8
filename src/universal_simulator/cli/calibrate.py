"""usim calibrate: what `usim sweep estimate` and `calibrate: true` launch, one job per member"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from universal_simulator.cli.options import Json


def calibrate(
    config: Annotated[str, typer.Argument(help="a config's name (configs/NAME.yaml) or path")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    folder: Annotated[Path, typer.Option(help="where its data lie or are made")] = Path("runs/single"),
    profile: Annotated[str | None, typer.Option(help="embedded, standard, full or smoke")] = None,
    as_json: Json = False,
) -> None:
    """Train a config for a few steps at each rollout length and forecast its whole run."""
    from universal_simulator.estimation import calibrate as measure

    found = measure(config, overrides or [], folder, profile=profile)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    for key, value in asdict(found).items():
        typer.echo(f"{key:16} {value}")
