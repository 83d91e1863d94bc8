"""PDEBench's HDF5 layout: the only place that opens HDF5.

As published: `tensor` (N, T, X), `x-coordinate` (X,), `t-coordinate` (T or T + 1,), equation
and parameter in the file name. Ours adds `parameter` (N,), `split` (N,) and attributes, of which
`equation` is believed before any name (Kuramoto-Sivashinsky has no name to go by); a user's
own array (`data/arrays.py`) may hold several fields, `tensor` (N, T, C, X), or no parameter.
Every file is hostile until read: each fault is one DataError saying what, where and how to mend.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from universal_simulator.errors import DataError
from universal_simulator.physics.equations import ADVECTION, BURGERS, DECLARED, Equation, undeclared

FORMAT_VERSION = 1
#: rows read at a time where a whole file is scanned
CHUNK_ROWS = 64
_NAME_PATTERNS = (
    (BURGERS, re.compile(r"burgers.*nu([0-9.]+?)(?=_|\.h|$)", re.IGNORECASE)),
    (ADVECTION, re.compile(r"advection.*beta([0-9.]+?)(?=_|\.h|$)", re.IGNORECASE)),
)


@dataclass(frozen=True)
class FileHeader:
    """What a data file says of itself, without its fields."""

    path: Path
    #: (N, T, X): trajectories, frames, points
    shape: tuple[int, int, int]
    x: np.ndarray
    times: np.ndarray
    #: (N, P), P = 0 where nothing varies
    parameters: np.ndarray
    split: np.ndarray | None
    equation: Equation
    identity: str | None
    specification: str | None


@contextmanager
def opened(path: Path, mode: str = "r") -> Iterator[h5py.File]:
    """h5py.File with its errors translated.

    Content that cannot be understood is a DataError. What the operating system refuses to a writer
    (no space left, a limit, another process's lock, no permission) stays an OSError with its number and
    the path, for the file is as good as before; to a reader it is a DataError that says so.
    """
    if mode == "r" and not path.is_file():
        raise DataError(f"{path} does not exist or is no file")
    try:
        with h5py.File(path, mode) as file:
            yield file
    except (OSError, RuntimeError) as error:
        number = _refused(error)
        if number and mode != "r":
            raise OSError(number, os.strerror(number), str(path)) from error
        if number:
            raise DataError(
                f"{path} cannot be read: {os.strerror(number)}; see to its permissions, its disk and who else "
                "has it open"
            ) from error
        raise DataError(
            f"{path} cannot be read as HDF5 ({error}); it is damaged, truncated or of another "
            "format: download or generate it again"
        ) from error


def _refused(error: OSError | RuntimeError) -> int:
    """Number of the operating system's own error, 0 where it had none. HDF5 words it where a file is closed."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    worded = re.search(r"\berrno = (\d+)", str(error))
    return int(worded.group(1)) if worded else 0


def read_header(path: Path, *, parameter: float | None = None) -> FileHeader:
    """Validate the layout; `parameter` overrides what the file or its name says."""
    with opened(path) as file:
        tensor = _numeric(path, file, "tensor", 3, 4)
        rows, frames, *fields, points = (int(n) for n in tensor.shape)
        shape = (rows, frames, points)
        if min(tensor.shape) < 1 or frames < 2 or points < 4:
            raise DataError(f"{path}: 'tensor' is {tensor.shape}; need (N >= 1, T >= 2, [C >= 1,] X >= 4)")
        x = np.asarray(_numeric(path, file, "x-coordinate", 1)[()], dtype=np.float64)
        times = np.asarray(_numeric(path, file, "t-coordinate", 1)[()], dtype=np.float64)
        stored = _optional(path, file, "parameter", shape[0])
        split = _optional(path, file, "split", shape[0])
        equation_name = _text(file.attrs.get("equation"))
        field_names = _names(path, file, "field_names")
        parameter_names = _names(path, file, "parameter_names")
        identity = file.attrs.get("identity")
        specification = file.attrs.get("specification")
        complete = bool(file.attrs.get("complete", True))
    if not complete:
        raise DataError(f"{path} was not finished; run `usim data generate` again to go on")
    if len(x) != shape[2] or len(times) not in (shape[1], shape[1] + 1):
        raise DataError(f"{path}: 'tensor' {shape} does not fit {len(x)} x- and {len(times)} t-coordinates")
    times = times[: shape[1]]
    _uniform(path, "x-coordinate", x)
    _uniform(path, "t-coordinate", times)
    if equation_name == "undeclared":
        equation = undeclared(field_names, parameter_names)
        if len(field_names) != (fields or [1])[0] or len(parameter_names) != (stored is not None):
            raise DataError(
                f"{path}: {len(field_names)} field and {len(parameter_names)} parameter names do not fit"
            )
        values = np.empty((rows, 0)) if stored is None else stored.astype(np.float64)[:, None]
    elif fields:
        raise DataError(f"{path}: 'tensor' with a field axis needs the attribute equation = 'undeclared'")
    else:
        equation, column = _parameters(path, rows, stored, parameter, equation_name)
        values = column[:, None]
        spec = equation.parameters[0]
        if not ((column >= spec.low) & (column <= spec.high)).all():
            raise DataError(
                f"{path}: {spec.name} {column.min():g} to {column.max():g} leaves what {equation.name} is "
                f"known for ({spec.low:g} to {spec.high:g})"
            )
    return FileHeader(path, shape, x, times, values, split, equation, _text(identity), _text(specification))


def read_rows(path: Path, rows: np.ndarray, frames: slice, stride_x: int = 1) -> np.ndarray:
    """(len(rows), frames, C, X / stride_x) float32, rows in any order; non-finite values refused."""
    order = np.argsort(rows)
    with opened(path) as file:
        tensor = file["tensor"]
        fields = (slice(None),) if tensor.ndim == 4 else ()
        space = slice(None, None, stride_x)
        count = len(range(*frames.indices(tensor.shape[1])))
        channels = tensor.shape[2] if fields else 1
        out = np.empty(
            (len(rows), count, channels, len(range(*space.indices(tensor.shape[-1])))), dtype=np.float32
        )
        for start in range(0, len(rows), CHUNK_ROWS):
            chosen = order[start : start + CHUNK_ROWS]
            out[chosen] = tensor[(rows[chosen], frames, *fields, space)].reshape(-1, *out.shape[1:])
            if not np.isfinite(out[chosen]).all():
                bad = chosen[~np.isfinite(out[chosen]).all(axis=(1, 2, 3))]
                raise DataError(f"{path}: trajectories {rows[bad][:5].tolist()} hold NaN or infinite values")
    return out


class WindowReader:
    """Reads many short windows of one file, which stays open until the reader is closed or gone."""

    def __init__(self, path: Path, *, stride_x: int = 1) -> None:
        self.path = path
        self.stride_x = stride_x
        self._open = ExitStack()
        self._tensor = self._open.enter_context(opened(path))["tensor"]

    def close(self) -> None:
        self._open.close()

    def read(self, rows: np.ndarray, first_frames: np.ndarray, *, count: int, stride: int) -> np.ndarray:
        """Window i: `count` frames of trajectory rows[i] from first_frames[i], every stride-th one.

        (len(rows), count, C, X / stride_x) float32; a row may come twice. Windows that begin at the
        same frame are read in one go. NaN or infinite values, or a file that can no longer be read,
        are a DataError.
        """
        channels = self._tensor.shape[2] if self._tensor.ndim == 4 else 1
        space = slice(None, None, self.stride_x)
        points = len(range(*space.indices(self._tensor.shape[-1])))
        out = np.empty((len(rows), count, channels, points), dtype=np.float32)
        fields = (slice(None),) if self._tensor.ndim == 4 else ()
        for first in np.unique(first_frames):
            among = np.flatnonzero(first_frames == first)
            chosen, places = np.unique(rows[among], return_inverse=True)
            frames = slice(int(first), int(first) + (count - 1) * stride + 1, stride)
            try:
                values = self._tensor[(chosen, frames, *fields, space)]
            except (OSError, RuntimeError) as error:
                raise DataError(f"{self.path} can no longer be read ({error})") from error
            out[among] = values.reshape(len(chosen), count, channels, points)[places]
        finite = np.isfinite(out).all(axis=(1, 2, 3))
        if not finite.all():
            bad = sorted(set(rows[~finite].tolist()))[:5]
            raise DataError(f"{self.path}: trajectories {bad} hold NaN or infinite values")
        return out


def read_array(path: Path, name: str) -> np.ndarray:
    """One numeric dataset of any HDF5 file, whole."""
    with opened(path) as file:
        return np.asarray(_numeric(path, file, name, 1, 2, 3, 4)[()])


def content_identity(path: Path) -> str:
    """SHA-256 of fields, coordinates, parameters (or a coefficient, `nu`) and split, read in chunks.

    The one pass over everything also refuses values that are not finite: DataError naming their trajectories.
    """
    digest, bad = hashlib.sha256(), list[int]()
    with opened(path) as file:
        for name in ("x-coordinate", "t-coordinate", "parameter", "nu", "split"):
            if name in file:
                digest.update(np.ascontiguousarray(file[name][()]).tobytes())
        tensor = file["tensor"]
        tensor_rows = tensor.shape[0]
        digest.update(str((tensor.shape, str(tensor.dtype))).encode())
        for start in range(0, tensor_rows, CHUNK_ROWS):
            chunk = np.ascontiguousarray(tensor[start : start + CHUNK_ROWS])
            digest.update(chunk.tobytes())
            finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
            bad += (start + np.flatnonzero(~finite)).tolist()
    if bad:
        raise DataError(
            f"{path}: {len(bad)} of {tensor_rows} trajectories hold NaN or infinite values ({bad[:5]}"
            f"{' and more' if len(bad) > 5 else ''}); leave them out, e.g. with `usim data import` of the rest"
        )
    return digest.hexdigest()


def _numeric(path: Path, file: h5py.File, name: str, *ranks: int) -> h5py.Dataset:
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        raise DataError(f"{path} has no dataset {name!r} (has: {', '.join(sorted(file)) or 'nothing'})")
    if item.dtype.kind not in "fiu" or item.ndim not in ranks:
        axes = " or ".join(map(str, ranks))
        raise DataError(
            f"{path}: {name!r} must be numeric with {axes} axes, is {item.dtype} of shape {item.shape}"
        )
    return item


def _optional(path: Path, file: h5py.File, name: str, rows: int) -> np.ndarray | None:
    if name not in file:
        return None
    values = np.asarray(_numeric(path, file, name, 1)[()])
    if len(values) != rows or not np.isfinite(values).all():
        raise DataError(f"{path}: {name!r} needs {rows} finite values, has {len(values)}")
    return values


def _uniform(path: Path, name: str, values: np.ndarray) -> None:
    steps = np.diff(values)
    if not np.isfinite(values).all() or not (steps > 0).all() or np.ptp(steps) > 1e-3 * steps.mean():
        raise DataError(f"{path}: {name!r} must be finite, rising and evenly spaced")


def _parameters(
    path: Path, rows: int, stored: np.ndarray | None, given: float | None, equation_name: str | None
) -> tuple[Equation, np.ndarray]:
    named = DECLARED.get(equation_name or "")
    if equation_name is not None and named is None:
        raise DataError(
            f"{path} holds {equation_name!r}, an equation with a time known here is {' or '.join(DECLARED)}; "
            "make it a data file of undeclared physics with `usim data import`"
        )
    if stored is not None and named is not None and given is None:
        return named, stored.astype(np.float64)
    for equation, pattern in _NAME_PATTERNS:
        match = pattern.search(path.name)
        if given is None and match and named in (None, equation):
            return equation, np.full(rows, float(match.group(1).rstrip(".")))
    if given is not None:
        return named or (ADVECTION if "advection" in path.name.lower() else BURGERS), np.full(rows, given)
    raise DataError(
        f"{path}: no 'parameter' dataset, and neither Burgers with Nu... nor advection with beta... in its "
        "name; give it, e.g. --nu 0.01, or make it a data file of its own with `usim data import`"
    )


def _names(path: Path, file: h5py.File, key: str) -> tuple[str, ...]:
    try:
        names = json.loads(_text(file.attrs.get(key)) or "[]")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: attribute {key!r} is no list of names: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: attribute {key!r} must be a list of names, is {names!r}")
    return tuple(names)


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)
