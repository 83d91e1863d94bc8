"""usim config show | check"""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="Show and check configurations.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="a config's name (configs/NAME.yaml) or path")]
Words = Annotated[
    list[str] | None, typer.Argument(help="overrides, e.g. training.operator.learning_rate=3e-4")
]
ProfileName = Annotated[str | None, typer.Option(help="embedded, standard, full or smoke")]


@app.command()
def show(
    config: Name,
    overrides: Words = None,
    profile: ProfileName = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """The plan's value, the effective one and the rule between them, side by side.

    Example: usim config show sweep_aggressive_sota --profile embedded
    """
    from universal_simulator.configuration import load_config

    loaded = load_config(config, overrides or [], profile=profile)
    if as_json:
        rows = [dict(zip(("key", "plan", "effective", "rule"), row, strict=True)) for row in loaded.rows()]
        typer.echo(json.dumps({"hash": loaded.hash, "values": rows}, indent=1))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        *(Column(name, overflow="fold") for name in ("key", "file", "effective", "rule")),
        title=f"{loaded.config.name} ({loaded.config.profile}), hash {loaded.hash[:12]}",
    )
    for key, plan, effective, rule in loaded.rows():
        table.add_row(key, "" if plan is None else str(plan), str(effective), rule)
    Console().print(table)


@app.command()
def check(
    config: Name,
    overrides: Words = None,
    profile: ProfileName = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Refuse a faulty config with all its faults at once (exit code 2), say so if it is fine."""
    from universal_simulator.configuration import load_config
    from universal_simulator.data.symmetries import refuse_undeclared

    loaded = load_config(config, overrides or [], profile=profile)
    refuse_undeclared(loaded.config)
    if as_json:
        told = {"source": loaded.source, "profile": loaded.config.profile, "hash": loaded.hash}
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{loaded.source}: fine ({loaded.config.profile}, hash {loaded.hash[:12]})")
