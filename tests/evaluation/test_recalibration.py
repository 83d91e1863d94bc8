"""Recalibration repairs the spread and leaves the mean where it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.evaluation.ensembles_by_hand import normal, perfect
from universal_simulator.evaluation import uncertainty as u
from universal_simulator.evaluation.recalibration import Recalibration


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_recalibration_repairs_the_spread_of_other_samples_and_keeps_the_mean(factor: float) -> None:
    levels = u.central_levels(16)

    def bent(seed: int) -> tuple[Tensor, Tensor]:
        ensemble, truth, _ = perfect(seed, 16)
        ensemble, mean = ensemble.float(), ensemble.float().mean(1, keepdim=True)
        return mean + factor * torch.linspace(1, 1.5, 4)[:, None, None] * (ensemble - mean), truth

    (fit_ensemble, fit_truth), (ensemble, truth) = bent(70), bent(80)
    assert float(u.ece(u.coverage(ensemble, truth), levels)) > 0.1
    cheap = Recalibration.fit_spread(*u.spread_and_error(fit_ensemble, fit_truth))
    for found in (Recalibration.fit(fit_ensemble, fit_truth), cheap):
        assert found.scale.tolist() == pytest.approx(
            (1 / (factor * torch.linspace(1, 1.5, 4))).tolist(), rel=0.12
        )
        repaired = found.apply(ensemble)
        assert torch.equal(u.ensemble_mean(repaired).float(), u.ensemble_mean(ensemble))
        assert float(u.ece(u.coverage(repaired, truth), levels)) < 0.025
        spread, error = u.spread_and_error(repaired, truth)
        assert float(u.spread_skill(spread.mean(1), error.mean(1))) == pytest.approx(1, abs=0.1)
        assert float(u.crps_fair(repaired, truth).mean()) < float(u.crps_fair(ensemble, truth).mean())


@pytest.mark.parametrize("members", [2, 3, 7, 32])
def test_recalibration_keeps_the_mean_bit_for_bit(members: int) -> None:
    ensemble = (100 * normal(90, 8, members, 3, 2, 64)).float()
    ensemble[:, :, 1] *= 1e-6
    ensemble[0, :, 2] = 0
    scaled = Recalibration(torch.tensor([0.1, 1.0, 7.3])).apply(ensemble)
    assert torch.equal(u.ensemble_mean(scaled).float(), u.ensemble_mean(ensemble))
    deviation = (scaled - scaled.mean(1, keepdim=True))[:, :, 2]
    assert torch.allclose(
        deviation, 7.3 * (ensemble.double() - ensemble.double().mean(1, keepdim=True))[:, :, 2], atol=1e-3
    )
    wide = ensemble.double()
    before = wide.clone()
    again = Recalibration(torch.tensor([0.1, 1.0, 7.3])).apply(wide)
    assert torch.equal(wide, before), "the caller's ensemble is left alone"
    assert torch.allclose(again.mean(1), wide.mean(1), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="do not fit"):
        Recalibration(torch.ones(2)).apply(ensemble)


def test_recalibration_of_a_lead_time_that_cannot_be_scaled() -> None:
    ensemble, truth, _ = perfect(100, 6, samples=8, frames=3)
    ensemble = ensemble.float()
    ensemble[:, :, 0] = ensemble[:, :1, 0]
    ensemble[2, 3, 2, 0, 5] = math.nan
    scale = Recalibration.fit(ensemble, truth).scale
    assert float(scale[0]) == 1.0, "collapsed: nothing to scale"
    assert 0.5 < float(scale[1]) < 2
    assert bool(scale[2].isnan())
    still = Recalibration.fit_spread(torch.zeros(2, 1), torch.ones(2, 1))
    assert still.scale.tolist() == [1.0]


def test_smoothing_averages_log_scales_of_neighbours() -> None:
    spread = torch.tensor([[1.0, 4.0, 16.0, 1.0]])
    found = Recalibration.fit_spread(spread, torch.ones(1, 4), smooth=1).scale.log2()
    assert found.tolist() == pytest.approx([-0.5, -1.0, -1.0, -1.0])
