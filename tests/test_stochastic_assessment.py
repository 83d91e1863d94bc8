"""Evaluations and rollout files of a run whose model samples, with every part real."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from markupsafe import escape
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.model.small_models import architecture
from tests.training.tiny_runs import STOCHASTIC, tiny
from universal_simulator import assessment, experiment, rollout_file, sampler_choice
from universal_simulator.cli import app
from universal_simulator.configuration.schema import EvaluationConfig, GuardsConfig
from universal_simulator.data.batch import GROUP_DIGITS
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import LeakageError, UserError
from universal_simulator.evaluation import calibration_fit
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.ensemble import guard_members, rollout_members
from universal_simulator.inference.ensemble import StochasticPredictor, predictor_of
from universal_simulator.model.calibration import Calibration
from universal_simulator.model.surrogate import Surrogate, load_surrogate, save_surrogate
from universal_simulator.rollout_file import QUANTILES, RolloutRequest, quantiles, rollout_to_file
from universal_simulator.run_record import EvaluationResult, RunFolder, RunRecord, read_document


@pytest.fixture(scope="module")
def run(smoke_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Trained for a few steps through every stochastic stage, calibrated, small-evaluated."""
    words = ["evaluation.members=6", "evaluation.small_members=4", "evaluation.full_groups=6"]
    words += ["evaluation.bootstrap_samples=20", STOCHASTIC]
    words += ["evaluation.headline=ensemble_mean"]
    words += ["evaluation.ensemble_groups=null", "evaluation.calibration_groups=null"]
    folder = tmp_path_factory.mktemp("run")
    record = experiment.run(tiny(smoke_data, *words), folder)
    return RunFolder(folder, record.run_id)


@pytest.fixture
def released(run: RunFolder, tmp_path: Path) -> Path:
    """The run's model as a file of its own, to be changed."""
    shutil.copy(run.model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def deterministic(tmp_path: Path) -> Path:
    """A model without a corrector."""
    path = tmp_path / "plain.safetensors"
    save_surrogate(Surrogate(architecture()), path)
    return path


def stored(run: RunFolder) -> RunRecord:
    return read_document(run.summary, RunRecord)


def configured(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """A released model file, evaluated as this config says."""
    small = {"bootstrap_samples": 20, "steps": 8, "classical_points": (), "full_groups": 6, "small_groups": 2}
    evaluation = EvaluationConfig(**small | values)
    monkeypatch.setattr(assessment, "EvaluationConfig", lambda: evaluation)


def test_members_are_those_of_the_suite_and_the_record_says_who_answered(run: RunFolder) -> None:
    small = stored(run).evaluations["small_eval"].result
    full = assessment.evaluate(run.path, suite="full").result
    assert (small.predictor.members, full.predictor.members) == (4, 6)
    assert full.predictor.kind == "ensemble_mean"
    assert full.predictor.noise_seed == 0
    assert stored(run).evaluations["full_eval"].result == full


def test_record_and_page_tell_what_corrector_and_student_are_worth(run: RunFolder) -> None:
    training = stored(run).training
    assert training is not None
    found = training.result.stochastic
    assert found is not None
    assert set(found.crps) == {"operator", "dressed_operator", "moments", "teacher", "student"}
    assert set(found.weights) == {"diff_residual", "consistency_distill"}
    surrogate = load_surrogate(run.model)
    assert surrogate.architecture.sampler == found.sampler
    assert surrogate.corrector is not None
    for name in ("carried", "persistence", "temperature"):
        kept = getattr(found.noise[found.sampler], name)
        assert float(surrogate.corrector.get_buffer(name)) == pytest.approx(kept)
    entry = surrogate.architecture.calibration
    assert entry is not None
    assert found.calibration == dict(zip(entry.regimes, entry.choices, strict=True))
    flops = training.observation["training_flops_by_stage"]
    assert flops["sampler_choice"] > 0
    assert flops["calibration"] > 0
    assert training.result.training_flops == pytest.approx(sum(flops.values()))
    # the mean of the members is this run's headline: all of it makes the nrmse
    assert training.result.headline_flops == training.result.training_flops
    assert training.result.params == surrogate.num_parameters()
    assert training.result.params_corrector == surrogate.corrector_parameters() > 0
    page = run.report("html").read_text()
    assert "Corrector and student" in page
    assert str(escape(found.decision)) in page


def test_a_member_that_breaks_on_calibration_data_leaves_the_model_uncalibrated(
    smoke_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is finished all the same: operator and headline are fine without; record and page say why."""

    def broken(*given: Any, **named: Any) -> torch.Tensor:
        members = rollout_members(*given, **named)
        members[0, 1, -1, 0, 0] = math.inf
        return members

    monkeypatch.setattr(calibration_fit, "rollout_members", broken)
    record = experiment.run(tiny(smoke_data, STOCHASTIC), tmp_path)
    assert record.status == "finished"
    assert record.training is not None
    found = record.training.result.stochastic
    assert found is not None
    assert "members of 1 of" in found.uncalibrated
    assert found.calibration == {}
    flops = record.training.observation["training_flops_by_stage"]
    assert flops["calibration"] > 0
    model = load_surrogate(RunFolder(tmp_path, record.run_id).model)
    assert model.architecture.calibration is None
    # the operator's rollout is this run's headline: what the corrector took is told apart
    own = sum(parameter.numel() for parameter in model.member.parameters())
    assert (record.training.result.params, model.num_parameters()) == (
        own,
        own + model.corrector_parameters(),
    )
    assert record.training.result.headline_flops == flops["codec"] + flops["operator"]
    for regime in record.evaluations["small_eval"].result.regimes.values():
        assert "not recalibrated" in regime.metrics["ece"].reason
        assert regime.metrics["nrmse"].value is not None
    page = RunFolder(tmp_path, record.run_id).report("html").read_text()
    regimes = len(record.evaluations["small_eval"].result.regimes)
    assert page.count(str(escape(found.uncalibrated))) == regimes + 1, "beside each ensemble and the student"
    assert "not evaluable" in page, "one initial condition is no judge of the student"


def test_every_rollout_of_a_calibration_is_counted(
    run: RunFolder, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(smoke_data, "evaluation.members=4", "evaluation.calibration_groups=3").config
    counted = []

    def watched(*words: object, **more: object) -> Calibration:
        with FlopCounterMode(display=False) as counter:
            found = fit_calibration(*words, **more)  # type: ignore[arg-type] # handed on as given
        counted.append(counter.get_total_flops())
        return found

    monkeypatch.setattr(sampler_choice, "fit_calibration", watched)
    flops, why_not = sampler_choice._calibrate(config, smoke_data, load_surrogate(run.model), None)
    assert why_not == ""
    assert counted == [pytest.approx(flops, rel=0.05)], "a batch shares a few operations"


def test_headline_and_noise_are_the_configs(
    released: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the point forecast is the operator's."""
    surrogate = load_surrogate(released)
    entry = surrogate.architecture.calibration
    assert entry is not None
    halved = entry.model_copy(update={"operator_shares": (0.5,) * len(entry.regimes)})
    surrogate.architecture = surrogate.architecture.model_copy(update={"calibration": halved})
    save_surrogate(surrogate, released)

    def answer(**values: Any) -> EvaluationResult:
        configured(monkeypatch, members=5, **values)
        return assessment.evaluate(released, suite="full", data_file=smoke_data.path).result

    point, alone, noisy = answer(), answer(headline="deterministic"), answer(noise_seed=3)
    assert len({result.predictor.hash for result in (point, alone, noisy)}) == 3
    for label, regime in point.regimes.items():
        ours, single, other = (result.regimes[label].metrics for result in (point, alone, noisy))
        assert single["nrmse"].value == single["nrmse_operator"].value == ours["nrmse_operator"].value
        assert ours["nrmse"].value != ours["nrmse_operator"].value
        assert single["point_gain"].value == ours["point_gain"].value != ours["ensemble_gain"].value
        assert single["nrmse_point"].value == ours["nrmse"].value != ours["nrmse_ensemble_mean"].value
        assert ours["point_operator_share"].value == 0.5
        assert single["ece_raw"].value == ours["ece_raw"].value != other["ece_raw"].value
        assert len(regime.curves["rank_histogram"]) == 6


def test_another_number_of_members_leaves_the_runs_record_alone(run: RunFolder) -> None:
    before = stored(run)
    other = assessment.evaluate(run.path, suite="full", members=5)
    assert other.result.predictor.members == 5
    alone = assessment.evaluate(run.path, suite="full", members=1)
    assert (alone.result.predictor.members, alone.result.predictor.kind) == (1, "deterministic")
    assert not next(iter(alone.result.regimes.values())).metrics["ece"].applicable
    assert stored(run) == before


def test_members_of_a_deterministic_model_are_refused(
    deterministic: Path, smoke_data: Dataset, tmp_path: Path
) -> None:
    request = RolloutRequest(steps=3, members=8)
    with pytest.raises(UserError, match="deterministic"):
        rollout_to_file(deterministic, smoke_data.path, tmp_path / "x.nc", request)
    with pytest.raises(UserError, match="deterministic"):
        assessment.evaluate(deterministic, suite="full", data_file=smoke_data.path, members=8)


def test_a_run_is_calibrated_on_its_half_alone(run: RunFolder, smoke_data: Dataset) -> None:
    surrogate = load_surrogate(run.model)
    entry = surrogate.architecture.calibration
    assert entry is not None
    half = smoke_data.load("calibration_uncertainty")
    assert set(entry.groups) == {group[:GROUP_DIGITS] for group in half.groups}
    assert set(entry.groups).isdisjoint(surrogate.architecture.seen_groups)
    assert entry.regimes == tuple(half.regimes())
    assert (entry.members, entry.steps) == (6, 8)
    for regime in stored(run).evaluations["small_eval"].result.regimes.values():
        assert regime.metrics["ece"].reason == "", "recalibrated"
        assert regime.metrics["crps_skill"].value is not None


def test_calibration_of_the_file_is_used_and_never_scored_on_its_own_data(
    released: Path, smoke_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(monkeypatch)
    record = assessment.evaluate(released, suite="full", data_file=smoke_data.path, members=6)
    for regime in record.result.regimes.values():
        assert regime.metrics["crps_skill"].value is not None
        assert regime.metrics["ece"].reason == ""
        assert regime.metrics["ece"].value != regime.metrics["ece_raw"].value
    assert record.result.protocol.split == "selection"
    surrogate = load_surrogate(released)
    entry = surrogate.architecture.calibration
    assert entry is not None
    for suite, split in (("full", "selection"), ("small", "validation")):
        seen = {group[:GROUP_DIGITS] for group in smoke_data.load(split).groups}
        cheat = entry.model_copy(update={"groups": tuple(seen)})
        surrogate.architecture = surrogate.architecture.model_copy(update={"calibration": cheat})
        save_surrogate(surrogate, released)
        with pytest.raises(LeakageError, match="calibrated on"):
            assessment.evaluate(released, suite=suite, data_file=smoke_data.path)


def test_a_rollout_files_point_is_where_calibration_put_it_and_its_members_stay(
    released: Path, smoke_data: Dataset, tmp_path: Path
) -> None:
    surrogate = load_surrogate(released)
    entry = surrogate.architecture.calibration
    assert entry is not None
    found, single = {}, None
    for share in (0.0, 1.0):
        moved = entry.model_copy(update={"operator_shares": (share,) * len(entry.regimes)})
        surrogate.architecture = surrogate.architecture.model_copy(update={"calibration": moved})
        save_surrogate(surrogate, released)
        for members in (1, 6):
            out = tmp_path / f"{share}-{members}.nc"
            request = RolloutRequest(steps=4, index=1, count=2, members=members, seed=7)
            rollout_to_file(released, smoke_data.path, out, request)
            file = xarray.open_dataset(out, engine="h5netcdf")
            if members == 1:
                single = file["u"].values
            else:
                found[share] = file
    assert single is not None
    assert np.allclose(found[1.0]["u_point"], single, atol=1e-6), "the operator's own rollout"
    assert np.array_equal(found[0.0]["u_point"], found[0.0]["u_mean"])
    assert not np.allclose(found[0.0]["u_point"], single, atol=1e-6)
    for name in ("u", "u_mean", "u_quantile"):
        assert np.array_equal(found[0.0][name], found[1.0][name]), name


def test_rollout_file_holds_members_mean_and_quantiles(
    released: Path, smoke_data: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "members.nc"
    request = RolloutRequest(steps=4, index=1, count=2, members=6, seed=7)
    rollout_to_file(released, smoke_data.path, out, request)
    found = xarray.open_dataset(out, engine="h5netcdf")
    assert found["u"].dims == ("trajectory", "member", "time", "x")
    assert found["u"].shape == (2, 6, 5, 64)
    assert found.attrs["recalibrated"] == "yes"
    assert found.attrs["noise_seed"] == 7
    members = torch.from_numpy(found["u"].values)
    first = smoke_data.load("all", num_frames=2)
    assert torch.equal(members[:, 0, 0], first.fields[1:3, 0, 0])
    assert np.allclose(found["u_mean"], members.double().mean(dim=1), atol=1e-6)
    assert found["u_quantile"].dims == ("quantile", "trajectory", "time", "x")
    middle = members.sort(dim=1).values[:, 2:4].mean(dim=1)
    assert np.allclose(found["u_quantile"].sel(quantile=0.5), middle, atol=1e-6)
    assert (np.diff(found["u_quantile"].values, axis=0) >= 0).all()
    surrogate = load_surrogate(released)
    assert surrogate.calibration is not None
    predictor = predictor_of(surrogate, GuardsConfig(), members=6)
    assert isinstance(predictor, StochasticPredictor)
    initial = first.fields[1:3, 0]
    raw = predictor.rollout_members(initial, first.parameters[1:3], 4, seed=7)
    raw = guard_members(predictor, raw, initial, first.parameters[1:3])
    label = next(iter(first.subset(torch.tensor([1])).regimes()))
    scale = surrogate.calibration.of_regime(label, 4).scale.float()
    spread, whole = raw[0].std(dim=0), members[0, :, 1:, None].std(dim=0)
    assert torch.allclose(whole, scale[:, None, None] * spread, rtol=1e-3)
    rollout_to_file(released, smoke_data.path, tmp_path / "long.nc", RolloutRequest(steps=200, members=4))
    long = xarray.open_dataset(tmp_path / "long.nc", engine="h5netcdf")
    assert "8 lead times" in long.attrs["recalibrated"]


def test_quantiles_stand_at_plotting_positions() -> None:
    members = torch.arange(1.0, 20.0)[torch.randperm(19, generator=torch.Generator().manual_seed(0))]
    found = quantiles(members.reshape(1, 19, 1))
    assert found[:, 0, 0] == pytest.approx([20 * p for p in QUANTILES])
    few = quantiles(torch.tensor([3.0, 1.0, 2.0]).reshape(1, 3, 1))
    assert few[:, 0, 0] == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0]), "never beyond the outermost member"


def test_flags_reach_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}

    def evaluated(path: Path, **given: Any) -> None:
        heard.update(given)
        raise UserError("heard")

    def rolled(path: Path, data: Path, out: Path, request: RolloutRequest) -> None:
        heard["request"] = request

    monkeypatch.setattr(assessment, "evaluate", evaluated)
    monkeypatch.setattr(rollout_file, "rollout_to_file", rolled)
    CliRunner().invoke(app, ["evaluate", "somewhere", "--members", "5"])
    assert heard["members"] == 5
    words = ["rollout", "m", "--data", "d", "--out", "o.nc", "--members", "9", "--seed", "4", "--steps", "2"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert heard["request"] == RolloutRequest(steps=2, members=9, seed=4)
    assert CliRunner().invoke(app, ["evaluate", "somewhere", "--members", "0"]).exit_code == 2
