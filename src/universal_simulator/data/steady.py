"""Pairs of coefficient and solution of a steady problem: specification, generation, reading.

The layout is that of PDEBench's Darcy file one dimension down: `nu` (N, X) the coefficient, `tensor`
(N, 1, X) the solution, `x-coordinate` (X,), and our `split` (N,) and attributes. A group is one
coefficient, by the hash of its values; the content identity covers both fields.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from universal_simulator.data import pdebench
from universal_simulator.data.batch import group_hash
from universal_simulator.data.specification import Count, GroupCounts
from universal_simulator.data.splits import SPLITS, audit
from universal_simulator.data.verification import require_identity
from universal_simulator.errors import DataError
from universal_simulator.physics.darcy import STEADY, LogNormalMobility, SteadyEquation, solve_darcy
from universal_simulator.physics.domain import Grid

#: groups drawn and solved together
CHUNK_GROUPS = 1024

Positive = Annotated[float, Field(gt=0)]


class SteadySpec(BaseModel):
    """The whole of a steady data set. `solver_refinement`: solver cells per cell, odd (centres meet)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    equation: Literal["darcy"]
    groups: GroupCounts
    grid_points: Annotated[int, Field(ge=8)]
    domain_length: Positive = 1.0
    #: f, in 1/s
    source_per_s: Positive = 1.0
    log_deviation: Positive = 1.0
    corner: Positive = 6.0
    modes: Count = 40
    solver_refinement: Count = 5
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("solver_refinement")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that every cell's centre is one of the solver's")
        return value

    @property
    def mobility(self) -> LogNormalMobility:
        return LogNormalMobility(self.log_deviation, self.corner, self.modes)

    @property
    def grid(self) -> Grid:
        return Grid((self.domain_length,), (self.grid_points,))


@dataclass(frozen=True)
class SteadyPairs:
    """mobility (B, X) and pressure (B, 1, X) of one split, float32, physical units."""

    mobility: Tensor
    pressure: Tensor
    groups: tuple[str, ...]

    def observed(self, cells: Tensor) -> Tensor:
        """log a in these cells, (B, S)."""
        return self.mobility[:, cells].log()


@dataclass(frozen=True)
class SteadyDataset:
    path: Path
    spec: SteadySpec
    identity: str
    splits: dict[str, SteadyPairs]

    @property
    def grid(self) -> Grid:
        return self.spec.grid

    @property
    def equation(self) -> SteadyEquation:
        return STEADY[self.spec.equation]

    def sensors(self, observed_every: int) -> Tensor:
        """Cells in which the coefficient is seen: the middle one of every so many."""
        points = self.spec.grid_points
        if points % observed_every:
            raise DataError(f"data.observed_every: {observed_every} does not divide {points} cells")
        return torch.arange(observed_every // 2, points, observed_every)

    def fractions(self, cells: Tensor) -> Tensor:
        return (cells.double() + 0.5) / self.spec.grid_points


def generate_steady(spec: SteadySpec, path: Path) -> SteadyDataset:
    """Make `path`, or find it finished and unchanged."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        _write(spec, partial)
        identity = pdebench.content_identity(partial)
        with pdebench.opened(partial, "r+") as file:
            file.attrs["identity"] = identity
        os.replace(partial, path)
    dataset = open_steady(path)
    if dataset.spec != spec:
        raise DataError(
            f"{path} holds another data set than {spec.name!r} asks for; move it away, or give another path"
        )
    return dataset


def _write(spec: SteadySpec, path: Path) -> None:
    counts = [getattr(spec.groups, name) for name in SPLITS]
    total, fine = sum(counts), spec.grid.with_points(spec.grid_points * spec.solver_refinement)
    fractions = fine.coordinates() / spec.domain_length
    centres = slice(spec.solver_refinement // 2, None, spec.solver_refinement)
    with pdebench.opened(path, "w") as file:
        mobility = file.create_dataset("nu", (total, spec.grid_points), dtype="<f4")
        pressure = file.create_dataset("tensor", (total, 1, spec.grid_points), dtype="<f4")
        for start in range(0, total, CHUNK_GROUPS):
            generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + start // CHUNK_GROUPS)
            drawn = spec.mobility.draw(min(CHUNK_GROUPS, total - start), generator)
            values = spec.mobility.log_mobility(drawn, fractions).exp()
            rows = slice(start, start + len(drawn))
            mobility[rows] = values[:, centres].float().numpy()
            solved = solve_darcy(values, spec.source_per_s, fine)[:, centres]
            pressure[rows, 0] = solved.float().numpy()
        file["x-coordinate"] = spec.grid.coordinates().numpy()
        file["split"] = np.repeat(np.arange(len(SPLITS), dtype=np.int8), counts)
        file.attrs["equation"] = spec.equation
        file.attrs["specification"] = spec.model_dump_json()


def open_steady(path: Path) -> SteadyDataset:
    """Read and check a whole file: layout, values, identity, splits. DataError says what is wrong."""
    with pdebench.opened(path) as file:
        stored, identity = file.attrs.get("specification"), file.attrs.get("identity")
        shapes = {name: getattr(file.get(name), "shape", None) for name in ("nu", "tensor", "split")}
    try:
        spec = SteadySpec.model_validate_json(stored if isinstance(stored, str | bytes) else "")
    except ValidationError as error:
        raise DataError(
            f"{path} is no steady data set of this project: its specification cannot be read"
        ) from error
    counts = [getattr(spec.groups, name) for name in SPLITS]
    total, points = sum(counts), spec.grid_points
    expected = {"nu": (total, points), "tensor": (total, 1, points), "split": (total,)}
    if shapes != expected or not isinstance(identity, str):
        raise DataError(f"{path} holds {shapes}, its specification says {expected}; generate it again")
    require_identity(path, identity)
    mobility, pressure, split = (pdebench.read_array(path, name) for name in ("nu", "tensor", "split"))
    if not (np.isfinite(pressure).all() and np.isfinite(mobility).all() and (mobility > 0).all()):
        raise DataError(f"{path}: pressures must be finite and mobilities positive and finite")
    groups = [group_hash(row) for row in mobility]
    splits = {}
    for index, name in enumerate(SPLITS):
        rows = np.flatnonzero(split == index)
        splits[name] = SteadyPairs(
            torch.from_numpy(mobility[rows]),
            torch.from_numpy(pressure[rows]),
            tuple(groups[row] for row in rows),
        )
    audit({name: pairs.groups for name, pairs in splits.items()})
    return SteadyDataset(path, spec, identity, splits)
