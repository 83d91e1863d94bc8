"""The learned combination: it finds the side the state tells, travels with the model, and asks no reward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.inference.test_search import STEPS, indifferent, plain, predictor
from tests.model.small_models import fields, surrogate
from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import LeakageError, UserError
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.search_controls import representations_alone
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.combination import Combination, CombinationEntry
from universal_simulator.model.surrogate import Surrogate, hash_of, load_surrogate, save_surrogate
from universal_simulator.training import combination as training_combination
from universal_simulator.training.combination import fit_combination

REGRESS = TTCSection(combine="regress", beam=2, residual_threshold=0.0, max_evaluations=10_000)


def entry(directions: int, features: int) -> CombinationEntry:
    return CombinationEntry(beam=2, directions=directions, features=features, sets=1, groups=())


@pytest.mark.parametrize("known", [True, False])
def test_weights_follow_a_side_that_the_features_tell_and_vanish_without_one(known: bool) -> None:
    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        features, sides = (
            torch.randn(400, 3, generator=generator),
            torch.randn(400, 2, 32, generator=generator),
        )
        weight = features[:, 1] if known else torch.randn(400, generator=generator)
        return features, sides, weight[:, None] * sides[:, 0]

    combination = Combination(entry(2, 3))
    features, sides, error = draw(0)
    assert not combination(features).any(), "the mean until it is fitted"
    combination.fit(features, sides, error, ridge=1e-4)
    features, sides, error = draw(1)
    left = error - torch.einsum("sk,skx->sx", combination(features), sides)
    share = float(left.square().mean().sqrt() / error.square().mean().sqrt())
    assert share < 0.3 if known else 0.9 < share < 1.2
    far = torch.full((1, 3), 1e6)
    assert float(combination(far).abs().max()) < 100, "what was never seen is held within what was"


def leaning(model: Surrogate, count: int, *, amount: float) -> Trajectories:
    """Truth whose segments end off the rollout's mean, along its own last direction (amplitude)."""
    initial, parameters = fields(count)
    moved: list[Decision] = []
    model.forget_combination()
    asked = SearchingPredictor(model, GuardsConfig(), REGRESS, observe=moved.append)
    kept = asked.guard(asked.rollout(initial, parameters, STEPS), initial)  # truth keeps its mean
    frames = torch.cat([initial[:, None], kept], dim=1)
    for decision in moved:
        assert decision.directions is not None
        frames[:, decision.step] += amount * decision.directions.fields[:, -1]
    return Trajectories(
        frames,
        0.02 * torch.arange(STEPS + 1, dtype=torch.float64),
        parameters,
        tuple(f"group{index}" for index in range(count)),
        model.grid,
        model.equation,
    )


def test_fitted_on_rollouts_it_moves_the_answer_to_where_the_truth_lies(
    smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = surrogate()
    truth = leaning(model, 6, amount=0.5)
    monkeypatch.setattr(training_combination, "refuse_others", lambda truth, dataset: None)
    whole = [(truth.fields, truth.parameters)]
    monkeypatch.setattr(training_combination, "whole_rollouts", lambda truth, generator: iter(whole))
    fit_combination(model, REGRESS, GuardsConfig(), truth, smoke_data, seed=0)
    found = SearchingPredictor(model, GuardsConfig(), REGRESS)

    def left(asked: SearchingPredictor) -> float:
        initial = truth.fields[:, 0]
        answer = asked.guard(asked.rollout(initial, truth.parameters, STEPS), initial)
        return float((answer - truth.fields[:, 1:])[:, [3, 7, 9]].square().mean().sqrt())

    assert left(found) < 0.3 * left(representations_alone(found, copies=2))
    assert not found.accounts.questions.any(), "no reward is asked"
    assert found.accounts.evaluations.tolist() == [STEPS] * 6, "and no corrector"


def test_without_weights_it_is_the_mean_and_an_observer_sees_a_candidate_more() -> None:
    decisions: list[Decision] = []
    asked = SearchingPredictor(surrogate(), GuardsConfig(), REGRESS, observe=decisions.append)
    alone = representations_alone(asked, copies=2)
    torch.testing.assert_close(asked.rollout(*fields(3), STEPS), alone.rollout(*fields(3), STEPS))
    assert decisions[0].names == ("end0", "end1", "mean", "regressed")
    assert decisions[0].weights.argmax(dim=1).tolist() == [3] * 3
    none = predictor(indifferent, combine="regress", max_evaluations=0).rollout(*fields(3), STEPS)
    torch.testing.assert_close(none, plain(), rtol=1e-4, atol=1e-5)


def test_a_combination_is_part_of_the_model_file_and_belongs_to_its_beam(tmp_path: Path) -> None:
    model, bare = surrogate(), surrogate()
    model.add_combination(entry(4, 5)).weights.fill_(0.25)
    path = tmp_path / "model.safetensors"
    digest = save_surrogate(model, path)
    again = load_surrogate(path)
    assert hash_of(again) == digest != hash_of(bare)
    assert again.combination is not None
    assert float(again.combination.weights.mean()) == 0.25
    asked = SearchingPredictor(again, GuardsConfig(), REGRESS)
    assert len(representations_alone(asked, copies=3).views) == 3, "its rivals need none"
    with pytest.raises(UserError, match=r"fitted for ttc.beam=2, asked is 3"):
        SearchingPredictor(again, GuardsConfig(), REGRESS.model_copy(update={"beam": 3}))


def test_only_the_rewards_half_of_calibration_is_allowed(smoke_data: Dataset) -> None:
    with pytest.raises(LeakageError, match="calibration_rewards"):
        fit_combination(
            surrogate(), REGRESS, GuardsConfig(), smoke_data.load("validation"), smoke_data, seed=0
        )
