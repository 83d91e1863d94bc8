"""A symmetric representation of its own for every member of an ensemble.

    u_m(t) = V_m^-1 R(V_m u(0), e_m)(t),      V_m drawn alike and independently for each member m

R is the corrected model's rollout under noise e_m. V_m maps solutions to solutions exactly, the model only
roughly: where a field stands between the tokens, and which way round it is, is an error of the model's own. Members
that each stand elsewhere make it part of their spread, and their mean averages it, for no evaluation more. They
stay exchangeable: no member is the plain one.

V_m comes from the seed and the first frame alone (`inference/noise.py`, a stream beside that of e_m), member by
member: e_m is the same with and without it, and neither batch nor number of members has a say.

Shapes: R rows, one for each trajectory and member, members of a trajectory in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from universal_simulator.inference.candidates import IDENTITY, Representation, drawn_representation
from universal_simulator.inference.noise import generator_of
from universal_simulator.model.surrogate import Surrogate

STREAM = "representation|"


def member_representations(
    surrogate: Surrogate, initial: Tensor, members: int, *, seed: int
) -> tuple[Representation, ...]:
    """Of `members` from each first frame (B, C, X), B * members; all the identity where the model's members
    are not represented."""
    if not surrogate.architecture.member_representations:
        return (IDENTITY,) * (len(initial) * members)
    found = []
    for field in initial:
        generator = generator_of(seed, field, stream=STREAM)
        found += [
            drawn_representation(surrogate.equation, width=surrogate.cells_per_token, generator=generator)
            for _ in range(members)
        ]
    return tuple(found)


def represented(views: Sequence[Representation], fields: Tensor) -> Tensor:
    """Fields (R, ..., X), each in its own representation."""
    return _each(views, fields, Representation.apply)


def restored(views: Sequence[Representation], fields: Tensor) -> Tensor:
    """The same back in the data's own: the inverse of `represented`, bit for bit."""
    return _each(views, fields, Representation.undo)


def _each(
    views: Sequence[Representation], fields: Tensor, moved: Callable[[Representation, Tensor], Tensor]
) -> Tensor:
    if len(views) != len(fields):
        raise ValueError(f"{len(views)} representations for {len(fields)} rows of fields")
    rows: dict[Representation, list[int]] = {}
    for row, view in enumerate(views):
        rows.setdefault(view, []).append(row)
    if set(rows) == {IDENTITY}:
        return fields
    out = torch.empty_like(fields)
    for view, places in rows.items():
        index = torch.tensor(places, device=fields.device)
        out[index] = moved(view, fields[index])
    return out
