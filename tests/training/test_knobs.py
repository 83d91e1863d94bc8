"""Every key of a configuration is read, and every knob that the plan sweeps changes the result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from tests.configuration.test_configuration import MEMBERS
from tests.inference.test_search import REWARD_WEIGHTS
from tests.inference.test_search import SETTINGS as SEARCH_SETTINGS
from tests.training.tiny_runs import STOCHASTIC, TINY, outcome, tiny
from universal_simulator import assessment, experiment
from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.configuration.schema import (
    PENDING_SECTIONS,
    LatentSurrogateOptions,
    RunConfig,
    Section,
    Stage,
)
from universal_simulator.data.dataset import Dataset
from universal_simulator.run_record import RunFolder
from universal_simulator.tracking.snapshot import read_snapshot
from universal_simulator.training import loop, reward
from universal_simulator.training.optimisation import learning_rate

KNOBS = [
    "seed=1",
    "training.operator.learning_rate=5e-4",
    "training.operator.warmup_ratio=0.5",
    "training.operator.schedule=cosine",
    "training.operator.betas=[0.8,0.9]",
    "training.operator.weight_decay=0.3",
    "training.operator.grad_clip=0.01",
    "training.operator.ema_decay=0.5",
    "training.batch_size=5",
    "training.stages=[operator]",
    "training.operator.steps=7",
    "training.codec.steps=5",
    "training.codec.batch_size=5",
    "training.codec.learning_rate=5e-4",
    "training.augmentation=[]",
    "training.augmentation=[shift,reflection]",
    "training.accumulation=2",
    "training.windows_from_start=1.0",
    "training.loss.lambda_spectral=1.0",
    "training.loss.lambda_latent=0.0",
    "training.loss.lambda_reconstruction=0.0",
    "training.rollout_curriculum=[2,2,4]",
    "model.options.latent_tokens=12",
    "model.options.latent_dim=16",
    "model.options.operator.hidden=32",
    "model.options.operator.depths=[1,2,1]",
    "model.options.operator.group_size=16",
    "model.options.operator.heads=2",
    "model.options.operator.stochastic_depth=0.5",
    "model.options.decoder.hidden=32",
    "model.options.decoder.mlp_hidden=64",
    "model.options.decoder.layers=2",
    "model.options.decoder.heads=2",
    "model.options.decoder.frequencies=[1,2]",
    "model.canonical_frame=[]",
    "model.reencode_every=2",
    "data.time_stride=4",
    "data.train_groups=20",
    "training.precision=bfloat16",
]


#: words -> weights and log of a run that no knob is turned of
Unturned = Callable[..., tuple[dict[str, torch.Tensor], str]]


@pytest.fixture(scope="module")
def unturned(smoke_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Unturned:
    """Trained once for all knobs."""

    @functools.cache
    def trained(*words: str, stage: str) -> tuple[dict[str, torch.Tensor], str]:
        return outcome(tmp_path_factory.mktemp("unturned"), tiny(smoke_data, *words), stage=stage)

    return trained


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_changes_the_result(
    tmp_path: Path, smoke_data: Dataset, unturned: Unturned, knob: str
) -> None:
    before, log_before = unturned(stage="operator")
    after, log_after = outcome(tmp_path, tiny(smoke_data, knob))
    if knob.startswith(("training.operator.ema_decay", "model.reencode_every")):
        # the weights kept may be the same, the validation scores may not
        assert log_after.splitlines()[-1] != log_before.splitlines()[-1]
        return
    same_shape = {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    assert not same_shape or any(not torch.equal(after[k], before[k]) for k in after)


STOCHASTIC_KNOBS = [
    "training.diff_residual.steps=5",
    "training.diff_residual.learning_rate=5e-4",
    "training.diff_residual.warmup_ratio=0.5",
    "training.diff_residual.schedule=constant",
    "training.diff_residual.betas=[0.8,0.9]",
    "training.diff_residual.weight_decay=0.3",
    "training.diff_residual.grad_clip=0.01",
    "training.consistency_distill.steps=4",
    "training.consistency_distill.learning_rate=5e-4",
    "training.consistency_distill.weight_decay=0.3",
    "training.consistency_distill.batch_size=3",
    "training.consistency_distill.accumulation=2",
    "training.consistency_distill.taus=3",
    "training.diff_residual.residuals_per_window=2",
    "training.consistency_distill.residuals_per_window=2",
    "training.diff_residual.latent_cache_windows=0",
    "training.diff_residual.latent_cache_dtype=bfloat16",
    "training.consistency_distill.latent_cache_windows=5",
    "model.corrector.hidden=32",
    "model.corrector.layers=1",
    "model.corrector.heads=2",
    "model.corrector.group_size=4",
    "model.corrector.teacher_steps=2",
    "model.member_representations=true",
]


@pytest.mark.parametrize("knob", STOCHASTIC_KNOBS)
def test_every_knob_of_the_stochastic_stages_changes_the_result(
    tmp_path: Path, smoke_data: Dataset, unturned: Unturned, knob: str
) -> None:
    before, log_before = unturned(STOCHASTIC, stage="diff_residual")
    after, log_after = outcome(tmp_path, tiny(smoke_data, STOCHASTIC, knob), stage="diff_residual")
    if knob.startswith(("model.corrector.teacher_steps", "model.member_representations")):
        assert log_after.splitlines()[-1] != log_before.splitlines()[-1]
        return
    changed = {k for k in after if k not in before or after[k].shape != before[k].shape}
    changed |= {k for k in after.keys() & before.keys() - changed if not torch.equal(after[k], before[k])}
    assert changed
    if not knob.startswith("model"):
        assert all(k.startswith(("corrector.", "calibration_")) for k in changed), (
            "only its own part is trained"
        )


#: knob -> what it acts beside
BESIDE = {
    "training.operator.eta_min=5e-4": ("training.operator.schedule=cosine",),
    "training.operator.patience_steps=1": ("training.operator.learning_rate=1e-30", "training.validations=6"),
}


@pytest.mark.parametrize("knob", BESIDE)
def test_a_knob_that_acts_beside_others_changes_the_result(
    tmp_path: Path, smoke_data: Dataset, knob: str
) -> None:
    _, before = outcome(tmp_path / "before", tiny(smoke_data, *BESIDE[knob]))
    _, after = outcome(tmp_path / "after", tiny(smoke_data, *BESIDE[knob], knob))
    assert after != before


#: they name and group a run, and enter no hash
NAMES = ("name", "tags", "tracking.group")


@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_what_the_plan_sweeps_is_what_the_tests_turn(profile: str) -> None:
    """Wherever two of the plan's seven configs differ, one of the tests above, or of the search's, turns that knob."""
    configs = [
        flatten(load_config(member, profile=profile).config.model_dump(mode="json")) for member in MEMBERS
    ]
    swept = {key for key, value in configs[0].items() if any(other[key] != value for other in configs)}
    turned = {knob.partition("=")[0] for knob in (*KNOBS, *STOCHASTIC_KNOBS, *BESIDE)}
    turned |= {f"ttc.{name}" for setting in SEARCH_SETTINGS for name in setting}
    turned |= {f"ttc.reward_weights.{name}" for name in REWARD_WEIGHTS}
    assert len(swept) > 40
    assert swept - turned == set(NAMES)


@contextmanager
def recorded_reads() -> Iterator[set[tuple[str, str]]]:
    """(section class, key) of every attribute read of a configuration section."""
    reads: set[tuple[str, str]] = set()
    original = BaseModel.__getattribute__

    def spy(self: Any, name: str) -> Any:
        if name in type(self).model_fields:
            reads.add((type(self).__name__, name))
        return original(self, name)

    Section.__getattribute__ = spy  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        del Section.__getattribute__


def all_keys(kind: type[BaseModel]) -> set[tuple[str, str]]:
    keys = set()
    for name, field in kind.model_fields.items():
        if kind is RunConfig and name in PENDING_SECTIONS:
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys |= all_keys(annotation)
        keys.add((kind.__name__, name))
    return keys


def unread(data: Dataset, folder: Path) -> set[tuple[str, str]]:
    (folder / "data").mkdir()
    (folder / "data" / "burgers_smoke.hdf5").symlink_to(data.path)
    search = ["ttc.enabled=true", "ttc.reward_steps=3", "ttc.residual_threshold=0.05"]
    words = [*TINY, STOCHASTIC, *search, "training.operator.schedule=cosine"]
    config = load_config("rerun_txxoc8a8", words, profile="smoke")
    with recorded_reads() as reads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "SEGMENTS_FROM_ANYWHERE", 1)  # a few candidate sets are read like many
        record = experiment.run(config, folder)
        files = RunFolder(folder, record.run_id)
        assessment.evaluate(files.path, suite="full", search=True)
        # a mirror reads the section from the run's config.json, with no RunConfig at hand
        if read_snapshot(files).group == "baseline-experiments":
            reads.add(("RunConfig", "tracking"))
    return (all_keys(RunConfig) | all_keys(LatentSurrogateOptions)) - reads


def test_no_key_is_dead_but_a_planted_one(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's warm-up, which a test above shows to be live, is taken from its reader for this one run."""

    def without_warmup(stage: Stage, step: int) -> float:
        if type(stage) is not Stage:
            return learning_rate(stage, step)
        read = {key: getattr(stage, key) for key in ("steps", "learning_rate", "schedule", "eta_min")}
        return learning_rate(SimpleNamespace(**read, warmup_ratio=0.0), step)  # type: ignore[arg-type] # a Stage would be heard

    monkeypatch.setattr(loop, "learning_rate", without_warmup)
    assert "training.operator.warmup_ratio=0.5" in KNOBS
    assert unread(smoke_data, tmp_path) == {("Stage", "warmup_ratio")}
