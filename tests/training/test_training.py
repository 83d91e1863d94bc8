"""A run's training: bit-equal resume, immutable records, honest divergence, data it must not have seen."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.training.tiny_runs import DETERMINISTIC, STOCHASTIC, TINY, nothing, tiny
from universal_simulator import assessment, experiment, stages
from universal_simulator.configuration import load_config
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import (
    DivergenceError,
    IntegrityError,
    LeakageError,
    MemoryExhaustedError,
    UserError,
)
from universal_simulator.model.surrogate import load_surrogate
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.training import loop


@pytest.fixture(scope="module")
def finished(smoke_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A deterministic run with its small-eval, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "write_report", nothing)
        return RunFolder(folder, experiment.run(tiny(smoke_data), folder).run_id)


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished.experiment, tmp_path / "copied")
    return RunFolder(tmp_path / "copied", finished.run_id)


@pytest.mark.usefixtures("without_pages")
def test_training_interrupted_in_every_stage_resumes_bit_for_bit(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the codec's stage, gone on with and killed in the next, until it is done."""
    monkeypatch.setattr(stages, "UNIT_WINDOWS", 16)
    words = ["model.options.operator.stochastic_depth=0.2", "model.member_representations=true"]
    config = tiny(smoke_data, STOCHASTIC, *words)
    whole = experiment.run(config, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_S", 0.0)
    files = RunFolder(tmp_path / "parts", whole.run_id)

    class Killed(Exception):
        pass

    for stage_name, killed_at in (
        ("codec", 2),
        ("operator", 7),
        ("diff_residual", 12),
        ("consistency_distill", 16),
    ):

        def kill(phase: str, done: int, total: int, killed_at: int = killed_at) -> None:
            if phase == "train" and done == killed_at:
                raise Killed

        with pytest.raises(Killed):
            experiment.run(config, tmp_path / "parts", progress=kill)
        assert files.training_state(stage_name).exists()
    resumed = experiment.run(config, tmp_path / "parts")
    assert whole.training is not None
    assert resumed.training is not None
    assert resumed.training.result == whole.training.result
    assert resumed.evaluations["small_eval"].result == whole.evaluations["small_eval"].result
    for stage_name, count in (
        ("codec", 4),
        ("operator", 6),
        ("diff_residual", 4),
        ("consistency_distill", 3),
    ):
        lines = [json.loads(line) for line in files.metrics_log(stage_name).read_text().splitlines()]
        assert [line["step"] for line in lines if "total" in line] == list(range(1, count + 1))


def test_finished_run_is_immutable_and_identity_is_checked(copied: RunFolder, smoke_data: Dataset) -> None:
    config = tiny(smoke_data)
    first, stamp = read_document(copied.summary, RunRecord), copied.summary.stat().st_mtime_ns
    assert experiment.run(config, copied.experiment) == first
    assert copied.summary.stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="something changed"):
        experiment.run(config, copied.experiment, run_id="another-s0-0000000000")
    with pytest.raises(UserError, match="sealed"):
        assessment.evaluate(copied.path, suite="test")


@pytest.mark.usefixtures("without_pages")
def test_another_file_is_answered_but_never_mixed_into_the_record(
    copied: RunFolder, tmp_path: Path, smoke_data: Dataset
) -> None:
    before = copied.summary.read_bytes()
    copy = tmp_path / "copy.hdf5"
    copy.write_bytes(smoke_data.path.read_bytes())
    answer = assessment.evaluate(copied.path, suite="full", data_file=copy)
    assert answer.result.protocol.split == "selection"
    assert copied.summary.read_bytes() == before
    cached = list((copied.experiment / "references").glob("*.json"))
    again = assessment.evaluate(copied.path, suite="small")
    assert again.result == RunRecord.model_validate_json(before).evaluations["small_eval"].result
    assert sorted((copied.experiment / "references").glob("*.json")) == sorted(cached)


def test_damaged_training_state_is_refused(copied: RunFolder, smoke_data: Dataset) -> None:
    data = bytearray(copied.training_state("operator").read_bytes())
    data[len(data) // 2] ^= 1
    copied.training_state("operator").write_bytes(bytes(data))
    copied.summary.unlink()
    with pytest.raises(IntegrityError, match="damaged"):
        experiment.run(tiny(smoke_data), copied.experiment)


def test_divergence_stops_the_run_and_is_recorded(tmp_path: Path, smoke_data: Dataset) -> None:
    config = tiny(
        smoke_data,
        "training.operator.learning_rate=1e12",
        "training.operator.grad_clip=1e30",
        "training.operator.schedule=constant",
    )
    with pytest.raises(DivergenceError, match=r"operator, step .*lower"):
        experiment.run(config, tmp_path)
    summaries = list((tmp_path / "artifacts" / "runs").glob("*/summary.json"))
    assert '"status": "failed"' in summaries[0].read_text()


@pytest.mark.usefixtures("without_pages")
def test_a_stage_that_stopped_early_stays_stopped(tmp_path: Path, smoke_data: Dataset) -> None:
    """Killed in the next stage and run again, the finished one does not train on."""
    words = ["training.codec.steps=12", "training.codec.patience_steps=1", "training.validations=6"]
    words += ["training.codec.learning_rate=1e-30", "training.codec.eta_min=0"]
    config = tiny(smoke_data, *words)
    whole = experiment.run(config, tmp_path / "whole")
    files = RunFolder(tmp_path / "whole", whole.run_id)
    codec = json.loads(files.metrics_log("codec").read_text().splitlines()[-1])
    assert codec["step"] < 12
    files.summary.unlink()
    files.training_state("operator").unlink()
    again = experiment.run(config, tmp_path / "whole")
    assert again.training is not None
    assert whole.training is not None
    assert again.training.result == whole.training.result


@pytest.mark.usefixtures("without_pages")
def test_another_models_file_in_a_runs_folder_is_refused(copied: RunFolder, smoke_data: Dataset) -> None:
    record = experiment.run(tiny(smoke_data, "seed=5"), copied.experiment)
    other = RunFolder(copied.experiment, record.run_id)
    shutil.copy(copied.model, other.model)
    with pytest.raises(IntegrityError, match="is not the model"):
        assessment.evaluate(other.path, suite="full")


@pytest.mark.usefixtures("without_pages")
def test_a_run_moves_with_its_experiment(tmp_path: Path, smoke_data: Dataset) -> None:
    (tmp_path / "here" / "data").mkdir(parents=True)
    shutil.copy(smoke_data.path, tmp_path / "here" / "data" / "burgers_smoke.hdf5")
    config = load_config("rerun_txxoc8a8", [*TINY, DETERMINISTIC], profile="smoke")
    record = experiment.run(config, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = RunFolder(tmp_path / "there", record.run_id)
    assert assessment.evaluate(moved.path, suite="small").result == record.evaluations["small_eval"].result


def test_training_trajectories_in_another_file_are_recognised(
    copied: RunFolder, tmp_path: Path, smoke_data: Dataset
) -> None:
    other = tmp_path / "burgers_other.hdf5"
    shutil.copy(smoke_data.path, other)
    with h5py.File(other, "r+") as file:
        file["split"][...] = np.roll(file["split"][...], -60)
        del file.attrs["identity"]
    for suite in ("full", "small"):
        with pytest.raises(LeakageError, match=r"trained or validated on|calibrated on"):
            assessment.evaluate(copied.path, suite=suite, data_file=other)


def test_an_edited_module_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "mynet_edited.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    hashes = []
    for factor in (0.5, 0.6):
        source.write_text(f"FACTOR = {factor}\n")
        hashes.append(
            load_config("rerun_txxoc8a8", ["model.import_path=mynet_edited:Net"], profile="smoke").hash
        )
    assert hashes[0] != hashes[1]


@pytest.mark.slow
def test_compile_compiles(tmp_path: Path, smoke_data: Dataset) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    experiment.run(tiny(smoke_data, "training.compile=true"), tmp_path)
    assert counters["frames"]["ok"] > 0


def test_exhausted_memory_is_one_error_with_its_cure(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(stages, "window_loss", exhausted)
    with pytest.raises(MemoryExhaustedError, match="micro_batch_size"):
        experiment.run(tiny(smoke_data), tmp_path)
    summary = next((tmp_path / "artifacts" / "runs").glob("*/summary.json")).read_text()
    assert '"failure_kind": "MemoryExhaustedError"' in summary


@pytest.mark.usefixtures("without_pages")
def test_a_users_own_module_trains_through_its_import_path(tmp_path: Path, smoke_data: Dataset) -> None:
    words = ["model.import_path=tests.model.test_members:Halver", "model.options.factor=0.9"]
    record = experiment.run(tiny(smoke_data, *words), tmp_path)
    assert record.training is not None
    assert record.training.result.params == 1
    kept = load_surrogate(RunFolder(tmp_path, record.run_id).model).state_dict()
    assert float(kept["member.stepper.factor"]) != pytest.approx(0.9, abs=1e-6)


@pytest.mark.usefixtures("without_pages")
def test_one_freak_batch_is_no_divergence_but_five_in_a_row_are(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.StageTraining._refuse_divergence
    freaks: set[int] = set()

    def spiked(self: loop.StageTraining, loss: float, norm: float, step: int) -> None:
        original(self, 1e6 if step in freaks else loss, norm, step)

    monkeypatch.setattr(loop.StageTraining, "_refuse_divergence", spiked)
    words = ["training.stages=[operator]", "training.operator.steps=20"]
    freaks |= {12, 14, 15, 16, 17}
    assert experiment.run(tiny(smoke_data, *words), tmp_path / "freaks").status == "finished"
    freaks |= {13}
    with pytest.raises(DivergenceError, match="step 17"):
        experiment.run(tiny(smoke_data, *words), tmp_path / "diverged")


@pytest.mark.usefixtures("without_pages")
def test_a_score_that_is_no_number_wins_nothing_and_locks_nothing(
    tmp_path: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([math.nan, 0.5, 0.4, math.nan])
    monkeypatch.setattr(stages, "rollout_score", lambda *_, **__: next(scores))
    words = ["training.stages=[operator]", "training.validations=2"]
    record = experiment.run(tiny(smoke_data, *words), tmp_path)
    assert record.training is not None
    result = record.training.result
    assert (result.validation["best_nrmse"], result.weights_kept) == (0.4, "raw")
