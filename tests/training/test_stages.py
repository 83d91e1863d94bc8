"""What a stage trains, on what, and what it counts: weights held still, statistics, micro-batches, seconds, operations."""

from __future__ import annotations

import functools
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.model.small_models import surrogate as corrected
from tests.training.tiny_runs import STOCHASTIC, nothing, outcome, tiny
from universal_simulator import experiment, sampler_choice
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.data.splits import SPLITS
from universal_simulator.errors import (
    ConfigurationError,
)
from universal_simulator.inference.counting import rollout_operations
from universal_simulator.inference.rollout import rollout_fields
from universal_simulator.model.contract import Conditions
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS
from universal_simulator.physics.initial_conditions import draw_sine_family
from universal_simulator.physics.spectral import resample
from universal_simulator.physics.spectral_solver import solve_burgers
from universal_simulator.training import loop
from universal_simulator.training.augmentation import Augmentation
from universal_simulator.training.losses import TrainingBatch
from universal_simulator.training.segments import Segments, SegmentSource, segment_operations, segments
from universal_simulator.training.stochastic import corrector_loss


def test_the_operator_stage_holds_the_codec_still(tmp_path: Path, smoke_data: Dataset) -> None:
    short, _ = outcome(tmp_path / "short", tiny(smoke_data, "training.operator.steps=3"))
    longer, _ = outcome(tmp_path / "longer", tiny(smoke_data))
    for name, value in short.items():
        same = torch.equal(value, longer[name])
        if name.startswith(("member.encoder", "member.decoder")):
            assert same, name
    assert not torch.equal(short["member.operator.gain"], longer["member.operator.gain"])


def test_augmentation_is_a_symmetry_of_the_equation() -> None:
    """Augmented trajectories solve the equation from their own first frame."""
    grid = Grid((1.0,), (64,))
    u0 = resample(draw_sine_family(6, torch.Generator().manual_seed(3))(grid.coordinates()), 24)
    u0, times = resample(u0, 64), torch.linspace(0, 0.3, 4, dtype=torch.float64)
    nu = torch.full((6,), 0.2, dtype=torch.float64)
    u = solve_burgers(u0, nu, times, grid)[:, :, None]
    varied = Augmentation(("shift", "reflection"), BURGERS, grid)(u, torch.Generator().manual_seed(0))
    assert not torch.allclose(varied, u)
    again = solve_burgers(varied[:, 0, 0], nu, times, grid)
    assert torch.allclose(again, varied[:, :, 0], atol=1e-6)
    with pytest.raises(ConfigurationError, match="reflection"):
        Augmentation(("reflection",), ADVECTION, grid)


def test_statistics_come_from_the_training_split_alone(tmp_path: Path, smoke_data: Dataset) -> None:
    """A file that differs outside the training split gives the same normalisation and batches."""
    other = tmp_path / "other.hdf5"
    shutil.copy(smoke_data.path, other)
    outside = np.flatnonzero(smoke_data.split_of_row != SPLITS.index("train"))
    with h5py.File(other, "r+") as file:
        file["tensor"][outside] = 3.0 * file["tensor"][outside] + 1.0
        del file.attrs["identity"]
    kept = {}
    for name, data in (("as it is", smoke_data), ("other", open_dataset(other))):
        state, _ = outcome(tmp_path / name, tiny(data, "training.codec.steps=1"))
        kept[name] = {key: state[key] for key in ("offset", "scale", "member.condition.mean")}
    for key, value in kept["as it is"].items():
        assert torch.equal(value, kept["other"][key]), key


def test_micro_batches_give_the_gradient_of_the_whole(tmp_path: Path, smoke_data: Dataset) -> None:
    """Ragged parts are weighted by their samples: 4 = 3 + 1."""
    words = ["training.stages=[operator]", "training.operator.steps=1", "training.accumulation=2"]
    whole, log = outcome(tmp_path / "whole", tiny(smoke_data, *words))
    parts, log_of_parts = outcome(tmp_path / "parts", tiny(smoke_data, *words, "training.micro_batch_size=3"))
    first, first_of_parts = (json.loads(text.splitlines()[0]) for text in (log, log_of_parts))
    for key in ("total", "rollout", "latent", "spectral", "grad_norm"):
        assert first_of_parts[key] == pytest.approx(first[key], rel=2e-5), key
    assert any(not torch.equal(whole[key], parts[key]) for key in whole), "the knob is live"


def test_the_statistics_are_those_of_the_first_groups_whether_resident_or_streamed(
    smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "STATISTICS_GROUPS", 5)
    config = tiny(smoke_data).config
    _, resident = experiment._training_data(config, smoke_data, torch.device("cpu"))
    data = config.data.model_copy(update={"resident_gib": 1e-9})
    _, streamed = experiment._training_data(
        config.model_copy(update={"data": data}), smoke_data, torch.device("cpu")
    )
    assert len(set(resident.groups)) == 5
    assert resident.groups == streamed.groups
    assert torch.equal(resident.fields, streamed.fields)
    assert torch.equal(resident.parameters, streamed.parameters)


def test_noise_that_breaks_members_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = corrected()
    assert model.corrector is not None
    carried = model.corrector.carried
    planted = lambda *_, **__: carried if float(carried) < 1.0 else torch.tensor(math.nan)  # noqa: E731
    monkeypatch.setattr(sampler_choice, "ensemble_errors", planted)
    sampler_choice.choose_noise(model, guards=None, truth=None, rules=None)  # type: ignore[arg-type] # the score is planted
    assert float(carried) == 0.0


def test_seconds_of_filling_a_latent_cache_are_its_stages(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = SegmentSource.__init__

    def slowly(*words: Any, **more: Any) -> None:
        time.sleep(0.3)
        fill(*words, **more)

    monkeypatch.setattr(SegmentSource, "__init__", slowly)
    monkeypatch.setattr(experiment, "evaluate", nothing)
    observed = experiment.run(tiny(smoke_data, STOCHASTIC), tmp_path).training
    assert observed is not None
    seconds = observed.observation["wall_clock_s_by_stage"]
    assert seconds["diff_residual"] > 0.3
    assert seconds["consistency_distill"] > 0.3
    assert observed.observation["wall_clock_s"] == pytest.approx(sum(seconds.values()))


def test_operations_of_a_cached_segment_are_those_of_all(smoke_data: Dataset) -> None:
    """Counted on one window and on two, they are those of any batch; a rollout's, those of its segments."""
    model = corrected()
    truth = torch.randn(7, 5, 1, model.grid.points[0])
    batch = TrainingBatch(
        truth, torch.ones(7, 5), Conditions(torch.full((7, 1), 0.05), torch.full((7,), 0.02))
    )
    with FlopCounterMode(display=False) as counter:
        segments(model, batch)
    assert segment_operations(model, batch) == counter.get_total_flops()
    initial, nu = torch.randn(3, 1, model.grid.points[0]), torch.full((3, 1), 0.05)
    with FlopCounterMode(display=False) as counter:
        rollout_fields(model, initial, nu, steps=11)
    assert model.architecture.reencode_every == 4
    counted = rollout_operations(
        lambda size, steps: rollout_fields(model, initial[:size], nu[:size], steps=steps),
        size=3,
        steps=11,
        segment=4,
    )
    assert counted == counter.get_total_flops()


def test_operations_of_drawing_a_batch_count(tmp_path: Path, smoke_data: Dataset) -> None:
    """A stochastic stage without a latent cache rolls the operator out for every batch."""
    training = tiny(smoke_data, "training.accumulation=1").config.training
    conditions = Conditions(torch.full((4, 1), 0.05), torch.full((4,), 0.02))
    drawn = Segments(torch.randn(4, 8, 8), torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), conditions)

    def spent(batches: loop.BatchSource, folder: Path) -> float:
        model = corrected()
        folder.mkdir()
        stage = loop.StageTraining(
            model,
            training,
            training.diff_residual,
            loss=functools.partial(corrector_loss, residuals=1),
            batch_size=4,
            accumulation=1,
            rollout_length=lambda step: 4,
            seed=0,
            batches=batches,
            validate=lambda _: 0.0,
            validations=1,
            state_path=folder / "state.pt",
            log_path=folder / "log.jsonl",
            input_hash="x",
        )
        return stage.run().progress.training_flops

    def rolled(generator: torch.Generator, batch_size: int, num_steps: int) -> Segments:
        torch.ones(8, 8) @ torch.ones(8, 8)
        return drawn

    plain = spent(lambda *_: drawn, tmp_path / "plain")
    assert spent(rolled, tmp_path / "rolled") - plain == training.diff_residual.steps * 2 * 8**3
