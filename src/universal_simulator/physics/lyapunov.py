"""How fast an equation forgets: the leading Lyapunov exponent.

Benettin et al. (1980), with finite differences in place of the tangent equation: a solution
and a neighbour at distance d are advanced together; after each interval the growth of the
distance is noted and the neighbour brought back to distance d along the same direction,
which turns into the fastest growing one by itself. 1 / exponent is the Lyapunov time, the
unit in which forecasts of a chaotic equation are worth counting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.reference import classical_method, solve


def leading_lyapunov_exponent(
    equation: Equation,
    initial: Tensor,
    parameters: Tensor,
    grid: Grid,
    *,
    interval_s: float,
    intervals: int,
    discarded: int = 0,
    separation: float = 1e-6,
    generator: torch.Generator,
) -> Tensor:
    """Growth rate in 1/s of each trajectory, (B,); the estimate is their mean.

    initial (B, C, X) float64 on the attractor, parameters (B, P). Mean over `intervals` of
    `interval_s` each, after `discarded` ones in which the difference finds its direction
    (one or two Lyapunov times). `separation`: rms distance as a share of rms(u), small enough
    to stay linear over an interval, far above round-off. Standard error: std over trajectories
    / sqrt(B); a finite-time bias of order 1 / (intervals interval_s) stays.
    """
    field, paired_parameters = initial.double(), parameters.repeat(2, 1)
    times = torch.tensor([0.0, interval_s], dtype=torch.float64)
    distance = separation * _rms(field)
    direction = torch.randn(field.shape, generator=generator, dtype=torch.float64).to(field.device)
    # the conserved mean neither grows nor turns: leave it alone
    direction = direction - direction.mean(dim=-1, keepdim=True)
    rate = torch.zeros(len(field), dtype=torch.float64, device=field.device)
    for index in range(discarded + intervals):
        neighbour = field + distance * direction / _rms(direction)
        advanced = solve(
            equation,
            torch.cat([field, neighbour]),
            paired_parameters,
            times,
            grid,
            method=classical_method(equation),
        )[:, -1]
        field, neighbour = advanced.chunk(2)
        direction = neighbour - field
        if index >= discarded:
            rate += torch.log(_rms(direction) / distance).flatten()
    return rate / (intervals * interval_s)


def _rms(fields: Tensor) -> Tensor:
    """(B, C, X) -> (B, 1, 1)"""
    return fields.square().mean(dim=(1, 2), keepdim=True).sqrt()
