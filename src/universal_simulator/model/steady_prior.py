"""The steady prior: solutions of a boundary value problem given a part of its coefficient.

log a is seen at S sensors; the pressure p of the whole line is asked for. Between the sensors a may
be anything the data know, so the answer is a distribution, p(pressure | log a at the sensors):

    codec       p -> N tokens of D numbers -> p at any point, on a line with walls
    prior       y ~ p(y | sensors): location, scale and flow as in `model/latent_generator.py`

The control (`SteadyRegressor`) is one network of at least the prior's size that answers with one
latent. Pressure is divided by its training rms about the declared wall value, which stays 0;
log a is standardised. Nothing forces the decoder to the wall's value: `bc_violation` is measured.

Shapes: B batch, X cells, S sensors (S a multiple of N), N tokens, D numbers per token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from universal_simulator.configuration.schema import TokenNetworkOptions
from universal_simulator.configuration.steady import SteadyModelOptions
from universal_simulator.model.contract import Problem
from universal_simulator.model.decoder import PointDecoder
from universal_simulator.model.encoder import PatchEncoder
from universal_simulator.model.flow import integrate
from universal_simulator.model.latent_generator import (
    CHANNELS,
    LOG_SCALE_RANGE,
    OCTAVES,
    Context,
    LatentGenerator,
    TokenNetwork,
)
from universal_simulator.physics.domain import Grid
from universal_simulator.run_record import write_atomically

FORMAT = "usim-steady-1"
#: a unit is at least this
SMALLEST_UNIT = 1e-6


class SteadyCodec(nn.Module):
    """Pressure (B, 1, X) in its own unit <-> latent tokens (B, N, D)."""

    offset: Tensor
    scale: Tensor

    def __init__(self, options: SteadyModelOptions, grid: Grid, *, wall_value: float) -> None:
        super().__init__()
        self.grid = grid
        problem = Problem(
            num_fields=1, num_parameters=0, points=grid.points[0], domain_length=grid.lengths[0]
        )
        tokens, latent_dim = options.latent_tokens, options.latent_dim
        decoder = options.decoder
        self.encoder = PatchEncoder(
            problem, tokens=tokens, latent_dim=latent_dim, hidden=options.encoder_hidden, periodic=False
        )
        self.decoder = PointDecoder(
            problem,
            tokens=tokens,
            latent_dim=latent_dim,
            hidden=decoder.hidden,
            mlp_hidden=decoder.mlp_hidden,
            layers=decoder.layers,
            heads=decoder.heads,
            frequencies=decoder.frequencies,
            periodic=False,
        )
        self.register_buffer("offset", torch.tensor(wall_value))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, pressure: Tensor) -> None:
        """Unit of the training pressures (B, 1, X)."""
        self.scale.copy_((pressure - self.offset).square().mean().sqrt().clamp_min(SMALLEST_UNIT))

    def encode(self, pressure: Tensor) -> Tensor:
        return self.encoder((pressure - self.offset) / self.scale)

    def basis(self) -> Tensor:
        """Of the cell centres, then both walls: what `decode` is asked for."""
        length = self.grid.lengths[0]
        cells = (self.grid.coordinates() - self.grid.origin[0]) / length
        walls = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return self.decoder.basis(torch.cat([cells, walls]).to(self.scale.device))

    def decode(self, latent: Tensor, basis: Tensor) -> Tensor:
        """(B, N, D) -> (B, 1, X + 2): the cells, then the walls."""
        return self.decoder(latent, basis) * self.scale + self.offset


class SensorReading(nn.Module):
    """log a at the sensors (B, S) -> (B, N, S/N + 2): standardised, beside where the token is."""

    mean: Tensor
    std: Tensor
    places: Tensor

    def __init__(self, sensors: int, tokens: int) -> None:
        super().__init__()
        if sensors % tokens:
            raise ValueError(f"{sensors} sensors do not share out among {tokens} tokens")
        self.width = sensors // tokens + 2
        self.tokens = tokens
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        centre = (torch.arange(tokens) + 0.5) / tokens
        places = torch.stack([2 * centre - 1, (torch.pi * centre).sin()], dim=-1)
        self.register_buffer("places", places, persistent=False)

    @torch.no_grad()
    def fit(self, observed: Tensor) -> None:
        self.mean.copy_(observed.mean())
        self.std.copy_(observed.std(correction=0).clamp_min(SMALLEST_UNIT))

    def forward(self, observed: Tensor) -> Tensor:
        seen = ((observed - self.mean) / self.std).unflatten(-1, (self.tokens, -1))
        return torch.cat([seen, self.places.expand(len(seen), -1, -1)], dim=-1)


class SteadyPrior(LatentGenerator):
    """y ~ p(y | log a at the sensors)."""

    unit: Tensor

    def __init__(self, options: TokenNetworkOptions, *, sensors: int, tokens: int, latent_dim: int) -> None:
        super().__init__()
        self.options = options
        self.shape = (tokens, latent_dim)
        self.reading = SensorReading(sensors, tokens)
        self.register_buffer("unit", torch.ones(latent_dim))
        width = self.reading.width
        self.moments = TokenNetwork(width, 2 * latent_dim, options, tokens, periodic=False)
        self.time_embedding = nn.Linear(2 * OCTAVES + 1, CHANNELS)
        self.teacher = TokenNetwork(width + 3 * latent_dim, latent_dim, options, tokens, periodic=False)

    @torch.no_grad()
    def fit(self, observed: Tensor, latent: Tensor) -> None:
        """Units of training sensors (B, S) and latents (B, N, D)."""
        self.reading.fit(observed)
        self.unit.copy_(latent.square().mean(dim=(0, 1)).sqrt().clamp_min(SMALLEST_UNIT))

    def context(self, observed: Tensor) -> Context:
        inputs = self.reading(observed)
        condition = inputs.new_zeros(len(inputs), CHANNELS)
        location, log_scale = self.moments(inputs, condition).chunk(2, dim=-1)
        return Context(
            inputs=torch.cat([inputs, location, log_scale], dim=-1),
            condition=condition,
            location=location,
            log_scale=log_scale.clamp(*LOG_SCALE_RANGE),
            unit=self.unit,
        )

    def sample(self, context: Context, noise: Tensor) -> Tensor:
        """Latents (B, N, D) from noise N(0, I): `teacher_steps` Heun steps of the flow."""

        def field(x: Tensor, s: Tensor) -> Tensor:
            return self.velocity(self.teacher, context, x, s)

        return context.residual(integrate(field, noise, steps=self.options.teacher_steps))


class SteadyRegressor(nn.Module):
    """The control: sensors -> one latent, with as many blocks as both networks of the prior."""

    def __init__(self, options: TokenNetworkOptions, *, sensors: int, tokens: int, latent_dim: int) -> None:
        super().__init__()
        self.reading = SensorReading(sensors, tokens)
        twice = options.model_copy(update={"layers": 2 * options.layers})
        self.network = TokenNetwork(self.reading.width, latent_dim, twice, tokens, periodic=False)

    def fit(self, observed: Tensor) -> None:
        self.reading.fit(observed)

    def forward(self, observed: Tensor) -> Tensor:
        inputs = self.reading(observed)
        return self.network(inputs, inputs.new_zeros(len(inputs), CHANNELS))


class SteadyModel(nn.Module):
    """Codec and prior: what is trained, saved and asked."""

    def __init__(self, options: SteadyModelOptions, grid: Grid, *, sensors: int, wall_value: float) -> None:
        super().__init__()
        self.codec = SteadyCodec(options, grid, wall_value=wall_value)
        self.prior = SteadyPrior(
            options.generator, sensors=sensors, tokens=options.latent_tokens, latent_dim=options.latent_dim
        )

    @torch.no_grad()
    def members(self, observed: Tensor, noise: Tensor) -> Tensor:
        """(B, S) and noise (B, M, N, D) -> (B, M, 1, X + 2): cells, then both walls."""
        count = noise.shape[1]
        context = self.prior.context(observed.repeat_interleave(count, 0))
        latent = self.prior.sample(context, noise.flatten(0, 1))
        return self.codec.decode(latent, self.codec.basis()).unflatten(0, (-1, count))


def save_steady(model: SteadyModel, path: Path, *, about: Mapping[str, object]) -> str:
    """Weights with what is needed to build them again, under one hash; returns the hash."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    architecture = json.dumps(about, sort_keys=True)
    digest = hashlib.sha256(architecture.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    metadata = {"format": FORMAT, "hash": digest.hexdigest(), "architecture": architecture}
    write_atomically(path, save_safetensors(tensors, metadata))
    return digest.hexdigest()
