"""Runs of a second, through every stage or the deterministic two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from universal_simulator import experiment, stages
from universal_simulator.configuration import LoadedConfig, load_config
from universal_simulator.data.dataset import Dataset
from universal_simulator.model.surrogate import load_surrogate
from universal_simulator.run_record import RunFolder

TINY = [
    "training.codec.steps=4",
    "training.codec.patience_steps=4",
    "training.codec.batch_size=6",
    "training.operator.steps=6",
    "training.operator.patience_steps=6",
    "training.diff_residual.steps=4",
    "training.diff_residual.patience_steps=4",
    "training.consistency_distill.steps=3",
    "training.consistency_distill.patience_steps=3",
    "training.consistency_distill.batch_size=2",
    "training.diff_residual.latent_cache_windows=8",
    "training.consistency_distill.latent_cache_windows=8",
    "training.ensemble_validation.members=2",
    "training.ensemble_validation.groups=1",
    "training.ensemble_validation.steps=8",
    "training.ensemble_validation.validations=1",
    "model.corrector.teacher_steps=1",
    "training.validations=1",
    "training.validation_groups=2",
    "training.batch_size=4",
    "evaluation.small_groups=2",
    "evaluation.full_groups=2",
    "evaluation.bootstrap_samples=50",
    "evaluation.classical_points=[32]",
    "evaluation.steps=8",
    "evaluation.members=2",
    "evaluation.small_members=2",
]
DETERMINISTIC = "training.stages=[codec,operator]"
STOCHASTIC = "training.stages=[codec,operator,diff_residual,consistency_distill]"


def tiny(data: Dataset, *overrides: str) -> LoadedConfig:
    """A run of seconds; deterministic unless the overrides name the stages."""
    stages = [] if any(word.startswith("training.stages=") for word in overrides) else [DETERMINISTIC]
    words = [f"data.file={data.path}", *TINY, *stages, *overrides]
    return load_config("rerun_txxoc8a8", words, profile="smoke")


def nothing(*_: object, **__: object) -> None:
    """In the place of what a test leaves out."""


def outcome(
    folder: Path, config: LoadedConfig, *, stage: str = "operator"
) -> tuple[dict[str, torch.Tensor], str]:
    """Weights kept, and the log of training with both validation scores; nothing is evaluated or recalibrated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "evaluate", nothing)
        patch.setattr(experiment, "make_sampler", lambda *_, **__: (None, {}))
        patch.setattr(stages, "UNIT_WINDOWS", 16)  # a few measure the units as well as many
        files = RunFolder(folder, experiment.run(config, folder).run_id)
    return load_surrogate(files.model).state_dict(), files.metrics_log(stage).read_text()
