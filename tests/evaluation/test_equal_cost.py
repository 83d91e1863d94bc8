"""Rivals at equal cost: never fewer than two members, never cheaper than what they are compared with."""

from __future__ import annotations

import pytest
import torch

from tests.inference.test_search import knowing, predictor, world
from universal_simulator import assessment
from universal_simulator.configuration.schema import EvaluationConfig, GuardsConfig
from universal_simulator.evaluation import equal_cost, search_diagnostics
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.equal_cost import Answer, Rivals, Spent, best, gain
from universal_simulator.evaluation.search_diagnostics import diagnose
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.calibration import RegimeCalibration


def test_rivals_have_two_members_at_least_and_never_spend_less() -> None:
    truth = world(2)
    asked = predictor(beam=2)
    rivals = Rivals(asked, truth, noise_seed=0)
    found = rivals.searched(asked)
    assert found.spent.operations != pytest.approx(found.spent.evaluations, rel=0.05)
    for kind in ("evaluations", "operations"):
        others = rivals.at(found.spent, kind)
        assert set(others) == {"operator", "ensemble", "representations"}
        for name in ("ensemble", "representations"):
            assert others[name].size >= 2
            assert others[name].spent.of(kind) >= found.spent.of(kind)
    cheap = rivals.at(Spent(10.0, 10.0, 1e-9), "evaluations")
    assert cheap["ensemble"].size == cheap["representations"].size == 2
    double = rivals.at(Spent(4 * 70.0, 0.0, 0.0), "evaluations")  # 10 steps and 60 Heun evaluations a member
    assert double["ensemble"].size == 4


def test_the_ensemble_is_the_projects_own_with_its_centre_and_pays_for_it() -> None:
    """Brute force: guarded members' mean moved to the guarded operator, whose one rollout is charged once."""
    truth, asked, centre = world(2), predictor(beam=2), 0.25
    steps = truth.fields.shape[1] - 1
    learned = RegimeCalibration(torch.ones(steps), torch.ones(steps, 1), 4, centre)
    bare, moved = (Rivals(asked, truth, noise_seed=0, calibration=c) for c in (None, learned))
    initial = truth.fields[:, 0]
    sampler = StochasticPredictor(asked.surrogate, GuardsConfig(), members=2)
    drawn = sampler.rollout_members(initial, truth.parameters, steps, seed=0)
    mean = sum(asked.guard(drawn[:, index], initial, truth.parameters) for index in range(2)) / 2
    operator = SurrogatePredictor.rollout(asked, initial, truth.parameters, steps)
    expected = (1 - centre) * mean + centre * asked.guard(operator, initial, truth.parameters)
    error = (expected - truth.fields[:, 1:]).square().mean(dim=-1).sqrt()
    nrmse = (error / truth.fields[:, 1:].square().mean(dim=-1).sqrt()).mean(dim=(1, 2))
    found, plain = moved.named("ensemble", 2), bare.named("ensemble", 2)
    torch.testing.assert_close(found.nrmse.to(nrmse), nrmse, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.nrmse, plain.nrmse, rtol=1e-4)
    assert found.spent.evaluations == plain.spent.evaluations + steps == 2 * 70 + 10
    assert found.spent.operations == plain.spent.operations + steps
    for budget, members in ((140.0, 2), (150.0, 2), (151.0, 3), (220.0, 3), (221.0, 4)):
        assert moved._size("ensemble", Spent(budget, 0.0, 0.0), "evaluations") == members, "never cheaper"


def test_diagnoses_and_evaluations_hand_the_calibration_on(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, asked = world(1), predictor(beam=2)
    calibrations = {"nu=0.05": RegimeCalibration(torch.ones(10), torch.ones(10, 1), 4, 0.5)}
    monkeypatch.setattr(search_diagnostics, "_diagnose", lambda rivals, samples: rivals.calibration)
    monkeypatch.setattr(assessment, "with_diagnoses", lambda regimes, found: (regimes, found))
    _, told = assessment._diagnosed(
        asked, {}, truth, EvaluationConfig(), EnsembleRules(calibrations=calibrations), torch.device("cpu")
    )
    assert told["ttc"] == calibrations


def test_the_reference_is_the_best_rival_not_a_noisy_member() -> None:
    truth = world(3)
    asked = predictor(knowing(truth), combine="pick")
    metrics = diagnose(asked, truth, bootstrap_samples=50, noise_seed=0)["nu=0.05"].metrics
    over = {
        name: metrics[f"ttc_gain_over_{name}"].value for name in ("operator", "ensemble", "representations")
    }
    assert metrics["ttc_gain_equal_evaluations"].value == pytest.approx(min(over.values()))
    strongest = min(over, key=lambda name: over[name])
    assert metrics["ttc_gain_equal_evaluations"].reason.startswith(f"best rival: {strongest}")


def test_the_best_is_by_the_mean_over_groups_and_gains_are_paired() -> None:
    spent, groups = Spent(1, 1, 1), ("a", "a", "b")
    one = Answer(torch.tensor([1.0, 1.0, 4.0]), spent, 2)
    two = Answer(torch.tensor([3.0, 3.0, 1.5]), spent, 2)
    assert best({"one": one, "two": two}, groups) == "two", "a group counts once"
    found = gain(0.9 * two.nrmse, two.nrmse, groups, samples=100)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_search_that_acts_in_some_places_is_compared_with_chance() -> None:
    truth = world(3)
    asked = predictor(residual_threshold=0.0, max_evaluations=40, beam=2)
    found = diagnose(asked, truth, bootstrap_samples=50, noise_seed=0)["nu=0.05"]
    for name in ("random", "first"):
        assert found.metrics[f"ttc_gain_over_{name}"].value is not None
    assert found.metrics["ttc_gain_over_first"].value == pytest.approx(0.0), "a budget acts first by itself"
    assert found.observed["equal_seconds_ensemble"] >= 2
    assert found.observed["gain_equal_seconds_low"] <= found.observed["gain_equal_seconds"]


def test_seconds_are_the_median_of_warm_calls_and_an_observer_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 0.45, 2.0, 2.4, 3.0, 3.2, 4.0, 4.3])  # the first is warming
    monkeypatch.setattr(equal_cost.time, "perf_counter", lambda: next(clock))
    answers = iter("abcd")
    assert equal_cost.timed(lambda: next(answers), per=2) == ("a", pytest.approx(0.15))
    clock = iter([0.0, 5.0])
    assert equal_cost.timed(lambda: "long", per=2) == ("long", 2.5), "long enough to be asked once"
    monkeypatch.undo()
    asked, told = predictor(beam=2), []
    asked.observe = told.append
    Rivals(asked, world(2), noise_seed=0).searched(asked)
    assert [decision.step for decision in told] == [4, 8, 10]
    assert asked.observe == told.append
