"""Rules of healing: pure, capped by the caller, and they keep what must be kept."""

from __future__ import annotations

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.sweep.recovery import CLIP, WARMUP, heal


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


def test_memory_shrinks_the_micro_batch_and_never_the_batch() -> None:
    config = effective()
    sizes = []
    for _ in range(6):
        healing = heal("MemoryExhaustedError", "no memory", config)
        if healing is None:
            break
        config = effective(*healing.overrides)
        sizes.append(config["training.micro_batch_size"])
        assert config["training.batch_size"] == 10
    assert sizes == [8, 4, 2, 1]
    assert heal("MemoryExhaustedError", "no memory", config) is None


def test_what_no_rule_knows_is_not_healed() -> None:
    for kind in (None, "UserError", "DataError", "KeyError"):
        assert heal(kind, "", effective()) is None
