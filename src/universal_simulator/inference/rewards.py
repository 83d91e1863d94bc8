"""Rewards of test-time compute, as costs: lower is better, one per sample and candidate.

    cost = predicted relative error + gamma * physics        (in shares of the field's rms)

The prediction is the learned reward's (`model/reward.py`). Physics is what the *equation declares*
and nothing else, relative to the start of the segment:

    mass        |Q(c) - Q(u_0)| of what is conserved; mass is projected before anything is scored, so
                where the guard is on the declared integral weighs nothing
    energy      growth of what may only decrease (energy, total variation, relative to itself)
    negativity  bounds: growth of the largest distance from the mean where extrema may only shrink,
                and what lies below zero where fields are declared non-negative

Never averaged over a batch. A candidate that is not finite costs inf and is counted by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from universal_simulator.configuration.schema import RewardWeights
from universal_simulator.errors import RewardError
from universal_simulator.inference.rollout import repeat_conditions
from universal_simulator.model.reward import Seen
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.invariants import FUNCTIONALS

TINY = 1e-12
BOUNDS = ("maximum",)


@dataclass(frozen=True)
class Question:
    """Candidates of one moment: start (B, C, X), fields (B, n, C, X) elapsed_s (B,) later, parameters (B, P).

    reference: the candidate the others are seen from, normally the mean.
    """

    start: Tensor
    fields: Tensor
    parameters: Tensor
    elapsed_s: Tensor
    reference: int

    def finite(self) -> Tensor:
        """(B, n)"""
        return torch.isfinite(self.fields).all(dim=-1).all(dim=-1)


class CostFunction(Protocol):
    def __call__(self, question: Question) -> Tensor:
        """Cost (B, n) of the candidates; inf of what is not finite."""
        ...


class PhysicsCost:
    """Weighted violations of the declared laws over one segment, (B, n), 0 where all are kept."""

    def __init__(self, equation: Equation, grid: Grid, weights: RewardWeights) -> None:
        self.equation = equation
        self.grid = grid
        self.weights = weights

    def terms(self, start: Tensor, candidates: Tensor) -> dict[str, Tensor]:
        """Each unweighted, by the name of its weight; without what the equation does not declare."""
        given = start[:, None]
        scale = given.square().mean(dim=(-2, -1)).sqrt().clamp_min(TINY)
        terms: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            terms[name] = terms.get(name, torch.zeros_like(value)) + value

        for name in self.equation.conserved:
            change = self._of(name, candidates) - self._of(name, given)
            unit = scale * self.grid.domain_size
            if name == "energy":
                unit = self._of(name, given).sum(dim=-1).clamp_min(TINY)
            add("mass", change.abs().sum(dim=-1) / unit)
        for name in self.equation.dissipated:
            before = self._of(name, given)
            # a field that has died has no variation to be relative to: the rms of u is the least unit
            unit = before.clamp_min(TINY) if name == "energy" else torch.maximum(before, scale[..., None])
            growth = (self._of(name, candidates) - before).clamp_min(0) / unit
            add("negativity" if name in BOUNDS else "energy", growth.sum(dim=-1))
        if self.equation.non_negative:
            add("negativity", (-candidates).clamp_min(0).mean(dim=(-2, -1)) / scale)
        return terms

    def __call__(self, start: Tensor, candidates: Tensor) -> Tensor:
        total = candidates.new_zeros(candidates.shape[:2])
        # what has run away so far that it has no energy in this precision is dropped, not an error of the reward
        sane = _measurable(candidates) & _measurable(start)[:, None]
        for name, value in self.terms(start, candidates).items():
            weight = float(getattr(self.weights, name))
            if weight == 0:
                continue
            if bool(sane.any()) and not bool(torch.isfinite(value[sane]).any()):
                raise RewardError(name, "for every candidate whose fields are finite")
            total = total + weight * value
        return total

    def _of(self, name: str, fields: Tensor) -> Tensor:
        """(..., C, X) -> (..., C)."""
        return FUNCTIONALS[name](fields, self.grid)


def _measurable(fields: Tensor) -> Tensor:
    """(..., C, X) -> (...): sums of squares are finite."""
    return torch.isfinite(fields.square().sum(dim=(-2, -1)))


class Cost:
    """The learned reward (where the model has one) and gamma times physics."""

    def __init__(self, surrogate: Surrogate, weights: RewardWeights, *, gamma: float) -> None:
        self.surrogate = surrogate
        self.physics = PhysicsCost(surrogate.equation, surrogate.grid, weights)
        self.gamma = gamma

    def __call__(self, question: Question) -> Tensor:
        cost = self.gamma * self.physics(question.start, question.fields)
        if self.surrogate.reward is not None:
            cost = cost + self.surrogate.reward(seen(self.surrogate, question)).exp()
        broken = ~question.finite() | ~torch.isfinite(cost)
        return cost.masked_fill(broken, torch.inf)


def seen(surrogate: Surrogate, question: Question) -> Seen:
    """What the learned reward is given, all in the canonical frame of the segment's start, riding
    with it, so that encodings can be subtracted. A field that is not finite is seen as the
    reference (the start, where that is broken too): it costs inf anyway.
    """
    start, fields = question.start, question.fields
    count = fields.shape[1]
    finite = question.finite()[..., None, None]
    reference = fields[:, question.reference]
    reference = torch.where(finite[:, question.reference], reference, start)
    usable = torch.where(finite, fields, reference[:, None])
    frame = surrogate.frame_of(start)
    conditions = surrogate.conditions(frame, question.parameters)
    times = question.elapsed_s.to(start)[:, None].repeat(1, count + 1)
    times[:, 0] = 0.0
    canonical = surrogate.frame.to_canonical(frame, torch.cat([start[:, None], usable], dim=1), times)
    encoded = surrogate.member.encode(
        surrogate.normalise(canonical).flatten(0, 1), repeat_conditions(conditions, count + 1)
    ).unflatten(0, (len(start), count + 1))
    centre = encoded[:, 1 + question.reference]
    return Seen(encoded[:, 0], centre, encoded[:, 1:] - centre[:, None], conditions)
