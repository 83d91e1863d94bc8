"""usim run"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from universal_simulator.cli.options import Json
from universal_simulator.errors import UserError


def run(
    config: Annotated[str | None, typer.Argument(help="a config's name (configs/NAME.yaml) or path")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    folder: Annotated[
        Path, typer.Option(help="the experiment's folder; the run lies in artifacts/runs")
    ] = Path("runs/single"),
    profile: Annotated[str | None, typer.Option(help="embedded, standard, full or smoke")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="refuse unless the run has this identity (used by sweeps)")
    ] = None,
    from_record: Annotated[
        Path | None, typer.Option(help="instead of a config: a run's summary.json, to make that run again")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="with --from-record: where the run's data file lies here")
    ] = None,
    other_code: Annotated[
        bool, typer.Option("--other-code", help="with --from-record: although the code differs")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one config and small-evaluate it. Killed and typed again, it goes on.

    Example: usim run rerun_txxoc8a8 --profile smoke --folder runs/try seed=1

    A run again from its record alone, anywhere, compared with what was recorded (exit code 1 if it differs):
    usim run --from-record summary.json --folder runs/again
    """
    if from_record is not None:
        if config is not None or overrides or profile is not None or run_id is not None:
            raise UserError("--from-record takes everything from the record: give no config, key or profile")
        _repeat(from_record, folder, data, other_code, as_json)
        return
    if config is None:
        raise UserError("give a config's name, or --from-record SUMMARY.JSON")
    if data is not None or other_code:
        raise UserError("--data and --other-code belong to --from-record; a config's data are data.file=FILE")
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.configuration import load_config
    from universal_simulator.configuration.steady import is_steady, load_steady

    if is_steady(config):
        from universal_simulator.steady_run import run_steady

        if profile is not None:
            raise UserError("--profile is for configs with a time; a steady one states its epochs itself")
        steady = load_steady(config, overrides or [])
        record = run_steady(steady, folder, run_id=run_id, progress=ProgressLine().update)
    else:
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


def _repeat(record: Path, folder: Path, data: Path | None, other_code: bool, as_json: bool) -> None:
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.repetition import repeat

    comparison = repeat(record, folder, data_file=data, other_code=other_code, progress=ProgressLine().update)
    if as_json:
        values = {
            "run_id": comparison.run_id,
            "identical": comparison.identical,
            "parts": comparison.parts,
            "surroundings": comparison.surroundings,
        }
        typer.echo(json.dumps(values))
    else:
        typer.echo("\n".join([comparison.run_id, *(f"  {line}" for line in comparison.sentences())]))
    if not comparison.identical:
        raise typer.Exit(1)
