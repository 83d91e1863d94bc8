"""One segment of several partial trajectories of each sample, each in its own representation.

Shapes: b samples, P partial trajectories, K steps, N tokens of D numbers, C fields, X points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.inference.candidates import Representation
from universal_simulator.inference.rollout import correct, decode_states, to_member
from universal_simulator.model.surrogate import Surrogate

#: segments carried through the model together: bounds the memory
SEGMENTS_AT_ONCE = 256


@dataclass(frozen=True)
class Rolled:
    """given (b, P, C, X): what each was rolled from, in its representation; start and last: its states
    (b, P, ...); fields (b, P, K, C, X): physical, back in the representation of the data."""

    given: Tensor
    start: Tensor
    last: Tensor
    fields: Tensor
    parameters: Tensor

    def rows(self, index: Tensor) -> Rolled:
        return Rolled(*(value[index] for value in vars(self).values()))

    def join(self, others: Rolled) -> Rolled:
        """More partial trajectories of the same samples."""
        mine, theirs = vars(self), vars(others)
        joined = {k: torch.cat([v, theirs[k]], dim=1) for k, v in mine.items() if k != "parameters"}
        return Rolled(**joined, parameters=self.parameters)


def roll(
    surrogate: Surrogate,
    fields: Tensor,
    parameters: Tensor,
    views: Sequence[Representation],
    steps: int,
    dt_s: float,
) -> Rolled:
    """The operator's next `steps` from fields (b, P, C, X), one view for each of the P."""
    count = len(views)
    given = fields
    if count:
        given = torch.stack([v.apply(part) for v, part in zip(views, fields.unbind(1), strict=True)], 1)
    flat, repeated = given.flatten(0, 1), parameters.repeat_interleave(count, 0)
    parts = [
        _roll(surrogate, *part, steps=steps, dt_s=dt_s)
        for part in zip(flat.split(SEGMENTS_AT_ONCE), repeated.split(SEGMENTS_AT_ONCE), strict=True)
    ]
    start, last, out = (
        torch.cat(values).unflatten(0, (len(fields), count)) for values in zip(*parts, strict=True)
    )
    if count:
        out = torch.stack([v.undo(part) for v, part in zip(views, out.unbind(1), strict=True)], 1)
    return Rolled(given, start, last, out, parameters)


def _roll(
    surrogate: Surrogate, fields: Tensor, parameters: Tensor, *, steps: int, dt_s: float
) -> tuple[Tensor, Tensor, Tensor]:
    frame = surrogate.frame_of(fields)
    conditions = surrogate.conditions(frame, parameters, dt_s)
    start = state = surrogate.member.encode(to_member(surrogate, frame, fields), conditions)
    states = []
    for _ in range(steps):
        state = surrogate.member.advance(state, conditions)
        states.append(state)
    times = dt_s * torch.arange(1, steps + 1, device=fields.device)
    return start, state, decode_states(surrogate, frame, conditions, torch.stack(states, dim=1), times)


def corrected_ends(
    surrogate: Surrogate,
    rolled: Rolled,
    views: Sequence[Representation],
    noise: Tensor,
    steps: int,
    dt_s: float,
) -> Tensor:
    """The ends (b, P, C, X) with a residual sampled from noise (b, P, N, D), in the data's representation."""
    size, count = rolled.given.shape[:2]
    given = rolled.given.flatten(0, 1)
    frame = surrogate.frame_of(given)
    conditions = surrogate.conditions(frame, rolled.parameters.repeat_interleave(count, 0), dt_s)
    states = correct(
        surrogate,
        rolled.start.flatten(0, 1),
        rolled.last.flatten(0, 1)[:, None],
        steps,
        conditions,
        noise.flatten(0, 1),
    )
    times = torch.tensor([dt_s * steps], device=given.device)
    ends = decode_states(surrogate, frame, conditions, states, times)[:, 0].unflatten(0, (size, count))
    return torch.stack([v.undo(part) for v, part in zip(views, ends.unbind(1), strict=True)], dim=1)
