"""`make bench` times what training does: a whole optimiser step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.model.small_models import architecture
from tests.scripts import script
from tests.training.tiny_runs import tiny
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.windows import WindowSource
from universal_simulator.model.surrogate import Surrogate


def test_a_timed_step_is_the_trainings_own(
    smoke_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped, stepped, averaged and logged; gradients begin anew; what the codec stage made is held still."""
    throughput = script("throughput")
    monkeypatch.setattr(throughput, "TRAINING_STEPS", 2)
    config = tiny(smoke_data, "training.operator.learning_rate=1e-2").config
    surrogate = Surrogate(architecture(frame=("galilean",), latent_tokens=8, latent_dim=8))
    before = {name: value.clone() for name, value in surrogate.state_dict().items()}
    windows = WindowSource(smoke_data.load("train", time_stride=2))
    clock = iter(range(100))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(clock)))
    assert throughput.steps_per_s(surrogate, config, windows, tmp_path, length=4) == 2.0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] * 3, "a warm-up and two repeats"
    assert {line["rollout_length"] for line in log} == {4}
    changed = {name for name, value in surrogate.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("member.operator", "member.condition")) for name in changed), changed
