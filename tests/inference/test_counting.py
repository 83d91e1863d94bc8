"""The counter of operations says what torch's own says, on every way an operation reaches it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.model.small_models import fields, surrogate
from universal_simulator.inference.counting import OperationCounter
from universal_simulator.inference.rollout import rollout_fields


def products() -> Tensor:
    a, b = torch.ones(3, 4, 5), torch.ones(5, 6)
    return torch.einsum("bij,jk->bik", a, b) + torch.matmul(a, b) + torch.baddbmm(a @ b, a, b.expand(3, 5, 6))


def trained() -> Tensor:
    """Forward and backward of a convolution, a linear layer and attention."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Linear(6, 8))
    hidden = net(torch.ones(2, 2, 8))[:, None]
    loss = nn.functional.scaled_dot_product_attention(hidden, hidden, hidden).sum()
    loss.backward()
    return loss


def inferred() -> Tensor:
    """Where composite operations arrive whole."""
    torch.manual_seed(0)
    linear, bare = nn.Linear(6, 8), nn.Linear(8, 2, bias=False)
    with torch.inference_mode():
        hidden = linear(torch.ones(2, 3, 6)).transpose(0, 1)
        return bare(hidden) @ torch.ones(3, 2, 5) + bare(hidden @ torch.ones(8)[:, None].expand(8, 8)).sum()


def vectors() -> Tensor:
    """Of which torch counts nothing, or not all."""
    with torch.inference_mode():
        a, b = torch.ones(3, 3), torch.ones(3)
        return (
            nn.functional.linear(b, a) + a @ b + b @ a + (b @ b) + torch.ones(2, 3, 3) @ b[:, None] @ b[None]
        )


def branched() -> Tensor:
    x = torch.ones(4, 4)
    two, one = (lambda t: t @ t @ t), (lambda t: t @ t)
    return torch.ops.higher_order.cond(torch.tensor(True), two, one, (x,))


def rolled_out() -> Tensor:
    initial, parameters = fields(2)
    return rollout_fields(surrogate(corrected=False), initial, parameters, steps=5)


@pytest.mark.parametrize("call", [products, trained, inferred, vectors, branched, rolled_out])
def test_it_counts_what_torchs_own_counter_counts(call: Callable[[], Tensor]) -> None:
    with FlopCounterMode(display=False) as oracle:
        expected = call()
    for _ in range(2):  # what an operation is made of is remembered from the first time
        with OperationCounter() as counter:
            found = call()
        assert torch.equal(found, expected)
        assert counter.total == oracle.get_total_flops() > 0


def test_a_product_of_matrices_is_two_operations_an_element_and_sums_none() -> None:
    with OperationCounter() as counter:
        (torch.ones(3, 4) @ torch.ones(4, 5)).sum()
    torch.ones(3, 4) @ torch.ones(4, 5)
    assert counter.total == 2 * 3 * 4 * 5
