"""The equation's residual: small on solutions, smaller on finer grids, large on everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from universal_simulator.data.dataset import open_dataset
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS
from universal_simulator.physics.initial_conditions import draw_sine_family
from universal_simulator.physics.invariants import PAIR_STRIDE, burgers_residual, pde_residual
from universal_simulator.physics.reference import solve, torch_times

POINTS = (64, 128, 256)
STEP_S = 0.02


def grid(points: int) -> Grid:
    return Grid((1.0,), (points,))


def residual(fields: Tensor, nu: Tensor) -> Tensor:
    found = pde_residual(fields, nu[:, None], STEP_S, grid(fields.shape[-1]), BURGERS)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def nu() -> Tensor:
    return torch.tensor([0.01, 0.02, 0.05, 0.1] * 4, dtype=torch.float64)


@pytest.fixture(scope="module")
def solution(nu: Tensor) -> Tensor:
    """Spectral, so another scheme than the residual's: (16, 31, 1, 768)."""
    start = draw_sine_family(len(nu), torch.Generator().manual_seed(5))(grid(768).coordinates())
    times = torch_times(31, STEP_S)
    return solve(BURGERS, start[:, None], nu[:, None], times, grid(768), method="spectral")


def on(points: int, solution: Tensor) -> Tensor:
    """The cells of a coarser grid whose centres the fine one holds."""
    ratio = solution.shape[-1] // points
    return (
        solution[..., (ratio - 1) // 2 :: ratio]
        if ratio % 2
        else solution.unflatten(-1, (-1, ratio)).mean(-1)
    )


def test_a_solution_leaves_little_and_less_on_finer_grids(nu: Tensor, solution: Tensor) -> None:
    coarse, middle, fine = (float(residual(on(p, solution), nu).mean()) for p in POINTS)
    assert fine < 1e-3
    assert coarse > 2.5 * middle > 6 * fine


def test_everything_else_leaves_much(nu: Tensor, solution: Tensor) -> None:
    truth = on(256, solution)
    own = residual(truth, nu)
    wrong = {
        "held": truth[:, :1].expand_as(truth),
        "backwards": truth.flip(1),
        "mirrored": -truth,
        "carried too fast": solve(
            BURGERS,
            truth[:, 0],
            nu[:, None],
            1.1 * torch_times(31, STEP_S),
            grid(256),
            method="finite_volume",
        ),
        "noisy": truth + 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)),
    }
    for name, fields in wrong.items():
        assert float((residual(fields, nu) / own).median()) > 10, name
    assert float((residual(truth, 4 * nu) / own).median()) > 10, "another viscosity"


def test_sub_steps_make_the_frame_spacing_irrelevant(nu: Tensor, solution: Tensor) -> None:
    """One frame of four steps says the same as the equation does: no difference quotient could."""
    truth = on(256, solution)[:, ::4]
    found = pde_residual(truth, nu[:, None], 4 * STEP_S, grid(256), BURGERS)
    assert found is not None
    assert float(found.mean()) < 4e-3


def test_better_solutions_score_better_even_where_shocks_are_thinner_than_a_cell() -> None:
    thin = torch.full((8,), 0.001, dtype=torch.float64)
    start = draw_sine_family(8, torch.Generator().manual_seed(2))(grid(256).coordinates())[:, None]
    times = torch_times(41, STEP_S)
    scores = [
        float(
            residual(
                solve(BURGERS, start, thin[:, None], times, grid(256), method="finite_volume", points=p), thin
            ).mean()
        )
        for p in (32, 128, 256)
    ]
    assert scores[0] > 1.5 * scores[1] > 3 * scores[2]


@pytest.mark.parametrize(("name", "bound"), [("0.001", 0.03), ("0.01", 1e-3)])
def test_the_published_data_keep_their_own_equation(name: str, bound: float, sample_file: Path) -> None:
    path = sample_file.with_name(sample_file.name.replace("0.01", name))
    truth = open_dataset(path, points=256).load("all", time_stride=2)
    own = pde_residual(truth.fields, truth.parameters, truth.frame_spacing_s, truth.grid, BURGERS)
    assert own is not None
    assert float(own.mean()) < bound


def test_every_third_pair_is_what_the_whole_residual_holds(nu: Tensor, solution: Tensor) -> None:
    truth = on(64, solution)
    whole = burgers_residual(truth[:, :, 0], nu, STEP_S, grid(64))[:, ::PAIR_STRIDE]
    expected = whole.square().mean((1, 2)).sqrt() * STEP_S / truth.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(residual(truth, nu), expected, rtol=1e-9)


def test_broken_and_wild_frames_are_told_in_bounded_time(nu: Tensor, solution: Tensor) -> None:
    fields = on(64, solution).clone()
    fields[0, 3, 0, 5] = torch.nan
    fields[1, 4, 0, 5] = torch.inf
    fields[2, 6:] = 1e8
    found = residual(fields, nu)
    assert found.isnan().tolist() == [True, True] + 14 * [False]
    assert float(found[2]) > 0.1
    assert torch.allclose(found[3:], residual(on(64, solution), nu)[3:], rtol=1e-9)


def test_advection_is_judged_by_its_exact_shift() -> None:
    beta = torch.tensor([[-0.4], [0.1], [1.0]], dtype=torch.float64)
    start = draw_sine_family(3, torch.Generator().manual_seed(1))(grid(64).coordinates())[:, None]
    carried = solve(ADVECTION, start, beta, torch_times(9, STEP_S), grid(64), method="exact")
    own = pde_residual(carried, beta, STEP_S, grid(64), ADVECTION)
    faster = pde_residual(carried, 1.1 * beta, STEP_S, grid(64), ADVECTION)
    assert own is not None
    assert faster is not None
    assert float(own.max()) < 1e-12
    assert float(faster.min()) > 1e-4
