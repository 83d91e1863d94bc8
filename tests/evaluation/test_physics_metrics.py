"""Conservation, dissipation, boundary and spectrum: what they see and what they must ignore."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from universal_simulator.evaluation import conservation
from universal_simulator.inference.guards import project_mass
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS, undeclared

GRID = Grid((2.0,), (32,))


def fields(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def carried(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A start and its translations: everything declared holds exactly."""
    start = fields(seed, 2, 1, 32)
    return torch.stack([start.roll(k, -1) for k in range(1, 4)], dim=1), start


def test_gap_is_the_loop() -> None:
    moved, start = fields(0, 2, 3, 1, 32), fields(1, 2, 1, 32)
    found = conservation.conservation_gap(moved, start, GRID, BURGERS)
    assert found is not None
    for row in range(2):
        size = math.sqrt(sum(float(v) ** 2 for v in start[row, 0]) / 32)
        mass = 2.0 * sum(float(v) for v in start[row, 0]) / 32
        worst = max(abs(2.0 * sum(float(v) for v in frame) / 32 - mass) for frame in moved[row, :, 0])
        assert float(found[row]) == pytest.approx(worst / (size * 2.0))


def test_gap_sees_a_drift_ignores_a_shift_and_vanishes_under_the_guard() -> None:
    moved, start = carried(3)
    for equation in (BURGERS, ADVECTION):
        gap = conservation.conservation_gap(moved, start, GRID, equation)
        assert gap is not None
        assert float(gap.max()) < 1e-14
    drifted = conservation.conservation_gap(moved + 0.1, start, GRID, BURGERS)
    assert drifted is not None
    assert torch.allclose(drifted, 0.1 / start.square().mean((1, 2)).sqrt())
    guarded = conservation.conservation_gap(project_mass(moved + 0.1, start), start, GRID, BURGERS)
    assert guarded is not None
    assert float(guarded.max()) < 1e-14


def test_energy_that_is_declared_conserved_counts() -> None:
    moved, start = carried(3)
    mean = moved.mean(-1, keepdim=True)
    damped = mean + 0.9 * (moved - mean)
    assert float(conservation.conservation_gap(damped, start, GRID, BURGERS).max()) < 1e-14  # type: ignore[union-attr]
    assert float(conservation.conservation_gap(damped, start, GRID, ADVECTION).min()) > 0.01  # type: ignore[union-attr]


def test_what_is_not_declared_is_not_measured() -> None:
    moved, start = carried(3)
    nothing = undeclared(["u"], ["a"])
    assert conservation.conservation_gap(moved, start, GRID, nothing) is None
    assert conservation.dissipation_violation(moved, start, GRID, nothing) == {}


@given(factor=st.floats(0.1, 0.999), steps=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_decay_never_violates_and_growth_always_does(factor: float, steps: int) -> None:
    start = fields(2, 2, 1, 32)
    decaying = torch.stack([start * factor**k for k in range(1, steps + 1)], dim=1)
    growing = torch.stack([start / factor**k for k in range(1, steps + 1)], dim=1)
    for name, value in conservation.dissipation_violation(decaying, start, GRID, BURGERS).items():
        assert float(value.max()) == 0.0, name
    found = conservation.dissipation_violation(growing, start, GRID, BURGERS)
    expected = np.mean([factor ** (-2 * k) - factor ** (-2 * (k - 1)) for k in range(1, steps + 1)])
    assert found["energy"].tolist() == pytest.approx([expected] * 2)


def test_seam_of_a_periodic_field_is_whole_and_a_jump_is_measured() -> None:
    grid = Grid((1.0,), (128,))
    x = grid.coordinates()
    smooth = torch.sin(2 * math.pi * x)[None, None]
    ramp = (x - 0.5)[None, None]
    value, slope = conservation.grid_seam_jumps(smooth, grid)
    assert float(value) < 1e-5
    assert float(slope) < 1e-2
    value, slope = conservation.grid_seam_jumps(ramp, grid)
    assert float(value) == pytest.approx(1.0)
    assert float(slope) == pytest.approx(0.0, abs=1e-9)
    kink = (x - 0.5).square()[None, None]
    value, slope = conservation.grid_seam_jumps(kink, grid)
    assert float(value) == pytest.approx(0.0, abs=1e-12)
    assert float(slope) == pytest.approx(2.0)


def test_decoder_queries_give_the_same_jumps() -> None:
    grid, d = Grid((1.0,), (64,)), 1e-3
    places = torch.tensor([-d, 0.0, d, 1 - d, 1.0, 1 + d], dtype=torch.float64)
    value, slope = conservation.seam_jumps((places - 0.5).square()[None, None], d)
    assert float(value) == pytest.approx(0.0, abs=1e-12)
    assert float(slope) == pytest.approx(2.0)
    found = conservation.boundary_violation(value, slope, torch.full((1, 1, 64), 0.5), grid)
    assert float(found["bc_violation_slope"]) == pytest.approx(2.0 * 0.5 / 64 / 0.5)
    assert float(found["bc_violation"]) == float(found["bc_violation_slope"])


def test_spectrum_error_is_blind_to_phase_and_one_for_an_empty_band() -> None:
    y = fields(1, 2, 3, 1, 64)
    assert float(conservation.spectrum_error(y.roll(5, -1), y)["spectrum_error"].max()) < 1e-12
    spectrum = torch.fft.rfft(y)
    spectrum[..., 12:] = 0
    blurred = conservation.spectrum_error(torch.fft.irfft(spectrum, n=64), y)
    assert torch.allclose(blurred["spectrum_error_high"], torch.ones(2, dtype=torch.float64))
    assert float(blurred["spectrum_error_mid"].max()) < 1e-12
    assert float(blurred["spectrum_error_low"].max()) < 1e-12


def test_a_band_without_energy_is_excluded_not_divided_by() -> None:
    x = GRID.coordinates()
    wave = torch.sin(math.pi * x)[None, None, None]
    found = conservation.spectrum_error(wave + 0.01 * torch.sin(15 * math.pi * x), wave)
    assert bool(found["spectrum_error_high"].isnan())
    faint = wave + 1e-4 * torch.sin(15 * math.pi * x)
    found_faint = conservation.spectrum_error(wave + 0.1 * torch.sin(15 * math.pi * x), faint)
    assert bool(found_faint["spectrum_error_high"].isnan()), (
        "1e-8 of the energy would be an error of a million"
    )
    assert float(found["spectrum_error"]) == pytest.approx(1e-4, rel=1e-6)
