"""A user's own network meets the contract before anything is spent on it, and only its forward is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.model.small_models import architecture
from universal_simulator.errors import UserError
from universal_simulator.model.conditioning import ConditionEmbedding
from universal_simulator.model.contract import Conditions, Problem
from universal_simulator.model.surrogate import Surrogate, build_member

PROBLEM = Problem(2, 1, 32, 1.0)


class Own(nn.Module):
    """A user's network; `fault` chooses what is wrong with it."""

    def __init__(self, problem: Problem, *, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.condition = ConditionEmbedding(problem.num_parameters, 4)
        self.fitted = False

    def fit(self, conditions: object) -> None:
        """Its own business: a scikit-learn habit, not part of the contract."""
        self.fitted = True

    def forward(self, fields: Tensor, parameters: Tensor, dt: Tensor) -> object:
        answer = self.weight * fields
        if self.fault == "draws":
            return answer + 0 * torch.rand(())
        return {
            "": answer,
            "shape": answer[..., :-1],
            "batch": answer[:1],
            "nan": answer / 0 * 0,
            "integers": answer.int(),
            "tuple": (answer, None),
            "raises": None if self.fault != "raises" else answer.reshape(3, -1),
        }[self.fault]


def build(fault: str) -> nn.Module:
    return build_member(f"{__name__}:Own", PROBLEM, {"fault": fault})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"advance answers .* \(2, 2, 31\), expected .* \(2, 2, 32\)"),
        ("batch", r"advance answers .* \(1, 2, 32\)"),
        ("nan", "advance answers NaN or infinite values"),
        ("integers", "torch.int32"),
        ("tuple", "advance answers tuple"),
        ("raises", r"fails on fields \(B, C, X\) = \(2, 2, 32\).*RuntimeError"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused_when_it_is_built(fault: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(fault)


def test_the_trial_leaves_no_trace() -> None:
    states = []
    for fault in ("", "draws"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            member = build(fault)
            states.append(torch.random.get_rng_state())
    assert torch.equal(*states), "drawing in forward moved the global generator"
    assert member.training
    assert all(parameter.grad is None for parameter in member.parameters())


def test_normalisation_fits_our_embedding_and_calls_nothing_else_of_a_users_network() -> None:
    model = Surrogate(architecture(f"{__name__}:Own"))
    own = model.member.get_submodule("stepper")
    assert isinstance(own, Own)
    fields = torch.randn(6, 3, 1, 64, generator=torch.Generator().manual_seed(0))
    conditions = Conditions(torch.tensor([[0.01], [0.1]] * 3), torch.full((6,), 0.02))
    model.fit_normalisation(fields, conditions)
    assert not own.fitted
    expected = conditions.parameters.log().mean()
    assert float(own.condition.mean[0]) == pytest.approx(float(expected), rel=1e-5)
