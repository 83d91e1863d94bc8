"""The learned reward: it learns where the truth lies, from its own half of calibration, and travels with the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.small_models import fields, surrogate
from tests.training.tiny_runs import STOCHASTIC, tiny
from universal_simulator import assessment, experiment
from universal_simulator.configuration.schema import GuardsConfig, RewardWeights, TTCSection
from universal_simulator.data.batch import GROUP_DIGITS
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import LeakageError, UserError
from universal_simulator.evaluation.search_diagnostics import spearman
from universal_simulator.inference.rewards import Cost, Question, seen
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.model.contract import Conditions
from universal_simulator.model.reward import LearnedReward, RewardEntry, Seen
from universal_simulator.model.surrogate import hash_of, load_surrogate, save_surrogate
from universal_simulator.physics.spectral import fourier_shift
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.training import reward as training_reward
from universal_simulator.training.reward import CandidateSets, fit, train_reward


def known_world(count: int, *, seed: int, noise: bool = False) -> CandidateSets:
    """Candidates about a reference; the truth lies off it along the start's own tokens."""
    generator = torch.Generator().manual_seed(seed)
    start, reference = torch.randn(2, count, 8, 4, generator=generator)
    deviations = torch.randn(count, 6, 8, 4, generator=generator)

    error = (deviations - start[:, None]).square().mean(dim=(2, 3)).sqrt().log()
    if noise:
        error = torch.randn(count, 6, generator=generator)
    conditions = Conditions(torch.full((count, 1), 0.1), torch.full((count,), 0.02))
    sets = Seen(start, reference, deviations, conditions)
    alone = Seen(start, reference, deviations[:, :1], conditions)
    field = torch.zeros(count, 1, 8)
    plain = Question(field, field[:, None], conditions.parameters, torch.full((count,), 0.1), 0)
    return CandidateSets(sets, error, alone, error[:, :1], plain)


@pytest.mark.parametrize("noise", [False, True])
def test_it_learns_on_which_side_the_truth_lies_and_nothing_from_noise(noise: bool) -> None:
    torch.manual_seed(0)
    reward = LearnedReward(num_parameters=1, tokens=8, latent_dim=4)
    torch.nn.init.normal_(reward.network.project.weight, std=0.02)
    fit(reward, known_world(256, seed=0, noise=noise), steps=100)
    fresh = known_world(64, seed=1, noise=noise)
    with torch.no_grad():
        predicted = reward(fresh.seen)
    known = torch.ones_like(predicted, dtype=torch.bool)
    found = float(spearman(-predicted, -fresh.log_error, known).mean())
    distance = fresh.seen.deviations.square().mean(dim=(2, 3))
    near = float(spearman(-distance, -fresh.log_error, known).mean())
    if noise:
        assert abs(found) < 0.15
    else:
        assert found > near + 0.1, "better than preferring what is near the reference"


def test_only_its_own_half_of_calibration_is_allowed(smoke_data: Dataset) -> None:
    for split in ("calibration_uncertainty", "validation", "train"):
        with pytest.raises(LeakageError, match="calibration_rewards"):
            train_reward(
                surrogate(), TTCSection(), GuardsConfig(), smoke_data.load(split), smoke_data, seed=0
            )


def test_a_reward_is_part_of_the_model_file_and_its_hash(tmp_path: Path) -> None:
    plain, learned = surrogate(), surrogate()
    entry = RewardEntry(plain_p95=0.1, sets=3, groups=("a",))
    learned.add_reward(entry)
    path = tmp_path / "model.safetensors"
    digest = save_surrogate(learned, path, plain_checkpoint=tmp_path / "operator.pt")
    again = load_surrogate(path)
    assert hash_of(again) == digest != hash_of(plain)
    assert again.architecture.reward == entry
    assert again.num_parameters() == plain.num_parameters(), "a plain rollout does not use it"
    state = torch.load(tmp_path / "operator.pt", weights_only=True)["state"]
    assert not any(name.startswith("reward") for name in state)


@pytest.mark.slow
def test_a_run_with_test_time_compute_has_its_own_record_beside_the_plain_one(
    smoke_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_reward, "SEGMENTS_FROM_ANYWHERE", 1)
    words = [STOCHASTIC, "evaluation.bootstrap_samples=20", "evaluation.small_members=4"]
    words += ["evaluation.members=4", "evaluation.small_groups=2"]
    search = ["ttc.enabled=true", "ttc.reward_steps=3", "ttc.residual_threshold=0.05"]
    loaded = tiny(smoke_data, *words, *search)
    assert loaded.hash != tiny(smoke_data, *words).hash
    record = experiment.run(loaded, tmp_path)
    small, ttc = (record.evaluations[name] for name in ("small_eval", "small_eval_ttc"))
    assert not small.result.predictor.test_time_compute
    assert ttc.result.predictor.test_time_compute
    assert not ttc.result.predictor.solver_in_the_loop
    assert small.result.predictor.hash != ttc.result.predictor.hash
    assert small.result.protocol == ttc.result.protocol
    assert record.training is not None
    assert record.training.observation["wall_clock_s_by_stage"]["reward"] > 0
    for label, regime in ttc.result.regimes.items():
        assert regime.metrics["ttc_evaluations"].value is not None
        assert regime.metrics["ttc_oracle_gain"].better == "higher"
        assert ttc.observation["ttc"][label]["equal_seconds_ensemble"] >= 2
        assert "ttc_oracle_gain" not in small.result.regimes[label].metrics
    files = RunFolder(tmp_path, record.run_id)
    entry = load_surrogate(files.model).architecture.reward
    assert entry is not None
    half = {group[:GROUP_DIGITS] for group in smoke_data.load("calibration_rewards").groups}
    assert set(entry.groups) == half
    before = read_document(files.summary, RunRecord).evaluations["small_eval"]
    full = assessment.evaluate(files.path, suite="full", search=True)
    after = read_document(files.summary, RunRecord)
    assert after.evaluations["full_eval_ttc"].result == full.result
    assert after.evaluations["small_eval"] == before
    assert "full_eval" not in after.evaluations
    page = files.report("html").read_text()
    assert "full_eval_ttc, " in page
    assert "small_eval_ttc, " in page
    with pytest.raises(UserError, match="--ttc"):
        assessment.evaluate(files.path, suite="full", search=True, members=4)


def test_every_set_is_read_at_its_own_elapsed_time() -> None:
    """A pure translation u(x - c t) rides with its frame, so nothing has moved, however long each set took."""
    model = surrogate()
    model.add_reward()
    start, parameters = fields(3)
    parts = []
    for steps in (1, 4):
        elapsed = torch.full((3,), steps * model.architecture.dt_s)
        distance = start.mean(dim=(1, 2)) * elapsed
        end = fourier_shift(start, distance[:, None], model.grid)
        question = Question(start, end[:, None].repeat(1, 2, 1, 1), parameters, elapsed, 0)
        decision = Decision(
            steps, 0, torch.arange(3), ("mean", "same"), question, torch.ones(3, 2), torch.ones(3, 2), end
        )
        found = training_reward._labelled(model, decision, end)
        assert found is not None
        parts.append(found)
    joined = training_reward._joined(parts)
    again = seen(model, joined.plain)
    torch.testing.assert_close(again.reference, again.start, rtol=1e-4, atol=1e-5)
    assert joined.plain.elapsed_s.tolist() == pytest.approx([0.02] * 3 + [0.08] * 3)
    cost = Cost(model, RewardWeights(), gamma=1.0)
    apart = torch.cat([cost(part.plain) for part in parts])
    torch.testing.assert_close(cost(joined.plain), apart, rtol=1e-5, atol=0)
