"""Which executor a sweep runs on: `--executor`, and what belongs to each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from universal_simulator.credentials import masked
from universal_simulator.sweep.executor import Executor


class Where(StrEnum):
    local = "local"
    ray = "ray"
    vast = "vast"


Workers = Annotated[int, typer.Option(min=1, help="runs at a time; the cores are shared out")]
On = Annotated[
    Where,
    typer.Option(
        "--executor",
        help="local: processes of this machine; ray: a Ray cluster; vast: rented GPUs (docs/cloud.md)",
    ),
]
CeilingUsd = Annotated[
    float | None, typer.Option(help="with --executor vast: what the sweep may cost at most, in USD")
]
CloudFile = Annotated[
    Path | None,
    typer.Option("--cloud", help="with --executor vast: a YAML file of settings (docs/cloud.md)"),
]
RayAddress = Annotated[
    str,
    typer.Option(
        help="with --executor ray: `local` starts a head on this machine, `auto` joins the one of "
        "RAY_API_SERVER_ADDRESS or of this machine, or the URL of a job API (http://HOST:8265)"
    ),
]


@contextmanager
def opened(
    where: Where,
    *,
    workers: int,
    ray_address: str,
    ceiling_usd: float | None = None,
    cloud: Path | None = None,
    folder: Path | None = None,
) -> Iterator[Executor]:
    """The executor, and the end of what it holds; only the chosen one is imported.

    folder: the sweep's; another executor than vast is refused while something is rented for it.
    """
    if where is not Where.vast and folder is not None:
        _refuse_while_rented(folder, where)
    if where is Where.vast:
        from universal_simulator.executors.renting import renting_settings, vast_executor

        settings = renting_settings(cloud, ceiling_usd)
        yield vast_executor(
            settings, os.environ, slots=workers, tell=lambda text: typer.echo(masked(text), err=True)
        )
        return
    if where is Where.ray:
        from universal_simulator.executors.local_process import visible_gpus
        from universal_simulator.executors.ray_cluster import RayClusterExecutor

        gpus = len(visible_gpus())  # of a head on this machine
        with closing(RayClusterExecutor(workers, address=ray_address, gpus=gpus)) as executor:
            yield executor
        return
    from universal_simulator.executors.local_process import LocalProcessExecutor

    yield LocalProcessExecutor(workers)


def _refuse_while_rented(folder: Path, where: Where) -> None:
    """No other executor can know how a rented job ends, fetch what it made or stop its bill."""
    from universal_simulator.errors import UserError
    from universal_simulator.executors.cloud_ledger import FILE, Ledger

    live = Ledger(folder / FILE).live() if (folder / FILE).exists() else []
    if live:
        raise UserError(
            f"{len(live)} instance(s) rented for {folder} may be at work or billed "
            f"({', '.join(sorted({lease.job_id for lease in live}))}), and --executor {where} would run their jobs a "
            f"second time: go on with --executor vast --ceiling-usd USD, or look with `usim cloud status {folder}` and "
            f"end them with `usim cloud reap {folder} --all` first"
        )
