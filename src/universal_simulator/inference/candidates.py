"""What test-time compute chooses from: few candidates along meaningful directions.

Among exchangeable candidates in a high-dimensional space even an oracle's pick is worse than their
mean, so candidates differ by what a simulator gets wrong as a whole: where a field stands (`shift`),
when (`warp`), how strong it is about its mean (`amplitude`), how much of the corrector's residual
it takes (`tau`). The partial trajectories themselves differ by *representation*: an exact symmetry
maps solutions to solutions, but a model respects it only roughly, so rolling out the mapped field and
mapping back gives another answer of the same worth, whose error is partly its own. Members of an ensemble
draw theirs (`inference/member_representations.py`).

Shapes: B samples, P partial trajectories, n candidates, C fields, X points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation
from universal_simulator.physics.spectral import fourier_shift, wavenumbers

#: a direction never moves a field by more than this many cells, or frames
LARGEST_SHIFT, LARGEST_WARP = 2.0, 0.5
DIRECTIONS = ("shift", "warp", "amplitude")
TINY = 1e-12


@dataclass(frozen=True)
class Representation:
    """u(x) -> u(x + cells dx), and where `reflected` u(x) -> -u(-x): exact, on the grid."""

    cells: int
    reflected: bool

    def apply(self, fields: Tensor) -> Tensor:
        moved = fields.roll(-self.cells, -1)
        return -moved.flip(-1) if self.reflected else moved

    def undo(self, fields: Tensor) -> Tensor:
        back = -fields.flip(-1) if self.reflected else fields
        return back.roll(self.cells, -1)


IDENTITY = Representation(cells=0, reflected=False)


def representations(equation: Equation, *, count: int, width: int) -> tuple[Representation, ...]:
    """At most `count`, the identity first: shifts by shares of a token's `width` cells, every other
    one reflected, as far as the equation declares the symmetry. One where it declares none."""
    shifts = "shift" in equation.symmetries and width > 1
    reflects = "reflection" in equation.symmetries
    found: dict[Representation, None] = {}
    for index in range(count):
        cells = index * width // count if shifts else 0
        found[Representation(cells, reflects and index % 2 == 1)] = None
    return tuple(found)


def drawn_representation(equation: Equation, *, width: int, generator: torch.Generator) -> Representation:
    """Any of those that the equation declares, each as likely: a shift by 0 .. `width` - 1 cells, below a
    token (a whole one changes nothing that a model of tokens knows), reflected or not. Always two numbers
    of the generator, on the CPU."""
    cells = int(torch.randint(max(1, width), (), generator=generator))
    mirrored = bool(torch.randint(2, (), generator=generator))
    return Representation(
        cells if "shift" in equation.symmetries else 0, mirrored and "reflection" in equation.symmetries
    )


@dataclass(frozen=True)
class Stem:
    """What candidates of one segment grow from, all at its end, in physical units.

    ends, corrected (B, P, C, X): the operator's answer of each partial trajectory and the same with
    a sampled residual (None without a corrector). before (B, C, X): mean of the ends one frame earlier.
    """

    ends: Tensor
    before: Tensor
    corrected: Tensor | None

    @property
    def mean(self) -> Tensor:
        return self.ends.mean(dim=1)


def first_pool(
    stem: Stem, *, count: int, tau_range: tuple[float, float], size: Tensor, grid: Grid
) -> tuple[tuple[str, ...], Tensor]:
    """Names (n) and fields (B, n, C, X): the ends, their mean, and `count` candidates beside these, as
    far as there are so many: the corrector at both ends of `tau_range`, then pairs along the directions;
    members fill what pairs leave. So 8 are tau and every direction, and 12 the members of 4 ends as well."""
    centre = stem.mean
    names = [f"end{index}" for index in range(stem.ends.shape[1])] + ["mean"]
    fields = [*stem.ends.unbind(1), centre]
    most = len(fields) + count
    if stem.corrected is not None:
        residual = stem.corrected.mean(dim=1) - centre
        for tau in tau_range:
            names.append(f"tau {tau:g}")
            fields.append(centre + tau * residual)
    members = [] if stem.corrected is None else list(stem.corrected.unbind(1))
    pairs = min((most - len(fields)) // 2, len(DIRECTIONS))
    moved_names, moved = along(centre, stem.before, size=size, pairs=max(0, pairs), grid=grid)
    names += moved_names
    fields += moved
    for index, member in enumerate(members[: max(0, most - len(fields))]):
        names.append(f"member{index}")
        fields.append(member)
    return tuple(names[:most]), torch.stack(fields[:most], dim=1)


def pool_sizes(*, ends: int, count: int, corrected: bool, passes: int) -> list[int]:
    """Candidates of each pass, ends and mean among them: what the pools below hold."""
    beside = 2 * min((count - 2 * corrected) // 2, len(DIRECTIONS))
    first = min(count, 2 + beside + ends) if corrected else min(count, beside)
    return [ends + 1 + first, *[1 + 2 * min(count // 2, len(DIRECTIONS))] * (passes - 1)]


def refined_pool(
    centre: Tensor, before: Tensor, *, count: int, size: Tensor, grid: Grid
) -> tuple[tuple[str, ...], Tensor]:
    """The candidates of a further pass: what was chosen, first, and beside it `count` in pairs about it."""
    names, fields = along(centre, before, size=size, pairs=min(count // 2, len(DIRECTIONS)), grid=grid)
    return ("mean", *names), torch.stack([centre, *fields], dim=1)


def along(
    centre: Tensor, before: Tensor, *, size: Tensor, pairs: int, grid: Grid
) -> tuple[list[str], list[Tensor]]:
    """Pairs on both sides of `centre` (B, C, X) along the first `pairs` directions.

    size (B,): rms of the displacement in the field's unit. before: the field one frame earlier.
    """
    fluctuation = centre - centre.mean(dim=-1, keepdim=True)
    k = wavenumbers(centre.shape[-1], grid.lengths[-1]).to(centre)
    slope = torch.fft.irfft(torch.fft.rfft(centre) * (1j * k), n=centre.shape[-1])
    change = centre - before
    distance = (size / _rms(slope)).clamp(max=LARGEST_SHIFT * grid.spacing[-1])
    frames = (size / _rms(change)).clamp(max=LARGEST_WARP)
    share = (size / _rms(fluctuation)).clamp(max=1.0)
    names: list[str] = []
    fields: list[Tensor] = []
    for name in DIRECTIONS[:pairs]:
        for sign in (1.0, -1.0):
            names.append(f"{name}{'+' if sign > 0 else '-'}")
            if name == "shift":
                fields.append(fourier_shift(centre, sign * distance[:, None], grid))
            else:
                step, tangent = (frames, change) if name == "warp" else (share, fluctuation)
                fields.append(centre + sign * step[:, None, None] * tangent)
    return names, fields


def spread(ends: Tensor) -> Tensor:
    """rms distance of the partial trajectories from their mean: (B, P, C, X) -> (B,)."""
    return (ends - ends.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2, 3)).sqrt()


def pass_size(schedule: Sequence[float], unit: float, index: int) -> float:
    """Size of refinement pass `index` in units of the spread: schedule / noise_std, the last entry for
    all later passes; without a schedule every pass is one spread wide."""
    return schedule[min(index, len(schedule) - 1)] / unit if schedule else 1.0


def combination(cost: Tensor, combine: str, temperature: float) -> Tensor:
    """Weights (B, n) of each sample's candidates from its own costs alone; 0 of what costs inf."""
    logs = -(cost + TINY).log()
    if combine == "pick":
        best = torch.nn.functional.one_hot(logs.nan_to_num(neginf=-1e30).argmax(dim=1), cost.shape[1])
        return torch.where(torch.isfinite(cost), best.to(cost), 0.0)
    scaled = logs / temperature
    return torch.where(torch.isfinite(cost), scaled.softmax(dim=1).nan_to_num(), 0.0)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=(-2, -1)).sqrt().clamp_min(TINY)
