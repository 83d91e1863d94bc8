"""Members in representations of their own: nothing of an equivariant model, spread of another, batches of any size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.model.small_models import CORRECTOR, architecture, fields, surrogate
from universal_simulator.configuration import load_config
from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.data.symmetries import refuse_undeclared
from universal_simulator.errors import ConfigurationError
from universal_simulator.inference.candidates import IDENTITY, Representation, drawn_representation
from universal_simulator.inference.ensemble import StochasticPredictor, predictor_of, trajectory_noise
from universal_simulator.inference.member_representations import (
    member_representations,
    represented,
    restored,
)
from universal_simulator.inference.rollout import rollout_fields
from universal_simulator.model.calibration import Calibration, CalibrationEntry
from universal_simulator.model.contract import Conditions, Problem, Simulator, interpolation_matrix
from universal_simulator.model.surrogate import Surrogate, load_surrogate, save_surrogate
from universal_simulator.physics.equations import (
    ADVECTION,
    BURGERS,
    KURAMOTO_SIVASHINSKY,
    Equation,
    undeclared,
)

STEPS = 10


class Stencil(Simulator):
    """Tokens of four cells each, moved by a finite difference of Burgers' equation: equivariant by construction."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.spacing = problem.domain_length / problem.points

    def token_shape(self) -> tuple[int, int]:
        return (8, 4)

    def encode(self, fields: Tensor, conditions: Conditions) -> Tensor:
        return fields[:, 0].unflatten(-1, (-1, 4))

    def advance(self, state: Tensor, conditions: Conditions) -> Tensor:
        u, h = state.flatten(1), self.spacing
        slope = (u.roll(-1, -1) - u.roll(1, -1)) / (2 * h)
        curvature = (u.roll(-1, -1) - 2 * u + u.roll(1, -1)) / h**2
        return (u + conditions.dt[:, None] * (0.02 * curvature - u * slope)).unflatten(-1, (-1, 4))

    def decode(self, state: Tensor, conditions: Conditions, positions: Tensor | None = None) -> Tensor:
        field = state.flatten(1)[:, None]
        if positions is None:
            return field
        return field @ interpolation_matrix(positions / (32 * self.spacing), 32).to(field).T


def silenced(model: Surrogate) -> Surrogate:
    """Its corrector adds nothing: members differ by their representation alone."""
    assert model.corrector is not None
    model.corrector.residual_scale.zero_()
    return model


def equivariant() -> Surrogate:
    model = Surrogate(architecture(f"{__name__}:Stencil", ("galilean",), 4, points=32))
    model.add_corrector(CORRECTOR)
    return silenced(model.eval())


def members_of(model: Surrogate, given: tuple[Tensor, Tensor], count: int, *, seed: int = 1) -> Tensor:
    predictor = StochasticPredictor(model, GuardsConfig(), members=count)
    return predictor.rollout_members(*given, STEPS, seed=seed)


def test_an_equivariant_model_has_the_same_members_with_and_without_it() -> None:
    model, given = equivariant(), fields(3)
    plain = members_of(model, given, 6)
    model.represent_members(True)
    views = member_representations(model, given[0], 6, seed=1)
    assert len(set(views)) > 4, "and no shift of them is that of a token"
    torch.testing.assert_close(members_of(model, given, 6), plain, rtol=0, atol=2e-5)
    assert float((plain[:, 0, -1] - given[0]).abs().max()) > 0.1, "the field moved on its way"


def test_a_model_that_is_not_equivariant_gets_spread_from_it_alone() -> None:
    model, given = silenced(surrogate()), fields(3)
    assert float(members_of(model, given, 4).std(dim=1).max()) < 1e-6
    model.represent_members(True)
    found = members_of(model, given, 4)
    views = member_representations(model, given[0], 4, seed=1)
    assert float(found.std(dim=1).square().mean().sqrt()) > 1e-3
    for row, view in enumerate(views):
        sample = slice(row // 4, row // 4 + 1)
        alone = rollout_fields(model, view.apply(given[0][sample]), given[1][sample], steps=STEPS)
        torch.testing.assert_close(found.flatten(0, 1)[row], view.undo(alone)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["teacher", "student", "moments"])
def test_a_member_is_the_same_in_any_batch_and_number(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = surrogate(), fields(4)
    model.add_student()
    model.use_sampler(sampler)  # type: ignore[arg-type] # one of the three
    plain = members_of(model, given, 3)
    model.represent_members(True)
    whole = members_of(model, given, 3)
    assert float((whole - plain).abs().max()) > 1e-3
    assert torch.equal(whole, members_of(model, given, 3)), "drawn again, alike"
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(members_of(model, given, 5)[:, :3], whole, **close)
    alone = members_of(model, (given[0][2:3], given[1][2:3]), 3)
    torch.testing.assert_close(alone[0], whole[2], **close)
    monkeypatch.setattr("universal_simulator.inference.ensemble.ROLLOUTS_AT_ONCE", 5)
    torch.testing.assert_close(members_of(model, given, 3), whole, **close)
    assert float((members_of(model, given, 3, seed=2) - whole).abs().max()) > 1e-3


def test_the_noise_of_a_member_is_the_same_with_and_without_it() -> None:
    model, (initial, _) = surrogate(), fields(2)
    before = trajectory_noise(model, initial, STEPS, 3, seed=4)
    model.represent_members(True)
    assert torch.equal(trajectory_noise(model, initial, STEPS, 3, seed=4), before)


def test_every_member_draws_any_representation_alike() -> None:
    model = surrogate()
    model.represent_members(True)
    assert model.cells_per_token == 4
    initial = fields(1)[0].repeat(600, 1, 1) + torch.arange(600)[:, None, None] / 600
    views = member_representations(model, initial, 4, seed=0)
    for member in range(4):
        counts = Counter(views[member::4])
        assert set(counts) == {Representation(c, r) for c in range(4) for r in (False, True)}
        # 75 expected of each; 5 standard deviations
        assert all(abs(count - 75) < 40 for count in counts.values())
    pairs = Counter(zip(views[0::4], views[1::4], strict=True))
    assert len(pairs) == 64, "members are drawn without an eye on each other"
    assert all(count < 30 for count in pairs.values())


@pytest.mark.parametrize(
    ("equation", "shifted", "reflected"),
    [(BURGERS, True, True), (KURAMOTO_SIVASHINSKY, True, True), (ADVECTION, True, False)],
)
def test_only_declared_symmetries_are_drawn(equation: Equation, shifted: bool, reflected: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [drawn_representation(equation, width=5, generator=generator) for _ in range(60)]
    assert {view.cells for view in drawn} == (set(range(5)) if shifted else {0})
    assert any(view.reflected for view in drawn) == reflected
    odd = torch.sin(torch.arange(8.0))[None]
    assert torch.equal(Representation(0, True).apply(odd), -odd.flip(-1))


def test_rows_move_there_and_back_bit_for_bit() -> None:
    views = [Representation(3, True), IDENTITY, Representation(3, True), Representation(1, False)]
    rows = torch.randn(4, 5, 1, 16)
    moved = represented(views, rows)
    for row, view in enumerate(views):
        assert torch.equal(moved[row], view.apply(rows[row]))
    assert torch.equal(restored(views, moved), rows)
    assert represented([IDENTITY] * 4, rows) is rows, "nothing is copied where nothing is asked"
    with pytest.raises(ValueError, match="3 representations for 4 rows"):
        represented(views[:3], rows)


def test_the_model_file_keeps_it_and_one_without_says_nothing(tmp_path: Path) -> None:
    model, path = surrogate(), tmp_path / "model.safetensors"
    assert "member_representations" not in model.architecture.canonical_json()
    plain = save_surrogate(model, path)
    model.represent_members(True)
    assert save_surrogate(model, path) != plain
    again = load_surrogate(path)
    assert again.architecture.member_representations
    asked = predictor_of(again, GuardsConfig(), members=3)
    assert isinstance(asked, StochasticPredictor)
    given = fields(2)
    assert torch.equal(asked.rollout_members(*given, STEPS, seed=1), members_of(model, given, 3))


def test_what_other_members_were_calibrated_for_is_forgotten(tmp_path: Path) -> None:
    model = surrogate()
    entry = CalibrationEntry(
        regimes=("nu=0.05",), members=4, first_frame=0, spacing_s=0.02, steps=3, groups=()
    )
    model.calibrate(Calibration(entry, torch.ones(1, 3).double(), torch.ones(1, 3, 1).double()))
    model.represent_members(False)
    assert model.calibration is not None, "they are the same members still"
    model.represent_members(True)
    assert model.calibration is None
    save_surrogate(model, tmp_path / "model.safetensors")
    assert load_surrogate(tmp_path / "model.safetensors").calibration is None


def test_an_equation_without_such_symmetries_is_refused() -> None:
    bare = undeclared(("u",), ("p",))
    with pytest.raises(ConfigurationError, match=r"set model\.member_representations=false"):
        bare.require_representations("model.member_representations")
    told = architecture(every=4, points=32, latent_tokens=8, latent_dim=8)
    unknown = told.model_copy(update={"equation": "undeclared", "member_representations": True})
    with pytest.raises(ConfigurationError, match="declares neither reflection nor shift"):
        Surrogate(unknown)
    quiet = Surrogate(unknown.model_copy(update={"member_representations": False}))
    with pytest.raises(ConfigurationError, match="declares neither"):
        quiet.represent_members(True)


def test_a_config_is_held_against_its_data_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data.dataset=advection_smoke", "model.canonical_frame=[]", "training.augmentation=[]"]
    config = load_config(
        "rerun_txxoc8a8", [*words, "model.member_representations=true"], profile="smoke"
    ).config
    refuse_undeclared(config)
    without = Equation("advection", ADVECTION.fields, ADVECTION.parameters, ADVECTION.boundary)
    monkeypatch.setattr("universal_simulator.data.sufficiency.equation_named", lambda _: without)
    with pytest.raises(
        ConfigurationError, match=r"model\.member_representations: 'advection' declares neither"
    ):
        refuse_undeclared(config)
    assert not load_config("rerun_txxoc8a8", words, profile="smoke").config.model.member_representations
