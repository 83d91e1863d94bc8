"""Latent tokens -> fields at any point.

u(x) = sum over heads h and nearby tokens j of  a_h(x - x_j) <phi_h(x - x_j), v_{h}(z_j)>

v is a small network of the token, phi (the basis) and a (attention over the nearby
tokens, a partition of unity with compact support) depend on the relative position alone.
They are therefore computed once per set of query points and shared by the whole batch,
and decoding is one matrix product. Periodic by construction, or ending at two walls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_simulator.model.blocks import NeighbourMix
from universal_simulator.model.contract import Problem

#: half-width of a token's support, in token spacings
REACH = 1.5


class PointDecoder(nn.Module):
    """(B, N, D) -> (B, C, Q) at query positions given as fractions of the domain (Q,).

    frequencies: of the basis, in cycles per half-width of a token's support.
    """

    frequencies: Tensor

    def __init__(
        self,
        problem: Problem,
        *,
        tokens: int,
        latent_dim: int,
        hidden: int,
        mlp_hidden: int,
        layers: int,
        heads: int,
        frequencies: tuple[float, ...],
        periodic: bool = True,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"decoder.heads {heads} does not divide decoder.hidden {hidden}")
        self.tokens = tokens
        self.periodic = periodic
        self.heads = heads
        self.num_fields = problem.num_fields
        self.expand = NeighbourMix(latent_dim, mlp_hidden, periodic=periodic)
        self.value = nn.Linear(mlp_hidden, hidden * problem.num_fields)
        self.skip = nn.Linear(latent_dim, hidden * problem.num_fields)
        self.register_buffer("frequencies", torch.tensor(frequencies), persistent=False)
        width = 1 + 2 * len(frequencies)
        self.straight = nn.Linear(width, hidden + heads)
        trunk: list[nn.Module] = []
        for _ in range(layers - 1):
            trunk += [nn.Linear(width, mlp_hidden), nn.GELU(approximate="tanh")]
            width = mlp_hidden
        self.trunk = nn.Sequential(*trunk, nn.Linear(width, hidden + heads))

    def basis(self, fractions: Tensor) -> Tensor:
        """a_h phi_h of every token at every query: (N, hidden, Q)."""
        # in double: both ends of the seam must see the same relative position
        centres = (
            torch.arange(self.tokens, device=fractions.device, dtype=torch.float64) + 0.5
        ) / self.tokens
        relative = fractions.double()[None, :] - centres[:, None]
        if self.periodic:
            relative = relative - relative.round()
        relative = (relative * self.tokens).to(self.frequencies)  # spacings
        near = relative.abs() < REACH
        local = relative[near][:, None]  # only pairs in reach are evaluated
        angles = 2 * torch.pi / REACH * self.frequencies * local
        features = torch.cat([local / REACH, angles.sin(), angles.cos()], dim=-1)
        out = self.trunk(features) + self.straight(features)
        window = torch.cos(torch.pi / (2 * REACH) * local).square()
        weight = window * out[:, -self.heads :].clamp(-8, 8).exp()
        weights = weight.new_zeros(self.tokens, fractions.shape[0], self.heads)
        weights[near] = weight
        weights = weights / weights.sum(0, keepdim=True)
        phi = out.new_zeros(self.tokens, fractions.shape[0], out.shape[-1] - self.heads)
        phi[near] = out[:, : -self.heads]
        shaped = phi.unflatten(-1, (self.heads, -1)) * weights[..., None]
        return shaped.flatten(-2).transpose(1, 2)

    def forward(self, state: Tensor, basis: Tensor) -> Tensor:
        values = self.skip(state) + self.value(F.gelu(self.expand(state), approximate="tanh"))
        values = values.unflatten(-1, (self.num_fields, -1)).movedim(-2, -3)
        return values.flatten(-2) @ basis.flatten(0, 1)
