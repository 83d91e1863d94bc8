"""usim run"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def run(
    config: Annotated[str, typer.Argument(help="a config's name (configs/NAME.yaml) or path")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    folder: Annotated[
        Path, typer.Option(help="the experiment's folder; the run lies in artifacts/runs")
    ] = Path("runs/single"),
    profile: Annotated[str | None, typer.Option(help="embedded, standard, full or smoke")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="refuse unless the run has this identity (used by sweeps)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train one config and small-evaluate it. Killed and typed again, it goes on.

    Example: usim run rerun_txxoc8a8 --profile smoke --folder runs/try seed=1
    """
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.configuration import load_config
    from universal_simulator.experiment import run as run_experiment

    loaded = load_config(config, overrides or [], profile=profile)
    record = run_experiment(loaded, folder, run_id=run_id, progress=ProgressLine().update)
    if as_json:
        typer.echo(json.dumps({"run_id": record.run_id, "status": record.status}))
        return
    typer.echo(record.run_id)
    for regime, result in record.evaluations["small_eval"].result.regimes.items():
        metric = result.metrics["nrmse"]
        typer.echo(f"  {regime}: nrmse {metric.value} (95 % {metric.low} to {metric.high}, small-eval)")
