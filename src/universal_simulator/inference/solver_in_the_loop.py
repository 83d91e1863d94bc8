"""Solver in the loop: the equation itself at inference, off by default and never in a neural row.

Both use `physics.invariants.RESIDUALS`, the equation integrated over a span dt in the generator's own
form, R = (u(t + dt) - S(u(t))) / dt:

* `ResidualCost`: dt |R| / rms(u) of each candidate over its whole segment, added to its cost;
* `residual_step`: one linearised step u <- u - dt R over the last frame; since R is integrated, its
  derivative by u(t + dt) is 1/dt and one step takes the residual of that frame to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.errors import UserError
from universal_simulator.inference.rewards import CostFunction, Question
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.physics.invariants import RESIDUALS

TINY = 1e-12


def require_solver(surrogate: Surrogate) -> None:
    name = surrogate.equation.name
    if name not in RESIDUALS or len(surrogate.equation.fields) != 1:
        raise UserError(
            f"ttc.solver: {name!r} has no residual here; known: {', '.join(RESIDUALS)}; set it to off"
        )


class ResidualCost:
    """Another cost plus each candidate's residual over the segment."""

    def __init__(self, surrogate: Surrogate, other: CostFunction) -> None:
        require_solver(surrogate)
        self.surrogate = surrogate
        self.other = other

    def __call__(self, question: Question) -> Tensor:
        start, fields = question.start[:, 0], question.fields[:, :, 0]
        arrived = torch.empty_like(start)
        for span in question.elapsed_s.unique():
            rows = question.elapsed_s == span
            arrived[rows] = solved(self.surrogate, start[rows], question.parameters[rows], float(span))
        distance = (fields - arrived[:, None]).square().mean(dim=-1).sqrt()
        cost = self.other(question) + distance / start.square().mean(dim=-1).sqrt().clamp_min(TINY)[:, None]
        return torch.where(torch.isfinite(cost), cost, torch.inf)


def solved(surrogate: Surrogate, fields: Tensor, parameters: Tensor, span_s: float) -> Tensor:
    """S(u), `span_s` later: (B, X) -> (B, X)."""
    pair = torch.stack([fields, torch.zeros_like(fields)], dim=1)
    residual = RESIDUALS[surrogate.equation.name](pair, parameters[:, 0], span_s, surrogate.grid)
    return -residual[:, 0] * span_s


def residual_step(
    surrogate: Surrogate, before: Tensor, after: Tensor, parameters: Tensor, dt_s: float
) -> Tensor:
    """after (B, C, X) with the residual of the frame from `before` taken out."""
    require_solver(surrogate)
    pair = torch.stack([before[:, 0], after[:, 0]], dim=1)
    residual = RESIDUALS[surrogate.equation.name](pair, parameters[:, 0], dt_s, surrogate.grid)
    return after - dt_s * residual
