"""Settings that only inference reads, scored on a stored model: same figures as training with them, nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.training.tiny_runs import TINY
from universal_simulator import inference_scores
from universal_simulator.cli import app
from universal_simulator.configuration import load_config
from universal_simulator.configuration.inference_settings import with_settings, words_of
from universal_simulator.configuration.schema import TTCSection
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.experiment import run
from universal_simulator.identity import code_version
from universal_simulator.inference_scores import score_settings
from universal_simulator.run_record import EvaluationRecord, RunFolder, RunRecord

WORDS = [*TINY, "training.stages=[codec,operator]", "ttc.reward_steps=5"]


def trained(folder: Path, data: Dataset, *more: str) -> tuple[RunFolder, RunRecord]:
    loaded = load_config("rerun_txxoc8a8", [*WORDS, *more], profile="smoke")
    record = run(loaded, folder, dataset=data)
    return RunFolder(folder, record.run_id), record


@pytest.mark.slow
def test_scores_are_those_of_a_model_trained_with_test_time_compute(
    tmp_path: Path, smoke_data: Dataset
) -> None:
    """The same weights either way: the reward is trained after them, here from the stored model."""
    words = f"data.file={smoke_data.path}"
    whole, record = trained(tmp_path / "with", smoke_data, "ttc.enabled=true", words)
    plain, _ = trained(tmp_path / "without", smoke_data, words)
    before = {path: path.read_bytes() for path in (plain.model, plain.summary)}
    own, other = score_settings(plain.path, ["ttc.residual_threshold=0.35", "ttc.residual_threshold=50.0"])
    expected = record.evaluations["small_eval_ttc"].result
    for regime, result in own.result.regimes.items():
        assert result.per_group["nrmse"] == expected.regimes[regime].per_group["nrmse"]
    assert own.result.predictor.search_hash == expected.predictor.search_hash
    assert own.result.protocol == expected.protocol
    assert own.observation["evaluations_per_sample"] > 0
    assert own.code_version == other.code_version == code_version(), "else a sweep refuses the answer"
    assert other.observation["evaluations_per_sample"] == 0, "a threshold that nothing exceeds acts nowhere"
    assert {path: path.read_bytes() for path in before} == before, "model and record stay what they are"
    assert sorted(p.name for p in (plain.path / "evaluations").iterdir()) == sorted(
        ["small_eval.json", f"{own.suite}.json", f"{other.suite}.json"]
    )
    # a model that holds its reward is asked with that one
    (stored,) = score_settings(whole.path, ["ttc.residual_threshold=0.35"])
    assert stored.result.regimes == own.result.regimes
    # a regressed answer is fitted for its score, which is not that of its representations' mean
    regressed, free = score_settings(plain.path, ["ttc.combine=regress", "ttc.combine=average"])
    assert regressed.observation["reward_s"] > 0
    for regime, result in regressed.result.regimes.items():
        assert result.per_group["nrmse"] != free.result.regimes[regime].per_group["nrmse"]
    with pytest.raises(UserError, match="a model without its run"):
        score_settings(plain.model, ["ttc.beam=2"])


def test_flags_of_scores_reach_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}

    def scored(path: Path, settings: list[str], **given: Any) -> list[EvaluationRecord]:
        heard.update(given, settings=settings)
        return []

    monkeypatch.setattr(inference_scores, "score_settings", scored)
    words = ["evaluate", "run", "--ttc-groups", "12", "--ttc-reward-groups", "9", "--json"]
    settings = ["ttc.beam=2", "ttc.beam=2 ttc.combine=regress"]
    asked = [word for setting in settings for word in ("--ttc-set", setting)]
    assert CliRunner().invoke(app, [*words, *asked]).exit_code == 0
    assert heard["settings"] == settings
    assert (heard["groups"], heard["reward_groups"]) == (12, 9)


def test_a_setting_of_several_keys_is_several_words() -> None:
    assert words_of(" ttc.beam=2  ttc.tau_range=[0.2, 0.8]") == ["ttc.beam=2", "ttc.tau_range=[0.2, 0.8]"]
    asked = with_settings(TTCSection(), words_of("ttc.beam=2 ttc.tau_range=[0.2, 0.8]"))
    assert (asked.beam, asked.tau_range) == (2, (0.2, 0.8))


def test_only_settings_of_test_time_compute_are_taken() -> None:
    assert with_settings(TTCSection(), ["ttc.reward_weights.mass=2.0"]).reward_weights.mass == 2.0
    assert with_settings(TTCSection(), []).enabled
    for words, told in (
        (["training.operator.learning_rate=1"], "training: only keys below ttc need no training"),
        (["ttc.residual_treshold=1"], "residual_treshold"),
        (["ttc=1"], "expected ttc.key=value"),
        (["ttc.combine=regress", "ttc.candidates=12"], "ttc.candidates: the answer is regressed"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            with_settings(TTCSection(), words)
        assert told in "; ".join(caught.value.faults)
