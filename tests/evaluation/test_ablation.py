"""Paired comparisons of predictors, and the cheat of a corrector that only adds capacity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.evaluation.stochastic_world import Exact, predictive_std
from tests.model.small_models import fields, surrogate
from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import UserError
from universal_simulator.evaluation.ablation import (
    PER_FRAME,
    Answer,
    answer,
    horizon_of,
    paired_gain,
    paired_horizon,
    verdict,
)
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.contract import FieldPredictor
from universal_simulator.evaluation.dressing import Dressing, Dressings
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


def errors_of(values: Tensor, **others: Tensor) -> Answer:
    """(B, T) of everything, but for what is named."""
    return Answer(
        **{**dict.fromkeys(PER_FRAME, values), **others}, metrics={}, curves={}, seconds=0.0, flops=0.0
    )


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
    unfair = paired_gain([corrector], [control], groups, of="crps", samples=200)
    assert (unfair.low or 0) > 0.2, "a bare point loses to any width"
    fair = paired_gain([corrector], [dressed(Wide(1), data)], groups, of="crps", samples=200)
    assert fair.value == pytest.approx(0, abs=0.03), "of it nothing is left (pairs flatter fair CRPS by 2 %)"
    exact = paired_gain([asked(Exact(16), data)], [dressed(Wide(1), data)], groups, of="crps", samples=200)
    assert verdict(exact) == "better", "who knows where the error is keeps its gain"


def dressed(predictor: Exact, data: Dataset) -> Answer:
    half, truth = data.load("calibration_uncertainty"), data.load("selection")
    forecast = predictor.rollout(half.fields[:, 0], half.parameters, half.fields.shape[1] - 1)
    width = Dressings.fit(forecast, half).of("all")
    rules = EnsembleRules()
    return answer(predictor, truth, "all", rules=rules, batch_size=64, bootstrap_samples=9, dressing=width)


def test_a_dressing_takes_the_form_that_fits_and_scores_its_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(64, 4, 1, 32, generator=generator) * torch.logspace(-1, 1, 64)[:, None, None, None]
    noise = torch.randn(64, 3, 1, 32, generator=generator)
    size = truth[:, 1:].square().mean(dim=(-2, -1), keepdim=True).sqrt()
    errs_alike, errs_with_size = truth[:, 1:] + 0.1 * noise, truth[:, 1:] + 0.1 * size * noise
    alike, sized = Dressing.fit(errs_alike, truth), Dressing.fit(errs_with_size, truth)
    assert (alike.relative, sized.relative) == (False, True)
    for one, forecast in ((alike, errs_alike), (sized, errs_with_size)):
        assert torch.allclose(one.width, torch.full((3, 1), 0.1).double(), rtol=0.1)
        bare = (forecast - truth[:, 1:]).abs().double().mean()
        assert float(one.crps(forecast, truth[:, 1:]).mean() / bare) == pytest.approx(
            math.sqrt(0.5), rel=0.02
        )
        shorter = one.crps(forecast[:, :2], truth[:, 1:3])
        assert torch.equal(shorter, one.crps(forecast, truth[:, 1:])[:, :2])
        with pytest.raises(ValueError, match="3 lead times do not dress 4"):
            one.crps(truth, truth)
    broken = errs_alike.clone()
    broken[0, 1, 0, 0] = math.nan
    assert not bool(torch.isfinite(Dressing.fit(broken, truth).crps(broken, truth[:, 1:])[:, 1]).any())


def test_horizons_are_those_of_mean_curves_and_paired() -> None:
    falling = torch.linspace(1, 0, 11)[None].repeat(4, 1).double()  # below .8 from the fourth entry
    groups = ["a", "b", "c", "d"]
    ours, theirs = errors_of(falling.clamp_min(0.5)), errors_of(falling - 0.2)
    assert horizon_of([ours], groups, samples=50).value == 3
    assert horizon_of([theirs], groups, samples=50).value == 1
    gain = paired_horizon([ours, ours], [theirs, ours], groups, samples=50)
    assert (gain.value, gain.low, gain.high, gain.unit) == (1, 1, 1, "steps")
    own = errors_of(falling, correlation_mean=torch.ones_like(falling))
    capped = horizon_of([own], groups, of="correlation_mean", samples=50)
    assert capped.value == 11
    assert capped.reason.startswith(">=")
    holes = falling.clone()
    holes[0] = math.nan
    assert horizon_of([errors_of(holes)], groups, samples=50).value == 3
    mixed = torch.cat([falling[:2], torch.ones_like(falling[:2])])
    spread = horizon_of([errors_of(mixed)], groups, samples=200)
    assert spread.value == 5, "of the mean curve, not the mean of horizons"
    assert (spread.low, spread.high) == (3, 11)


def test_pairs_are_pooled_over_seeds_and_resampled_by_group() -> None:
    groups = ["a", "b", "c", "d"]
    hard = torch.tensor([[1.0, 1.0], [2.0, 4.0], [8.0, 8.0], [30.0, 50.0]]).double()

    def made(factor: float) -> Answer:
        return errors_of(factor * hard)

    theirs = [made(1.0), made(2.0)]
    ours = [made(0.5), made(1.0)]
    gain = paired_gain(ours, theirs, groups, of="nrmse", samples=100)
    assert gain.value == pytest.approx(0.5)
    assert (gain.low, gain.high) == pytest.approx((0.5, 0.5)), "what the groups share is taken out"
    mixed = paired_gain([made(0.5), made(2.0)], theirs, groups, of="crps", samples=100)
    assert mixed.value == pytest.approx(1 - 2.5 / 3)
    late = errors_of(torch.stack([hard[:, 0], 0.5 * hard[:, 1]], dim=1))
    assert paired_gain([late], [made(1.0)], groups, of="nrmse", frames=slice(1, None), samples=9).value == 0.5
    assert (
        verdict(paired_gain([made(1.0)], [made(1.0)], groups, of="nrmse", samples=9)) == "indistinguishable"
    )
    holes = hard.clone()
    holes[3] = math.nan
    some = paired_gain([errors_of(hard, nrmse=holes)], [made(2.0)], groups, of="nrmse", samples=9)
    assert some.value == pytest.approx(0.5), "left out of both"
    with pytest.raises(UserError, match="for every seed"):
        paired_gain(ours, theirs[:1], groups, of="nrmse", samples=9)
    with pytest.raises(UserError, match="same question"):
        paired_gain(ours, theirs, groups[:2], of="nrmse", samples=9)


def test_an_answer_is_what_the_evaluation_says(data: Dataset) -> None:
    truth = data.load("selection")
    half = data.load("calibration_uncertainty")
    calibration = fit_calibration(Exact(), half, data)
    rules = EnsembleRules.of(truth, calibration, first_frame=0)
    whole = answer(Exact(), truth, "all", rules=rules, batch_size=64, bootstrap_samples=50)
    parts = answer(Exact(), truth, "all", rules=rules, batch_size=7, bootstrap_samples=50)
    assert torch.equal(whole.nrmse, parts.nrmse)
    single = answer(Exact(1), truth, "all", rules=rules, batch_size=64, bootstrap_samples=50)
    assert whole.nrmse.mean() == pytest.approx(float(single.nrmse.mean()), rel=0.05)
    # of a Gaussian: CRPS = sigma / sqrt(pi), mean absolute error of its centre sigma sqrt(2 / pi)
    assert float(whole.crps.mean() / single.crps.mean()) == pytest.approx(math.sqrt(0.5), rel=0.012)
    assert torch.equal(whole.nrmse, single.nrmse), (
        "the operator is the true mean: calibration makes it the point"
    )
    assert float(whole.nrmse_mean.mean()) > float(single.nrmse.mean())
    assert {"ece", "crps_skill", "spread_skill_lowest_bin"} <= whole.metrics.keys()
    assert not single.metrics
    narrow = EnsembleRules.of(truth, fit_calibration(Exact(width=0.5), half, data), first_frame=0)
    mended = answer(Exact(width=0.5), truth, "all", rules=narrow, batch_size=64, bootstrap_samples=50)
    assert float(mended.crps_recalibrated.mean() / mended.crps.mean()) < 0.95
    assert torch.equal(mended.correlation, single.correlation)
    assert not torch.equal(mended.correlation_mean, single.correlation)


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
