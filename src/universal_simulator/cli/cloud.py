"""usim cloud search | status | reap"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from universal_simulator.cli.options import Json

if TYPE_CHECKING:
    from universal_simulator.executors.cloud_ledger import Ledger
    from universal_simulator.executors.vast_client import VastClient

app = typer.Typer(
    help="Machines rented at Vast.ai: what is on offer, what is rented, and the end of what should not be.\n\n"
    "The account's key is read from VAST_API_KEY, --key-file, or the files of Vast.ai's own tool, and is "
    "never printed. docs/cloud.md tells how a sweep rents and what it costs.",
    no_args_is_help=True,
)
KeyFile = Annotated[Path | None, typer.Option(help="a file that holds the account's API key")]


@app.command()
def search(
    machine: Annotated[str, typer.Option(help="small (GPU of 40 GB or more) or large (80 GB)")] = "small",
    at_most: Annotated[float, typer.Option(help="USD per hour")] = 1.5,
    spot: Annotated[
        bool, typer.Option(help="interruptible: cheaper, may be taken away at any moment")
    ] = False,
    disk_gb: Annotated[float, typer.Option(help="GB of disk, whose rent is in the price")] = 64.0,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Offers that a sweep would take, the cheapest first. Rents nothing; the service has a daily quota.

    Example: usim cloud search --machine large --at-most 1.20
    """
    from universal_simulator.executors.cloud_settings import CloudSettings

    settings = CloudSettings(ceiling_usd=1.0, price_usd_per_hour_at_most=at_most, spot=spot, disk_gb=disk_gb)
    with _client(key_file) as client:
        offers = client.search(settings.criteria(machine))
    rows = [
        {
            "id": offer.id,
            "gpu": offer.gpu_name,
            "gpu_ram_gb": round(offer.gpu_ram / 1000, 1),
            "usd_per_hour": round(offer.price_usd_per_hour(spot=spot), 4),
            "reliability": offer.reliability2,
            "disk_gb": offer.disk_space,
            "mbit_down": offer.inet_down,
        }
        for offer in offers
    ]
    _print(rows, as_json, "no offer meets the criteria now; ask for less, or pay more (--at-most)")


@app.command()
def status(
    folder: Annotated[
        Path | None, typer.Argument(help="a sweep's folder; none: all instances of ours")
    ] = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """What is rented, by the service's own complete list, and what the sweep has spent by its ledger.

    Of a sweep also what is stopped and kept because its results have not come home: why, its price, how it ends.

    Example: usim cloud status runs/sota
    """
    from universal_simulator.executors.cloud_settings import CloudSettings
    from universal_simulator.executors.kept_results import telling

    ledger = None if folder is None else _ledger(folder)
    project = CloudSettings(ceiling_usd=1.0).project if ledger is None else ledger.project
    prefix = f"{project}-" if ledger is None else f"{project}-{ledger.sweep}-"
    with _client(key_file) as client:
        listed = client.list_instances(prefix)
        now = client.service_now()
    rows: list[dict[str, Any]] = []
    for instance in listed:
        lease = None if ledger is None else ledger.leases.get(instance.label or "")
        rows.append(
            {
                "id": instance.id,
                "label": instance.label,
                "status": instance.actual_status,
                "usd_per_hour": instance.dph_total,
                "job": lease and lease.job_id,
                "spent_usd": lease and round(lease.spent_usd(now), 4),
            }
        )
    kept = [] if ledger is None or folder is None else [telling(x, folder) for x in ledger.all_kept()]
    if as_json:
        spent = None if ledger is None else round(ledger.spent_usd(now), 4)
        typer.echo(json.dumps({"instances": rows, "spent_usd": spent, "kept": kept}, indent=1))
        return
    _print(rows, False, "nothing is rented")
    for words in kept:
        typer.echo(words)
    if ledger is not None:
        typer.echo(f"${ledger.spent_usd(now):.2f} spent by {len(ledger.leases)} lease(s) of {folder}")


@app.command()
def reap(
    folder: Annotated[Path, typer.Argument(help="the sweep's folder")],
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="also what its jobs are at work on or left: what has not come home is lost"
        ),
    ] = False,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Destroy what was rented for a sweep and nobody wants any more, and see it gone from the list.

    Refused while a driver is at work in the folder. What a dead driver's jobs are at work on, and what is stopped
    with results that have not come home, is left for `usim sweep resume`, unless --all is given.

    Example: usim cloud reap runs/sota --all
    """
    from universal_simulator.executors.cloud_settings import CloudSettings
    from universal_simulator.executors.kept_results import telling
    from universal_simulator.executors.tenant import Tenant
    from universal_simulator.sweep.lock import locked

    ledger = _ledger(folder)
    with _client(key_file) as client, locked(folder):
        client.list_instances()
        tenant = Tenant(client, ledger, CloudSettings(ceiling_usd=1.0))
        destroyed = [instance.id for instance in tenant.reap().destroy]
        for lease in ledger.live() if everything else ():
            destroyed += [lease.instance_id] if lease.instance_id else []
            tenant.release(lease, "reaped by hand")
        left = [{"id": x.instance_id, "job": x.job_id} for x in ledger.live() if not x.kept]
        kept = [telling(lease, folder) for lease in ledger.all_kept()]
    spent = round(tenant.spent_usd(), 4)
    if as_json:
        told = {"destroyed": destroyed, "left": left, "kept": kept, "spent_usd": spent}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"destroyed and seen gone: {', '.join(map(str, destroyed)) or 'nothing'}; ${spent:.2f} spent")
    for row in left:
        typer.echo(f"still rented: {row['id']} for {row['job']} (usim sweep resume, or --all)")
    for words in kept:
        typer.echo(words)


def _client(key_file: Path | None) -> VastClient:
    from universal_simulator.executors.renting import open_client

    return open_client(os.environ, key_file)


def _ledger(folder: Path) -> Ledger:
    from universal_simulator.errors import UserError
    from universal_simulator.executors.cloud_ledger import FILE, Ledger

    if not (folder / FILE).exists():
        raise UserError(f"{folder} has no {FILE}: nothing was ever rented for it")
    return Ledger(folder / FILE)


def _print(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo(nothing)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)
