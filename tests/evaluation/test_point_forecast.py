"""The point that an ensemble is quoted by: the operator's share in it, chosen where it helps, and moved without the distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.evaluation.stochastic_world import (
    Exact,
    fitted,
    scored,
    value,
)
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.evaluation import uncertainty as u
from universal_simulator.evaluation.calibration_fit import fit_calibration, fit_centre
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.ensemble_metrics import Pooling, late_gain_and_curves
from universal_simulator.evaluation.summary import Summary
from universal_simulator.model.calibration import Calibration, RegimeCalibration


def test_an_operator_that_breaks_has_no_share_in_the_point_forecast(data: Dataset) -> None:
    class Broken(Exact):
        """Its operator is not finite on one trajectory; its members are."""

        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            whole = super().rollout(initial, parameters, steps)
            return whole.where(~(initial == bad).flatten(1).all(dim=1)[:, None, None, None], value_there)

    half = data.load("calibration_uncertainty")
    bad, found = half.fields[0, 0], {}
    for value_there in (math.nan, math.inf):
        found[value_there] = fit_calibration(Broken(width=0.5), half, data)
        assert found[value_there].entry.operator_shares == (0.0,)

    plain = fit_calibration(Exact(width=0.5), half, data)
    assert plain.entry.operator_shares == (1.0,), "here the operator is the true mean"
    for calibration in found.values():
        assert torch.equal(calibration.scale, plain.scale)
        assert torch.equal(calibration.width, plain.width)


def test_the_gain_of_a_lead_time_leaves_out_what_a_trajectory_does_not_define() -> None:
    summary = Summary(["a", "b", "c"], field_unit="m", bootstrap_samples=50)
    ours = torch.tensor([[1.0, math.nan], [1.0, 1.0], [4.0, math.nan]])
    operator = torch.tensor([[2.0, 8.0], [2.0, 2.0], [8.0, math.nan]])
    metric, curves = late_gain_and_curves(summary, ours, operator)
    assert curves["point_gain"] == (0.5, 0.5)
    assert curves["nrmse_operator"] == (4.0, 2.0)
    assert curves["point_gain_low"][0] == pytest.approx(0.5), "paired: all of them gain a half"
    assert metric.value == pytest.approx(0.5)


def test_the_point_forecast_moves_and_the_distribution_does_not(
    data: Dataset, selection: Trajectories
) -> None:
    """The operator is the true mean here, so calibration makes it the point; members keep their own mean."""
    calibration = fitted(Exact(4), data)
    assert calibration.entry.operator_shares == (1.0,)
    stay = calibration.entry.model_copy(update={"operator_shares": ()})
    moved, _ = scored(Exact(4), selection, calibration)
    still, _ = scored(Exact(4), selection, Calibration(stay, calibration.scale, calibration.width))
    assert value(moved, "point_operator_share") == 1
    assert value(moved, "nrmse") == value(moved, "nrmse_point") == value(moved, "nrmse_operator")
    assert value(still, "nrmse") == value(moved, "nrmse_ensemble_mean") > 1.05 * value(moved, "nrmse")
    assert value(moved, "point_gain") == 0 > value(moved, "ensemble_gain")
    own = (
        "ece",
        "ece_raw",
        "crps_fair",
        "crps_skill",
        "spread_skill",
        "spread_skill_lowest_bin",
        "sharpness",
    )
    assert {name: moved.metrics[name] for name in own} == {name: still.metrics[name] for name in own}
    assert value(moved, "spread_skill") == pytest.approx(1, abs=0.05), "about the mean, not about the point"


def test_scales_about_a_moved_centre_of_an_older_file_are_not_applied(
    data: Dataset, selection: Trajectories
) -> None:
    known = fitted(Exact(4), data)
    old = known.entry.model_copy(update={"operator_shares": (), "centres": (0.8,)})
    rules = EnsembleRules.of(selection, Calibration(old, known.scale, known.width), first_frame=0)
    assert rules.calibrations == {}
    assert "train the run again" in rules.why_uncalibrated("all")
    same = known.entry.model_copy(update={"operator_shares": (), "centres": (0.0,)})
    found = EnsembleRules.of(selection, Calibration(same, known.scale, known.width), first_frame=0)
    assert found.calibrations["all"].centre == 0, "members that were never moved are read as ever"


def test_a_broken_operator_without_a_share_breaks_nothing() -> None:
    truth = torch.randn(2, 3, 1, 8, generator=torch.Generator().manual_seed(0))
    calibration = RegimeCalibration(torch.ones(3).double(), torch.ones(3, 1).double(), 6)
    assert torch.equal(calibration.centred(truth, torch.full_like(truth, math.nan)), truth)


def test_the_centre_is_the_mixture_with_the_lowest_nrmse() -> None:
    generator = torch.Generator().manual_seed(3)
    truth, one, two = (torch.randn(40, 5, 1, 32, generator=generator) for _ in range(3))
    assert fit_centre(truth + one, truth, truth) == 1.0
    assert fit_centre(truth, truth + one, truth) == 0.0
    # of two independent errors a, b the best share of the second is a^2 / (a^2 + b^2)
    assert fit_centre(truth + one, truth + two, truth) == pytest.approx(0.5, abs=0.06)
    assert fit_centre(truth + 2 * one, truth + two, truth) == pytest.approx(0.8, abs=0.06)
    # a whole step to the mean may not be surely better where a part of it is
    generator = torch.Generator().manual_seed(3)
    hard, other = (torch.exp(0.5 * torch.randn(32, 1, 1, 1, generator=generator)) for _ in range(2))
    operator = truth[:32] + 0.3 * hard * one[:32]
    mean = truth[:32] + 0.25 * hard * other * (0.6 * one[:32] + 0.8 * two[:32])

    def miss(forecast: Tensor) -> Tensor:
        size = truth[:32].square().mean(dim=(-2, -1)).sqrt()
        return ((forecast - truth[:32]).square().mean(dim=(-2, -1)).sqrt() / size).mean(dim=1)

    step = miss(operator) - miss(mean)
    assert float(step.mean() / step.std()) * math.sqrt(32) < 2
    share = fit_centre(mean, operator, truth[:32])
    assert 0.5 < share < 0.95
    assert float(miss(mean + share * (operator - mean)).mean()) < 0.95 * float(miss(operator).mean())
    # what four trajectories cannot tell from noise leaves the operator where it is
    harder = torch.tensor([0.2, 2.0, 0.3, 1.0])[:, None, None, None]
    mixed = truth[:4] + one[:4] * harder
    assert fit_centre(mixed, truth[:4] + two[:4] * harder.flip(0), truth[:4]) == 1.0


def test_intervals_are_those_of_the_mean_over_groups() -> None:
    groups = ["a", "a", "b", "c", "d"]
    values = torch.tensor([1.0, 3.0, -1.0, 4.0, 0.5]).double()
    metric = Summary(groups, field_unit="m", bootstrap_samples=400).mean("rmse", values)
    pooled = Pooling(groups, samples=400)(lambda w: u.pooled(values, w))
    assert float(pooled.value) == pytest.approx(metric.value)
    assert metric.low is not None
    assert metric.high is not None
    assert float(pooled.low) == pytest.approx(metric.low, abs=0.35)
    assert float(pooled.high) == pytest.approx(metric.high, abs=0.35)
    lonely = Pooling(["a", "a"], samples=10)(lambda w: u.pooled(values[:2], w))
    assert float(lonely.value) == 2.0
    assert math.isnan(float(lonely.low))
