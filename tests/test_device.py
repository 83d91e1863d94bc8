"""One device per run: chosen late, recorded, no part of the identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.tiny_runs import DETERMINISTIC, TINY
from universal_simulator import assessment, experiment
from universal_simulator.configuration import load_config
from universal_simulator.data.dataset import Dataset
from universal_simulator.device import describe, peak_memory_gib, resolve, warning
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.run_record import RunFolder, RunRecord

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("no_cuda")
def test_auto_is_the_cpu_where_nothing_else_is_and_an_absent_device_is_refused() -> None:
    assert resolve("auto") == torch.device("cpu") == resolve("cpu")
    assert describe(resolve("auto")) == "cpu"
    assert peak_memory_gib(resolve("auto")) is None
    with pytest.raises(UserError, match=r"'cuda' was asked for, no CUDA device.*device=auto"):
        resolve("cuda")


@pytest.mark.usefixtures("two_cuda")
def test_auto_is_the_first_accelerator_where_there_is_one() -> None:
    assert resolve("auto") == torch.device("cuda", 0) == resolve("cuda")
    assert resolve("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="2 CUDA device"):
        resolve("cuda:2")


def test_the_device_is_no_part_of_who_a_run_is() -> None:
    hashes = {
        load_config("rerun_txxoc8a8", [f"device={name}"], profile="smoke").hash
        for name in ("auto", "cpu", "cuda", "cuda:1")
    }
    assert len(hashes) == 1
    assert load_config("rerun_txxoc8a8", profile="full").config.device == "auto"
    with pytest.raises(ConfigurationError, match="device"):
        load_config("rerun_txxoc8a8", ["device=tpu"], profile="smoke")


def trained(folder: Path, data: Dataset, *words: str, called: str = "smoke") -> RunRecord:
    """Small, whatever its profile is called."""
    loaded = load_config("rerun_txxoc8a8", [*TINY, f"data.file={data.path}", *words], profile="smoke")
    config = loaded.config.model_copy(update={"profile": called})
    return experiment.run(replace(loaded, config=config), folder)


@pytest.mark.usefixtures("no_cuda", "without_pages")
def test_a_run_says_where_it_ran_and_is_evaluated_where_it_is_told(
    tmp_path: Path, smoke_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    record = trained(tmp_path, smoke_data, DETERMINISTIC, "device=auto", called="full")
    assert "found no CUDA device, so this run of the full profile" in capsys.readouterr().err
    assert record.training is not None
    assert record.training.observation["device"] == "cpu"
    assert record.evaluations["small_eval"].observation["device"] == "cpu"
    folder = RunFolder(tmp_path, record.run_id).path
    with pytest.raises(UserError, match="'cuda' was asked for"):
        assessment.evaluate(folder, suite="full", device="cuda")


@pytest.mark.usefixtures("no_cuda")
def test_a_run_of_the_full_profile_that_lands_on_the_cpu_says_so() -> None:
    assert "takes days" in str(warning("auto", resolve("auto"), "full"))
    assert warning("cpu", resolve("cpu"), "full") is None, "asked for"
    assert warning("auto", resolve("auto"), "embedded") is None
    assert warning("auto", torch.device("cuda", 0), "full") is None


@needs_cuda
def test_the_same_run_on_an_accelerator_says_the_same(tmp_path: Path, smoke_data: Dataset) -> None:
    """Training differs by round-off that grows; one model on two devices does not."""
    there = trained(tmp_path / "there", smoke_data, "device=cuda")
    assert there.training is not None
    assert there.training.observation["device"].startswith("cuda:0 (")
    folder = RunFolder(tmp_path / "there", there.run_id).path
    answers = [assessment.evaluate(folder, suite="full", device=name) for name in ("cpu", "cuda")]
    for label, result in answers[0].result.regimes.items():
        other = answers[1].result.regimes[label]
        for name, metric in result.metrics.items():
            assert other.metrics[name].value == pytest.approx(metric.value, rel=2e-2, abs=1e-4), name
