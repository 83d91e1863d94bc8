"""usim evaluate, usim rollout"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    path: Annotated[Path, typer.Argument(help="a run folder, or a model.safetensors with --data")],
    suite: Annotated[str, typer.Option(help="small, full, pdebench or pdebench-official")] = "small",
    data: Annotated[Path | None, typer.Option(help="another data file of the same equation")] = None,
    nu: Annotated[
        float | None, typer.Option(help="the parameter, where neither file nor name says it")
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(
            min=1, help="of a stochastic model's ensemble; other than configured, the run's record stays"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; otherwise as the run was configured")
    ] = None,
    ttc: Annotated[
        bool,
        typer.Option("--ttc", help="with test-time compute as configured; stands beside the plain record"),
    ] = False,
    opening: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Evaluate a trained model; the test split stays sealed (only a sweep opens it, once).

    Example: usim evaluate runs/smoke/artifacts/runs/RUN_ID --suite full
    """
    from universal_simulator.assessment import evaluate as evaluate_run
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.sweep.state import refuse_unjournalled_opening

    if suite == "test" and opening is not None:
        refuse_unjournalled_opening(path, opening)
    record = evaluate_run(
        path,
        suite=suite,
        data_file=data,
        parameter=nu,
        members=members,
        device=device,
        opening=opening,
        search=ttc,
        progress=ProgressLine().update,
    )
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
        return
    for regime, result in record.result.regimes.items():
        typer.echo(f"{regime} ({record.suite}, {record.result.protocol.num_groups} initial conditions)")
        for name, metric in sorted(result.metrics.items()):
            value = "not applicable" if not metric.applicable else metric.value
            typer.echo(f"  {name:34} {value}")


def rollout(
    path: Annotated[Path, typer.Argument(help="a run folder or a model.safetensors")],
    data: Annotated[Path, typer.Option(help="where the first frames come from")],
    out: Annotated[Path, typer.Option(help="NetCDF file to write (.nc)")],
    steps: Annotated[int, typer.Option(min=1, help="rollout steps")] = 100,
    index: Annotated[int, typer.Option(min=0, help="first trajectory of the file")] = 0,
    count: Annotated[int, typer.Option(min=1, help="how many trajectories")] = 1,
    nu: Annotated[
        float | None, typer.Option(help="the parameter, where neither file nor name says it")
    ] = None,
    members: Annotated[
        int, typer.Option(min=1, help="an ensemble of a stochastic model, with its mean and quantiles")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="of the members' noise")] = 0,
) -> None:
    """Roll out from the first frames of a data file and write NetCDF with names and units.

    Example: usim rollout RUN_FOLDER --data FILE --steps 100 --members 32 --out rollout.nc
    """
    from universal_simulator.rollout_file import RolloutRequest, rollout_to_file

    request = RolloutRequest(steps=steps, index=index, count=count, parameter=nu, members=members, seed=seed)
    rollout_to_file(path, data, out, request)
    typer.echo(str(out))
