"""A model's calibration travels with its weights, under its hash; files without one keep theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.model.small_models import architecture
from universal_simulator.errors import IntegrityError
from universal_simulator.model.calibration import Calibration, CalibrationEntry
from universal_simulator.model.surrogate import (
    Architecture,
    Surrogate,
    hash_of,
    load_surrogate,
    model_hash,
    save_surrogate,
)

ENTRY = CalibrationEntry(
    regimes=("nu=0.01", "nu=0.1"), members=8, first_frame=0, spacing_s=0.02, steps=3, groups=("0123abcd",)
)


def calibration() -> Calibration:
    scale = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.25, 0.1]]).double()
    return Calibration(ENTRY, scale, torch.full((2, 3, 1), 0.3).double())


def test_calibration_is_saved_hashed_and_loaded_with_the_weights(tmp_path: Path) -> None:
    model = Surrogate(architecture()).eval()
    assert model.calibration is None
    before = hash_of(model)
    model.calibrate(calibration())
    assert hash_of(model) != before
    save_surrogate(model, tmp_path / "model.safetensors")
    found = load_surrogate(tmp_path / "model.safetensors")
    assert hash_of(found) == hash_of(model)
    assert found.calibration is not None
    assert found.calibration.entry == ENTRY
    assert torch.equal(found.calibration.scale, calibration().scale)
    assert torch.equal(found.calibration.of_regime("nu=0.1", 2).scale, torch.tensor([0.5, 0.25]).double())
    other = Surrogate(architecture()).eval()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if k in other.state_dict()})
    changed = calibration()
    changed.scale[0, 0] = 1.5
    other.calibrate(changed)
    assert hash_of(other) != hash_of(model), "a scale is part of the model"
    found.calibrate(changed)
    assert hash_of(found) == hash_of(other), "and can be fitted anew"


#: of `plain()` and one tensor, as the first released version of the format hashed it
FIRST_HASH = "e5f52570ec3114d82afc16030029121b74e5189c5a3f914528df577759a2ae0b"


def plain() -> Architecture:
    return architecture("p.m:C", ("galilean",), 8)


def test_a_model_without_calibration_keeps_the_hash_it_always_had() -> None:
    assert model_hash(plain(), {"w": torch.arange(3.0)}) == FIRST_HASH
    written = json.loads(plain().canonical_json())
    assert "calibration" not in written
    assert Architecture.model_validate(written) == plain()
    calibrated = plain().model_copy(update={"calibration": ENTRY})
    assert Architecture.model_validate_json(calibrated.canonical_json()) == calibrated
    assert model_hash(calibrated, {"w": torch.arange(3.0)}) != FIRST_HASH
    assert "choices" not in calibrated.canonical_json(), "nor does a calibration from before the choice"
    chosen = ENTRY.model_copy(update={"choices": ("none", "one_scale")})
    told = plain().model_copy(update={"calibration": chosen})
    assert Architecture.model_validate_json(told.canonical_json()) == told


@pytest.mark.parametrize(("row", "value"), [(0, float("nan")), (1, 0.0), (2, -1.0)])
def test_a_calibration_that_cannot_be_is_refused(tmp_path: Path, row: int, value: float) -> None:
    scale = calibration().scale
    scale[0, row] = value
    with pytest.raises(ValueError, match="positive and finite"):
        Calibration(ENTRY, scale, calibration().width)
    model = Surrogate(architecture())
    model.calibrate(calibration())
    path = tmp_path / "model.safetensors"
    save_surrogate(model, path)
    # a file forged with a matching hash
    tensors = load(path.read_bytes())
    tensors["calibration_scale"] = scale
    metadata = {
        "format": "usim-model-1",
        "hash": model_hash(model.architecture, tensors),
        "architecture": model.architecture.canonical_json(),
    }
    path.write_bytes(save(tensors, metadata))
    with pytest.raises(IntegrityError, match="calibration"):
        load_surrogate(path)


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="2 regimes of 3 lead times"):
        Calibration(ENTRY, torch.ones(1, 3), torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match="fields"):
        Surrogate(architecture()).calibrate(Calibration(ENTRY, torch.ones(2, 3), torch.ones(2, 3, 2)))
