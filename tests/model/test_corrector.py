"""The corrector: closed forms, noise that belongs to its trajectory, one file."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from tests.model.small_models import CORRECTOR, fields, surrogate
from universal_simulator.configuration.schema import CorrectorOptions, GuardsConfig
from universal_simulator.errors import UserError
from universal_simulator.inference.ensemble import StochasticPredictor, trajectory_noise
from universal_simulator.inference.rollout import persistent, rollout_fields
from universal_simulator.model.contract import Conditions
from universal_simulator.model.corrector import Corrector
from universal_simulator.model.flow import flow_matching_loss, jump_field, student_loss, trajectory
from universal_simulator.model.surrogate import load_surrogate, save_surrogate
from universal_simulator.training.segments import Segments
from universal_simulator.training.stochastic import fit_units


def test_without_noise_the_operator_goes_alone() -> None:
    initial, parameters = fields(3)
    plain, corrected = surrogate(corrected=False), surrogate()
    expected = rollout_fields(plain, initial, parameters, steps=10)
    assert torch.equal(rollout_fields(corrected, initial, parameters, steps=10), expected)


def test_a_trajectorys_members_do_not_depend_on_its_batch_or_on_their_number() -> None:
    model = surrogate()
    initial, parameters = fields(5)
    few = StochasticPredictor(model, GuardsConfig(), members=3)
    many = StochasticPredictor(model, GuardsConfig(), members=6)
    whole = few.rollout_members(initial, parameters, 10, seed=1)
    assert whole.shape == (5, 3, 10, 1, 32)
    alone = few.rollout_members(initial[3:4], parameters[3:4], 10, seed=1)
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-4, atol=1e-5)
    more = many.rollout_members(initial, parameters, 10, seed=1)
    torch.testing.assert_close(more[:, :3], whole, rtol=1e-4, atol=1e-5)
    other = few.rollout_members(initial, parameters, 10, seed=2)
    assert float((other - whole).abs().amax(dim=(0, 2, 3, 4)).min()) > 1e-3
    spread = whole.std(dim=1)
    assert bool((spread.amax(dim=(0, 2, 3)) > 0).all()), "every lead time has a spread, the first as well"


def test_what_is_not_carried_on_is_an_error_of_reading() -> None:
    model = surrogate()
    assert model.corrector is not None
    model.corrector.residual_scale.fill_(0.2)
    initial, parameters = fields(2)
    predictor = StochasticPredictor(model, GuardsConfig(mass_projection=False), members=2)
    operator = rollout_fields(model, initial, parameters, steps=12)
    members = {}
    for share in (0.0, 0.5, 1.0):
        model.corrector.carried.fill_(share)
        members[share] = predictor.rollout_members(initial, parameters, 12, seed=0)
    # the first segment reads alike; then what travels differs
    assert torch.equal(members[0.0][:, :, :4], members[1.0][:, :, :4])
    assert not torch.allclose(members[0.5][:, :, 4:], members[1.0][:, :, 4:], atol=1e-4)
    # with nothing carried, members differ from the operator by this segment's reading alone
    first, last = (
        float((members[0.0][:, :, part] - operator[:, None, part]).square().mean()) for part in (3, 11)
    )
    assert last < 2 * first
    grown = float((members[1.0][:, :, 11] - operator[:, None, 11]).square().mean())
    assert grown > 1.2 * last


def test_noise_is_standard_normal_whatever_its_persistence() -> None:
    model = surrogate()
    assert model.corrector is not None
    initial, _ = fields(4)
    noise = trajectory_noise(model, initial, 40, 64, seed=0).flatten(0, 1)
    for kept in (0.0, 0.8):
        model.corrector.persistence.fill_(kept)
        carried = persistent(noise, model)
        assert float(carried.mean().abs()) < 0.01
        assert float((carried.std() - 1).abs()) < 0.01
        assert float((carried[:, 1:] * carried[:, :-1]).mean()) == pytest.approx(kept, abs=0.02)


def test_one_file_holds_corrector_and_student(tmp_path: Path) -> None:
    model = surrogate()
    initial, parameters = fields(2)
    plain = surrogate(corrected=False)
    assert "corrector" not in plain.architecture.canonical_json()
    for student in (False, True):
        if student:
            model.add_student()
        digest = save_surrogate(
            model,
            tmp_path / "model.safetensors",
            plain_checkpoint=tmp_path / "operator_ema.pt",
            corrector_checkpoint=tmp_path / "diffusion_ema.pt",
        )
        again = load_surrogate(tmp_path / "model.safetensors")
        assert again.architecture == model.architecture
        one, two = (
            StochasticPredictor(m, GuardsConfig(), members=2).rollout_members(initial, parameters, 5, seed=0)
            for m in (model, again)
        )
        assert torch.equal(one, two)
        operator, diffusion = (
            torch.load(tmp_path / name, weights_only=True) for name in ("operator_ema.pt", "diffusion_ema.pt")
        )
        assert operator["hash"] == diffusion["hash"] == digest
        assert {k.startswith("corrector.") for k in operator["state"]} == {False}
        assert {k.startswith("corrector.") for k in diffusion["state"]} == {True}


def test_what_carries_no_tokens_or_no_segments_is_refused() -> None:
    model = surrogate(corrected=False)
    with pytest.raises(UserError, match="train diff_residual"):
        model.add_student()
    with pytest.raises(UserError, match="no corrector"):
        rollout_fields(model, *fields(1), steps=2, noise=torch.zeros(1, 1, 8, 8))
    model.architecture = model.architecture.model_copy(update={"reencode_every": None})
    with pytest.raises(UserError, match="reencode_every"):
        model.add_corrector(CORRECTOR)


# A linear-Gaussian problem. Truth: z_1 = z_0 + 0.1 G (h z_0 + A e), e ~ N(0, I) per token, with
# A mixing each token with its right neighbour; operator: z_1 = z_0. Then r given z_0 is Gaussian
# with mean 0.1 h z_0 and covariance 0.01 A A^T, h = 0.5.
TOKENS, MEAN, AMPLITUDE, MIX = 6, 0.5, 0.1, 0.6


def gaussian_segments(count: int) -> Segments:
    start = torch.randn(count, TOKENS, 1)
    noise = torch.randn(count, TOKENS, 1)
    mixed = noise + MIX * noise.roll(-1, 1)
    residual = AMPLITUDE * (MEAN * start + mixed)
    conditions = Conditions(torch.full((count, 1), 0.05), torch.full((count,), 0.02))
    return Segments(start, start[:, None], residual[:, None], conditions)


def test_drawn_residuals_are_the_truth_minus_the_operators_own_rollout() -> None:
    torch.manual_seed(0)
    states, residual = torch.randn(5, 4, 6, 2), torch.randn(5, 4, 6, 2)
    conditions = Conditions(torch.rand(5, 1), torch.rand(5))
    drawn = Segments(torch.randn(5, 6, 2), states, residual, conditions).drawn(3)
    assert drawn.residual.shape == (15, 6, 2)
    for row, step in enumerate(drawn.steps.tolist()):
        window = row // 3
        assert torch.equal(drawn.states[row], states[window, step - 1])
        assert torch.equal(drawn.residual[row], residual[window, step - 1])
        assert drawn.conditions.dt[row] == conditions.dt[window]
    assert all(len(set(part.tolist())) == 3 for part in drawn.steps.view(5, 3))


@pytest.mark.slow
def test_corrector_and_student_recover_a_linear_gaussian_problem() -> None:
    torch.manual_seed(0)
    options = CorrectorOptions(hidden=32, layers=2, heads=2, group_size=8)
    corrector = Corrector(options, num_parameters=1, tokens=TOKENS, latent_dim=1, segment=1)
    fit_units(corrector, gaussian_segments(4096))

    def fit(parameters: list[torch.nn.Parameter], steps: int, *, student: bool) -> None:
        optimiser = torch.optim.Adam(parameters, lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            found = gaussian_segments(256).drawn(1)
            context = corrector.context(found.start, found.states, found.steps, found.conditions)
            residual = found.residual
            whitened = context.whiten(residual)
            given = context.detached()
            if student:
                assert corrector.student is not None
                network = corrector.student
                with torch.no_grad():
                    path = trajectory(
                        lambda x, s, given=given: corrector.velocity(corrector.teacher, given, x, s),
                        torch.randn_like(residual),
                        steps=5,
                    )
                field = jump_field(functools.partial(corrector.velocity, network, given))
                loss = student_loss(field, path, torch.randint(5, (256,))).mean()
            else:
                loss = (0.5 * whitened.square() + context.log_scale).mean()
                loss = (
                    loss
                    + flow_matching_loss(
                        lambda x, s, given=given: corrector.velocity(corrector.teacher, given, x, s),
                        whitened.detach(),
                        torch.randn_like(residual),
                        torch.rand(256),
                    ).mean()
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    fit(list(corrector.parameters()), 1200, student=False)
    corrector.add_student()
    assert corrector.student is not None
    fit(list(corrector.student.parameters()), 500, student=True)

    count = 4000
    start = torch.linspace(-1.5, 1.5, TOKENS)[None, :, None].expand(count, -1, -1)
    conditions = Conditions(torch.full((count, 1), 0.05), torch.full((count,), 0.02))
    mixing = torch.eye(TOKENS) + MIX * torch.eye(TOKENS).roll(1, 1)
    covariance = AMPLITUDE**2 * mixing @ mixing.T
    with torch.no_grad():
        context = corrector.context(start, start, torch.ones(count, dtype=torch.long), conditions)
        for student, evaluations in ((False, 8), (True, 1), (True, 2)):
            noise = torch.randn(count, TOKENS, 1)
            drawn = corrector.sample(context, noise, evaluations=evaluations, student=student)[..., 0]
            width = covariance.diagonal().sqrt()
            mean_error = (drawn.mean(0) - AMPLITUDE * MEAN * start[0, :, 0]).abs() / width
            # 4 standard errors of the mean, and 4 % for what training leaves
            assert float(mean_error.max()) < 4 / count**0.5 + 0.04, (student, evaluations)
            error = (torch.cov(drawn.T) - covariance) / (width[:, None] * width[None, :])
            assert float(error.abs().max()) < 4 * (2 / count) ** 0.5 + 0.05, (student, evaluations)
