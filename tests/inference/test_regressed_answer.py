"""The learned combination: it finds the side the state tells, travels with the model, and asks no reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.test_search import STEPS, indifferent, plain, predictor
from tests.model.small_models import fields, surrogate
from universal_simulator.configuration.documents import flatten
from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.configuration.unread_settings import unread
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import LeakageError, UserError
from universal_simulator.evaluation.search_diagnostics import set_metrics
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
    asked = SearchingPredictor(model, GuardsConfig(), REGRESS, observe=moved.append, fitting=True)
    kept = asked.guard(asked.rollout(initial, parameters, STEPS), initial, parameters)  # truth keeps its mean
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
        answer = asked.guard(asked.rollout(initial, truth.parameters, STEPS), initial, truth.parameters)
        return float((answer - truth.fields[:, 1:])[:, [3, 7, 9]].square().mean().sqrt())

    assert left(found) < 0.3 * left(representations_alone(found, copies=2))
    assert not found.accounts.questions.any(), "no reward is asked"
    assert found.accounts.evaluations.tolist() == [STEPS] * 6, "and no corrector"


def test_without_weights_it_is_the_mean_and_an_observer_sees_a_candidate_more() -> None:
    decisions: list[Decision] = []
    asked = SearchingPredictor(surrogate(), GuardsConfig(), REGRESS, observe=decisions.append, fitting=True)
    alone = representations_alone(asked, copies=2)
    torch.testing.assert_close(asked.rollout(*fields(3), STEPS), alone.rollout(*fields(3), STEPS))
    assert decisions[0].names == ("end0", "end1", "mean", "regressed")
    assert decisions[0].weights.argmax(dim=1).tolist() == [3] * 3
    none = predictor(indifferent, combine="regress", max_evaluations=0).rollout(*fields(3), STEPS)
    torch.testing.assert_close(none, plain(), rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_is_replaced_by_the_mean_and_counted() -> None:
    model = surrogate()
    alone = representations_alone(SearchingPredictor(model, GuardsConfig(), REGRESS, fitting=True), copies=2)
    expected = alone.rollout(*fields(3), STEPS)
    seen: list[Decision] = []
    SearchingPredictor(model, GuardsConfig(), REGRESS, observe=seen.append, fitting=True).rollout(
        *fields(3), STEPS
    )
    assert seen[0].directions is not None
    directions, features = seen[0].directions.fields.shape[1], seen[0].directions.features.shape[1]
    model.add_combination(entry(directions, features)).weights.fill_(torch.inf)
    asked = SearchingPredictor(model, GuardsConfig(), REGRESS)
    torch.testing.assert_close(asked.rollout(*fields(3), STEPS), expected)
    assert asked.accounts.dropped.tolist() == [3, 3, 3], "one answer in each of three segments"


@pytest.mark.parametrize("beam", [1, 2])
def test_what_ranks_and_bounds_a_choice_is_not_applicable_to_a_regressed_answer(beam: int) -> None:
    model = surrogate()
    truth = leaning(model, 3, amount=0.5)
    regress = REGRESS.model_copy(update={"beam": beam})
    asked = SearchingPredictor(model, GuardsConfig(), regress, fitting=True)
    decisions: list[Decision] = []
    asked.observe = decisions.append
    asked.rollout(truth.fields[:, 0], truth.parameters, STEPS)
    metrics = set_metrics(decisions, truth, bootstrap_samples=20)
    for name in ("ttc_oracle_gain", "ttc_spearman"):
        assert metrics[name].value is None
        assert not metrics[name].applicable
        assert "regressed" in metrics[name].reason
    assert metrics["ttc_answer_gain"].value == pytest.approx(0.0, abs=1e-6), "unfitted, it is the mean"
    assert metrics["ttc_spread_over_error"].value is not None
    far = [
        replace(d, question=replace(d.question, fields=_with_last(d.question.fields, 1e3))) for d in decisions
    ]
    spreads = [
        set_metrics(told, truth, bootstrap_samples=20)["ttc_spread_over_error"].value
        for told in (decisions, far)
    ]
    assert spreads[0] == spreads[1], "the answer is none of the candidates it is measured about"


def _with_last(fields: torch.Tensor, value: float) -> torch.Tensor:
    return torch.cat([fields[:, :-1], torch.full_like(fields[:, -1:], value)], dim=1)


UNREAD = ({"steps": 2}, {"horizon": 2}, {"temperature": 0.1})
OF_CANDIDATES = (
    {"candidates": 9},
    {"tau_range": (0.3, 0.6)},
    {"noise_schedule": (0.01,)},
    {"noise_std": 0.5},
)


@pytest.mark.parametrize(
    "setting", [*UNREAD, *OF_CANDIDATES, {"gamma": 9.0}, {"reward_weights": {"energy": 3.0}}], ids=str
)
def test_keys_that_are_told_as_unread_change_nothing(setting: dict[str, Any]) -> None:
    """And what is told as read changes something, as `test_search` shows."""
    model = surrogate()
    model.add_combination(entry(*size_of(model))).weights.normal_(generator=torch.Generator().manual_seed(0))
    own = {**REGRESS.model_dump(), "reward_steps": 0}
    base, other = (TTCSection(**{**own, **more}) for more in ({}, setting))
    answers = [
        SearchingPredictor(model, GuardsConfig(), ttc).rollout(*fields(2), STEPS) for ttc in (base, other)
    ]
    assert torch.equal(*answers)
    effective = flatten({"ttc": other.model_dump(mode="json")})
    changed = [
        key
        for key, value in effective.items()
        if value != flatten({"ttc": base.model_dump(mode="json")})[key]
    ]
    assert changed
    for key in changed:
        assert "regressed" in str(unread(key, effective))
        assert unread(key, {**effective, "ttc.combine": "average"}) is None
        trained = unread(key, {**effective, "ttc.reward_steps": 300})
        assert (trained is not None) == (setting in UNREAD), "a reward is trained on candidates"
        assert unread(key, {**effective, "ttc.reward_steps": 300}, trains_reward=False) is not None


def size_of(model: Surrogate) -> tuple[int, int]:
    seen: list[Decision] = []
    SearchingPredictor(model, GuardsConfig(), REGRESS, observe=seen.append, fitting=True).rollout(
        *fields(1), 4
    )
    assert seen[0].directions is not None
    return seen[0].directions.fields.shape[1], seen[0].directions.features.shape[1]


def test_noise_std_and_the_rewards_weights_are_read_where_they_are() -> None:
    effective = flatten({"ttc": {**REGRESS.model_dump(mode="json"), "reward_steps": 0}})
    assert unread("ttc.noise_std", {**effective, "ttc.beam": 1}) is None
    assert unread("ttc.gamma", {**effective, "ttc.residual_threshold": 0.35}) is None
    for key in ("beam", "guidance_lambda", "max_evaluations", "projection", "residual_threshold", "solver"):
        assert unread(f"ttc.{key}", effective) is None


def test_a_combination_is_part_of_the_model_file_and_belongs_to_its_beam(tmp_path: Path) -> None:
    model, bare = surrogate(), surrogate()
    model.add_combination(entry(4, 5)).weights.fill_(0.25)
    path = tmp_path / "model.safetensors"
    digest = save_surrogate(model, path, plain_checkpoint=tmp_path / "operator_ema.pt")
    again = load_surrogate(path)
    state = torch.load(tmp_path / "operator_ema.pt", weights_only=True)["state"]
    assert state
    assert not any(name.startswith("combination") for name in state), "the plan's file is the operator's"
    assert hash_of(again) == digest != hash_of(bare)
    assert again.combination is not None
    assert float(again.combination.weights.mean()) == 0.25
    asked = SearchingPredictor(again, GuardsConfig(), REGRESS)
    assert len(representations_alone(asked, copies=3).views) == 3, "its rivals need none"
    with pytest.raises(UserError, match=r"fitted for ttc.beam=2, asked is 3"):
        SearchingPredictor(again, GuardsConfig(), REGRESS.model_copy(update={"beam": 3}))


def test_a_regressed_answer_without_a_fitted_combination_is_refused_not_scored_as_the_mean() -> None:
    with pytest.raises(UserError, match=r"asks a fitted combination, and this model has none"):
        SearchingPredictor(surrogate(), GuardsConfig(), REGRESS)


def test_only_the_rewards_half_of_calibration_is_allowed(smoke_data: Dataset) -> None:
    with pytest.raises(LeakageError, match="calibration_rewards"):
        fit_combination(
            surrogate(), REGRESS, GuardsConfig(), smoke_data.load("validation"), smoke_data, seed=0
        )
