"""Shared fixtures: a tiny data set and the genuine samples where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

#: modules whose signatures, shapes included, are checked at every call while tests run; before they load.
#: Not the contract itself: what users' networks answer is judged by `model/trial.py`, in its own words
CHECKED = (
    "physics.invariants",
    "inference.rollout",
    "inference.guards",
    "evaluation.accuracy",
    "evaluation.dressing",
)
install_import_hook([f"universal_simulator.{name}" for name in CHECKED], "beartype.beartype")

# ruff: noqa: E402
from universal_simulator import assessment
from universal_simulator.data.dataset import Dataset
from universal_simulator.experiment import ensure_dataset

torch.set_num_threads(1)
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ensure_dataset("burgers_smoke", tmp_path_factory.mktemp("data") / "data" / "burgers_smoke.hdf5")


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations leave their records and draw no page (a second and more each): for tests of the figures alone."""
    monkeypatch.setattr(assessment, "write_report", lambda *_, **__: None)


@pytest.fixture
def sample_file() -> Path:
    path = SAMPLES / "1D_Burgers_Sols_Nu0.01_sample16.hdf5"
    if not path.exists():
        pytest.skip("the genuine PDEBench samples (../shared/data) are not here")
    return path
