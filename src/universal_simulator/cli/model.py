"""usim evaluate, usim rollout"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from universal_simulator.cli.options import Json, Parameter
from universal_simulator.errors import UserError
from universal_simulator.evaluation.search_summary import ORDER, search_lines, search_name, told
from universal_simulator.run_record import EvaluationRecord

Members = Annotated[
    int | None,
    typer.Option(
        min=1, help="of a stochastic model's ensemble; other than configured, the run's record stays"
    ),
]
Search = Annotated[
    bool,
    typer.Option("--ttc", help="with test-time compute as configured; stands beside the plain record"),
]
SearchSettings = Annotated[
    list[str] | None,
    typer.Option(
        help="with --suite small: score ttc.KEY=VALUE, test-time compute on, beside everything else; repeatable"
    ),
]
RewardGroups = Annotated[
    int | None,
    typer.Option(
        min=1, help="with --ttc-set: initial conditions a reward is trained on; all where not given"
    ),
]


def evaluate(
    path: Annotated[Path, typer.Argument(help="a run folder, or a model.safetensors with --data")],
    suite: Annotated[str, typer.Option(help="small, full, pdebench or pdebench-official")] = "small",
    data: Annotated[Path | None, typer.Option(help="another data file of the same equation")] = None,
    nu: Parameter = None,
    members: Members = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; otherwise as the run was configured")
    ] = None,
    ttc: Search = False,
    ttc_set: SearchSettings = None,
    ttc_groups: Annotated[
        int, typer.Option(min=1, help="with --ttc-set: initial conditions that are diagnosed")
    ] = 16,
    ttc_reward_groups: RewardGroups = None,
    opening: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained model; the test split stays sealed (only a sweep opens it, once).

    Example: usim evaluate runs/smoke/artifacts/runs/RUN_ID --suite full
    """
    from universal_simulator.assessment import evaluate as evaluate_run
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.sweep.state import refuse_unjournalled_opening

    if ttc_set:
        others = {"--ttc": ttc, "--data": data, "--nu": nu, "--members": members, "--device": device}
        given = [name for name, value in others.items() if value]
        if given or suite != "small":
            raise UserError(
                f"--ttc-set asks the small suite of a run folder; leave out {', '.join(given) or '--suite'}"
            )
        _score(path, ttc_set, ttc_groups, ttc_reward_groups, as_json)
        return
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
    _print(record)


def _score(path: Path, settings: list[str], groups: int, reward_groups: int | None, as_json: bool) -> None:
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.inference_scores import score_settings

    records = score_settings(
        path, settings, groups=groups, reward_groups=reward_groups, progress=ProgressLine().update
    )
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=1))
        return
    for words, record in zip(settings, records, strict=True):
        for regime, result in record.result.regimes.items():
            spent = record.observation["evaluations_per_sample"]
            nrmse = told(result.metrics["nrmse"])
            typer.echo(f"{words} {regime}: nrmse {nrmse} at {spent:.0f} more evaluations a sample")
            _print_search(record, regime)


def _print(record: EvaluationRecord) -> None:
    for regime, result in record.result.regimes.items():
        typer.echo(f"{regime} ({record.suite}, {record.result.protocol.num_groups} initial conditions)")
        _print_search(record, regime)
        for name, metric in sorted(result.metrics.items()):
            if name not in ORDER:
                typer.echo(f"  {name:34} {told(metric)}")


def _print_search(record: EvaluationRecord, regime: str) -> None:
    """Diagnostics of test-time compute, the bound first, those at equal seconds among them."""
    lines = search_lines(record, regime)
    if lines:
        typer.echo(f"  {search_name(record, regime)}")
    for line in lines:
        note = f"  [{line.note}]" if line.note else ""
        typer.echo(f"    {line.name:48} {line.value}{note}")


def rollout(
    path: Annotated[Path, typer.Argument(help="a run folder or a model.safetensors")],
    data: Annotated[Path, typer.Option(help="where the first frames come from")],
    out: Annotated[Path, typer.Option(help="NetCDF file to write (.nc)")],
    steps: Annotated[int, typer.Option(min=1, help="rollout steps")] = 100,
    index: Annotated[int, typer.Option(min=0, help="first trajectory of the file")] = 0,
    count: Annotated[int, typer.Option(min=1, help="how many trajectories")] = 1,
    nu: Parameter = None,
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
