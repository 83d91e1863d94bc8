"""usim data generate | fetch | import | info"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from universal_simulator.cli.options import Json, Parameter

app = typer.Typer(help="Generate and inspect data sets.", no_args_is_help=True)


@app.command()
def generate(
    dataset: Annotated[
        str,
        typer.Argument(
            help="a specification's name (configs/data/NAME.yaml) or path, or a data file, which is checked"
        ),
    ],
    folder: Annotated[Path, typer.Option(help="written to FOLDER/data/NAME.hdf5")] = Path("runs"),
    expect: Annotated[
        str | None, typer.Option(help="fail unless the data come out with this identity", hidden=True)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a data set with the reference solver; interrupted and typed again, it goes on.

    Example: usim data generate burgers_smoke --folder runs/smoke
    """
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.errors import IntegrityError
    from universal_simulator.experiment import prepare_dataset

    made = prepare_dataset(dataset, folder, progress=ProgressLine().update)
    if expect is not None and made.identity != expect:
        raise IntegrityError(
            f"{made.path}: made here it is {made.identity[:12]}, not {expect[:12]}: another machine"
        )
    if as_json:
        answer = {"path": str(made.path), "identity": made.identity, "regimes": made.info.regimes}
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"{made.path}\n{made.identity}")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="an HDF5 file in PDEBench's layout")],
    nu: Parameter = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="read everything: finite values, and the stored hash")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a data file holds: equation, regimes, frames, splits, identity.

    Example: usim data info runs/smoke/data/burgers_smoke.hdf5 --verify
    """
    from universal_simulator.data.dataset import open_dataset

    dataset = open_dataset(file, parameter=nu)
    if verify:
        dataset.verify()
    values = dataset.info.as_dict()
    if as_json:
        typer.echo(json.dumps(values, indent=1))
        return
    for key, value in values.items():
        typer.echo(f"{key:18} {value}")
    if not values["groups_per_split"]:
        typer.echo(
            "too few initial conditions for splits: for evaluation only (usim evaluate RUN --data FILE)"
        )


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="your array: .npy, .npz or HDF5")],
    out: Annotated[Path, typer.Option(help="the data file to write (.hdf5)")],
    axes: Annotated[str, typer.Option(help="its axes in their order, e.g. trajectory,time,x")],
    dt: Annotated[float, typer.Option(help="seconds between two frames")],
    dx: Annotated[float, typer.Option(help="metres between two points")],
    key: Annotated[str | None, typer.Option(help="the array's name in .npz and HDF5 files")] = None,
    fields: Annotated[str, typer.Option(help="names of the fields, in their order")] = "u",
    parameter: Annotated[str | None, typer.Option(help="name of what differs between trajectories")] = None,
    values: Annotated[str | None, typer.Option(help="its value: a number, or a .npy file")] = None,
    as_json: Json = False,
) -> None:
    """Make a data file of your own array; its physics stays undeclared.

    Example: usim data import mine.npy --out mine.hdf5 --axes trajectory,time,x --dt 0.01 --dx 0.004

    Then: usim run rerun_txxoc8a8 data.file=mine.hdf5 model.canonical_frame=[] training.augmentation=[]
    """
    from universal_simulator.data.arrays import import_array, read_values

    dataset = import_array(
        source,
        out,
        axes=[name.strip() for name in axes.split(",")],
        dt_s=dt,
        dx=dx,
        key=key,
        fields=[name.strip() for name in fields.split(",")],
        parameter=parameter,
        values=None if values is None else read_values(values),
    )
    dataset.audit()
    if as_json:
        typer.echo(json.dumps(dataset.info.as_dict(), indent=1))
        return
    typer.echo(f"{out}\n{dataset.identity}")


@app.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(help="a published file, e.g. burgers_nu0.01; none: list them")
    ] = None,
    folder: Annotated[Path, typer.Option(help="where it goes")] = Path("data"),
    mirror: Annotated[list[str] | None, typer.Option(help="tried first; may be given again")] = None,
) -> None:
    """Download a published PDEBench file: resumed, checked against its MD5.

    Example: usim data fetch burgers_nu0.01 --folder data
    """
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.data.fetch import catalogue, published
    from universal_simulator.data.fetch import fetch as fetch_file

    if name is None:
        for known, entry in catalogue().files.items():
            typer.echo(f"{known:20} {entry.file}")
        return
    entry, address = published(name)
    typer.echo(str(fetch_file(entry, [*(mirror or []), address], folder, progress=ProgressLine().update)))
