"""The steady prior: a line with walls, pairs on disk, training in seconds, and what catches a fake."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from universal_simulator.configuration import load_config
from universal_simulator.configuration.schema import TokenNetworkOptions
from universal_simulator.configuration.steady import load_steady
from universal_simulator.data.dataset import open_dataset
from universal_simulator.data.specification import GroupCounts
from universal_simulator.data.steady import SteadyDataset, SteadySpec, generate_steady, open_steady
from universal_simulator.errors import ConfigurationError, DataError, IntegrityError
from universal_simulator.evaluation.steady import SteadyAnswer, classical_answers, interpolate
from universal_simulator.model.blocks import NeighbourMix
from universal_simulator.model.contract import Problem
from universal_simulator.model.decoder import PointDecoder
from universal_simulator.model.encoder import PatchEncoder
from universal_simulator.model.latent_generator import CHANNELS, Context, TokenNetwork
from universal_simulator.run_record import EvaluationResult
from universal_simulator.steady_run import TrainedSteady, evaluate_steady, prepare_pairs, run_steady, train

SPEC = SteadySpec(
    name="darcy_test",
    equation="darcy",
    groups=GroupCounts(train=1024, calibration=24, validation=2, selection=48, test=2),
    grid_points=64,
    corner=3.0,
    modes=20,
    solver_refinement=3,
    seed=3,
)
SMALL = [
    "data.observed_every=8",
    "model.latent_tokens=8",
    "model.encoder_hidden=16",
    "model.decoder={hidden: 16, mlp_hidden: 16, layers: 1, heads: 2, frequencies: [0.5, 1]}",
    "model.generator={hidden: 16, layers: 1, heads: 2, group_size: 8, teacher_steps: 2}",
    "codec={epochs: 4, learning_rate: 1.0e-2}",
    "steady_prior={epochs: 4, learning_rate: 1.0e-2}",
    "evaluation={members: 8, bootstrap_samples: 50}",
]
PROBLEM = Problem(num_fields=1, num_parameters=0, points=32, domain_length=1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SteadyDataset:
    return generate_steady(SPEC, tmp_path_factory.mktemp("steady") / "darcy_test.hdf5")


@pytest.fixture(scope="module")
def trained(dataset: SteadyDataset) -> TrainedSteady:
    torch.set_num_threads(1)
    return train(load_steady("steady_darcy", SMALL).config, dataset, dataset.sensors(8))


def evaluated(dataset: SteadyDataset, trained: TrainedSteady, *overrides: str) -> EvaluationResult:
    config = load_steady("steady_darcy", [*SMALL, *overrides]).config
    return evaluate_steady(config, dataset, dataset.sensors(8), trained, model_hash="0" * 64)


def figure(result: EvaluationResult, name: str, of: str | None = None) -> float:
    metrics = result.regimes["darcy"].metrics if of is None else result.references["darcy"][of]
    value = metrics[name].value
    assert value is not None
    return value


# ---------------------------------------------------------------- a line with walls


def test_nothing_wraps_around_a_line_with_walls() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 8, 4)
    moved = tokens.clone()
    moved[:, -1] += 1
    walled, circle = NeighbourMix(4, 4, periodic=False), NeighbourMix(4, 4)
    circle.load_state_dict(walled.state_dict())
    assert torch.equal(walled(tokens)[:, 0], walled(moved)[:, 0])
    assert not torch.equal(circle(tokens)[:, 0], circle(moved)[:, 0])
    decoder = PointDecoder(
        PROBLEM,
        tokens=8,
        latent_dim=4,
        hidden=8,
        mlp_hidden=8,
        layers=2,
        heads=2,
        frequencies=(1.0,),
        periodic=False,
    )
    walls = decoder.basis(torch.tensor([0.0, 1.0]))
    before, after = decoder(tokens, walls), decoder(moved, walls)
    assert torch.isfinite(before).all()
    assert torch.equal(before[..., 0], after[..., 0])
    assert not torch.equal(before[..., 1], after[..., 1])


def test_attention_knows_how_far_apart_two_ends_are() -> None:
    torch.manual_seed(0)
    options = TokenNetworkOptions(hidden=16, layers=1, heads=2, group_size=8)
    walled = TokenNetwork(3, 2, options, 6, periodic=False)
    attention = walled.blocks[0].attention
    assert attention.distance_bias.shape == (2, 11)
    assert len(set(attention.offset.flatten().tolist())) == 11
    assert attention.offset[0, 5] != attention.offset[5, 0]
    assert TokenNetwork(3, 2, options, 6).blocks[0].attention.distance_bias.shape == (2, 6)
    assert torch.equal(walled(torch.randn(2, 6, 3), torch.zeros(2, CHANNELS)), torch.zeros(2, 6, 2))


def test_windows_behind_a_wall_read_the_odd_image() -> None:
    encoder = PatchEncoder(PROBLEM, tokens=8, latent_dim=4, hidden=8, periodic=False)
    x = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    field = (math.pi * x).sin() + 0.3 * (3 * math.pi * x).sin()
    read = (field @ encoder.windows(field[None])).unflatten(-1, (8, -1))
    local = (torch.arange(encoder.samples, dtype=torch.float64) + 0.5) / encoder.samples - 0.5
    for token in (0, 7):
        places = (token + 0.5) / 8 + local / 4
        expected = (math.pi * places).sin() + 0.3 * (3 * math.pi * places).sin()
        assert torch.allclose(read[token], expected, atol=1e-12)


# ---------------------------------------------------------------- pairs


def test_pairs_are_reproducible_disjoint_and_bound_to_their_identity(
    dataset: SteadyDataset, tmp_path: Path
) -> None:
    again = generate_steady(SPEC, tmp_path / "again.hdf5")
    assert again.identity == dataset.identity
    other = generate_steady(SPEC.model_copy(update={"seed": 4}), tmp_path / "other.hdf5")
    assert other.identity != dataset.identity
    assert {len(pairs.groups) for pairs in dataset.splits.values()} == {1024, 24, 2, 48}
    with pytest.raises(DataError, match="another data set"):
        generate_steady(SPEC.model_copy(update={"seed": 4}), tmp_path / "again.hdf5")
    with h5py.File(tmp_path / "again.hdf5", "r+") as file:
        file["nu"][0, 0] *= np.float32(1.01)
    with pytest.raises(IntegrityError, match="changed"):
        open_steady(tmp_path / "again.hdf5")


def test_a_steady_file_is_no_trajectory(dataset: SteadyDataset) -> None:
    with pytest.raises(DataError, match="T >= 2"):
        open_dataset(dataset.path)


def test_sensors_must_share_out_the_cells(dataset: SteadyDataset) -> None:
    assert dataset.sensors(8).tolist() == [4, 12, 20, 28, 36, 44, 52, 60]
    with pytest.raises(DataError, match="does not divide"):
        dataset.sensors(7)


# ---------------------------------------------------------------- configuration


def test_an_equation_with_a_time_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="depends on time"):
        prepare_pairs("burgers_smoke", tmp_path)
    with pytest.raises(ConfigurationError, match="steady_darcy"):
        load_config("rerun_txxoc8a8", ["steady_prior.epochs=3"], profile="smoke")
    with pytest.raises(ConfigurationError, match="usim run"):
        load_config("steady_darcy")


def test_faults_of_a_steady_config_are_told() -> None:
    with pytest.raises(ConfigurationError, match="does not divide"):
        load_steady("steady_darcy", ["model.generator.heads=5"])
    with pytest.raises(ConfigurationError, match=r"steady_prior\.epochs"):
        load_steady("steady_darcy", ["steady_prior.epochs=0"])
    base = load_steady("steady_darcy").config
    assert base.hash == load_steady("steady_darcy", ["seed=5"]).config.hash
    assert base.hash != load_steady("steady_darcy", ["steady_prior.epochs=7"]).config.hash


# ---------------------------------------------------------------- answers


def test_interpolation_is_linear_and_constant_outside() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    places = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    wanted = torch.tensor([0.0, 0.3, 0.4, 0.7, 1.0], dtype=torch.float64)
    expected = torch.tensor([[1.0, 2.0, 3.0, 2.25, 2.0]], dtype=torch.float64)
    assert torch.allclose(interpolate(values, places, wanted), expected)


def test_the_prior_beats_the_mean_and_its_metrics_know_its_rivals(
    dataset: SteadyDataset, trained: TrainedSteady
) -> None:
    result = evaluated(dataset, trained)
    assert figure(result, "nrmse") < 0.8 * figure(result, "nrmse", "training_mean")
    assert figure(result, "bc_violation") < 0.3
    assert figure(result, "bc_violation", "classical_8") < 1e-12
    assert figure(result, "nrmse", "data") == 0
    # nothing that sees the sensors only can be better than the exact posterior beyond noise
    assert figure(result, "nrmse", "exact_posterior") < figure(result, "nrmse")
    assert figure(result, "crps_fair_raw", "exact_posterior") < figure(result, "crps_fair_raw")
    assert figure(result, "ece_raw", "exact_posterior") < 0.1
    assert 0.5 < figure(result, "spread_skill_raw") < 2


def test_noise_is_of_its_seed_and_coefficient(dataset: SteadyDataset, trained: TrainedSteady) -> None:
    first, same = evaluated(dataset, trained), evaluated(dataset, trained)
    other = evaluated(dataset, trained, "evaluation.noise_seed=1")
    assert first == same
    assert figure(first, "crps_fair_raw") != figure(other, "crps_fair_raw")
    assert figure(first, "nrmse", "control") == figure(other, "nrmse", "control")


def test_a_generator_that_samples_nothing_is_caught(
    dataset: SteadyDataset, trained: TrainedSteady, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = evaluated(dataset, trained)

    def nothing(context: Context, noise: Tensor) -> Tensor:
        return context.residual(torch.zeros_like(noise))

    monkeypatch.setattr(trained.model.prior, "sample", nothing)
    planted = evaluated(dataset, trained)
    assert figure(planted, "spread_skill_raw") < 1e-3
    assert figure(planted, "ece_raw") > 0.3 > figure(honest, "ece_raw")
    assert figure(planted, "crps_skill_raw") < -0.1
    assert figure(planted, "crps_fair_raw") > 1.1 * figure(honest, "crps_fair_raw")


def test_classical_answers_do_not_look_between_the_sensors(dataset: SteadyDataset) -> None:
    pairs, cells = dataset.splits["selection"], dataset.sensors(8)
    hidden = torch.ones(64, dtype=torch.bool)
    hidden[cells] = False
    changed = pairs.mobility.clone()
    changed[:, hidden] *= 3
    other = dataclasses.replace(pairs, mobility=changed)

    def blind(given: object) -> dict[str, SteadyAnswer]:
        found = classical_answers(given, dataset, cells, members=4, seed=0)  # type: ignore[arg-type]
        return {name: answer for name, answer in found.items() if name != "data"}

    before, after = blind(pairs), blind(other)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name].members, after[name].members)


@pytest.mark.slow
def test_a_whole_run_leaves_one_record_and_is_not_repeated(tmp_path: Path) -> None:
    source = tmp_path / "darcy_test.yaml"
    source.write_text(yaml.safe_dump(SPEC.model_dump(mode="json")))
    loaded = load_steady("steady_darcy", [*SMALL, f"data.dataset={source}", "seed=2"])
    record = run_steady(loaded, tmp_path)
    assert record.status == "finished"
    assert record.training is not None
    assert record.training.result.training_flops > 0
    assert "steady_prior" in record.training.result.stages
    assert run_steady(loaded, tmp_path) == record
    assert (tmp_path / "artifacts" / "runs" / record.run_id / "model.safetensors").exists()
