"""Flow matching and its student on Gaussians, where everything is known in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from universal_simulator.model.flow import (
    flow_matching_loss,
    integrate,
    interpolate,
    jump,
    jump_field,
    student_loss,
    trajectory,
)

MEAN = torch.tensor([0.7, -1.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def exact_velocity(x: Tensor, s: Tensor) -> Tensor:
    """E[r - e | x_s = x] for r ~ N(MEAN, COVARIANCE)."""
    out = torch.empty_like(x)
    eye = torch.eye(2, dtype=x.dtype)
    for value in s.unique().tolist():
        rows = s == value
        total = (1 - value) ** 2 * eye + value**2 * COVARIANCE
        gain = (value * COVARIANCE - (1 - value) * eye) @ torch.linalg.inv(total)
        out[rows] = MEAN + (x[rows] - value * MEAN) @ gain.T
    return out


def exact_map(noise: Tensor) -> Tensor:
    """The flow of a Gaussian: x_1 = MEAN + COVARIANCE^(1/2) noise."""
    values, vectors = torch.linalg.eigh(COVARIANCE)
    return MEAN + noise @ (vectors * values.sqrt()) @ vectors.T


def test_integration_converges_with_second_order_to_the_exact_map() -> None:
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [
        float((integrate(exact_velocity, noise, steps=n) - exact_map(noise)).abs().max())
        for n in (16, 32, 64)
    ]
    assert errors[2] < 2e-4
    for coarse, fine in pairwise(errors):
        assert 1.7 < math.log2(coarse / fine) < 2.3


def test_the_exact_velocity_minimises_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    data = exact_map(torch.randn(20_000, 2, generator=generator, dtype=torch.float64))
    s = torch.randint(0, 16, (20_000,), generator=generator).double() / 16
    best = float(flow_matching_loss(exact_velocity, data, noise, s).mean())
    for change in (0.1, -0.1):
        moved = flow_matching_loss(lambda x, s, c=change: exact_velocity(x, s) + c, data, noise, s).mean()
        assert float(moved) == pytest.approx(best + change**2, abs=0.01)


class Affine(nn.Module):
    """Enough to represent the conditional-Gaussian velocity and its consistency function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2 * 2 + 2)
        )

    def forward(self, x: Tensor, s: Tensor, context: Tensor) -> Tensor:
        out = self.net(torch.stack([s, s.square(), context], dim=-1))
        matrix, offset = out[:, :4].unflatten(-1, (2, 2)), out[:, 4:]
        return (matrix @ x[..., None])[..., 0] + offset


def conditional(context: Tensor, noise: Tensor) -> Tensor:
    """r | c ~ N((c, -c), diag(0.3 + 0.2 c, 0.5)^2): linear-Gaussian, heteroscedastic."""
    mean = torch.stack([context, -context], dim=-1)
    width = torch.stack([0.3 + 0.2 * context, torch.full_like(context, 0.5)], dim=-1)
    return mean + width * noise


def moments_agree(sample: Tensor, context: float) -> None:
    expected = conditional(torch.tensor([context]), torch.zeros(1, 2))[0]
    width = torch.tensor([0.3 + 0.2 * context, 0.5])
    error = width / len(sample) ** 0.5
    assert bool(((sample.mean(0) - expected).abs() < 4 * error + 0.03 * width).all())
    assert bool(((sample.std(0) / width - 1).abs() < 0.06).all())
    correlation = torch.corrcoef(sample.T)[0, 1]
    assert abs(float(correlation)) < 0.08


def test_trained_corrector_and_student_recover_a_linear_gaussian_problem() -> None:
    torch.manual_seed(0)
    teacher, student = Affine(), Affine()
    optimiser = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    for _ in range(1500):
        c = torch.rand(1024)
        data, noise, s = conditional(c, torch.randn(1024, 2)), torch.randn(1024, 2), torch.rand(1024)
        loss = flow_matching_loss(lambda x, s, c=c: teacher(x, s, c), data, noise, s).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    student.load_state_dict(teacher.state_dict())
    optimiser = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    for _ in range(600):
        c = torch.rand(1024)
        with torch.no_grad():
            path = trajectory(lambda x, s, c=c: teacher(x, s, c), torch.randn(1024, 2), steps=5)
        jumped = jump_field(lambda x, s, c=c: student(x, s, c))
        loss = student_loss(jumped, path, torch.randint(0, 5, (1024,))).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for context in (0.1, 0.8):
            c, noise = torch.full((4000,), context), torch.randn(4000, 2, generator=generator)
            moments_agree(integrate(lambda x, s, c=c: teacher(x, s, c), noise, steps=8), context)
            jumped = jump_field(lambda x, s, c=c: student(x, s, c))
            for evaluations in (1, 2):
                moments_agree(jump(jumped, noise, evaluations=evaluations, generator=generator), context)
        zero = jump_field(lambda x, s: -x)  # a student that outputs zero from noise
        assert float(jump(zero, noise, evaluations=1, generator=generator).abs().max()) < 1e-6


def test_ends_of_the_line() -> None:
    noise, data = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    assert torch.equal(interpolate(noise, data, torch.zeros(3)), noise)
    assert torch.equal(interpolate(noise, data, torch.ones(3)), data)
    jumped = jump_field(lambda x, s: torch.ones_like(x))
    assert torch.equal(jumped(noise, torch.ones(3)), noise)
    for call in (
        lambda: trajectory(exact_velocity, noise, steps=0),
        lambda: jump(jumped, noise, evaluations=0, generator=torch.Generator()),
    ):
        with pytest.raises(ValueError, match="at least one"):
            call()
