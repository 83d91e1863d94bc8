"""A user's own array -> a data file like any other; its physics stays undeclared.

The caller names the axes and the spacings; nothing is guessed. What comes out carries splits
by initial condition and an identity, and is read, trained and evaluated like generated data.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from universal_simulator.data import pdebench
from universal_simulator.data.batch import group_hash
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.splits import split_by_group
from universal_simulator.errors import DataError, UserError

AXES = ("trajectory", "time", "field", "x")
SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")


def import_array(
    source: Path,
    out: Path,
    *,
    axes: Sequence[str],
    dt_s: float,
    dx: float,
    key: str | None = None,
    fields: Sequence[str] = ("u",),
    parameter: str | None = None,
    values: np.ndarray | float | None = None,
) -> Dataset:
    """Write `source` as a data file to `out` (which must not exist) and open it.

    axes: the name of each axis of the array in its order, among `trajectory`, `time`, `field`,
    `x`; `trajectory` and `field` may be missing. key: the array's name in .npz and HDF5 files.
    parameter, values: a number per trajectory (or one for all) that the dynamics depend on.
    """
    if out.exists():
        raise UserError(f"{out} exists; give another --out, or move it away")
    if out.suffix not in (".h5", ".hdf5"):
        raise UserError(f"--out {out}: the file is HDF5, end its name in .hdf5")
    _positive("dt", dt_s)
    _positive("dx", dx)
    array = _ordered(source, _read(source, key), tuple(axes))
    if array.shape[2] != len(fields):
        raise UserError(f"{source} holds {array.shape[2]} fields, {len(fields)} names are given: {fields}")
    column = _column(parameter, values, array.shape[0])
    groups = [group_hash(row[None]) for row in array[:, 0]]
    split = split_by_group(groups, source=source)
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with pdebench.opened(partial, "w") as file:
        file["tensor"] = array
        file["x-coordinate"] = dx * (np.arange(array.shape[3]) + 0.5)
        file["t-coordinate"] = dt_s * np.arange(array.shape[1])
        file["split"] = split
        if column is not None:
            file["parameter"] = column
        file.attrs["format_version"] = pdebench.FORMAT_VERSION
        file.attrs["equation"] = "undeclared"
        file.attrs["field_names"] = json.dumps(list(fields))
        file.attrs["parameter_names"] = json.dumps([parameter] if parameter else [])
    identity = pdebench.content_identity(partial)
    with pdebench.opened(partial, "r+") as file:
        file.attrs["identity"] = identity
    os.replace(partial, out)
    return open_dataset(out)


def read_values(text: str) -> np.ndarray | float:
    """A number, or the path of a .npy file with one number per trajectory."""
    try:
        return float(text)
    except ValueError:
        return _read(Path(text), None)


def _read(source: Path, key: str | None) -> np.ndarray:
    """The array as stored; numpy's pickles are never loaded."""
    if source.suffix not in SUFFIXES:
        raise UserError(f"{source}: expected a file ending in {', '.join(SUFFIXES)}")
    if source.suffix in (".h5", ".hdf5"):
        return pdebench.read_array(source, _named(source, key))
    try:
        loaded = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{source} cannot be read as a numpy file ({error})") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as archive:
        name = _named(source, key) if key or len(archive.files) != 1 else archive.files[0]
        if name not in archive.files:
            raise UserError(f"{source} has no array {name!r} (has: {', '.join(archive.files) or 'none'})")
        try:
            return archive[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{source}: {name!r} cannot be read ({error})") from error


def _named(source: Path, key: str | None) -> str:
    if key is None:
        raise UserError(f"{source} may hold several arrays; name one with --key")
    return key


def _ordered(source: Path, array: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    """(N, T, C, X) float32, finite."""
    unknown = [name for name in axes if name not in AXES]
    if unknown or len(set(axes)) < len(axes) or not {"time", "x"} <= set(axes):
        raise UserError(
            f"--axes {','.join(axes)}: name each axis once, among {', '.join(AXES)}; time and x are needed"
        )
    if array.dtype.kind not in "fiu" or array.ndim != len(axes):
        raise UserError(
            f"{source} is {array.dtype} of shape {array.shape}; --axes names {len(axes)} axes of real numbers"
        )
    present = [name for name in AXES if name in axes]
    ordered = np.transpose(array, [axes.index(name) for name in present])
    for position, name in enumerate(AXES):
        if name not in axes:
            ordered = np.expand_dims(ordered, position)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(ordered, dtype=np.float32)
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    if not finite.all():
        bad = np.flatnonzero(~finite)[:5].tolist()
        raise DataError(f"{source}: trajectories {bad} hold NaN or values beyond single precision")
    return values


def _column(parameter: str | None, values: np.ndarray | float | None, rows: int) -> np.ndarray | None:
    if (parameter is None) != (values is None):
        raise UserError("--parameter NAME and --values belong together")
    if values is None:
        return None
    column = np.broadcast_to(np.asarray(values, dtype=np.float64), (rows,)) if np.ndim(values) == 0 else None
    if column is None:
        column = np.asarray(values)
        if column.dtype.kind not in "fiu" or column.shape != (rows,):
            raise UserError(f"--values need one number per trajectory ({rows}), have shape {column.shape}")
    if not np.isfinite(column).all():
        raise UserError("--values must be finite")
    return column.astype(np.float64)


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise UserError(f"--{name} {value:g}: a spacing is positive and finite")
