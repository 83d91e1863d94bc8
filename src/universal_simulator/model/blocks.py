"""Blocks on a line of tokens, periodic unless said otherwise.

Shapes: B batch, N tokens, H channels, h heads, G groups of `group_size` channels.
No block knows absolute positions, so each commutes with a cyclic shift of its tokens (the U
of the operator merges pairs, so the whole commutes with shifts by two). With `periodic=False` the
line ends at two walls: nothing is beyond them, and distances do not wrap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupRMSNorm(nn.Module):
    """Root-mean-square normalisation over each group of `group_size` channels, learned gain."""

    def __init__(self, channels: int, group_size: int) -> None:
        super().__init__()
        if channels % group_size:
            raise ValueError(f"group_size {group_size} does not divide {channels} channels")
        self.group_size = group_size
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(-1, (-1, self.group_size))
        scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + 1e-6)
        return (grouped * scale).flatten(-2) * self.gain


class TokenAttention(nn.Module):
    """Multi-head attention between all tokens.

    Queries and keys are normalised per channel group; scores get a learned bias of the
    cyclic distance between tokens (of the signed one where the line has walls).
    """

    offset: Tensor

    def __init__(
        self, channels: int, heads: int, group_size: int, tokens: int, *, periodic: bool = True
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.tokens = tokens
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)
        self.norm_query = GroupRMSNorm(channels, group_size)
        self.norm_key = GroupRMSNorm(channels, group_size)
        distances = tokens if periodic else 2 * tokens - 1
        self.distance_bias = nn.Parameter(torch.zeros(heads, distances))
        index = torch.arange(tokens)
        # a negative distance wraps around the table: whole where there are walls, cyclic otherwise
        self.register_buffer("offset", (index[None, :] - index[:, None]) % distances, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project_in(x).chunk(3, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in (self.norm_query(query), self.norm_key(key), value)
        )
        bias = self.distance_bias[:, self.offset]
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        mixed = scores.softmax(-1) @ value
        return self.project_out(mixed.transpose(-3, -2).flatten(-2))


class NeighbourMix(nn.Module):
    """A token and its two neighbours, linearly: (B, N, H_in) -> (B, N, H_out). Zero beyond a wall."""

    def __init__(self, channels_in: int, channels_out: int, *, periodic: bool = True) -> None:
        super().__init__()
        self.periodic = periodic
        self.linear = nn.Linear(3 * channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.roll(1, -2), x.roll(-1, -2)
        if not self.periodic:
            nothing = torch.zeros_like(x[..., :1, :])
            left = torch.cat([nothing, x[..., :-1, :]], dim=-2)
            right = torch.cat([x[..., 1:, :], nothing], dim=-2)
        return self.linear(torch.cat([left, x, right], dim=-1))


class OperatorBlock(nn.Module):
    """Attention, neighbour mix and MLP, each modulated by the conditions.

    x <- x + g_1 * Attention(a_1(x)) + g_2 * Neighbours(a_2(x));  x <- x + g_3 * MLP(a_3(x))

    with a_i(x) = (1 + scale_i) norm(x) + shift_i and scale, shift, g from the conditions
    (Peebles & Xie 2023, adaLN). `drop` is the stochastic-depth probability: in training the
    whole block is skipped per sample and kept samples are rescaled by 1 / (1 - drop).
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        group_size: int,
        tokens: int,
        condition_channels: int,
        drop: float,
        periodic: bool = True,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.norm_mix = nn.LayerNorm(channels, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(channels, elementwise_affine=False)
        self.attention = TokenAttention(channels, heads, group_size, tokens, periodic=periodic)
        self.neighbours = NeighbourMix(channels, channels, periodic=periodic)
        self.expand = nn.Linear(channels, 3 * channels)
        self.contract = nn.Linear(3 * channels, channels)
        self.modulation = nn.Linear(condition_channels, 6 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        for last in (self.attention.project_out, self.neighbours.linear, self.contract):
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, condition: Tensor, keep: Tensor | None) -> Tensor:
        """x (B, N, H), condition (B, E), keep (B, 1, 1) of 0 or 1/(1-drop), or None."""
        modulation = self.modulation(condition).unsqueeze(-2)
        scale_mix, shift_mix, gain_mix, scale_mlp, shift_mlp, gain_mlp = modulation.chunk(6, -1)
        mixed_in = torch.addcmul(shift_mix, self.norm_mix(x), 1 + scale_mix)
        mixed = (1 + gain_mix) * (self.attention(mixed_in) + self.neighbours(mixed_in))
        x = x + (mixed if keep is None else keep * mixed)
        hidden = torch.addcmul(shift_mlp, self.norm_mlp(x), 1 + scale_mlp)
        update = (1 + gain_mlp) * self.contract(F.gelu(self.expand(hidden), approximate="tanh"))
        return x + (update if keep is None else keep * update)
