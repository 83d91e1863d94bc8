"""Members of the contract: invariances that hold exactly, files that cannot be tampered with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.model.small_models import architecture
from universal_simulator.configuration.schema import GuardsConfig
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import ConfigurationError, IntegrityError, UserError
from universal_simulator.evaluation.probes import probe
from universal_simulator.inference.guards import project_mass
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.rollout import reconstruct, rollout, rollout_fields
from universal_simulator.model.canonical import CanonicalFrame
from universal_simulator.model.contract import Conditions, Problem, interpolation_matrix
from universal_simulator.model.latent_surrogate import LatentSurrogate
from universal_simulator.model.surrogate import (
    Surrogate,
    hash_of,
    load_surrogate,
    save_surrogate,
)
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import ADVECTION, BURGERS
from universal_simulator.physics.initial_conditions import draw_sine_family
from universal_simulator.physics.spectral import fourier_shift, resample


class Halver(nn.Module):
    """A user's own module: `forward(fields, parameters, dt)`."""

    def __init__(self, problem: Problem, *, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, fields: torch.Tensor, parameters: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        return self.factor * fields


def initial(count: int = 4, points: int = 64) -> torch.Tensor:
    grid = Grid((1.0,), (points,))
    return draw_sine_family(count, torch.Generator().manual_seed(0))(grid.coordinates()).float()[:, None]


@pytest.mark.parametrize("tokens", [7, 12, 16, 24])
def test_token_counts_need_not_divide_the_grid(tokens: int) -> None:
    model = Surrogate(architecture(latent_tokens=tokens)).eval()
    fields = rollout_fields(model, initial(), torch.full((4, 1), 0.1), steps=3)
    assert fields.shape == (4, 3, 1, 64)
    assert bool(torch.isfinite(fields).all())


def test_surrogate_commutes_with_a_shift_by_two_tokens() -> None:
    torch.manual_seed(0)
    model = Surrogate(architecture(latent_tokens=16)).eval()
    nu = torch.full((4, 1), 0.1)
    plain = rollout_fields(model, initial(), nu, steps=3)
    shifted = rollout_fields(model, initial().roll(8, -1), nu, steps=3)
    assert torch.allclose(plain.roll(8, -1), shifted, atol=1e-5)


def test_seam_is_exact_by_construction() -> None:
    model = Surrogate(architecture()).eval()
    seam = SurrogatePredictor(model, GuardsConfig()).boundary_query(initial(), torch.full((4, 1), 0.1), 0.004)
    assert seam is not None
    assert torch.allclose(seam[..., :3], seam[..., 3:], atol=2e-6)


class Ramp(nn.Module):
    """Breaks the boundary: every step adds a jump at the seam."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()

    def forward(self, fields: torch.Tensor, parameters: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        return fields + torch.linspace(-0.5, 0.5, fields.shape[-1])


def test_a_grid_member_that_breaks_the_boundary_is_seen(smoke_data: Dataset) -> None:
    truth = smoke_data.load("validation", time_stride=2, max_groups=2)
    violation = {}
    for name in ("Halver", "Ramp"):
        model = Surrogate(architecture(f"{__name__}:{name}")).eval()
        violation[name] = float(
            probe(SurrogatePredictor(model, GuardsConfig()), truth)["bc_violation"].mean()
        )
    assert violation["Ramp"] > 10 * violation["Halver"]


def test_decoding_at_grid_points_equals_decoding_the_grid() -> None:
    member = LatentSurrogate(Problem(1, 1, 64, 1.0), latent_tokens=12).eval()
    conditions = Conditions(torch.full((4, 1), 0.1), torch.full((4,), 0.02))
    state = member.encode(initial(), conditions)
    positions = Grid((1.0,), (64,)).coordinates().float()
    assert torch.allclose(
        member.decode(state, conditions), member.decode(state, conditions, positions), atol=1e-5
    )


def test_interpolation_matrix_is_identity_on_the_grid_and_exact_between() -> None:
    grid = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    assert torch.allclose(interpolation_matrix(grid, 16), torch.eye(16, dtype=torch.float64), atol=1e-12)
    points = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wave = torch.cos(2 * torch.pi * 3 * grid + 0.2)
    expected = torch.cos(2 * torch.pi * 3 * points + 0.2)
    assert torch.allclose(interpolation_matrix(points, 16) @ wave, expected, atol=1e-12)


@pytest.mark.parametrize("names", [(), ("galilean",), ("amplitude_time",), ("galilean", "amplitude_time")])
def test_canonical_frame_is_invertible_and_maps_solutions_to_solutions(names: tuple[str, ...]) -> None:
    from universal_simulator.physics.spectral_solver import solve_burgers

    grid = Grid((1.0,), (128,))
    u0 = 0.4 * torch.sin(2 * torch.pi * grid.coordinates())[None] + 0.3
    times = torch.linspace(0, 0.4, 5, dtype=torch.float64)
    nu = torch.tensor([0.1], dtype=torch.float64)
    u = solve_burgers(u0, nu, times, grid)[:, :, None]
    frame = CanonicalFrame(names, BURGERS, grid)
    state = frame.of(u[:, 0])
    v = frame.to_canonical(state, u, times[None])
    assert torch.allclose(frame.from_canonical(state, v, times[None]), u, atol=1e-10)
    conditions = frame.conditions(state, nu[:, None], 1.0)
    again = solve_burgers(v[:, 0, 0], conditions.parameters[:, 0], times * float(conditions.dt), grid)
    assert torch.allclose(again, v[:, :, 0], atol=1e-5)


def test_undeclared_symmetry_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="galilean"):
        CanonicalFrame(("galilean",), ADVECTION, Grid((1.0,), (64,)))


def test_rollout_is_a_chain_of_steps_and_mass_projection_is_exact() -> None:
    model = Surrogate(architecture(f"{__name__}:Halver")).eval()
    nu, start = torch.full((4, 1), 0.1), initial()
    with torch.no_grad():
        fields = torch.cat(list(rollout(model, start, nu, steps=23)), dim=1)
    expected = torch.stack([start * 0.5**k for k in range(1, 24)], dim=1)
    assert torch.allclose(fields, expected, atol=1e-6)
    guarded = project_mass(fields, start)
    assert float((guarded.mean(-1) - start.mean(-1)[:, None]).abs().max()) < 1e-6
    assert torch.allclose(reconstruct(model, start, nu), start, atol=1e-6)


@pytest.mark.parametrize("every", [None, 1, 4])
def test_rollout_in_the_co_moving_frame_moves_with_the_mean_at_the_right_times(every: int | None) -> None:
    model = Surrogate(architecture(f"{__name__}:Halver", frame=("galilean",), every=every, factor=1.0)).eval()
    start, grid = resample(initial(points=32), 64), Grid((1.0,), (64,))  # a Nyquist mode cannot be shifted
    fields = rollout_fields(model, start, torch.full((4, 1), 0.1), steps=13)
    speed = start.mean(-1)[:, :1]
    for step in (1, 2, 10, 11, 13):
        expected = fourier_shift(start, speed * 0.02 * step, grid)
        assert torch.allclose(fields[:, step - 1], expected, atol=1e-5), step


def test_re_encoding_sees_the_field_in_a_frame_of_its_own() -> None:
    """Halved at every step, a field measured anew is always seen at unit amplitude."""
    seen: list[torch.Tensor] = []

    class Watch(Halver):
        def forward(self, fields: torch.Tensor, parameters: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
            seen.append(fields.square().mean((-2, -1)).sqrt())
            return super().forward(fields, parameters, dt)

    model = Surrogate(
        architecture(f"{__name__}:Halver", frame=("galilean", "amplitude_time"), every=3)
    ).eval()
    model.member.stepper = Watch(Problem(1, 1, 64, 1.0))  # type: ignore[assignment]
    start = resample(initial(points=32), 64)
    fields = rollout_fields(model, start, torch.full((4, 1), 0.1), steps=6)
    ones = torch.ones(4)
    for amplitude, expected in zip(seen, (1, 0.5, 0.25) * 2, strict=True):
        assert torch.allclose(amplitude, expected * ones, atol=1e-5)
    fluctuation = start - start.mean(-1, keepdim=True)
    moved = fourier_shift(fluctuation, start.mean(-1)[:, :1] * 0.12, Grid((1.0,), (64,)))
    expected_last = start.mean(-1, keepdim=True) + moved * 0.5**6
    assert torch.allclose(fields[:, -1], expected_last, atol=1e-5)


class Leaky(nn.Module):
    """Loses mass: every step adds a constant."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()

    def forward(self, fields: torch.Tensor, parameters: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        return fields + 0.01


def test_drift_of_the_mean_is_shown_whole_but_does_not_change_the_speed() -> None:
    model = Surrogate(architecture(f"{__name__}:Leaky", frame=("galilean",), every=4)).eval()
    start, grid = resample(initial(points=32), 64), Grid((1.0,), (64,))
    fields = rollout_fields(model, start, torch.full((4, 1), 0.1), steps=13)
    speed = start.mean(-1)[:, :1]
    for step in (1, 4, 5, 13):
        expected = fourier_shift(start, speed * 0.02 * step, grid) + 0.01 * step
        assert torch.allclose(fields[:, step - 1], expected, atol=1e-5), step


def test_saved_model_needs_no_config_and_refuses_a_changed_byte(tmp_path: Path) -> None:
    model = Surrogate(
        architecture(latent_tokens=12, operator={"hidden": 32, "heads": 2}, frame=("galilean",))
    )
    path = tmp_path / "model.safetensors"
    digest = save_surrogate(model, path, plain_checkpoint=tmp_path / "operator_ema.pt")
    loaded = load_surrogate(path)
    assert hash_of(loaded) == digest
    nu = torch.full((4, 1), 0.1)
    assert torch.equal(
        rollout_fields(loaded, initial(), nu, steps=2), rollout_fields(model.eval(), initial(), nu, steps=2)
    )
    plain = torch.load(tmp_path / "operator_ema.pt", weights_only=True)
    assert plain["hash"] == digest
    data = bytearray(path.read_bytes())
    for position in (len(data) - 3, len(data) // 2, 40, 3):
        tampered = bytearray(data)
        tampered[position] ^= 1
        path.write_bytes(bytes(tampered))
        with pytest.raises(IntegrityError):
            load_surrogate(path)


def test_foreign_classes_are_explained() -> None:
    with pytest.raises(UserError, match="cannot be imported"):
        Surrogate(architecture("no_such_module:Thing"))
    with pytest.raises(UserError, match="do not fit"):
        Surrogate(architecture(f"{__name__}:Halver", factr=1.0))
    with pytest.raises(UserError, match="neither"):
        Surrogate(architecture("builtins:str"))
