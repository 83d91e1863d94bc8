"""The pieces of the stochastic half's ablation: who is asked, what is compared, and who is no control."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.evaluation.test_ablation import errors_of
from tests.model.small_models import fields, surrogate
from tests.scripts import script
from universal_simulator.configuration.schema import EnsembleValidation, GuardsConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import UserError
from universal_simulator.inference.candidates import representations
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.perturbed import PerturbedOperator
from universal_simulator.model.surrogate import Surrogate, save_surrogate
from universal_simulator.run_record import NoiseChoice

NOISE = NoiseChoice(carried=0.5, persistence=0.25, temperature=2.0)


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    return {
        name: script(name) for name in ("capacity_control", "stochastic_predictors", "stochastic_ablation")
    }


def run_of(path: Path, **noise: NoiseChoice) -> Any:
    """What the pieces read of a run."""
    rules = EnsembleValidation(members=2, groups=2, steps=2)
    return SimpleNamespace(
        files=SimpleNamespace(model=path, run_id="run"),
        config=SimpleNamespace(guards=GuardsConfig(), training=SimpleNamespace(ensemble_validation=rules)),
        found=SimpleNamespace(noise=noise),
    )


def perturbed_world(model: Surrogate) -> Trajectories:
    """Two viscosities; the truth starts from first frames perturbed by .3 at one and by .001 at the other."""
    initial, _ = fields(6)
    parts, values = [], (0.02, 0.08)
    for value, amplitude in zip(values, (0.3, 1e-3), strict=True):
        parameters = torch.full((6, 1), value)
        sampler = PerturbedOperator(model, GuardsConfig(), members=2, amplitude=amplitude)
        rolled = sampler.rollout_members(initial, parameters, 4, seed=99)[:, 0]
        guarded = sampler.guard(rolled, initial, parameters)
        parts.append((torch.cat([initial[:, None], guarded], dim=1), parameters))
    whole, parameters = (torch.cat(pair) for pair in zip(*parts, strict=True))
    groups = tuple(f"{index:02d}" for index in range(6)) * 2
    return Trajectories(whole, 0.02 * torch.arange(5.0), parameters, groups, model.grid, model.equation)


def test_the_perturbed_operators_amplitude_is_each_regimes_own(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    model = surrogate()
    truth = perturbed_world(model)
    rival = StochasticPredictor(model, GuardsConfig(), members=4)
    found, told = scripts["stochastic_predictors"].perturbed_at_equal_cost(
        run_of(tmp_path), model, truth, rival, 4
    )
    large, small = (told["perturbed_amplitude"][label] for label in truth.regimes())
    assert small < 0.03 < large
    assert {label: one.amplitude for label, one in found.items()} == told["perturbed_amplitude"]
    assert told["perturbed_members"] >= 4, "what four corrected members cost pays for four operators at least"
    assert {one.members for one in found.values()} == {told["perturbed_members"]}


def test_samplers_take_the_runs_noise_and_the_moments_choose_their_own(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    model, sampling = surrogate(), scripts["stochastic_predictors"].sampling
    model.add_student()
    save_surrogate(model, tmp_path / "model.safetensors")
    truth = perturbed_world(model)
    run = run_of(tmp_path / "model.safetensors", student=NOISE, teacher=NOISE)
    rules = run.config.training.ensemble_validation
    made, noise = sampling(run, "student", truth, rules=rules)
    assert noise == NOISE
    assert (float(made.corrector.temperature), float(made.corrector.carried)) == (2.0, 0.5)
    moments, own = sampling(run, "moments", truth, rules=rules)
    assert moments.architecture.sampler == "moments"
    assert own != NOISE
    assert float(moments.corrector.temperature) == pytest.approx(own.temperature)
    model.keep_teacher()
    save_surrogate(model, tmp_path / "model.safetensors")
    assert sampling(run, "student", truth, rules=rules) is None, "a student that was dropped is not asked"


def test_members_in_representations_have_a_noise_of_their_own(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    model, sampling = surrogate(), scripts["stochastic_predictors"].sampling
    model.add_student()
    save_surrogate(model, tmp_path / "model.safetensors")
    truth = perturbed_world(model)
    run = run_of(tmp_path / "model.safetensors", student=NOISE)
    rules = run.config.training.ensemble_validation
    plain, _ = sampling(run, "student", truth, rules=rules)
    kept, noise = sampling(run, "student", truth, rules=rules, represented=True)
    assert noise == NOISE
    told = [one.architecture.member_representations for one in (plain, kept)]
    assert told == [False, True]
    chosen, own = sampling(run, "student", truth, rules=rules, represented=True, anew=True)
    assert own != NOISE
    assert float(chosen.corrector.temperature) == pytest.approx(own.temperature)


def test_copies_of_a_point_are_its_mean_over_representations(scripts: dict[str, ModuleType]) -> None:
    predictors, model = scripts["stochastic_predictors"], surrogate()
    found = predictors.points_of("control", model, GuardsConfig(), (2,))
    assert set(found) == {"control", "control in 2 representations"}
    given = fields(2)
    view = representations(model.equation, count=2, width=model.cells_per_token)[1]
    # within the first segment nothing but the mean is different
    alone = found["control"].rollout(*given, 4)
    other = view.undo(found["control"].rollout(view.apply(given[0]), given[1], 4))
    mean = found["control in 2 representations"].rollout(*given, 4)
    torch.testing.assert_close(mean, (alone + other) / 2, rtol=1e-4, atol=1e-5)
    asked = predictors.bare_and_dressed(*next(iter(reversed(found.items()))), perturbed_world(model))
    assert set(asked) <= {*scripts["stochastic_ablation"].BARE, *scripts["stochastic_ablation"].DRESSED}


def test_no_crps_is_compared_with_a_bare_point(scripts: dict[str, ModuleType]) -> None:
    ablation = scripts["stochastic_ablation"]
    for ours, theirs in ablation.PAIRS:
        kinds = ablation.compared_in(ours, theirs)
        if theirs in ablation.BARE:
            assert not any(kind.startswith("crps") for kind in kinds), (ours, theirs)
        else:
            assert "crps" in kinds
    compared = {theirs for ours, theirs in ablation.PAIRS if ours == "student"}
    assert {"operator dressed", "control dressed", "moments", "teacher", "control"} <= compared


def test_the_table_holds_gains_shares_and_horizons_of_every_row(scripts: dict[str, ModuleType]) -> None:
    ablation = scripts["stochastic_ablation"]
    truth = perturbed_world(surrogate())
    errors = {"operator": 2.0, "operator dressed": 2.0, "moments": 1.5, "teacher": 1.0, "student": 1.1}
    falling = torch.linspace(1, 0.7, 4).double().expand(6, -1)
    rows = {
        label: {
            name: [errors_of(size * torch.ones(6, 4).double(), correlation=falling)] * 2
            for name, size in errors.items()
        }
        for label in truth.regimes()
    }
    found = ablation.table(rows, truth, lyapunov_time_s=0.05, samples=20)
    json.dumps(found)
    for regime in found.values():
        gain = regime["gains"]["student over operator dressed"]["crps"]["whole"]
        assert (gain["value"], gain["verdict"], len(gain["seeds"])) == (pytest.approx(0.45), "better", 2)
        assert "crps" not in regime["gains"]["student over operator"]
        kept = {name: one["value"] for name, one in regime["kept"].items()}
        assert kept["student of teacher over operator dressed"] == pytest.approx(0.9)
        assert kept["student of teacher over moments"] == pytest.approx(0.8)
        assert regime["horizons"]["student"]["correlation"]["value"] == 3
        assert regime["horizons"]["student over operator"]["correlation"]["value"] == 0
        assert "student over control" not in regime["gains"], "nobody asked a control"
        assert regime["answers"]["student"][0]["crps_relative"] == 1.1
    assert ablation.rounded({"a": [0.123456789, 3, "x"]}) == {"a": [0.12346, 3, "x"]}


def test_a_control_is_as_wide_as_its_run_is_large_and_as_long_as_it_cost(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = scripts["capacity_control"]
    model = surrogate()
    options = {**model.architecture.options, "operator": {"hidden": 64, "heads": 4, "group_size": 8}}
    model.architecture = model.architecture.model_copy(update={"options": options})
    save_surrogate(model, tmp_path / "model.safetensors")
    width, wanted = control.nearest_width(model), model.num_parameters()
    sizes = {w: control.alone(model, w).num_parameters() for w in (width - 8, width, width + 8)}
    assert min(sizes, key=lambda w: abs(sizes[w] - wanted)) == width, "not the first below"
    trained: list[list[str]] = []

    def train(name: str, profile: str, folder: Path, words: list[str]) -> Path:
        trained.append(words)
        return tmp_path

    monkeypatch.setattr(control, "trained", train)
    monkeypatch.setattr(control, "flops_by_stage", lambda path: {"codec": 40.0, "operator": 400.0})
    monkeypatch.setattr(control, "load_surrogate", lambda path: model)
    monkeypatch.setattr(control, "control_shares", lambda run, path, allowed: checked.append(allowed))
    checked: list[tuple[float, float]] = []
    stages = SimpleNamespace(stages=("codec", "operator", "diff_residual"), codec=SimpleNamespace(steps=100))
    record = SimpleNamespace(training=SimpleNamespace(result=SimpleNamespace(training_flops=5100.0)))
    run = SimpleNamespace(
        record=record, config=SimpleNamespace(training=stages), files=SimpleNamespace(model=tmp_path)
    )
    control.control_of(run, "config", "embedded", tmp_path, ["seed=3"])
    probe, whole = trained
    assert "training.operator.steps=40" in probe
    assert "training.operator.steps=500" in whole, "(5100 - 100 codec steps of 1) / 10 a step"
    for words in trained:
        assert {
            "seed=3",
            f"model.options.operator.hidden={width}",
            "training.stages=[codec,operator]",
        } <= set(words)
    assert checked == [control.FLOPS_SHARES]


@pytest.mark.parametrize(
    ("flops", "params", "refused"),
    [
        (100.0, 100, ""),
        (103.4, 100, ""),
        (112.0, 100, "training operations"),
        (90.0, 100, "training operations"),
        (100.0, 85, "parameters"),
    ],
)
def test_a_control_with_other_operations_or_parameters_is_no_control(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, flops: float, params: int, refused: str
) -> None:
    control = scripts["capacity_control"]

    def record(flops: float) -> Any:
        return SimpleNamespace(training=SimpleNamespace(result=SimpleNamespace(training_flops=flops)))

    files = {"run": 100, "control": params}
    monkeypatch.setattr(control, "read_document", lambda path, kind: record(flops))
    monkeypatch.setattr(
        control,
        "RunFolder",
        SimpleNamespace(of_path=lambda path: SimpleNamespace(summary=path, model="control")),
    )
    monkeypatch.setattr(
        control, "load_surrogate", lambda path: SimpleNamespace(num_parameters=lambda: files[path])
    )
    run = SimpleNamespace(record=record(100.0), files=SimpleNamespace(run_id="run", model="run"))
    if refused:
        with pytest.raises(UserError, match=f"of the {refused} of run"):
            control.control_shares(run, Path("control"), control.FLOPS_SHARES)
    else:
        assert control.control_shares(run, Path("control"), control.FLOPS_SHARES) == (
            flops / 100,
            params / 100,
        )
