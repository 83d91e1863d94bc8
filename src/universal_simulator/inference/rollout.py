"""Rollout: from one frame, step by step, to physical fields."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from universal_simulator.model.canonical import FrameState
from universal_simulator.model.contract import Conditions
from universal_simulator.model.surrogate import Surrogate

#: decoded together: large enough to fill the cores, small enough to stay in cache
DECODE_STEPS = 10


def rollout(surrogate: Surrogate, initial: Tensor, parameters: Tensor, *, steps: int) -> Iterator[Tensor]:
    """Yield decoded fields (B, k, C, X) of the next k steps until `steps` are out, unguarded.

    initial: (B, C, X) physical; parameters: (B, P) physical. The state itself never leaves
    the model's own space; what is yielded is in physical units.
    """
    frame = surrogate.frame_of(initial)
    conditions = surrogate.conditions(frame, parameters)
    state = surrogate.member.encode(_to_member(surrogate, frame, initial), conditions)
    done = 0
    while done < steps:
        states = []
        for _ in range(min(DECODE_STEPS, steps - done)):
            state = surrogate.member.advance(state, conditions)
            states.append(state)
        yield decode_steps(surrogate, frame, conditions, torch.stack(states, dim=1), first_step=done + 1)
        done += len(states)


def rollout_fields(surrogate: Surrogate, initial: Tensor, parameters: Tensor, *, steps: int) -> Tensor:
    """The whole rollout (B, steps, C, X), without gradients, unguarded."""
    with torch.inference_mode():
        return torch.cat(list(rollout(surrogate, initial, parameters, steps=steps)), dim=1)


def reconstruct(surrogate: Surrogate, fields: Tensor, parameters: Tensor) -> Tensor:
    """decode(encode(u)) of single frames (B, C, X): the codec's floor."""
    with torch.inference_mode():
        frame = surrogate.frame_of(fields)
        conditions = surrogate.conditions(frame, parameters)
        state = surrogate.member.encode(_to_member(surrogate, frame, fields), conditions)
        return decode_steps(surrogate, frame, conditions, state[:, None], first_step=0)[:, 0]


def decode_steps(
    surrogate: Surrogate, frame: FrameState, conditions: Conditions, states: Tensor, *, first_step: int
) -> Tensor:
    """States (B, k, ...) of steps first_step, first_step + 1, ... -> physical (B, k, C, X)."""
    batch, count = states.shape[:2]
    repeated = repeat_conditions(conditions, count)
    decoded = surrogate.member.decode(states.flatten(0, 1), repeated)
    fields = surrogate.denormalise(decoded.unflatten(0, (batch, count)))
    steps = torch.arange(first_step, first_step + count, device=fields.device)
    times = (steps * surrogate.architecture.dt_s).to(fields).expand(batch, -1)
    return surrogate.frame.from_canonical(frame, fields, times)


def repeat_conditions(conditions: Conditions, count: int) -> Conditions:
    """Conditions of (B * count) samples, each repeated `count` times in a row."""
    return Conditions(
        conditions.parameters.repeat_interleave(count, 0), conditions.dt.repeat_interleave(count, 0)
    )


def _to_member(surrogate: Surrogate, frame: FrameState, fields: Tensor) -> Tensor:
    start = fields.new_zeros(fields.shape[0], 1)
    canonical = surrogate.frame.to_canonical(frame, fields[:, None], start)[:, 0]
    return surrogate.normalise(canonical)
