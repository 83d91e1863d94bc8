"""The student's gate, in a world that the teacher knows: the truth is a rollout of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.model.small_models import fields, surrogate
from universal_simulator import sampler_choice
from universal_simulator.configuration.schema import EnsembleValidation, GuardsConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.rollout import rollout_fields
from universal_simulator.model.surrogate import Surrogate, load_surrogate, save_surrogate
from universal_simulator.run_record import StochasticResult
from universal_simulator.sampler_choice import choose_sampler
from universal_simulator.stages import dressed_operator_errors, ensemble_errors, operator_errors

GUARDS = GuardsConfig()
RULES = EnsembleValidation(members=6, groups=12, steps=None)
WEIGHTS = {"diff_residual": "ema", "consistency_distill": "raw"}


class Constant(nn.Module):
    """A student whose jumps end at `end` times the noise they start from: 1 is what an untrained teacher does."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        return (self.end - 1) * inputs[..., -8:]


@pytest.fixture
def model() -> Surrogate:
    """Its corrector knows of a drift that the operator misses: beyond what any width could gain."""
    made = surrogate()
    assert made.corrector is not None
    with torch.no_grad():
        # the locations; the scales stay
        made.corrector.moments.project.bias[:8] = 1.5
    made.add_student()
    return made


def world(model: Surrogate, *, sampled: bool = True, count: int = 12) -> Trajectories:
    """Trajectories of 8 steps: members of the teacher's, or the operator's own."""
    initial, parameters = fields(count)
    predictor = StochasticPredictor(model, GUARDS, members=2)
    model.use_sampler("teacher")
    if sampled:
        rolled = predictor.rollout_members(initial, parameters, 8, seed=99)[:, 0]
    else:
        rolled = rollout_fields(model, initial, parameters, steps=8)
    whole = torch.cat([initial[:, None], predictor.guard(rolled, initial, parameters)], dim=1)
    groups = tuple(f"{index:02d}" for index in range(count))
    return Trajectories(whole, 0.02 * torch.arange(9.0), parameters, groups, model.grid, model.equation)


def chosen(
    model: Surrogate, truth: Trajectories, rules: EnsembleValidation = RULES
) -> tuple[StochasticResult, float]:
    return choose_sampler(
        model,
        guards=GUARDS,
        truth=truth,
        rules=rules,
        bootstrap_samples=200,
        weights=WEIGHTS,  # type: ignore[arg-type] # plain strings
    )


def plant(model: Surrogate, end: float) -> None:
    assert model.corrector is not None
    model.corrector.student = Constant(end)  # type: ignore[assignment] # planted


def tried_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise stays as it is, for tests of what is not the noise's."""
    alone = {name: sampler_choice.NoiseNumber(n.start, ()) for name, n in sampler_choice.NOISE.items()}
    monkeypatch.setattr(sampler_choice, "NOISE", alone)


def test_a_student_that_keeps_the_gain_stays(model: Surrogate) -> None:
    found, flops = chosen(model, world(model))
    assert (found.sampler, model.architecture.sampler) == ("student", "student")
    assert found.teacher_gain.low is not None
    assert found.teacher_gain.low > 0.02, "the truth is a draw of the teacher's: it must gain"
    assert set(found.crps) == {"operator", "dressed_operator", "moments", "student", "teacher"}
    bare, dressed = (found.crps[name].value for name in ("operator", "dressed_operator"))
    assert bare is not None
    assert dressed is not None
    assert dressed < 0.85 * bare, "a width alone gains: it is no gain of the teacher's"
    assert found.flow_gain is not None
    assert found.flow_gain.value == pytest.approx(0, abs=0.02), "an untrained flow leaves the noise as it is"
    assert found.student_share is not None
    assert found.student_share.value == pytest.approx(1, abs=0.02), "a copy of an untrained teacher is it"
    assert (found.groups, found.members, found.weights) == (12, 6, WEIGHTS)
    assert (found.gate, found.judged_on) == ("pass", "same"), "there are only twelve"
    assert set(found.noise) == {"teacher", "student"}
    assert flops > 0


def test_a_teacher_may_be_given_its_students_noise(model: Surrogate) -> None:
    truth = world(model)
    _, searched = chosen(model, truth)
    found, given = chosen(model, truth, RULES.model_copy(update={"teacher_noise": "of_student"}))
    assert found.noise["teacher"] == found.noise["student"]
    assert given < 0.6 * searched, "the teacher's search is what is dear"


def test_cheat_a_student_that_outputs_zero_is_caught_and_the_teacher_answers(
    model: Surrogate, tmp_path: Path
) -> None:
    truth = world(model)
    plant(model, 0.0)
    found, _ = chosen(model, truth)
    assert found.student_share is not None
    assert found.student_share.value is not None
    assert found.student_share.value < 0.3, "its mean knows of the drift, but it has no spread"
    assert found.sampler == model.architecture.sampler == "teacher"
    assert found.gate == "fail"
    assert "the teacher stays, at more evaluations" in found.decision
    assert model.corrector is not None
    assert model.corrector.student is None
    save_surrogate(model, tmp_path / "model.safetensors")
    again = load_surrogate(tmp_path / "model.safetensors")
    for one in (model, again):
        errors = ensemble_errors(one, guards=GUARDS, truth=truth, rules=RULES)
        assert float(errors.mean()) == pytest.approx(found.crps["teacher"].value), "with the teacher's noise"


def test_cheat_a_student_whose_network_outputs_nothing_is_caught(
    model: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its members still have the learned location and scale, and gain by them; of the flow they have nothing."""
    tried_nothing(monkeypatch)
    assert model.corrector is not None
    with torch.no_grad():
        # tokens together: everything that the flow adds is one shift of all of them
        weight = model.corrector.teacher.project.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    model.corrector.residual_scale.fill_(0.05)
    model.add_student()
    truth = world(model, count=16)
    rules = EnsembleValidation(members=6, groups=16)
    honest, _ = chosen(model, truth, rules)
    assert honest.flow_gain is not None
    assert honest.flow_gain.low is not None
    assert honest.flow_gain.low > 0, "the flow is worth something beyond its moments here"
    plant(model, 1.0)
    found, _ = chosen(model, truth, rules)
    assert found.flow_share is not None
    assert found.flow_share.value == pytest.approx(0, abs=1e-6)
    assert (found.sampler, found.gate) == ("teacher", "fail")


@pytest.mark.parametrize(("end", "kept"), [(0.97, "student"), (0.25, "teacher")])
def test_the_gate_stands_at_nine_tenths(
    model: Surrogate, end: float, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no temperature may make up for what the student lost
    alone = sampler_choice.NoiseNumber(1.0, ())
    monkeypatch.setattr(sampler_choice, "NOISE", {**sampler_choice.NOISE, "temperature": alone})
    truth = world(model)
    plant(model, end)
    found, _ = chosen(model, truth)
    assert found.student_share is not None
    assert found.student_share.value is not None
    assert (found.student_share.value >= 0.9) == (kept == "student")
    assert found.sampler == kept


def test_without_a_gain_there_is_nothing_to_keep(model: Surrogate) -> None:
    truth = world(model, sampled=False)
    plant(model, 0.0)
    found, _ = chosen(model, truth)
    assert found.teacher_gain.value is None or found.teacher_gain.value < 0
    assert found.sampler == "student"
    assert "cannot be told from nothing" in found.decision
    assert found.gate == "not applicable"


def test_a_student_that_breaks_never_answers(model: Surrogate) -> None:
    truth = world(model)
    plant(model, math.nan)
    found, _ = chosen(model, truth)
    assert found.sampler == "teacher"
    assert found.crps["student"].value is None
    assert "not finite" in found.decision


def test_noise_is_chosen_for_both_alike_and_beyond_the_edge(model: Surrogate) -> None:
    """A student twice as wide as the truth wants half its temperature, below the first values tried."""
    truth = world(model)
    plant(model, 2.2)
    found, _ = chosen(model, truth)
    assert found.noise["student"].temperature == 0.5
    assert found.noise["teacher"].temperature == 1.0
    assert found.sampler == "student"
    assert model.corrector is not None
    assert float(model.corrector.temperature) == 0.5
    plant(model, 9.0)
    assert chosen(model, truth)[0].noise["student"].at_edge[-1:] == ("temperature",), (
        "a better may lie beyond"
    )


def test_the_operators_score_is_the_crps_of_equal_members(model: Surrogate) -> None:
    truth = world(model)
    assert model.corrector is not None
    model.corrector.residual_scale.fill_(1e-12)
    equal = ensemble_errors(model, guards=GUARDS, truth=truth, rules=RULES)
    alone = operator_errors(model, guards=GUARDS, truth=truth, rules=RULES)
    assert torch.allclose(equal.double(), alone.double(), rtol=1e-3)


def test_noise_is_chosen_on_the_first_groups_and_the_gate_judged_on_the_next(model: Surrogate) -> None:
    """The first eight initial conditions are draws of the teacher's, the next eight the operator's own."""
    truth = world(model, count=16)
    truth.fields[8:] = world(model, sampled=False, count=16).fields[8:]
    rules = EnsembleValidation(members=4, groups=8)
    found, _ = chosen(model, truth, rules)
    assert (found.judged_on, found.groups) == ("other", 8)
    assert found.noise["teacher"].temperature == 1.0, "the others would have it as small as can be"
    assert found.crps["operator"].value == pytest.approx(0, abs=1e-6), "the operator is exact on the others"
    assert found.gate == "not applicable"
    same, _ = chosen(model, truth.of_first_groups(15), rules)
    assert same.judged_on == "same"
    assert same.teacher_gain.low is not None
    assert same.teacher_gain.low > 0


def test_on_few_initial_conditions_the_gate_is_not_evaluable_and_the_student_answers(
    model: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried_nothing(monkeypatch)
    truth = world(model, count=14)
    plant(model, 0.0)
    found, _ = chosen(model, truth, EnsembleValidation(members=4, groups=7))
    assert (found.gate, found.sampler, found.groups) == ("not evaluable", "student", 7)
    assert "on 7 initial conditions" in found.decision
    plant(model, math.nan)
    found, _ = chosen(model, truth, EnsembleValidation(members=4, groups=7))
    assert (found.gate, found.sampler) == ("fail", "teacher"), "broken is broken on any number"


def test_every_rollout_of_the_choice_is_counted(model: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_nothing(monkeypatch)
    truth, counted = world(model, count=5), []

    def watched(ask: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def asked(*words: object, **more: object) -> Tensor:
            with FlopCounterMode(display=False) as counter:
                answer = ask(*words, **more)
            counted.append(counter.get_total_flops())
            return answer

        return asked

    monkeypatch.setattr(sampler_choice, "operator_errors", watched(operator_errors))
    monkeypatch.setattr(sampler_choice, "dressed_operator_errors", watched(dressed_operator_errors))
    monkeypatch.setattr(sampler_choice, "ensemble_errors", watched(ensemble_errors))
    _, flops = chosen(model, truth, EnsembleValidation(members=2, groups=2, steps=5))
    assert len(counted) == 7, "operator bare and dressed, of each sampler noise and judgement, the moments"
    assert flops == pytest.approx(sum(counted), rel=1e-4)
