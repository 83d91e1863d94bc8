"""Paired comparisons of predictors, and the cheat of a corrector that only adds capacity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.evaluation.stochastic_world import Exact, predictive_std, world
from tests.model.small_models import fields, surrogate
from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import UserError
from universal_simulator.evaluation.ablation import Answer, answer, paired_gain, verdict
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.contract import FieldPredictor
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.inference.perturbed import PerturbedOperator
from universal_simulator.inference.rollout import rollout_fields


class Weak(Exact):
    """An operator that errs by half of what it knows."""

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        return 0.5 * super().rollout(initial, parameters, steps)


class Wide(Exact):
    """Its capacity control: a larger operator without that error."""


class OnlyCapacity(Weak):
    """Cheat: a "corrector" that takes the error away as a larger operator would, with members beside it for show."""

    def _one(self, first: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        mean = Exact.rollout(self, first[None], first, steps)
        width = predictive_std(steps).square().mean(dim=1).sqrt().float()
        noise = torch.randn(self.members // 2, *mean.shape[1:], generator=generator)
        # in pairs about the mean, which stays that of the larger operator
        return mean + width[:, None, None] * torch.cat([noise, -noise])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return world(tmp_path_factory.mktemp("world"))


def asked(predictor: FieldPredictor, data: Dataset) -> Answer:
    truth = data.load("selection")
    calibration = None
    if isinstance(predictor, OnlyCapacity):
        calibration = fit_calibration(predictor, data.load("calibration_uncertainty"), data)
    rules = EnsembleRules.of(truth, calibration, first_frame=0)
    return answer(predictor, truth, "all", rules=rules, batch_size=64, bootstrap_samples=200)


def test_cheat_a_corrector_that_only_adds_capacity_is_caught_by_its_control(data: Dataset) -> None:
    groups = data.load("selection").groups
    corrector, operator = asked(OnlyCapacity(16), data), asked(Weak(1), data)
    control = asked(Wide(1), data)
    flattering = paired_gain([corrector], [operator], groups, of="nrmse", samples=200)
    assert verdict(flattering) == "better", "against the operator alone it would pass for a corrector"
    assert (flattering.low or 0) > 0.05
    honest = paired_gain([corrector], [control], groups, of="nrmse", samples=200)
    assert verdict(honest) != "better"
    assert honest.value == pytest.approx(0, abs=0.01)
    skill = corrector.metrics["crps_skill"]
    assert skill.low is not None
    assert skill.low <= 0, "and its members know nothing of where it errs"


def test_pairs_are_pooled_over_seeds_and_resampled_by_group() -> None:
    groups = ["a", "b", "c", "d"]
    hard = torch.tensor([[1.0, 1.0], [2.0, 4.0], [8.0, 8.0], [30.0, 50.0]]).double()

    def made(factor: float) -> Answer:
        return Answer(factor * hard, factor * hard, factor * hard, {}, {}, 0.0, 0.0)

    theirs = [made(1.0), made(2.0)]
    ours = [made(0.5), made(1.0)]
    gain = paired_gain(ours, theirs, groups, of="nrmse", samples=100)
    assert gain.value == pytest.approx(0.5)
    assert (gain.low, gain.high) == pytest.approx((0.5, 0.5)), "what the groups share is taken out"
    mixed = paired_gain([made(0.5), made(2.0)], theirs, groups, of="crps", samples=100)
    assert mixed.value == pytest.approx(1 - 2.5 / 3)
    late = Answer(torch.stack([hard[:, 0], 0.5 * hard[:, 1]], dim=1), hard, hard, {}, {}, 0.0, 0.0)
    assert paired_gain([late], [made(1.0)], groups, of="nrmse", frames=slice(1, None), samples=9).value == 0.5
    assert (
        verdict(paired_gain([made(1.0)], [made(1.0)], groups, of="nrmse", samples=9)) == "indistinguishable"
    )
    holes = hard.clone()
    holes[3] = math.nan
    some = paired_gain([Answer(holes, hard, hard, {}, {}, 0.0, 0.0)], [made(2.0)], groups, of="nrmse", samples=9)
    assert some.value == pytest.approx(0.5), "left out of both"
    with pytest.raises(UserError, match="for every seed"):
        paired_gain(ours, theirs[:1], groups, of="nrmse", samples=9)
    with pytest.raises(UserError, match="same question"):
        paired_gain(ours, theirs, groups[:2], of="nrmse", samples=9)


def test_an_answer_is_what_the_evaluation_says(data: Dataset) -> None:
    truth = data.load("selection")
    calibration = fit_calibration(Exact(), data.load("calibration_uncertainty"), data)
    rules = EnsembleRules.of(truth, calibration, first_frame=0)
    whole = answer(Exact(), truth, "all", rules=rules, batch_size=64, bootstrap_samples=50)
    parts = answer(Exact(), truth, "all", rules=rules, batch_size=7, bootstrap_samples=50)
    assert torch.equal(whole.nrmse, parts.nrmse)
    single = answer(Exact(1), truth, "all", rules=rules, batch_size=64, bootstrap_samples=50)
    assert whole.nrmse.mean() == pytest.approx(float(single.nrmse.mean()), rel=0.05)
    # of a Gaussian: CRPS = sigma / sqrt(pi), mean absolute error of its centre sigma sqrt(2 / pi)
    assert float(whole.crps.mean() / single.crps.mean()) == pytest.approx(math.sqrt(0.5), rel=0.012)
    assert {"ece", "crps_skill", "spread_skill_lowest_bin"} <= whole.metrics.keys()
    assert not single.metrics


def test_the_perturbed_operator_is_a_fair_ensemble_of_the_operator() -> None:
    model = surrogate(corrected=False)
    initial, parameters = fields(4)
    few, many = (PerturbedOperator(model, GuardsConfig(), members=m, amplitude=0.1) for m in (2, 5))
    members = many.rollout_members(initial, parameters, 6, seed=0)
    torch.testing.assert_close(few.rollout_members(initial, parameters, 6, seed=0), members[:, :2])
    alone = many.rollout_members(initial[2:3], parameters[2:3], 6, seed=0)
    torch.testing.assert_close(alone[0], members[2], rtol=1e-4, atol=1e-5)
    assert float(members.std(dim=1).mean()) > 1e-3
    faint = PerturbedOperator(model, GuardsConfig(), members=2, amplitude=1e-7)
    operator = rollout_fields(model, initial, parameters, steps=6)
    found = faint.rollout_members(initial, parameters, 6, seed=0)
    torch.testing.assert_close(found, operator[:, None].expand_as(found), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="perturbs nothing"):
        PerturbedOperator(model, GuardsConfig(), members=2, amplitude=0.0)
