"""Rules of healing: pure, capped by the caller, and they keep what must be kept."""

from __future__ import annotations

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import RewardError
from universal_simulator.sweep.recovery import CLIP, WARMUP, Healing, heal, heal_physics


def effective(*words: str) -> dict[str, object]:
    return flatten(load_config("sweep_round_b_deeper", words, profile="smoke").config.model_dump(mode="json"))


def test_divergence_follows_the_plan() -> None:
    config = effective()
    healing = heal("DivergenceError", "loss nan", config)
    assert healing is not None
    assert healing.evidence == "loss nan"
    again = effective(*healing.overrides)
    for stage in ("codec", "operator"):
        key = f"training.{stage}."
        assert again[key + "learning_rate"] == 0.7 * float(str(config[key + "learning_rate"]))
        assert again[key + "warmup_ratio"] == WARMUP
        assert again[key + "grad_clip"] == CLIP
    untouched = set(config) - set(healing.after)
    assert all(again[key] == config[key] for key in untouched)
    assert healing.before == {key: config[key] for key in healing.after}


def test_only_the_stage_that_diverged_is_changed() -> None:
    healing = heal("DivergenceError", "diff_residual, step 331: loss 2e3", effective())
    assert healing is not None
    assert {key.split(".")[1] for key in healing.after} == {"diff_residual"}


def test_memory_shrinks_the_micro_batch_and_never_the_batch() -> None:
    config, words = effective(), []
    sizes = []
    for _ in range(6):
        healing = heal("MemoryExhaustedError", "no memory", config)
        if healing is None:
            break
        words += healing.overrides
        config = effective(*words)
        sizes.append(config["training.micro_batch_size"])
        assert config["training.batch_size"] == 10
    assert sizes == [8, 4, 2, 1]
    assert heal("MemoryExhaustedError", "no memory", config) is None


def test_what_no_rule_knows_is_not_healed() -> None:
    for kind in (None, "UserError", "DataError", "KeyError"):
        assert heal(kind, "", effective()) is None


def test_failing_physics_changes_what_is_live_and_says_what_is_not() -> None:
    config = effective()
    healing = heal_physics("conservation_gap 0.02 against 0.01", config)
    assert healing is not None
    assert healing.after == {"training.loss.lambda_spectral": 0.1}
    assert healing.left == {
        "guards.mass_projection": "is on already",
        "ttc.reward_weights.mass": "test-time compute is off for this run",
        "ttc.reward_weights.energy": "test-time compute is off for this run",
        "ttc.guidance_lambda": "test-time compute is off for this run",
    }
    assert effective(*healing.overrides)["training.loss.lambda_spectral"] == 0.1
    assert heal_physics("again", effective(*healing.overrides)) is None


def test_failing_physics_with_test_time_compute_on() -> None:
    config = {**effective("guards.mass_projection=false"), "ttc.enabled": True, "ttc.guidance_lambda": 1.0}
    healing = heal_physics("bc_violation", config)
    assert healing is not None
    assert healing.left == {}
    assert healing.after == {
        "training.loss.lambda_spectral": 0.1,
        "guards.mass_projection": True,
        "ttc.reward_weights.mass": 1.5 * 1.2,
        "ttc.reward_weights.energy": 1.5 * 0.15,
        "ttc.guidance_lambda": 0.7,
    }


def test_failing_physics_leaves_weights_that_a_regressed_answer_does_not_read() -> None:
    config = {**effective(), "ttc.enabled": True, "ttc.combine": "regress", "ttc.reward_steps": 0}
    healing = heal_physics("bc_violation", {**config, "ttc.residual_threshold": 0.0})
    assert healing is not None
    assert healing.after == {"training.loss.lambda_spectral": 0.1}
    for name in ("mass", "energy"):
        assert "regressed" in healing.left[f"ttc.reward_weights.{name}"]
    asked = heal_physics("bc_violation", config)
    assert asked is not None
    assert "ttc.reward_weights.mass" in asked.after, "its threshold asks a reward"


def test_a_reward_that_is_not_finite_is_named_and_weighs_nothing() -> None:
    config = {**effective(), "ttc.enabled": True}
    evidence = str(RewardError("energy", "nan in 3 of 8 candidates"))
    healing = heal("RewardError", evidence, config)
    assert healing is not None
    assert healing.after == {"ttc.reward_weights.energy": 0.0}
    assert "energy" in healing.rule
    assert heal("RewardError", evidence, effective()) is None  # nothing reads it: no cure is claimed
    assert heal("RewardError", str(RewardError("learned", "nan")), config) is None
    assert heal("RewardError", evidence, {**config, **healing.after}) is None


def test_memory_takes_the_latent_cache_down_where_there_is_one() -> None:
    config = effective()
    keys = [f"training.{stage}.latent_cache_dtype" for stage in ("diff_residual", "consistency_distill")]
    healing = heal("MemoryExhaustedError", "no memory", config)
    assert isinstance(healing, Healing)
    assert {healing.after[key] for key in keys} == {"bfloat16"}
    alone = {**config, "training.stages": ["codec", "operator"]}
    healing = heal("MemoryExhaustedError", "no memory", alone)
    assert isinstance(healing, Healing)
    assert healing.left == {key: f"the stage {key.split('.')[1]} is not trained in this run" for key in keys}
    without = {key: value for key, value in config.items() if key not in keys}
    healing = heal("MemoryExhaustedError", "no memory", without)
    assert isinstance(healing, Healing)
    assert healing.left == {"latent_cache_dtype": "this version has no such key"}
