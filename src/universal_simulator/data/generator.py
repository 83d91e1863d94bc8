"""Equation + initial conditions + reference solver -> a file, reproducible and resumable.

Every group (initial condition) is solved under every parameter value. Chunk i of groups is
drawn from a generator seeded by (seed, i), so a killed generation goes on with the next
chunk and ends in the same bytes as an uninterrupted one. The whole file's room is reserved before
the first chunk, so a disk too small is told before anything is solved.
Chunks do not know of each other: as many as there are idle cores are solved at a time, each as it
would be alone, and written in their order.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from universal_simulator.data import pdebench
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.data.splits import SPLITS
from universal_simulator.errors import DataError
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import equation_named
from universal_simulator.physics.initial_conditions import draw_sine_family, draw_smooth_family
from universal_simulator.physics.reference import solve, torch_times

CHUNK_GROUPS = 32
#: chunks solved at a time at most, each some hundred MiB of a large data set
MOST_AT_ONCE = 4
Progress = Callable[[int, int], None]
#: drawn initial conditions: positions in fractions of the domain (X,) -> (B, X)
Family = Callable[[Tensor], Tensor]


def generate(spec: DatasetSpec, path: Path, *, progress: Progress | None = None) -> Dataset:
    """Make `path` (or find it finished); `progress(done, total)` counts groups."""
    if path.exists():
        return _finished(spec, path)
    if len(spec.solver_refinement) != len(spec.parameter_values):
        raise DataError(
            f"{spec.name}: solver_refinement needs one entry per parameter value, has "
            f"{len(spec.solver_refinement)} for {len(spec.parameter_values)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    total = sum(spec.groups.model_dump().values())
    _check_space(spec, partial, total)
    done = _resume(spec, partial, total)
    _reserve(partial, partial.stat().st_size)
    for first, rows in _solved_chunks(spec, done, total):
        _write_chunk(spec, partial, first, rows)
        if progress is not None:
            progress(min(first + CHUNK_GROUPS, total), total)
    identity = pdebench.content_identity(partial)
    with pdebench.opened(partial, "r+") as file:
        file.attrs["identity"] = identity
        file.attrs["complete"] = True
    _flush(partial)
    os.replace(partial, path)
    return open_dataset(path)


def _finished(spec: DatasetSpec, path: Path) -> Dataset:
    dataset = open_dataset(path)
    if not _states(dataset.header.specification, spec):
        raise DataError(
            f"{path} holds another data set than {spec.name!r} asks for; move it away, or give another path"
        )
    dataset.require_unchanged()
    return dataset


def _states(stored: str | None, spec: DatasetSpec) -> bool:
    """Does a file's attribute say the same? A field it was written without has its default."""
    try:
        return stored is not None and DatasetSpec.model_validate_json(stored) == spec
    except ValidationError:
        return False


def _check_space(spec: DatasetSpec, partial: Path, groups: int) -> None:
    rows = groups * len(spec.parameter_values)
    held = partial.stat().st_blocks * 512 if partial.exists() else 0
    needed = rows * spec.frames * spec.grid_points * 4 * 1.05 - held
    free = shutil.disk_usage(partial.parent).free
    if free < needed:
        raise DataError(
            f"{partial} needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free there; make room and "
            "type the command again, or give another folder"
        )


def _reserve(path: Path, length: int) -> None:
    """`length` bytes on the disk, now: OSError where there is no room for them. Content stays."""
    with open(path, "ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, length)
        except OSError as error:
            # a file system that cannot reserve tells of a full disk when a chunk is written
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error


def _resume(spec: DatasetSpec, partial: Path, total: int) -> int:
    """Groups already written; a partial file of another specification or damaged starts over."""
    if partial.exists():
        try:
            with pdebench.opened(partial, "r+") as file:
                if _states(file.attrs.get("specification"), spec) and "groups_done" in file.attrs:
                    return int(file.attrs["groups_done"])
        except DataError:
            # no HDF5 any more: a kill inside its own write leaves nothing worth keeping
            partial.unlink()
    values = spec.parameter_values
    grid = Grid((spec.domain_length,), (spec.grid_points,))
    split = np.repeat(
        np.arange(len(SPLITS), dtype=np.int8),
        [getattr(spec.groups, name) * len(values) for name in SPLITS],
    )
    shape = (total * len(values), spec.frames, spec.grid_points)
    # asked before HDF5 holds anything back that it could not write
    _reserve(partial, 4 * math.prod(shape))
    with pdebench.opened(partial, "w") as file:
        file["x-coordinate"] = grid.coordinates().numpy()
        # one longer than the frames, as published
        file["t-coordinate"] = np.arange(spec.frames + 1) * spec.frame_spacing_s
        file["parameter"] = np.tile(np.asarray(values, dtype=np.float64), total)
        file["split"] = split
        file.attrs["format_version"] = pdebench.FORMAT_VERSION
        file.attrs["equation"] = spec.equation
        file.attrs["specification"] = spec.model_dump_json()
        file.attrs["groups_done"] = 0
        file.attrs["complete"] = False
        # at its full length from the start: later writes change no structure that a kill could tear
        placed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        placed.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        placed.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        file.create_dataset("tensor", shape, dtype="<f4", dcpl=placed)
    return 0


def _solved_chunks(spec: DatasetSpec, done: int, total: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first group, rows (B, T, X)) of each chunk, in order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # threads, since the numerics let go of the interpreter; where one solve takes all cores, one at a time
    workers = max(1, min(MOST_AT_ONCE, cores // torch.get_num_threads()))
    pending: deque[tuple[int, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for first in range(done, total, CHUNK_GROUPS):
            pending.append((first, pool.submit(_solve_chunk, spec, first, min(CHUNK_GROUPS, total - first))))
            if len(pending) >= workers:
                begun, future = pending.popleft()
                yield begun, future.result()
        for begun, future in pending:
            yield begun, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _solve_chunk(spec: DatasetSpec, first: int, count: int) -> np.ndarray:
    """Draw and solve `count` groups from `first` on under every parameter value: rows (B, T, X)."""
    generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + first // CHUNK_GROUPS)
    draw = draw_smooth_family if spec.equation == "kuramoto_sivashinsky" else draw_sine_family
    family = draw(count, generator)
    per_value = [_solve(spec, family, index, count) for index in range(len(spec.parameter_values))]
    return np.stack(per_value, axis=1).reshape(-1, spec.frames, spec.grid_points)


def _write_chunk(spec: DatasetSpec, partial: Path, first: int, rows: np.ndarray) -> None:
    values = len(spec.parameter_values)
    start = first * values
    with pdebench.opened(partial, "r+") as file:
        file["tensor"][start : start + len(rows)] = rows
        file.flush()
        file.attrs["groups_done"] = first + len(rows) // values


def _solve(spec: DatasetSpec, family: Family, index: int, count: int) -> np.ndarray:
    """Solve on a refinement that holds the output's cell centres, keep those points: (B, T, X)."""
    refinement = spec.solver_refinement[index]
    points = spec.grid_points * refinement
    grid = Grid((spec.domain_length,), (points,))
    # odd refinements keep the centre of a cell; even ones are shifted by half a fine cell
    shift = 0.5 * (1 - refinement % 2) / points
    fractions = (torch.arange(points, dtype=torch.float64) + 0.5) / points + shift
    keep = slice((refinement - 1) // 2, None, refinement)
    parameters = torch.full((count, 1), spec.parameter_values[index], dtype=torch.float64)
    equation = equation_named(spec.equation)
    fields = family(fractions % 1.0)[:, None]
    if spec.spin_up_s:
        spin_up = torch.tensor([0.0, spec.spin_up_s], dtype=torch.float64)
        fields = solve(equation, fields, parameters, spin_up, grid, method=spec.solver)[:, -1]
        # chaos tells float32 from float64: what follows is the solution of the frame that is stored
        fields = fields.float().double()
    times = torch_times(spec.frames, spec.frame_spacing_s)
    solution = solve(equation, fields, parameters, times, grid, method=spec.solver)[:, :, 0, keep]
    if not bool(torch.isfinite(solution).all()):
        raise DataError(
            f"{spec.name}: a solution at {spec.parameter_values[index]:g} is not finite; "
            "ask for more grid_points or a higher solver_refinement"
        )
    return solution.float().numpy()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
