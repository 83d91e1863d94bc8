"""Test-time compute: every knob changes the outcome, samples are decided alone, and cheats are caught."""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small_models import fields, surrogate
from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import UserError
from universal_simulator.evaluation.search_diagnostics import diagnose, reward_informs, spearman
from universal_simulator.inference import test_time_compute
from universal_simulator.inference.candidates import combination
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.rewards import CostFunction, Question
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.solver_in_the_loop import solved
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.reward import RewardEntry
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.physics.invariants import burgers_residual

STEPS = 10
FREE: dict[str, Any] = {"residual_threshold": 0.0, "max_evaluations": 10_000, "candidates": 12}


@functools.cache
def model() -> Surrogate:
    """A corrected operator with a reward that prefers something, untrained: its answers are arbitrary."""
    made = surrogate()
    torch.manual_seed(1)
    reward = made.add_reward(RewardEntry(plain_p95=1.0, sets=1, groups=()))
    reward.deviation_unit.fill_(0.1)
    torch.nn.init.normal_(reward.network.project.weight, std=0.3)
    assert made.corrector is not None
    torch.nn.init.normal_(made.corrector.moments.project.weight, std=0.3)
    return made.eval()


def predictor(cost: CostFunction | None = None, **settings: Any) -> SearchingPredictor:
    ttc = TTCSection(**FREE | settings)
    return SearchingPredictor(model(), GuardsConfig(), ttc, cost=cost, fitting=ttc.combine == "regress")


def rolled(cost: CostFunction | None = None, *, count: int = 3, **settings: Any) -> Tensor:
    return predictor(cost, **settings).rollout(*fields(count), STEPS)


def plain(count: int = 3) -> Tensor:
    return SurrogatePredictor(model(), GuardsConfig()).rollout(*fields(count), STEPS)


def indifferent(question: Question) -> Tensor:
    return torch.where(question.finite(), 1.0, torch.inf)


SETTINGS: list[dict[str, Any]] = [
    {"steps": 2},
    {"candidates": 9},
    {"beam": 4},
    {"horizon": 2},
    {"residual_threshold": 50.0},
    {"gamma": 0.0},
    {"max_evaluations": 20},
    {"tau_range": (0.3, 0.85)},
    {"tau_range": (0.15, 0.6)},
    {"noise_std": 0.03},
    {"noise_schedule": (0.01,)},
    {"noise_schedule": ()},
    {"guidance_lambda": 1.0},
    {"combine": "pick"},
    {"combine": "regress"},
    {"temperature": 0.1},
    {"projection": False},
    {"solver": "residual"},
    {"solver": "correction"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_knob_changes_the_outcome(setting: dict[str, Any]) -> None:
    base = rolled()
    assert torch.equal(rolled(), base), "deterministic"
    assert not torch.allclose(rolled(**setting), base, rtol=1e-5, atol=1e-7)


def test_later_entries_of_the_schedule_are_later_passes() -> None:
    two = rolled(steps=2, noise_schedule=(0.03, 0.015))
    assert not torch.allclose(rolled(steps=2, noise_schedule=(0.03, 0.005)), two, rtol=1e-6)
    assert torch.equal(rolled(steps=1, noise_schedule=(0.03, 0.005)), rolled(steps=1, noise_schedule=(0.03,)))


#: the last in a test of its own
REWARD_WEIGHTS = ("energy", "negativity", "mass")


@pytest.mark.parametrize("name", REWARD_WEIGHTS[:2])
def test_reward_weights_reach_what_is_declared(name: str) -> None:
    def weighed(value: float) -> Tensor:
        weights = {"mass": 0.0, "energy": 0.0, "negativity": 0.0, name: value}
        return rolled(reward_weights=weights, projection=False)

    assert not torch.allclose(weighed(5.0), weighed(0.0), rtol=1e-5)


def test_mass_is_projected_first_and_weighs_nothing() -> None:
    def weighed(value: float, **settings: Any) -> Tensor:
        return rolled(reward_weights={"mass": value}, **settings)

    torch.testing.assert_close(weighed(1e3), weighed(0.0), rtol=1e-2, atol=1e-4)
    apart = (weighed(1e3, projection=False) - weighed(0.0, projection=False)).abs().max()
    assert float(apart) > 1e-3, "without the projection it decides"


def test_nothing_to_spend_or_nothing_above_the_threshold_is_the_plain_rollout() -> None:
    for settings in ({"max_evaluations": 0}, {"residual_threshold": 1e6}):
        asked = predictor(**settings)
        found = asked.rollout(*fields(3), STEPS)
        torch.testing.assert_close(found, plain(), rtol=1e-4, atol=1e-5)
        assert not asked.accounts.evaluations.any()
        assert not asked.accounts.acted.any()


@pytest.mark.parametrize("horizon", [1, 2])
def test_evaluations_are_counted_per_sample_and_never_exceed_what_is_allowed(horizon: int) -> None:
    beam, segment = 3, 4
    pool = beam + 1 + 2 + 6 + beam  # the ends, their mean, tau, both sides of three directions, members
    price = (beam - 1) * segment + (horizon - 1) * segment * pool + beam * 6  # 3 Heun steps
    asked = predictor(horizon=horizon, max_evaluations=2 * price)
    found = asked.rollout(*fields(3), 3 * segment)
    assert asked.accounts.evaluations.tolist() == [2 * price] * 3
    assert asked.accounts.acted.tolist() == [2] * 3
    once = predictor(horizon=horizon, max_evaluations=2 * price - 1)
    other = once.rollout(*fields(3), 3 * segment)
    assert once.accounts.acted.tolist() == [1] * 3
    assert torch.equal(found[:, :segment], other[:, :segment])
    assert not torch.allclose(found[:, segment], other[:, segment], rtol=1e-5)


def test_the_threshold_decides_sample_by_sample() -> None:
    initial, parameters = fields(4)

    def loud(question: Question) -> Tensor:
        """The second and fourth sample cost more than any threshold."""
        high = question.start.mean(dim=(1, 2)) > 0.5
        return torch.where(high, 2.0, 0.5)[:, None].expand(question.fields.shape[:2])

    initial[1::2] += 1.0
    asked = predictor(loud, residual_threshold=1.0)
    found = asked.rollout(initial, parameters, STEPS)
    assert asked.accounts.acted.tolist() == [0, 3, 0, 3]
    quiet = SurrogatePredictor(model(), GuardsConfig()).rollout(initial, parameters, STEPS)
    torch.testing.assert_close(found[::2], quiet[::2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1::2], quiet[1::2], rtol=1e-3)


def alone_or_together(cost: CostFunction | None, **settings: Any) -> None:
    """A sample's answer does not know its batch."""
    initial, parameters = fields(5)
    whole = predictor(cost, **settings).rollout(initial, parameters, STEPS)
    for row in (0, 3):
        one = predictor(cost, **settings).rollout(initial[row : row + 1], parameters[row : row + 1], STEPS)
        torch.testing.assert_close(one[0], whole[row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("combine", ["average", "pick"])
def test_selection_is_per_sample(combine: str) -> None:
    alone_or_together(None, combine=combine)


def test_cheat_a_reward_averaged_over_the_batch_is_caught() -> None:
    honest = predictor().cost

    def averaged(question: Question) -> Tensor:
        cost = honest(question)
        return cost.mean(dim=0, keepdim=True).expand(cost.shape)

    with pytest.raises(AssertionError):
        alone_or_together(averaged, combine="pick")


def test_pick_takes_what_costs_least_and_average_weighs_by_cost() -> None:
    cost = torch.tensor([[4.0, 1.0, 2.0], [1.0, torch.inf, 1.0]])
    assert combination(cost, "pick", 0.5).tolist() == [[0, 1, 0], [1, 0, 0]]
    expected = torch.tensor([[1 / 16, 1.0, 1 / 4], [1.0, 0.0, 1.0]])
    expected = expected / expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(combination(cost, "average", 0.5), expected)
    assert combination(torch.full((1, 2), torch.inf), "average", 0.5).tolist() == [[0, 0]]


@pytest.mark.parametrize("combine", ["average", "pick"])
def test_candidates_that_are_not_finite_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, combine: str
) -> None:
    """The answer is that of a search to which they cost inf."""
    honest = test_time_compute.first_pool

    def broken(*args: Any, **kwargs: Any) -> tuple[tuple[str, ...], Tensor]:
        names, pool = honest(*args, **kwargs)
        pool = pool.clone()
        pool[:, 6, 0, 3] = torch.nan
        pool[0, 7, 0, 5] = torch.inf
        return names, pool

    def without(question: Question) -> Tensor:
        cost = torch.ones(question.fields.shape[:2])
        cost[:, 6] = torch.inf
        cost[0, 7] = torch.inf
        return cost + 0.1 * torch.arange(cost.shape[1])

    def counting(question: Question) -> Tensor:
        cost = torch.ones(question.fields.shape[:2]) + 0.1 * torch.arange(question.fields.shape[1])
        return torch.where(question.finite(), cost, torch.inf)

    expected = rolled(without, combine=combine)
    monkeypatch.setattr(test_time_compute, "first_pool", broken)
    asked = predictor(counting, combine=combine)
    found = asked.rollout(*fields(3), STEPS)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, expected)
    assert asked.accounts.dropped.tolist() == [6, 3, 3], "three segments, of the first sample two each"
    rewarded = predictor(combine=combine)
    assert bool(torch.isfinite(rewarded.rollout(*fields(3), STEPS)).all())
    assert rewarded.accounts.dropped.tolist() == [6, 3, 3], "the configured reward drops them as well"


def test_a_threshold_needs_a_reward_that_was_trained() -> None:
    with pytest.raises(UserError, match="learned reward"):
        SearchingPredictor(surrogate(), GuardsConfig(), TTCSection())
    physics = SearchingPredictor(surrogate(), GuardsConfig(), TTCSection(residual_threshold=0.0))
    assert bool(torch.isfinite(physics.rollout(*fields(2), 5)).all())


def world(count: int = 24) -> Trajectories:
    """Truth near the partial trajectories' mean, off by a shift of its own in each trajectory."""
    initial, parameters = fields(count)
    found = predictor(indifferent, guidance_lambda=0.0).rollout(initial, parameters, STEPS)
    generator = torch.Generator().manual_seed(3)
    wave = torch.sin(
        2 * torch.pi * ((torch.arange(32) + 0.5) / 32 + torch.rand(count, 1, generator=generator))
    )
    truth = torch.cat([initial[:, None], found + 0.1 * wave[:, None, None]], dim=1)
    return Trajectories(
        truth,
        0.02 * torch.arange(STEPS + 1, dtype=torch.float64),
        parameters,
        tuple(f"group{index}" for index in range(count)),
        model().grid,
        model().equation,
    )


def knowing(truth: Trajectories, *, lies: bool = False) -> CostFunction:
    """A cost that has seen the truth at the end of each segment, or draws at random."""
    ends = itertools.cycle([4, 8, 10])
    generator = torch.Generator().manual_seed(0)

    def cost(question: Question) -> Tensor:
        if lies:
            return torch.rand(question.fields.shape[:2], generator=generator) + 0.5
        target = truth.fields[:, next(ends)]
        return (question.fields - target[:, None]).square().mean(dim=(2, 3)).sqrt()

    return cost


def test_a_reward_that_knows_reaches_the_oracles_gain() -> None:
    truth = world()
    asked = predictor(knowing(truth), combine="pick", candidates=12)
    metrics = diagnose(asked, truth, bootstrap_samples=200, noise_seed=0)["nu=0.05"].metrics
    assert reward_informs(metrics)[0]
    assert metrics["ttc_spearman"].value == pytest.approx(1.0)
    assert metrics["ttc_answer_gain"].value == pytest.approx(metrics["ttc_oracle_gain"].value)
    assert metrics["ttc_oracle_gain"].value > 0
    assert metrics["ttc_segments"].value == 3
    for kind in ("evaluations", "operations"):
        gained = metrics[f"ttc_gain_equal_{kind}"]
        assert gained.low <= gained.value <= gained.high
    assert metrics["ttc_operations"].value > 0
    assert "acted everywhere" in metrics["ttc_gain_over_random"].reason


def test_cheat_a_random_reward_is_reported_and_fails() -> None:
    truth = world()
    asked = predictor(knowing(truth, lies=True), combine="pick")
    metrics = diagnose(asked, truth, bootstrap_samples=200, noise_seed=0)["nu=0.05"].metrics
    passes, sentence = reward_informs(metrics)
    assert not passes
    assert "random" in sentence
    assert abs(metrics["ttc_spearman"].value or 1) < 0.15
    assert (metrics["ttc_answer_gain"].value or 1) < (metrics["ttc_oracle_gain"].value or 0)


def mean_ranks(values: list[float]) -> list[float]:
    return [sum(v < x for v in values) + 0.5 * sum(v == x for v in values) for x in values]


def test_rank_correlation_against_a_brute_force_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(5, (6, 9), generator=generator), torch.rand(6, 9, generator=generator)
    usable = torch.ones(6, 9, dtype=torch.bool)
    usable[:, 7:] = False
    pairs = zip(a[:, :7].tolist(), b[:, :7].tolist(), strict=True)
    expected = [statistics.correlation(mean_ranks(x), mean_ranks(y)) for x, y in pairs]
    assert spearman(a.float(), b, usable).tolist() == pytest.approx(expected)
    assert spearman(torch.ones(1, 5), torch.rand(1, 5), usable[:1, :5]).item() == 0


def test_solver_in_the_loop_is_the_equation_and_says_so() -> None:
    initial, parameters = fields(3)
    arrived = solved(model(), initial[:, 0], parameters, 0.02)
    pair = torch.stack([initial[:, 0], arrived], dim=1)
    left = burgers_residual(pair, parameters[:, 0], 0.02, model().grid)
    assert float(left.abs().max()) < 1e-4
    decisions: list[Decision] = []
    asked = predictor(indifferent, solver="residual", combine="pick")
    assert asked.solver_in_the_loop
    assert not predictor().solver_in_the_loop
    asked.observe = decisions.append
    asked.rollout(initial, parameters, 4)
    question = decisions[0].question
    target = solved(model(), question.start[:, 0], parameters, float(question.elapsed_s[0]))
    away = (question.fields[:, :, 0] - target[:, None]).square().mean(dim=-1)
    assert torch.equal(decisions[0].weights.argmax(dim=1), away.argmin(dim=1))
