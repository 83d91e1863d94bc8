"""What the evaluator asks of a model. Fields physical, (B, [T,] C, X)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class FieldPredictor(Protocol):
    """A predictor may also answer `boundary_query(fields, parameters, distance) -> (B, C, 6)`:
    its own decoded u at -d, 0, d, L - d, L, L + d after one step. Without it the seam is
    judged on the grid.
    """

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        """Deterministic, unguarded, (B, T, C, X). Of a stochastic predictor: its operator alone."""
        ...

    def guard(self, fields: Tensor, initial: Tensor, parameters: Tensor) -> Tensor: ...
    def step(self, fields: Tensor, parameters: Tensor) -> Tensor: ...
    def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor: ...


@runtime_checkable
class EnsemblePredictor(FieldPredictor, Protocol):
    """A predictor that samples; with one member it is asked for `rollout` alone.

    The noise of a trajectory depends on (seed, its initial condition) and on nothing else (see
    `inference.noise`): a batch may be cut anywhere. Members are exchangeable and independent.
    """

    @property
    def members(self) -> int: ...

    def rollout_members(self, initial: Tensor, parameters: Tensor, steps: int, *, seed: int) -> Tensor:
        """(B, M, T, C, X), unguarded."""
        ...


def stochastic(predictor: FieldPredictor) -> EnsemblePredictor | None:
    """The predictor, where it answers with more than one member."""
    if isinstance(predictor, EnsemblePredictor) and predictor.members > 1:
        return predictor
    return None
