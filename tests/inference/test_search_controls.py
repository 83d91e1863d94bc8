"""Operations are those really spent; controls spend what they should, where they should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.inference.test_search import STEPS, model, plain, predictor, rolled
from tests.model.small_models import fields
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.rewards import Question
from universal_simulator.inference.search_controls import (
    at_first,
    at_random,
    representations_alone,
    scheduled,
)


def spent(call: Callable[[int], object]) -> float:
    """Operations of one more trajectory."""
    totals = []
    for count in (2, 5):
        with FlopCounterMode(display=False) as counter:
            call(count)
        totals.append(counter.get_total_flops())
    return (totals[1] - totals[0]) / 3


@pytest.mark.parametrize(
    "settings", [{}, {"beam": 2, "steps": 2}, {"horizon": 2}, {"residual_threshold": 1e-3}], ids=str
)
def test_operations_are_those_counted_in_the_rollout_itself(settings: dict[str, float]) -> None:
    steps = 8
    asked = predictor(**settings)
    found = spent(lambda count: asked.rollout(*fields(count), steps)) / asked.prices.step_flops
    expected = steps + float(asked.accounts.operations(asked.prices).mean())
    assert found == pytest.approx(expected, rel=0.01)
    reward = asked.prices.candidate * float(asked.accounts.reward_evaluations.double().mean())
    assert reward > 0.05 * expected, "what the reward encodes is part of it"


def test_a_members_step_costs_what_an_ensemble_spends() -> None:
    prices = predictor().prices
    sampler = StochasticPredictor(model(), predictor().guards_config, members=2)
    found = spent(lambda count: sampler.rollout_members(*fields(count), 8, seed=0)) / (2 * 8)
    assert found == pytest.approx(prices.member_step * prices.step_flops, rel=0.01)
    assert prices.member_step > 1


def test_representations_alone_are_the_search_whose_mean_is_the_answer() -> None:
    def mean_alone(question: Question) -> torch.Tensor:
        chosen = torch.arange(question.fields.shape[1]) == question.reference
        return torch.where(chosen & question.finite(), 1.0, torch.inf)

    alone = representations_alone(predictor(), copies=3)
    found = alone.rollout(*fields(3), STEPS)
    torch.testing.assert_close(found, rolled(mean_alone), rtol=1e-4, atol=1e-5)
    assert alone.accounts.evaluations.tolist() == [2 * STEPS] * 3, "no corrector sample is paid"
    assert not alone.accounts.questions.any()
    assert alone.accounts.operations(alone.prices).tolist() == [2 * STEPS] * 3
    none = representations_alone(predictor(), copies=1).rollout(*fields(3), STEPS)
    torch.testing.assert_close(none, plain(), rtol=1e-4, atol=1e-5)


def test_a_schedule_acts_where_it_says_and_nowhere_else() -> None:
    acts = torch.tensor([[True, False, False], [False, False, False], [False, True, True]])
    asked = scheduled(predictor(), acts)
    found = asked.rollout(*fields(3), STEPS)
    assert torch.equal(asked.accounts.acts, acts)
    torch.testing.assert_close(found[1], plain()[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2, :4], plain()[2, :4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], plain()[0], rtol=1e-3)
    everywhere = scheduled(predictor(), torch.ones(3, 3, dtype=torch.bool))
    torch.testing.assert_close(everywhere.rollout(*fields(3), STEPS), rolled())
    with pytest.raises(ValueError, match="3 segments"):
        scheduled(predictor(), acts[:, :2]).rollout(*fields(3), STEPS)


def test_controls_act_as_often_as_what_they_control() -> None:
    acts = torch.rand(40, 13, generator=torch.Generator().manual_seed(0)) < 0.3
    drawn, first = at_random(acts, seed=1), at_first(acts)
    assert drawn.sum() == first.sum() == acts.sum()
    assert torch.equal(drawn, at_random(acts, seed=1))
    assert not torch.equal(drawn, at_random(acts, seed=2))
    shares = drawn.double().mean(dim=0)
    assert float(shares.max() - shares.min()) < 0.5, "no segment is preferred"
    columns = first.sum(dim=0).tolist()
    assert columns == sorted(columns, reverse=True)
    assert sum(0 < column < 40 for column in columns) <= 1


def test_a_searching_solver_keeps_its_solver_under_another_schedule() -> None:
    asked = predictor(solver="residual")
    acts = torch.ones(3, 3, dtype=torch.bool)
    torch.testing.assert_close(scheduled(asked, acts).rollout(*fields(3), STEPS), rolled(solver="residual"))
