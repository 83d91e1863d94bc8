"""Conditional flow matching: noise carried to data along straight lines, and its distillation.

With data r, noise e ~ N(0, I) and s in [0, 1]:

    x_s = (1 - s) e + s r,      dx/ds = v(x, s) = E[r - e | x_s = x]

`flow_matching_loss` regresses a network on r - e, whose mean given x_s is v (Lipman et al. 2023,
eq. 9 and 23 with sigma_min = 0). `integrate` carries noise to data by Heun's method. A student
f(x, s) with f(x, 1) = x jumps from any point of a trajectory to its end (the consistency function
of Song et al. 2023); it is regressed on the end that the *teacher's* own trajectory reaches.

Shapes: B batch, then anything; s is (B,). The network is any callable (x, s) -> like x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


def interpolate(noise: Tensor, data: Tensor, s: Tensor) -> Tensor:
    """x_s = (1 - s) noise + s data."""
    weight = _spread(s, data)
    return (1 - weight) * noise + weight * data


def flow_matching_loss(velocity: Field, data: Tensor, noise: Tensor, s: Tensor) -> Tensor:
    """Mean over all axes but the first of |v(x_s, s) - (data - noise)|^2, (B,)."""
    error = velocity(interpolate(noise, data, s), s) - (data - noise)
    return error.square().flatten(1).mean(dim=1)


def integrate(velocity: Field, noise: Tensor, *, steps: int) -> Tensor:
    """The end of the trajectory that starts in `noise`: Heun's method, 2 `steps` evaluations."""
    return trajectory(velocity, noise, steps=steps)[-1]


def trajectory(velocity: Field, noise: Tensor, *, steps: int) -> list[Tensor]:
    """x at s = 0, 1/steps, ..., 1."""
    if steps < 1:
        raise ValueError(f"a trajectory needs at least one step, got {steps}")
    points, width = [noise], 1.0 / steps
    for index in range(steps):
        x = points[-1]
        s = x.new_full(x.shape[:1], index * width)
        slope = velocity(x, s)
        points.append(x + 0.5 * width * (slope + velocity(x + width * slope, s + width)))
    return points


def student_loss(student: Field, teacher_path: list[Tensor], s_index: Tensor) -> Tensor:
    """|f(x_s, s) - x_1|^2 at the points s_index (B,) of the teacher's trajectory, mean, (B,)."""
    points = torch.stack(teacher_path[:-1])
    rows = torch.arange(len(s_index), device=s_index.device)
    s = s_index.to(points) / len(points)
    error = student(points[s_index, rows], s) - teacher_path[-1]
    return error.square().flatten(1).mean(dim=1)


def jump(
    student: Field, noise: Tensor, *, evaluations: int, generator: torch.Generator | None = None
) -> Tensor:
    """Noise to data by `evaluations` jumps.

    One evaluation is f(noise, 0). Each further one returns to x_s with s = i / evaluations: with
    fresh noise of `generator` (multistep consistency sampling, Song et al. 2023, algorithm 1), or,
    without one, with the noise it came from, which keeps the answer a function of the noise.
    """
    if evaluations < 1:
        raise ValueError(f"a jump needs at least one evaluation, got {evaluations}")
    data = student(noise, noise.new_zeros(noise.shape[:1]))
    for index in range(1, evaluations):
        s = noise.new_full(noise.shape[:1], index / evaluations)
        again = noise
        if generator is not None:
            again = torch.randn(noise.shape, generator=generator, dtype=noise.dtype).to(noise.device)
        data = student(interpolate(again, data, s), s)
    return data


def jump_field(velocity: Field) -> Field:
    """f(x, s) = x + (1 - s) g(x, s): a student built on a velocity network, f(x, 1) = x."""
    return lambda x, s: x + (1 - _spread(s, x)) * velocity(x, s)


def _spread(s: Tensor, like: Tensor) -> Tensor:
    return s.reshape(-1, *[1] * (like.ndim - 1)).to(like)
