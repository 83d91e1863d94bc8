"""What a generated data set is: the whole of it follows from this and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from universal_simulator.run_record import content_hash

Count = Annotated[int, Field(ge=1)]


class GroupCounts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Count
    calibration: Annotated[int, Field(ge=2)]
    validation: Count
    selection: Count
    test: Count


class DatasetSpec(BaseModel):
    """`solver_refinement`: solver cells per output cell, one entry per parameter value.

    `spin_up_s`: what is solved and thrown away before frame 0, so that a chaotic equation
    starts on its attractor (fields of the decaying equations would only be older). A group is
    then what its frame 0 is, so several parameter values make as many groups of one draw; a
    draw still lies in one split under every value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    equation: Literal["burgers", "advection", "kuramoto_sivashinsky"]
    parameter_values: Annotated[tuple[float, ...], Field(min_length=1)]
    groups: GroupCounts
    grid_points: Annotated[int, Field(ge=8)]
    solver: Literal["spectral", "finite_volume", "exact"] = "spectral"
    solver_refinement: tuple[Count, ...]
    frames: Annotated[int, Field(ge=2)] = 201
    frame_spacing_s: Annotated[float, Field(gt=0)] = 0.01
    domain_length: Annotated[float, Field(gt=0)] = 1.0
    spin_up_s: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def hash(self) -> str:
        return content_hash(self.model_dump(mode="json"))
