"""Rollout: from one frame, step by step, to physical fields."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from universal_simulator.errors import UserError
from universal_simulator.model.canonical import FrameState
from universal_simulator.model.contract import Conditions
from universal_simulator.model.corrector import Corrector
from universal_simulator.model.surrogate import Surrogate

#: decoded together: large enough to fill the cores, small enough to stay in cache
DECODE_STEPS = 16


def rollout(
    surrogate: Surrogate,
    initial: Float[Tensor, "B C X"],
    parameters: Float[Tensor, "B P"],
    *,
    steps: int,
    dt_s: float | None = None,
    noise: Float[Tensor, "B S N D"] | None = None,
) -> Iterator[Float[Tensor, "B k C X"]]:
    """Yield decoded fields (B, k, C, X) of the next k steps until `steps` are out, unguarded.

    initial: (B, C, X) physical; parameters: (B, P) physical. Between two encodings the state
    does not leave the model's own space; what is yielded is in physical units. dt_s: another
    step than the one trained on (the model is conditioned on it). noise: (B, S, N, D) of N(0, 1),
    one for each of the S = `num_segments` segments: the rollout is a sample of the corrected model;
    without it the operator goes alone.

    Where the equation conserves the mean, a field is encoded anew with the mean it started
    from, and what the segment before lost of it is carried beside: the yielded fields show
    the whole drift, but do not travel at a wrong speed because of it.
    """
    dt_s = surrogate.architecture.dt_s if dt_s is None else dt_s
    segment = surrogate.architecture.reencode_every or steps
    conserved = "integral" in surrogate.equation.conserved
    fields, drift = initial, torch.zeros_like(initial[..., :1])
    carried = None if noise is None else persistent(noise, surrogate)
    for index, start in enumerate(range(0, steps, segment)):
        given = None if carried is None else carried[:, index]
        length = min(segment, steps - start)
        for decoded, last in _segment(surrogate, fields, parameters, length, dt_s, given):  # noqa: B007
            yield decoded + drift[:, None]
        fields = last
        if conserved:
            lost = last.mean(dim=-1, keepdim=True) - initial.mean(dim=-1, keepdim=True)
            fields, drift = last - lost, drift + lost


def num_segments(surrogate: Surrogate, steps: int) -> int:
    """Stretches between two encodings in a rollout of `steps`."""
    return -(-steps // (surrogate.architecture.reencode_every or steps))


def persistent(noise: Float[Tensor, "B S N D"], surrogate: Surrogate) -> Float[Tensor, "B S N D"]:
    """e_1 = n_1, e_i+1 = p e_i + sqrt(1 - p^2) n_i+1: N(0, 1) with the corrector's persistence p."""
    corrector = _corrector_of(surrogate)
    kept = corrector.persistence
    fresh = (1 - kept.square()).sqrt()
    parts = [noise[:, 0]]
    for index in range(1, noise.shape[1]):
        parts.append(kept * parts[-1] + fresh * noise[:, index])
    return torch.stack(parts, dim=1)


def correct(
    surrogate: Surrogate,
    start: Float[Tensor, "B N D"],
    states: Float[Tensor, "B k N D"],
    first_step: int,
    conditions: Conditions,
    noise: Float[Tensor, "B N D"],
) -> Float[Tensor, "B k N D"]:
    """Operator states (B, k, N, D) of a segment, from its step `first_step` on, with a sampled residual.

    start: the segment's z_0 (B, N, D); noise (B, N, D) serves all its steps.
    """
    corrector = _corrector_of(surrogate)
    size, count = states.shape[:2]
    steps = torch.arange(first_step, first_step + count, device=states.device).repeat(size)
    context = corrector.context(
        start.repeat_interleave(count, 0), states.flatten(0, 1), steps, repeat_conditions(conditions, count)
    )
    options, sampler = corrector.options, surrogate.architecture.sampler
    evaluations = {"student": options.student_evaluations, "moments": 0}
    residual = corrector.sample(
        context,
        noise.repeat_interleave(count, 0),
        evaluations=evaluations.get(str(sampler), options.teacher_steps),
        student=sampler == "student",
    )
    return states + residual.unflatten(0, (size, count))


def _corrector_of(surrogate: Surrogate) -> Corrector:
    if surrogate.corrector is None:
        raise UserError("this model has no corrector, so its rollouts have no members: train diff_residual")
    return surrogate.corrector


def _segment(
    surrogate: Surrogate, first: Tensor, parameters: Tensor, steps: int, dt_s: float, noise: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """A rollout in latent space alone, from fields (B, C, X) in the canonical frame of their own.

    Yields decoded fields, and the last of them as the next segment takes it up: of a sampled
    residual only the corrector's `carried` share goes on, the rest is an error of this reading.
    """
    frame = surrogate.frame_of(first)
    conditions = surrogate.conditions(frame, parameters, dt_s)
    state = start = surrogate.member.encode(to_member(surrogate, frame, first), conditions)
    done = 0
    while done < steps:
        states = []
        for _ in range(min(DECODE_STEPS, steps - done)):
            state = surrogate.member.advance(state, conditions)
            states.append(state)
        times = dt_s * torch.arange(done + 1, done + 1 + len(states), device=first.device)
        stacked = torch.stack(states, dim=1)
        if noise is None:
            decoded = decode_states(surrogate, frame, conditions, stacked, times)
            yield decoded, decoded[:, -1]
        else:
            corrected = correct(surrogate, start, stacked, done + 1, conditions, noise)
            decoded = decode_states(surrogate, frame, conditions, corrected, times)
            going_on = torch.lerp(stacked[:, -1:], corrected[:, -1:], _corrector_of(surrogate).carried)
            yield decoded, decode_states(surrogate, frame, conditions, going_on, times[-1:])[:, 0]
        done += len(states)


def rollout_fields(
    surrogate: Surrogate,
    initial: Float[Tensor, "B C X"],
    parameters: Float[Tensor, "B P"],
    *,
    steps: int,
    dt_s: float | None = None,
    noise: Float[Tensor, "B S N D"] | None = None,
) -> Float[Tensor, "B {steps} C X"]:
    """The whole rollout (B, steps, C, X), without gradients, unguarded."""
    with torch.inference_mode():
        parts = rollout(surrogate, initial, parameters, steps=steps, dt_s=dt_s, noise=noise)
        return torch.cat(list(parts), dim=1)


def reconstruct(
    surrogate: Surrogate, fields: Float[Tensor, "B C X"], parameters: Float[Tensor, "B P"]
) -> Float[Tensor, "B C X"]:
    """decode(encode(u)) of single frames (B, C, X): the codec's floor."""
    with torch.inference_mode():
        frame = surrogate.frame_of(fields)
        conditions = surrogate.conditions(frame, parameters)
        state = surrogate.member.encode(to_member(surrogate, frame, fields), conditions)
        return decode_states(surrogate, frame, conditions, state[:, None], fields.new_zeros(1))[:, 0]


def decode_at(
    surrogate: Surrogate,
    fields: Float[Tensor, "B C X"],
    parameters: Float[Tensor, "B P"],
    positions: Float[Tensor, " Q"],
) -> Float[Tensor, "B C Q"]:
    """One step from fields (B, C, X), decoded at positions (Q,) of the canonical frame, (B, C, Q)."""
    frame = surrogate.frame_of(fields)
    conditions = surrogate.conditions(frame, parameters)
    state = surrogate.member.encode(to_member(surrogate, frame, fields), conditions)
    state = surrogate.member.advance(state, conditions)
    values = surrogate.denormalise(surrogate.member.decode(state, conditions, positions))
    return values * frame.amplitude[:, None, None] + frame.velocity[:, None, None]


def decode_states(
    surrogate: Surrogate,
    frame: FrameState,
    conditions: Conditions,
    states: Float[Tensor, "B k ..."],
    times_s: Shaped[Tensor, " k"],
) -> Float[Tensor, "B k C X"]:
    """States (B, k, ...) at times_s (k,) since the first frame -> physical (B, k, C, X)."""
    batch, count = states.shape[:2]
    repeated = repeat_conditions(conditions, count)
    decoded = surrogate.member.decode(states.flatten(0, 1), repeated)
    fields = surrogate.denormalise(decoded.unflatten(0, (batch, count)))
    return surrogate.frame.from_canonical(frame, fields, times_s.to(fields).expand(batch, -1))


def repeat_conditions(conditions: Conditions, count: int) -> Conditions:
    """Conditions of (B * count) samples, each repeated `count` times in a row."""
    return Conditions(
        conditions.parameters.repeat_interleave(count, 0), conditions.dt.repeat_interleave(count, 0)
    )


def to_member(surrogate: Surrogate, frame: FrameState, fields: Tensor) -> Tensor:
    start = fields.new_zeros(fields.shape[0], 1)
    canonical = surrogate.frame.to_canonical(frame, fields[:, None], start)[:, 0]
    return surrogate.normalise(canonical)
