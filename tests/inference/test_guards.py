"""The energy bound holds for every solution, is reached by some, and only ever helps."""

from __future__ import annotations

import math

import pytest
import torch

from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.inference.guards import Guards, energy_bound, shrink
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS, KURAMOTO_SIVASHINSKY
from universal_simulator.physics.finite_volume import solve_burgers
from universal_simulator.physics.initial_conditions import draw_sine_family

GRID = Grid((1.0,), (256,), (0.0,))
TIMES = 0.05 * torch.arange(21, dtype=torch.float64)


def around_mean(fields: torch.Tensor) -> torch.Tensor:
    return (fields - fields.mean(dim=-1, keepdim=True)).square().mean(dim=-1).sqrt()


@pytest.mark.parametrize("nu", [0.001, 0.01, 0.1, 1.0])
def test_no_solution_exceeds_the_bound(nu: float) -> None:
    """Shocks, short waves and what diffusion ends, as the data of a plan are drawn, in single precision."""
    initial = draw_sine_family(24, torch.Generator().manual_seed(3))(torch.arange(256) / 256)[:, None].float()
    truth = solve_burgers(initial[:, 0], torch.full((24,), nu), TIMES, GRID)[:, 1:, None]
    bound = energy_bound(initial, torch.full((24,), nu / math.pi), TIMES[1:], 1.0)
    assert bool((around_mean(truth) <= bound).all())
    guards = Guards(BURGERS, GuardsConfig(mass_projection=False), grid=GRID, frame_spacing_s=0.05)
    assert guards.names == ("energy_bound",)
    assert torch.equal(guards.apply(truth, initial, torch.full((24, 1), nu)), truth), "nothing to mend"


@pytest.mark.parametrize("wavenumber", [1, 3, 8])
def test_a_small_sine_reaches_the_bound(wavenumber: int) -> None:
    """It decays as the heat equation has it: the shorter period is seen, a mean changes nothing."""
    x = torch.arange(256, dtype=torch.float64) / 256
    sine = 1e-3 * torch.sin(2 * math.pi * wavenumber * x)[None, None] + 0.7
    times = torch.linspace(0.01, 0.1, 5, dtype=torch.float64)
    bound = energy_bound(sine, torch.tensor([0.03]), times, 1.0)[0, :, 0]
    exact = 1e-3 / math.sqrt(2) * (-0.03 * (2 * math.pi * wavenumber) ** 2 * times).exp()
    assert bool((bound >= exact).all())
    assert bool((bound <= 1.03 * exact + 1e-6).all())


def test_a_trace_of_another_wave_loosens_the_bound_as_much_as_it_may_grow() -> None:
    x = torch.arange(256, dtype=torch.float64) / 256
    short, long = (torch.sin(2 * math.pi * k * x)[None, None] for k in (8, 1))
    late, kappa = torch.tensor([2.0]), torch.tensor([0.03])
    pure = energy_bound(short, kappa, late, 1.0)
    trace = energy_bound(short + 1e-6 * long, kappa, late, 1.0)
    mixed = energy_bound(short + long, kappa, late, 1.0)
    assert float(pure) < 1e-5 < float(trace) < 3e-3 < float(mixed)


def test_shrinking_moves_nothing_away_from_what_keeps_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    fields, truth = (torch.randn(16, 5, 1, 32, generator=generator) for _ in range(2))
    fields = fields * torch.rand(16, 5, 1, 1, generator=generator) * 4
    bound = around_mean(truth) * (1 + torch.rand(16, 5, 1, generator=generator))
    guarded = shrink(fields, bound)
    before, after = ((f - truth).square().mean(dim=-1) for f in (fields, guarded))
    assert bool((after <= before + 1e-6).all())
    assert bool((after < before - 1e-3).any())
    assert torch.allclose(guarded.mean(dim=-1), fields.mean(dim=-1), atol=1e-6)
    kept = around_mean(fields) <= bound
    assert torch.equal(guarded[kept], fields[kept]), "fields within the bound stay as they are"
    broken = fields.clone()
    broken[0, 0, 0, 0], broken[1, 0, 0, 0] = math.nan, math.inf
    assert not bool(shrink(broken, bound)[:2, 0].isfinite().all(dim=-1).any()), "a broken field stays broken"


def test_what_is_not_declared_or_switched_off_is_not_bound() -> None:
    def names(equation: object, **off: bool) -> tuple[str, ...]:
        return Guards(equation, GuardsConfig(**off), grid=GRID, frame_spacing_s=0.05).names  # type: ignore[arg-type] # three equations

    assert names(BURGERS) == ("mass_projection", "energy_bound")
    assert names(BURGERS, energy_bound=False) == ("mass_projection",)
    assert "energy_bound" not in names(ADVECTION) + names(KURAMOTO_SIVASHINSKY)
    initial = torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(1))
    grown = 5 * initial[:, None]
    off = Guards(BURGERS, GuardsConfig(energy_bound=False), grid=GRID, frame_spacing_s=0.05)
    on = Guards(BURGERS, GuardsConfig(), grid=GRID, frame_spacing_s=0.05)
    parameters = torch.full((2, 1), 0.01)
    assert bool(
        (around_mean(off.apply(grown, initial, parameters)) > 4 * around_mean(initial)[:, None]).all()
    )
    assert bool(
        (around_mean(on.apply(grown, initial, parameters)) < 1.03 * around_mean(initial)[:, None]).all()
    )
