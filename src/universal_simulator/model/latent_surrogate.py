"""The plan's surrogate: encoder to latent tokens, PDE-transformer operator, any-point decoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from universal_simulator.configuration.schema import LatentSurrogateOptions
from universal_simulator.model.blocks import OperatorBlock
from universal_simulator.model.conditioning import ConditionEmbedding
from universal_simulator.model.contract import Conditions, Problem, Simulator
from universal_simulator.model.decoder import PointDecoder
from universal_simulator.model.encoder import PatchEncoder


class LatentOperator(nn.Module):
    """z(t) -> z(t + dt) by a U of transformer blocks: all tokens, half of them, all again.

    The increment is predicted and scaled by a learned gain per latent channel, which
    starts small, so that an untrained operator is close to the identity.
    """

    def __init__(self, options: LatentSurrogateOptions, condition_channels: int) -> None:
        super().__init__()
        operator = options.operator
        hidden, tokens = operator.hidden, options.latent_tokens
        self.coarse_tokens = (tokens + 1) // 2
        total = sum(operator.depths)
        drops = [operator.stochastic_depth * (i + 1) / total for i in range(total)]

        def stage(depth: int, tokens: int) -> nn.ModuleList:
            return nn.ModuleList(
                OperatorBlock(
                    hidden,
                    heads=operator.heads,
                    group_size=operator.group_size,
                    tokens=tokens,
                    condition_channels=condition_channels,
                    drop=drops.pop(0),
                )
                for _ in range(depth)
            )

        self.lift = nn.Linear(options.latent_dim, hidden)
        self.down = stage(operator.depths[0], tokens)
        self.merge = nn.Linear(2 * hidden, hidden)
        self.bottom = stage(operator.depths[1], self.coarse_tokens)
        self.split = nn.Linear(hidden, 2 * hidden)
        self.up = stage(operator.depths[2], tokens)
        self.norm = nn.LayerNorm(hidden)
        self.increment = nn.Linear(hidden, options.latent_dim)
        self.gain = nn.Parameter(torch.full((options.latent_dim,), 0.1))

    def forward(self, state: Tensor, condition: Tensor) -> Tensor:
        x = self.lift(state)
        x = self._run(self.down, x, condition)
        tokens = x.shape[-2]
        # an odd count borrows the first token again: the line is a circle
        even = x if tokens % 2 == 0 else torch.cat([x, x[..., :1, :]], dim=-2)
        coarse = self.merge(even.unflatten(-2, (self.coarse_tokens, 2)).flatten(-2))
        coarse = self._run(self.bottom, coarse, condition)
        fine = self.split(coarse).unflatten(-1, (2, -1)).flatten(-3, -2)
        x = self._run(self.up, x + fine[..., :tokens, :], condition)
        return state + self.gain * self.increment(self.norm(x))

    def _run(self, stage: nn.ModuleList, x: Tensor, condition: Tensor) -> Tensor:
        for block in stage:
            assert isinstance(block, OperatorBlock)
            keep = None
            if self.training and block.drop > 0:
                keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= block.drop
                keep = keep.to(x) / (1 - block.drop)
            x = block(x, condition, keep)
        return x


class LatentSurrogate(Simulator):
    """Fields -> N tokens of D numbers -> stepped -> fields at any point."""

    def __init__(self, problem: Problem, **options: object) -> None:
        super().__init__()
        parsed = LatentSurrogateOptions.model_validate(options)
        decoder = parsed.decoder
        hidden = parsed.operator.hidden
        self.tokens = parsed.latent_tokens
        self.latent_dim = parsed.latent_dim
        self.domain_length = problem.domain_length
        self.points = problem.points
        self.condition = ConditionEmbedding(problem.num_parameters, 64)
        self.encoder = PatchEncoder(problem, tokens=self.tokens, latent_dim=parsed.latent_dim, hidden=hidden)
        self.operator = LatentOperator(parsed, 64)
        self.decoder = PointDecoder(
            problem,
            tokens=self.tokens,
            latent_dim=parsed.latent_dim,
            hidden=decoder.hidden,
            mlp_hidden=decoder.mlp_hidden,
            layers=decoder.layers,
            heads=decoder.heads,
            frequencies=decoder.frequencies,
        )

    def token_shape(self) -> tuple[int, int]:
        return self.tokens, self.latent_dim

    def codec_parameters(self) -> Iterator[nn.Parameter]:
        return itertools.chain(self.encoder.parameters(), self.decoder.parameters())

    def encode(self, fields: Tensor, conditions: Conditions) -> Tensor:
        return self.encoder(fields)

    def advance(self, state: Tensor, conditions: Conditions) -> Tensor:
        return self.operator(state, self.condition(conditions))

    def decode(self, state: Tensor, conditions: Conditions, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            grid = torch.arange(self.points, device=state.device, dtype=torch.float64)
            fractions = (grid + 0.5) / self.points
        else:
            fractions = positions / self.domain_length
        return self.decoder(state, self.decoder.basis(fractions))
