"""The evaluator: exact answers score nothing, and the cheats that must not pay."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.model.small_models import architecture
from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import UserError
from universal_simulator.evaluation.evaluator import Evaluator, evaluate
from universal_simulator.evaluation.glossary import entry
from universal_simulator.evaluation.protocols import PDEBENCH, mismatch, protocol_of, rollout_frames
from universal_simulator.evaluation.references import Rows
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.model.contract import Conditions
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.physics.equations import undeclared
from universal_simulator.run_record import Predictor, RegimeResult

PREDICTOR = Predictor(model_hash="m", weights="ema", guards=())
Make = Callable[..., "object"]


def scored(truth: Trajectories, references: Rows, predictor: object) -> dict[str, RegimeResult]:
    evaluator = Evaluator(truth, references, batch_size=5, bootstrap_samples=100)
    return evaluator.run(predictor)[0]  # type: ignore[arg-type]


def value(result: RegimeResult, name: str) -> float:
    found = result.metrics[name].value
    assert found is not None, (name, result.metrics[name].reason)
    return found


def test_exact_solver_scores_nothing(truth: Trajectories, references: Rows, solver: Make) -> None:
    for result in scored(truth, references, solver(truth)).values():
        assert value(result, "nrmse") < 2e-3
        assert value(result, "nrmse_step") < 2e-3
        assert value(result, "nrmse@1") < 2e-3
        assert value(result, "reconstruction") == 0.0
        assert value(result, "trivial_ratio") < 0.05
        assert value(result, "failure_rate") == 0.0
        assert value(result, "conservation_gap") < 1e-5
        assert result.metrics["horizon"].reason.startswith(">=")
        assert value(result, "horizon") == len(result.curves["nrmse"]) == truth.fields.shape[1] - 1
        assert result.metrics["ece"].applicable is False
        low, high = result.metrics["nrmse"].low, result.metrics["nrmse"].high
        assert low is not None
        assert high is not None
        assert low <= value(result, "nrmse") <= high


def test_a_frame_shifted_by_one_is_caught(truth: Trajectories, references: Rows, solver: Make) -> None:
    exact = scored(truth, references, solver(truth))
    late = scored(truth, references, solver(truth, late=1))
    for label, result in late.items():
        assert value(result, "nrmse") > 10 * value(exact[label], "nrmse")
        assert value(result, "nrmse_step") > 10 * value(exact[label], "nrmse_step")


def test_frames_are_counted_from_the_first_in_steps_of_the_stride(smoke_data: Dataset, solver: Make) -> None:
    whole = smoke_data.load("validation")
    late = smoke_data.load("validation", first_frame=9, time_stride=5, num_frames=12)
    assert torch.equal(late.fields[:, 3], whole.fields[:, 9 + 3 * 5])
    for result in scored(late, {}, solver(late)).values():
        assert value(result, "nrmse") < 2e-3
        assert len(result.curves["nrmse"]) == 11
        assert result.metrics["trivial_ratio"].value is None, "no references were given"


def test_latents_instead_of_fields_are_refused(truth: Trajectories, references: Rows, solver: Make) -> None:
    class Latent(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            return torch.zeros(len(initial), steps, 16, 32)

    with pytest.raises(UserError, match="decoded fields"):
        scored(truth, references, Latent(truth))


def untrained() -> Surrogate:
    torch.manual_seed(0)
    return Surrogate(architecture(frame=("galilean",), every=8, latent_tokens=16, latent_dim=4)).eval()


def test_latents_that_look_like_fields_score_worse_than_knowing_nothing(
    truth: Trajectories, references: Rows
) -> None:
    """16 tokens of 4 numbers have the shape of 64 points, and change as little from step to step as fields do."""

    class Latent(SurrogatePredictor):
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            conditions = Conditions(parameters, torch.full((len(initial),), 0.02))
            tokens = self.surrogate.member.encode(self.surrogate.normalise(initial), conditions).flatten(1)
            return tokens[:, None, None].expand(-1, steps, 1, -1).detach().clone()

    for result in scored(truth, references, Latent(untrained(), GuardsConfig())).values():
        assert value(result, "trivial_ratio") > 1


def test_an_untrained_model_is_worse_than_knowing_nothing(truth: Trajectories, references: Rows) -> None:
    """A real one, guarded: what the guard knows of the mean is what the best trivial predictor knows too."""
    for result in scored(truth, references, SurrogatePredictor(untrained(), GuardsConfig())).values():
        assert value(result, "trivial_ratio") > 1
        assert value(result, "reconstruction") > 0.1, "its own gate stops it"


def test_an_untrained_decoder_is_worse_than_knowing_nothing(
    truth: Trajectories, references: Rows, solver: Make
) -> None:
    class Noise(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            shape = (len(initial), steps, *initial.shape[1:])
            return torch.randn(shape, generator=torch.Generator().manual_seed(0))

        def reconstruct(self, fields: Tensor, parameters: Tensor) -> Tensor:
            return torch.zeros_like(fields)

    for result in scored(truth, references, Noise(truth)).values():
        assert value(result, "trivial_ratio") > 1
        assert value(result, "reconstruction") == pytest.approx(1.0)


def test_nan_predictions_are_failures_not_gaps(truth: Trajectories, references: Rows, solver: Make) -> None:
    class Broken(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            found = super().rollout(initial, parameters, steps)
            found[torch.isclose(initial[:, 0, 0], first), -1, 0, 0] = math.nan
            return found

    first = truth.fields[0, 0, 0, 0]
    for result in scored(truth, references, Broken(truth)).values():
        if result.groups[0] != truth.groups[0]:
            continue
        assert value(result, "failure_rate") == pytest.approx(1 / len(result.groups))
        assert result.per_group["nrmse"][0] == 10.0
        assert max(result.per_group["nrmse"][1:]) < 0.1
        assert value(result, "nrmse") > 10 / len(result.groups)
        assert result.metrics["rel_l2"].value is None
        assert result.metrics["rel_l2"].reason == f"not finite on 1 of {len(result.groups)} trajectories"
        assert result.metrics["conservation_gap"].value is None
        json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_headline_is_guarded_and_raw_stands_beside_it(
    truth: Trajectories, references: Rows, solver: Make
) -> None:
    class Drifting(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            return super().rollout(initial, parameters, steps) + 0.2

        def guard(self, fields: Tensor, initial: Tensor, parameters: Tensor) -> Tensor:
            return fields - 0.2

    for result in scored(truth, references, Drifting(truth)).values():
        assert value(result, "nrmse") < 2e-3
        assert value(result, "nrmse_raw") > 0.1
        assert value(result, "conservation_gap") > 0.1, "gates read the gap before any guard"
        assert value(result, "conservation_gap_guarded") < 1e-5


def test_the_size_of_a_batch_changes_nothing(truth: Trajectories, references: Rows, solver: Make) -> None:
    class Fading(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            return 0.9 * initial[:, None].expand(-1, steps, -1, -1)

    small = scored(truth, references, Fading(truth))
    large = Evaluator(truth, references, batch_size=64, bootstrap_samples=100).run(Fading(truth))[0]
    for label, result in small.items():
        for name, metric in result.metrics.items():
            other = large[label].metrics[name]
            assert metric.reason == other.reason
            if metric.value is not None:
                assert metric.value == pytest.approx(other.value, rel=1e-6, abs=1e-9), name


def test_every_metric_has_its_line_its_unit_and_survives_json(
    truth: Trajectories, references: Rows, solver: Make
) -> None:
    for result in scored(truth, references, solver(truth)).values():
        for name, metric in result.metrics.items():
            assert entry(name).text
            assert metric.unit == ("m/s" if entry(name).unit == "field" else entry(name).unit)
        assert RegimeResult.model_validate_json(result.model_dump_json()) == result
        assert set(result.per_group) == {"nrmse", "nrmse_raw", "conservation_gap"}
        assert {len(values) for values in result.per_group.values()} == {len(result.groups)}
        assert result.parameters["nu"] in (0.05, 0.1)


def test_undeclared_physics_is_not_applicable(truth: Trajectories, solver: Make) -> None:
    users = dataclasses.replace(truth, equation=undeclared(["u"], ["nu"]))
    for result in scored(users, {}, solver(truth)).values():
        for name in ("conservation_gap", "bc_violation", "pde_residual", "dissipation_violation_energy"):
            assert result.metrics[name].applicable is False
            assert result.metrics[name].reason
        assert value(result, "nrmse") < 2e-3


def test_fields_that_died_out_are_excluded_and_counted(truth: Trajectories, solver: Make) -> None:
    class Held(type(solver(truth))):  # type: ignore[misc]
        def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
            return initial[:, None].expand(-1, steps, -1, -1)

    label, rows = next(iter(truth.regimes().items()))
    fields = truth.fields.clone()
    fields[rows[0]] = 0
    fields[rows[1], 5:] = 0
    quiet = dataclasses.replace(truth, fields=fields)
    result = scored(quiet.subset(rows), {}, Held(quiet))[label]
    assert value(result, "excluded_groups") == 1
    assert len(result.groups) == len(rows) - 1
    assert value(result, "excluded_frames") > 1 / len(rows)
    assert result.metrics["nrmse"].value is not None


def test_protocol_is_built_from_the_truth_and_another_is_refused(
    truth: Trajectories, references: Rows, solver: Make
) -> None:
    frames = rollout_frames(time_stride=2)
    protocol = protocol_of(frames, truth, dataset_identity="d", split="validation")
    assert (protocol.steps, protocol.points, protocol.num_groups) == (64, 64, len(set(truth.groups)))
    assert mismatch(protocol, truth) is None
    other = truth.subset(torch.arange(1, len(truth)))
    with pytest.raises(UserError, match="other initial conditions"):
        evaluate(solver(other), other, protocol=protocol, predictor=PREDICTOR, references={})  # type: ignore[arg-type]
    result, examples = evaluate(
        solver(truth),  # type: ignore[arg-type]
        truth,
        protocol=protocol,
        predictor=PREDICTOR,
        references=references,
        bootstrap_samples=50,
    )
    assert result.protocol.hash == protocol.hash
    assert set(examples) == set(result.regimes) == set(truth.regimes())


def test_pdebench_protocol_predicts_frames_ten_to_forty() -> None:
    predicted = [
        (PDEBENCH.first_frame + k * PDEBENCH.time_stride) // 5 for k in range(1, PDEBENCH.num_frames or 0)
    ]
    assert predicted == list(range(10, 41))
    assert PDEBENCH.first_frame == 9 * 5
    assert PDEBENCH.points == 256


def test_pdebench_protocol_refuses_another_grid(truth: Trajectories) -> None:
    with pytest.raises(UserError, match="256 points"):
        protocol_of(PDEBENCH, truth, dataset_identity="d", split="all")
