"""usim config show | check"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from universal_simulator.cli.options import Json

app = typer.Typer(help="Show and check configurations.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="a config's name (configs/NAME.yaml) or path")]
Words = Annotated[
    list[str] | None, typer.Argument(help="overrides, e.g. training.operator.learning_rate=3e-4")
]
ProfileName = Annotated[str | None, typer.Option(help="embedded, standard, full or smoke")]
#: key, plan's value, effective value, rule
Row = tuple[str, Any, Any, str]


@app.command()
def show(
    config: Name,
    overrides: Words = None,
    profile: ProfileName = None,
    all_keys: Annotated[bool, typer.Option("--all", help="also the keys that nothing reads here")] = False,
    as_json: Json = False,
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
    typer.echo(f"{loaded.config.name} ({loaded.config.profile}), hash {loaded.hash[:12]}")
    _print_table(loaded.rows() if all_keys else [row for row in loaded.rows() if not _unread(row[3])])
    if not all_keys:
        for words in _unread_in_short(loaded.rows()):
            typer.echo(words)


def _print_table(rows: list[Row]) -> None:
    """Keys under their section's name, so that none is broken on 80 columns."""
    from rich.console import Console
    from rich.table import Column, Table

    values = (Column(name, overflow="fold") for name in ("plan", "effective", "rule"))
    table = Table(Column("key", no_wrap=True), *values, box=None, pad_edge=False)
    last = ""
    for key, plan, effective, rule in rows:
        section, _, name = key.rpartition(".")
        if section != last:
            table.add_row(section)
        last = section
        indented = f"  {name}" if section else name
        table.add_row(indented, "" if plan is None else _told(plan), _told(effective), rule)
    Console(markup=False, highlight=False).print(table)


def _told(value: Any) -> str:
    """Without a float's last digits, lists without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(_told, value))}]"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _unread(rule: str) -> bool:
    return rule.startswith(("not read: ", "not run: "))


def _unread_in_short(rows: list[Row]) -> list[str]:
    """One line per reason."""
    keys: dict[str, list[str]] = {}
    for key, _, _, rule in rows:
        if _unread(rule):
            keys.setdefault(rule, []).append(key)
    return [
        f"{rule}: {len(found)} key{'' if len(found) == 1 else 's'} of {found[0].split('.')[0]} (--all)"
        for rule, found in keys.items()
    ]


@app.command()
def check(
    config: Name,
    overrides: Words = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Refuse a faulty config with all its faults at once (exit code 2), say so if it is fine.

    Example: usim config check mine.yaml --profile embedded training.operator.learning_rate=3e-4
    """
    from universal_simulator.configuration import load_config
    from universal_simulator.data.sufficiency import announced, lacking_frames
    from universal_simulator.data.symmetries import refuse_undeclared
    from universal_simulator.errors import ConfigurationError

    loaded = load_config(config, overrides or [], profile=profile)
    refuse_undeclared(loaded.config)
    known = announced(loaded.config.data)
    if known is not None and (faults := lacking_frames(loaded.config, known.frames, stochastic=False)):
        raise ConfigurationError(
            f"{loaded.config.name} on {loaded.config.data.file or loaded.config.data.dataset}", faults
        )
    if as_json:
        told = {"source": loaded.source, "profile": loaded.config.profile, "hash": loaded.hash}
        typer.echo(json.dumps(told | {"held_against_data": known is not None}))
        return
    typer.echo(f"{loaded.source}: fine ({loaded.config.profile}, hash {loaded.hash[:12]})")
    if known is None:
        typer.echo(
            f"not held against its data: {loaded.config.data.file or loaded.config.data.dataset} is not here"
        )
