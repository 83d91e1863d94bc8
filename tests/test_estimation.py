"""Forecasts of a run from a few of its steps: the arithmetic against an oracle, and one for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from universal_simulator.configuration import load_config
from universal_simulator.errors import TrainingError
from universal_simulator.estimation import (
    STEPS_PER_LENGTH,
    STOCHASTIC,
    calibrate,
    fewer_ensembles,
    measured,
    short_words,
    without_lengths,
)
from universal_simulator.experiment import prepare_dataset, run
from universal_simulator.training.loop import rollout_length

#: seconds of a step, by rollout length; of the first step at a length; of a validation
STEP_S, FIRST_S, VALIDATION_S = {0: 0.01, 1: 0.1, 2: 0.2, 4: 0.4}, 5.0, 3.0


def test_steps_and_validations_are_told_apart() -> None:
    """A clock made of known parts gives the parts back, first steps and validations left out."""
    plain = load_config("rerun_txxoc8a8", profile="smoke").config.training
    training = load_config("rerun_txxoc8a8", short_words(plain), profile="smoke").config.training
    stages = ("codec", "operator")
    lengths = [0] * training.codec.steps
    lengths += [rollout_length(training, step) for step in range(training.operator.steps)]
    assert {length: lengths.count(length) for length in set(lengths)} == dict.fromkeys(
        STEP_S, STEPS_PER_LENGTH
    )
    now, moments = 0.0, []
    for index, length in enumerate(lengths):
        now += FIRST_S if length not in lengths[:index] else STEP_S[length]
        last = index + 1 in (training.codec.steps, len(lengths))
        now += VALIDATION_S if last else 0.0
        moments.append((index + 1, now))
    steps, validations = measured(training, stages, moments)
    expected = {("codec", 0): 0.01, **{("operator", k): v for k, v in STEP_S.items() if k}}
    assert steps == pytest.approx(expected)
    assert validations == pytest.approx({"codec": VALIDATION_S, "operator": VALIDATION_S})


def test_a_length_that_was_not_measured_is_no_guess() -> None:
    words = ["training.codec.steps=1", "training.operator.steps=3"]
    training = load_config("rerun_txxoc8a8", words, profile="smoke").config.training
    with pytest.raises(TrainingError, match="no step at rollout length 0"):
        measured(training, ("codec",), [(1, 1.0), (2, 2.0)])


def test_a_member_that_says_its_own_length_is_measured_all_the_same() -> None:
    """Epochs of a plan's overrides and the short training's steps are one word too many for the loader."""
    words = ["training.operator.epochs=60", "training.codec.steps=9", "training.operator.learning_rate=1e-4"]
    plain = load_config("rerun_txxoc8a8", words, profile="smoke").config.training
    short = [*without_lengths(words), *short_words(plain)]
    config = load_config("rerun_txxoc8a8", short, profile="smoke").config.training
    assert config.operator.steps == STEPS_PER_LENGTH * len(config.rollout_curriculum)
    assert config.codec.steps == STEPS_PER_LENGTH
    assert without_lengths(words) == words[2:]


def test_every_ensemble_is_measured_on_one_share_of_its_initial_conditions(tmp_path: Path) -> None:
    """And its stages are validated once, at their last step: a step of theirs holds no validation."""
    words = ["training.ensemble_validation.groups=16", "evaluation.calibration_groups=null"]
    words += [f"training.{stage}.latent_cache_windows=40" for stage in STOCHASTIC]
    whole = load_config("rerun_txxoc8a8", words, profile="smoke")
    dataset = prepare_dataset(str(whole.config.data.dataset), tmp_path)
    halved = dataset.info.groups_per_split["calibration"] // 2
    share, fewer = fewer_ensembles(whole.config, dataset)
    assert share == 8
    assert halved >= 4
    short = [*short_words(whole.config.training), *fewer]
    training = load_config("rerun_txxoc8a8", short, profile="smoke").config.training
    assert training.ensemble_validation.groups == 2
    assert training.ensemble_validation.validations == 1
    assert fewer[1] == f"evaluation.calibration_groups={max(1, round(halved / 8))}"
    assert [getattr(training, stage).latent_cache_windows for stage in STOCHASTIC] == [5, 5]


@pytest.mark.slow
def test_a_real_forecast_is_near_the_real_run(tmp_path: Path) -> None:
    """Within a factor of two on a busy machine; nothing of the calibration is left behind."""
    words = ["training.operator.epochs=60", "training.operator.patience_epochs=60"]
    found = calibrate("rerun_txxoc8a8", words, tmp_path, profile="smoke")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    record = run(load_config("rerun_txxoc8a8", words, profile="smoke"), tmp_path)
    assert record.training is not None
    assert found.train_s == pytest.approx(record.training.observation["process_s"], rel=1.0)
    assert 0.05 < found.peak_memory_gib < 20
    assert found.full_eval_s > found.small_eval_s * 0.5
