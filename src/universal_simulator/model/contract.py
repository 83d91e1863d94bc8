"""The contract every simulator keeps: encode, advance, decode.

    state = encode(fields, conditions)        fields at one time -> what the model carries
    state = advance(state, conditions)        one step of `conditions.dt`
    fields = decode(state, conditions, ...)   what the model carries -> fields anywhere

A latent model carries a few tokens, a grid model such as an FNO carries the fields
themselves. A user's own `torch.nn.Module` joins in one of two ways: it subclasses
`Simulator`, or it is a plain module whose `forward(fields, parameters, dt)` returns the
fields one step later, and `GridStepper` carries it. Either is built as
`Class(problem, **options)` and tried once on a smooth field of order one (`model/trial.py`). A
network that holds a `ConditionEmbedding` has it standardised by the training split; nothing
else of a user's network is ever called but `forward`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """What a model is built for: one equation on one periodic grid.

    `domain_length` is in the grid's unit of length; `points` is the training grid, other
    grids are allowed wherever a model can encode them.
    """

    num_fields: int
    num_parameters: int
    points: int
    domain_length: float


@dataclass(frozen=True)
class Conditions:
    """What a step depends on beside the state.

    parameters: (B, P), physical units (positive). dt: (B,), seconds, positive.
    """

    parameters: Tensor
    dt: Tensor

    def __post_init__(self) -> None:
        if self.parameters.ndim != 2 or self.dt.shape != self.parameters.shape[:1]:
            raise ValueError(
                f"conditions need parameters (B, P) and dt (B,), got "
                f"{tuple(self.parameters.shape)} and {tuple(self.dt.shape)}"
            )


class Simulator(nn.Module, abc.ABC):
    """A model of the contract. Fields are (B, C, X) at one time."""

    @abc.abstractmethod
    def encode(self, fields: Float[Tensor, "B C X"], conditions: Conditions) -> Float[Tensor, "B ..."]:
        """(B, C, X) -> state (B, ...)."""

    @abc.abstractmethod
    def advance(self, state: Float[Tensor, "*S"], conditions: Conditions) -> Float[Tensor, "*S"]:
        """One step of `conditions.dt`; same shape as `state`."""

    def token_shape(self) -> tuple[int, int] | None:
        """(N, D) where the state is N latent tokens of D numbers; None where it is something else."""
        return None

    def codec_parameters(self) -> Iterator[nn.Parameter]:
        """What encodes and decodes; none where fields are carried as they are."""
        return iter(())

    @abc.abstractmethod
    def decode(
        self,
        state: Float[Tensor, "B ..."],
        conditions: Conditions,
        positions: Float[Tensor, " Q"] | None = None,
    ) -> Float[Tensor, "B C X"]:
        """state (B, ...) -> (B, C, X), or (B, C, Q) at `positions` (Q,) in units of length."""


class GridStepper(Simulator):
    """Carries any module with `forward(fields, parameters, dt) -> fields` one step later.

    The state is the field itself; decoding elsewhere than on the grid is trigonometric
    interpolation.
    """

    def __init__(self, stepper: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.stepper = stepper
        self.domain_length = problem.domain_length

    def encode(self, fields: Float[Tensor, "B C X"], conditions: Conditions) -> Float[Tensor, "B ..."]:
        return fields

    def advance(self, state: Float[Tensor, "*S"], conditions: Conditions) -> Float[Tensor, "*S"]:
        return self.stepper(state, conditions.parameters, conditions.dt)

    def decode(
        self,
        state: Float[Tensor, "B ..."],
        conditions: Conditions,
        positions: Float[Tensor, " Q"] | None = None,
    ) -> Float[Tensor, "B C X"]:
        if positions is None:
            return state
        matrix = interpolation_matrix(positions.double() / self.domain_length, state.shape[-1])
        return state @ matrix.to(state).T


def interpolation_matrix(fractions: Float[Tensor, " Q"], points: int) -> Float[Tensor, "Q {points}"]:
    """Trigonometric interpolation (Q, X) from `points` cell centres to `fractions` of the domain.

    The grid is x_i = (i + 1/2) / X in fractions of the periodic domain. Exact for fields
    band-limited below the Nyquist mode, which itself is interpolated as a cosine. A row at
    a grid point is a row of the identity.
    """
    device = fractions.device
    grid = (torch.arange(points, dtype=torch.float64, device=device) + 0.5) / points
    offset = fractions.double()[:, None] - grid[None, :]
    modes = torch.arange(1, (points + 1) // 2, dtype=torch.float64, device=device)
    kernel = 1.0 + 2.0 * torch.cos(2 * torch.pi * offset[..., None] * modes).sum(-1)
    if points % 2 == 0:
        kernel = kernel + torch.cos(torch.pi * points * offset)
    return kernel / points
