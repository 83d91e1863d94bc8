"""usim data generate | info"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Generate and inspect data sets.", no_args_is_help=True)


@app.command()
def generate(
    dataset: Annotated[str, typer.Argument(help="a specification's name (configs/data/NAME.yaml) or path")],
    folder: Annotated[Path, typer.Option(help="written to FOLDER/data/NAME.hdf5")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Make a data set with the reference solver; interrupted and typed again, it goes on.

    Example: usim data generate burgers_smoke --folder runs/smoke
    """
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.experiment import dataset_path, ensure_dataset

    path = dataset_path(folder, Path(dataset).stem)
    made = ensure_dataset(dataset, path, progress=ProgressLine().update)
    made.audit()
    if as_json:
        typer.echo(json.dumps({"path": str(path), "identity": made.identity}))
    else:
        typer.echo(f"{path}\n{made.identity}")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="an HDF5 file in PDEBench's layout")],
    nu: Annotated[
        float | None, typer.Option(help="the parameter, where neither file nor name says it")
    ] = None,
    verify: Annotated[bool, typer.Option(help="read everything and compare with the stored hash")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What a data file holds: equation, regimes, frames, splits, identity."""
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
