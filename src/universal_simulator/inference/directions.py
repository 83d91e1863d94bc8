"""What the learned combination of test-time compute is given at the end of a segment.

Directions from the mean of the partial trajectories: all of these but one, then tangents of shift, warp
and amplitude. Features: time, amplitudes, steepness, skewness, sizes and cosines of the directions, each also
times every parameter (its logarithm where it is positive), so that regimes differ.

Shapes: B samples, K directions, F features, C fields, X points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.inference.candidates import DIRECTIONS, Stem, along
from universal_simulator.physics.domain import Grid

TINY = 1e-20


@dataclass(frozen=True)
class Directions:
    """fields (B, K, C, X), features (B, F)."""

    fields: Tensor
    features: Tensor


def directions_of(
    stem: Stem, *, start: Tensor, parameters: Tensor, step: int, size: Tensor, grid: Grid
) -> Directions:
    """start (B, C, X): where the segment began; step: rollout steps done; size (B,): of a displacement."""
    mean = stem.mean
    _, moved = along(mean, stem.before, size=size, pairs=len(DIRECTIONS), grid=grid)
    tangents = [(moved[2 * index] - moved[2 * index + 1]) / 2 for index in range(len(DIRECTIONS))]
    fields = torch.stack([*(stem.ends[:, :-1] - mean[:, None]).unbind(1), *tangents], dim=1)
    flat = fields.flatten(2)
    about, began = _fluctuation(mean), _fluctuation(start)
    slope = about.roll(-1, -1) - about.roll(1, -1)
    sizes = _rms(flat)
    values = [torch.full_like(sizes[:, 0], float(step)).log(), _rms(slope.flatten(1)).log()]
    values += [_rms(part.flatten(1)).log() for part in (about, began, about - began)]
    values += [(part**3).mean(dim=(1, 2)) / _rms(part.flatten(1)) ** 3 for part in (slope, about)]
    values += list(sizes.log().unbind(1))
    for one in range(flat.shape[1]):
        for other in range(one):
            product = (flat[:, one] * flat[:, other]).mean(dim=-1)
            values.append(product / (sizes[:, one] * sizes[:, other]))
    plain = torch.stack(values, dim=1)
    read = torch.where(parameters > 0, parameters.clamp_min(TINY).log(), parameters).to(plain)
    times = [plain * read[:, index : index + 1] for index in range(read.shape[1])]
    return Directions(fields, torch.cat([plain, read, *times], dim=1))


def _fluctuation(fields: Tensor) -> Tensor:
    return fields - fields.mean(dim=-1, keepdim=True)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=-1).clamp_min(TINY).sqrt()
