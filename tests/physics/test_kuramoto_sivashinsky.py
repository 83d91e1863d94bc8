"""Kuramoto-Sivashinsky: what is exact is exact, what is chaotic is as chaotic as published."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from universal_simulator.errors import UserError
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import (
    ADVECTION,
    BURGERS,
    KURAMOTO_SIVASHINSKY,
    equation_named,
    undeclared,
)
from universal_simulator.physics.initial_conditions import draw_smooth_family
from universal_simulator.physics.invariants import energy, pde_residual
from universal_simulator.physics.lyapunov import leading_lyapunov_exponent
from universal_simulator.physics.reference import classical_method, solve
from universal_simulator.physics.spectral import fourier_shift, wavenumbers
from universal_simulator.physics.spectral_solver import solve_kuramoto_sivashinsky

#: small enough to be quick, fine enough that truncation is 4e-6 in a second
GRID = Grid((22.0,), (48,))


def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def distance(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).square().mean(-1).sqrt() / expected.square().mean(-1).sqrt()
    return float(error.max())


@pytest.fixture(scope="module")
def attractor() -> Tensor:
    """256 states (B, X) after 200 s on L = 22."""
    start = draw_smooth_family(256, torch.Generator().manual_seed(0))(GRID.coordinates() / 22)
    return solve_kuramoto_sivashinsky(start, ones(256), times(0, 200), GRID, step=0.2)[:, -1]


def test_declaration_is_found_by_name_and_has_its_classical_method() -> None:
    assert equation_named("kuramoto_sivashinsky") is KURAMOTO_SIVASHINSKY
    methods = [classical_method(e) for e in (KURAMOTO_SIVASHINSKY, BURGERS, ADVECTION, undeclared(["u"], []))]
    assert methods == ["spectral", "finite_volume", "exact", "none"]
    with pytest.raises(UserError, match="no 'finite_volume' solver"):
        solve(
            KURAMOTO_SIVASHINSKY,
            torch.zeros(1, 1, 8),
            torch.ones(1, 1),
            times(0, 1),
            Grid((22.0,), (8,)),
            method="finite_volume",
        )


def test_one_tiny_mode_grows_at_its_linear_rate() -> None:
    nu, modes, small = times(1.0, 0.5, 4.0), times(1, 2, 3, 5), 1e-8
    k = 2 * math.pi * modes / 22
    fields = small * torch.sin(k[:, None] * GRID.coordinates())
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    t = times(0, 0.4, 1.0, 3.0)
    found = solve_kuramoto_sivashinsky(fields[pairs[:, 0]], nu[pairs[:, 1]], t, GRID)
    rate = k[pairs[:, 0]] ** 2 - nu[pairs[:, 1]] * k[pairs[:, 0]] ** 4
    growth = torch.exp(rate[:, None] * t)
    assert bool((rate > 0).any())
    assert bool((rate < 0).any())
    expected = growth[..., None] * fields[pairs[:, 0]][:, None]
    assert float((found - expected).abs().max()) < 1e-6 * small


def test_fourth_order_in_time(attractor: Tensor) -> None:
    start, t = attractor[:8], times(0, 4)
    exact = solve_kuramoto_sivashinsky(start, ones(8), t, GRID, step=0.005)[:, 1]
    errors = [
        float((solve_kuramoto_sivashinsky(start, ones(8), t, GRID, step=h)[:, 1] - exact).norm())
        for h in (0.05, 0.025, 0.0125)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    # stiff modes lag at larger steps: the order comes to 4 from below
    assert 3.2 < orders[0] < orders[1] < 4.3
    assert orders[1] > 3.6
    default = solve_kuramoto_sivashinsky(start, ones(8), times(0, 1), GRID)[:, 1]
    finer = solve_kuramoto_sivashinsky(start, ones(8), times(0, 1), GRID, step=0.01)[:, 1]
    assert distance(default, finer) < 2e-6


def test_any_partition_of_time_gives_the_same_answer(attractor: Tensor) -> None:
    start = attractor[:4]
    whole = solve_kuramoto_sivashinsky(start, ones(4), times(0, 3), GRID, step=0.01)[:, -1]
    parts = solve_kuramoto_sivashinsky(start, ones(4), times(0, 0.3, 0.4, 1.7, 3), GRID, step=0.01)[:, -1]
    assert distance(parts, whole) < 1e-7


def test_mean_is_conserved_to_round_off(attractor: Tensor) -> None:
    start = attractor[:8] + torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    found = solve_kuramoto_sivashinsky(start, ones(8), times(0, 10, 50), GRID)
    assert float((found.mean(-1) - start.mean(-1)[:, None]).abs().max()) < 1e-12


def test_energy_balance(attractor: Tensor) -> None:
    """d/dt <u^2/2> = <u_x^2> - nu <u_xx^2>: in at long waves, out at short ones, none by the flux."""
    nu, h = torch.linspace(0.7, 1.3, 16, dtype=torch.float64), 1e-3
    start = solve_kuramoto_sivashinsky(attractor[:16], nu, times(0, 5), GRID)[:, -1]
    before, middle, after = solve_kuramoto_sivashinsky(start, nu, times(0, h, 2 * h), GRID, step=h).transpose(
        0, 1
    )
    rate = (energy(after, GRID) - energy(before, GRID)) / (2 * h) / 22
    k = wavenumbers(48, 22.0)
    slope, curvature = (torch.fft.irfft(torch.fft.rfft(middle) * f, n=48) for f in (1j * k, -(k**2)))
    source, sink = slope.square().mean(-1), nu * curvature.square().mean(-1)
    assert float((rate - (source - sink)).abs().max()) < 1e-5 * float(source.mean())
    assert float((source - sink).abs().max()) > 0.05 * float(source.mean()), "the balance is not zero"


def test_declared_symmetries_map_solutions_to_solutions(attractor: Tensor) -> None:
    start, nu = attractor[:8], torch.linspace(0.8, 1.2, 8, dtype=torch.float64)
    t = times(0, 2, 6)
    truth = solve_kuramoto_sivashinsky(start, nu, t, GRID)

    moved = solve_kuramoto_sivashinsky(fourier_shift(start, times(*range(8)), GRID), nu, t, GRID)
    assert distance(fourier_shift(moved, -times(*range(8))[:, None], GRID), truth) < 1e-6

    mirrored = solve_kuramoto_sivashinsky(-start.flip(-1), nu, t, GRID)
    assert distance(-mirrored.flip(-1), truth) < 1e-9
    unsigned = solve_kuramoto_sivashinsky(start.flip(-1), nu, t, GRID)
    assert distance(unsigned.flip(-1)[:, 1:], truth[:, 1:]) > 0.1, "reflection needs its sign"

    speed = 0.7
    fast = solve_kuramoto_sivashinsky(start + speed, nu, t, GRID)
    assert distance(fourier_shift(fast, -speed * t[None], GRID) - speed, truth) < 1e-4


def test_scaling_of_amplitude_and_time_is_no_symmetry_of_nu_alone(attractor: Tensor) -> None:
    start, factor = attractor[:8], 1.5
    truth = solve_kuramoto_sivashinsky(start, ones(8), factor * times(0, 2), GRID)
    scaled = solve_kuramoto_sivashinsky(factor * start, factor * ones(8), times(0, 2), GRID) / factor
    assert distance(scaled, truth) > 0.1
    assert "amplitude_time" not in KURAMOTO_SIVASHINSKY.symmetries
    # with the domain scaled as well it is exact, and the internal step scales along
    wide = Grid((44.0,), (48,))
    longer = solve_kuramoto_sivashinsky(start / 2, 4 * ones(8), times(0, 8), wide)
    same = solve_kuramoto_sivashinsky(start, ones(8), times(0, 2), GRID)
    assert distance(2 * longer, same) < 1e-10


def test_too_coarse_a_grid_does_not_leave_growing_modes_behind() -> None:
    """All modes of this grid are unstable; those beyond the 2/3 have no flux to stop them."""
    grid = Grid((200.0,), (32,))
    start = torch.randn(2, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = solve_kuramoto_sivashinsky(start, ones(2), times(0, 1), grid)[:, -1]
    assert float(torch.fft.rfft(found)[:, 11:].abs().max()) < 1e-12


def test_energy_is_stationary_after_the_spin_up(attractor: Tensor) -> None:
    t = torch.arange(0, 101, 5, dtype=torch.float64)
    solution = solve_kuramoto_sivashinsky(attractor, ones(256), t, GRID, step=0.2)
    per_sample = solution.square().mean(-1)
    early, late = per_sample[:, :10].mean(1), per_sample[:, 11:].mean(1)
    error = float((early - late).std() / math.sqrt(256))
    assert abs(float(early.mean() - late.mean())) < 3 * error
    assert error < 0.03
    assert 1.3 < float(per_sample.mean()) < 1.5
    assert 2.5 < float(solution.abs().max()) < 3.6


def test_classical_solver_on_coarse_grids(attractor: Tensor) -> None:
    """Truncated, not averaged: 32 points are enough for a step, 24 are not quite."""
    fields, nu, t = attractor[:16, None], ones(16)[:, None], times(0, 1, 5)
    truth = solve(KURAMOTO_SIVASHINSKY, fields, nu, t, GRID, method="spectral")
    assert torch.equal(truth[:, 0], fields)
    found = {
        points: distance(
            solve(KURAMOTO_SIVASHINSKY, fields, nu, t, GRID, method="spectral", points=points)[:, 1:],
            truth[:, 1:],
        )
        for points in (24, 32)
    }
    assert found[32] < 1e-2 < found[24] < 0.5


def test_residual_sees_the_equation_and_nothing_else(attractor: Tensor) -> None:
    nu = torch.linspace(0.8, 1.2, 8, dtype=torch.float64)
    fields = solve_kuramoto_sivashinsky(attractor[:8], nu, torch.arange(5).double(), GRID)[:, :, None]

    def residual(of: Tensor, viscosity: Tensor) -> Tensor:
        found = pde_residual(of, viscosity[:, None], 1.0, GRID, KURAMOTO_SIVASHINSKY)
        assert found is not None
        return found

    assert float(residual(fields, nu).max()) < 2e-5
    assert float(residual(fields.float(), nu.float()).max()) < 2e-5, "rounding is not amplified"
    assert float(residual(fields, 1.2 * nu).min()) > 1e-2
    held = fields[:, :1].expand(-1, 5, -1, -1)
    assert float(residual(held, nu).min()) > 0.02
    noisy = fields + 1e-3 * torch.randn(fields.shape, generator=torch.Generator().manual_seed(1)).double()
    assert float(residual(noisy, nu).max()) < 5e-3
    assert bool(torch.isfinite(residual(10 * fields, nu)).all())
    broken = residual(torch.cat([fields[:1] * torch.nan, fields[1:]]), nu)
    assert broken.isnan().tolist() == [True] + 7 * [False]


def test_initial_conditions_are_smooth_and_without_mean() -> None:
    family = draw_smooth_family(2000, torch.Generator().manual_seed(0))
    u = family(GRID.coordinates() / 22)
    assert float(u.mean(-1).abs().max()) < 1e-14
    assert abs(float(u.square().mean().sqrt()) - 1.0) < 0.03
    assert float(torch.fft.rfft(u)[:, 5:].abs().max()) < 1e-12
    finer = family(Grid((22.0,), (144,)).coordinates() / 22)
    assert torch.allclose(finer[:, 1::3], u, atol=1e-13)


def test_below_the_threshold_the_exponent_is_the_slowest_decay() -> None:
    """On L = 6 < 2 pi every mode decays; a tiny field forgets at the rate of the longest wave."""
    grid, k = Grid((6.0,), (24,)), 2 * math.pi / 6
    start = 1e-3 * draw_smooth_family(4, torch.Generator().manual_seed(0))(grid.coordinates() / 6)
    found = leading_lyapunov_exponent(
        KURAMOTO_SIVASHINSKY,
        start[:, None],
        ones(4)[:, None],
        grid,
        interval_s=1.0,
        intervals=5,
        discarded=3,
        generator=torch.Generator().manual_seed(1),
    )
    assert float((found - (k**2 - k**4)).abs().max()) < 1e-4


def _exponent(states: Tensor, intervals: int) -> tuple[float, float]:
    found = leading_lyapunov_exponent(
        KURAMOTO_SIVASHINSKY,
        states[:, None],
        ones(len(states))[:, None],
        GRID,
        interval_s=5.0,
        intervals=intervals,
        discarded=8,
        generator=torch.Generator().manual_seed(1),
    )
    return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def test_chaos_is_as_fast_as_published(attractor: Tensor) -> None:
    """L = 22: 0.048 1/s (Cvitanovic, Davidchack & Siminos 2010), 0.043 (Edson et al. 2019)."""
    value, error = _exponent(attractor[:96], intervals=24)
    assert error < 0.003
    assert 0.043 - 2 * error < value < 0.050 + 2 * error


@pytest.mark.slow
def test_chaos_is_as_fast_as_published_to_a_few_percent(attractor: Tensor) -> None:
    value, error = _exponent(attractor, intervals=100)
    assert error < 0.001
    assert 0.043 < value < 0.050
