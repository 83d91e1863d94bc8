"""Candidates: exact symmetries, displacements of the size asked for, costs from declared laws only."""

from __future__ import annotations

import pytest
import torch

from universal_simulator.configuration import load_config
from universal_simulator.configuration.schema import RewardWeights
from universal_simulator.errors import RewardError
from universal_simulator.inference import rewards
from universal_simulator.inference.candidates import (
    DIRECTIONS,
    Stem,
    along,
    first_pool,
    pass_size,
    pool_sizes,
    refined_pool,
    representations,
)
from universal_simulator.inference.rewards import PhysicsCost
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS, undeclared
from universal_simulator.physics.spectral_solver import solve_burgers

GRID = Grid((1.0,), (64,))
X = GRID.coordinates().float()
WEIGHTS = RewardWeights(mass=1.0, energy=1.0, negativity=1.0)


def field() -> torch.Tensor:
    return torch.stack([torch.sin(2 * torch.pi * X) + 0.5, torch.cos(4 * torch.pi * X) - 0.1])[:, None]


def test_representations_are_exact_symmetries_of_the_equation() -> None:
    views = representations(BURGERS, count=4, width=16)
    assert [(view.cells, view.reflected) for view in views] == [
        (0, False),
        (4, True),
        (8, False),
        (12, True),
    ]
    times = torch.tensor([0.0, 0.1], dtype=torch.float64)
    nu = torch.full((2,), 0.1)
    expected = solve_burgers(field()[:, 0].double(), nu.double(), times, GRID)[:, 1]
    for view in views:
        assert torch.equal(view.undo(view.apply(field())), field())
        seen = solve_burgers(view.apply(field())[:, 0].double(), nu.double(), times, GRID)[:, 1]
        torch.testing.assert_close(view.undo(seen), expected, rtol=0, atol=1e-9)
    assert not any(view.reflected for view in representations(ADVECTION, count=4, width=16))
    assert len(representations(undeclared(("u",), ("p",)), count=4, width=16)) == 1


def test_directions_displace_by_the_size_asked_for() -> None:
    size = torch.tensor([0.01, 0.002])
    before = field() * 1.05
    names, moved = along(field(), before, size=size, pairs=3, grid=GRID)
    assert names == ["shift+", "shift-", "warp+", "warp-", "amplitude+", "amplitude-"]
    for fields in moved:
        away = (fields - field()).square().mean(dim=(1, 2)).sqrt()
        torch.testing.assert_close(away, size, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(moved[4].mean(-1), field().mean(-1), msg="about the conserved mean")
    torch.testing.assert_close(moved[0] + moved[1], 2 * field(), rtol=0, atol=1e-3)


def test_a_pool_has_the_ends_their_mean_and_tau_first() -> None:
    ends = torch.stack([field(), field() + 0.01], dim=1)
    stem = Stem(ends, field() * 1.02, ends + 0.1)
    size = torch.full((2,), 0.01)
    names, pool = first_pool(stem, count=12, tau_range=(0.2, 0.8), size=size, grid=GRID)
    assert names[:5] == ("end0", "end1", "mean", "tau 0.2", "tau 0.8")
    assert names[5:11] == ("shift+", "shift-", "warp+", "warp-", "amplitude+", "amplitude-")
    assert names[11:] == ("member0", "member1")
    torch.testing.assert_close(pool[:, 4] - pool[:, 2], torch.full_like(pool[:, 0], 0.08))
    assert torch.equal(pool[:, 2], ends.mean(dim=1))
    again = refined_pool(field(), field() * 1.02, count=8, size=size, grid=GRID)
    assert again[0] == ("mean", "shift+", "shift-", "warp+", "warp-", "amplitude+", "amplitude-")


@pytest.mark.parametrize("config", ["rerun_txxoc8a8", "sweep_aggressive_sota"])
def test_at_the_plans_own_values_every_direction_is_a_candidate(config: str) -> None:
    """Both ends of tau and both sides of shift, warp and amplitude; the members where the plan asks for 12."""
    ttc = load_config(config, profile="full").config.ttc
    ends = torch.stack([field() + 0.01 * index for index in range(ttc.beam)], dim=1)
    size = torch.full((2,), 0.01)
    for corrected in (ends + 0.1, None):
        stem = Stem(ends, field() * 1.02, corrected)
        names, pool = first_pool(stem, count=ttc.candidates, tau_range=ttc.tau_range, size=size, grid=GRID)
        signs = {f"{name}{sign}" for name in DIRECTIONS for sign in "+-"}
        taus = {f"tau {tau:g}" for tau in ttc.tau_range}
        members = {f"member{index}" for index in range(ttc.beam)}
        told = signs if corrected is None else signs | taus | (members if ttc.candidates == 12 else set())
        assert set(names[ttc.beam + 1 :]) == told
        sizes = pool_sizes(
            ends=ttc.beam, count=ttc.candidates, corrected=corrected is not None, passes=ttc.steps
        )
        assert sizes[0] == len(names) == pool.shape[1]


@pytest.mark.parametrize("corrected", [True, False])
def test_sizes_of_pools_are_those_of_the_pools(corrected: bool) -> None:
    ends, size = torch.stack([field(), field() + 0.01], dim=1), torch.full((2,), 0.01)
    stem = Stem(ends, field() * 1.02, ends + 0.1 if corrected else None)
    for count in range(1, 14):
        first = first_pool(stem, count=count, tau_range=(0.2, 0.8), size=size, grid=GRID)[0]
        later = refined_pool(field(), field() * 1.02, count=count, size=size, grid=GRID)[0]
        assert pool_sizes(ends=2, count=count, corrected=corrected, passes=3) == [
            len(first),
            len(later),
            len(later),
        ]
        assert len(set(first)) == len(first)


def test_pass_sizes_are_the_schedule_in_units_of_noise_std() -> None:
    assert [pass_size((0.03, 0.015, 0.005), 0.015, i) for i in (0, 1, 2, 5)] == [
        pytest.approx(v) for v in (2, 1, 1 / 3, 1 / 3)
    ]
    assert pass_size((), 0.015, 3) == 1.0


def test_physics_costs_only_violations_of_what_is_declared() -> None:
    cost = PhysicsCost(BURGERS, GRID, WEIGHTS)
    decayed = 0.9 * (field() - field().mean(-1, keepdim=True)) + field().mean(-1, keepdim=True)
    grown = 1.1 * (field() - field().mean(-1, keepdim=True)) + field().mean(-1, keepdim=True)
    found = cost(field(), torch.stack([field(), decayed, grown, field() + 0.01], dim=1))
    torch.testing.assert_close(found[:, :2], torch.zeros(2, 2), atol=2e-6, rtol=0)
    assert bool((found[:, 2:] > 1e-3).all())
    terms = cost.terms(field(), grown[:, None])
    growth = 1.21 * 0.5 - 0.5
    energy = growth / (0.25 + 0.5) + 0.1  # of energy, and of total variation
    torch.testing.assert_close(terms["energy"][0], torch.tensor([energy]), rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["negativity"], torch.full((2, 1), 0.1), rtol=1e-2, atol=0)
    died = 1e-6 * (field() - field().mean(-1, keepdim=True)) + 0.5
    assert float(cost(died, 0.5 + 3 * (died - 0.5)[:, None]).max()) < 1e-4, (
        "noise of a dead field is no crime"
    )
    torch.testing.assert_close(terms["mass"], torch.zeros(2, 1), atol=1e-6, rtol=0)
    nothing = undeclared(("u",), ("p",))
    assert not PhysicsCost(nothing, GRID, WEIGHTS)(field(), grown[:, None]).any()
    kept = PhysicsCost(ADVECTION, GRID, RewardWeights(mass=1.0, energy=0.0, negativity=0.0))
    assert bool((kept(field(), decayed[:, None]) > 1e-2).all()), "advection keeps its energy"


def test_a_reward_that_is_finite_for_no_finite_candidate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.FUNCTIONALS, "energy", lambda fields, grid: fields.mean(-1) * torch.nan)
    with pytest.raises(RewardError, match=r"energy.*lower ttc.reward_weights.energy, or set it to 0"):
        PhysicsCost(BURGERS, GRID, WEIGHTS)(field()[:1], field()[:1, None])


def test_a_trajectory_that_ran_away_ends_no_evaluation() -> None:
    """Finite numbers without a finite energy are a lost trajectory, not a broken reward."""
    lost = torch.full((1, 1, 64), 1e30)
    for start, end in ((field()[:1], lost), (lost, lost)):
        cost = PhysicsCost(BURGERS, GRID, WEIGHTS)(start, end[:, None])
        assert not torch.isfinite(cost).any()
