"""A Fourier neural operator on the grid (Li et al. 2021), the standard strong peer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_simulator.configuration.schema import FNOOptions
from universal_simulator.model.conditioning import ConditionEmbedding
from universal_simulator.model.contract import Conditions, GridStepper, Problem


class SpectralConvolution(nn.Module):
    """Multiplies the lowest `modes` Fourier modes by a learned complex matrix each.

    (B, W, X) -> (B, W, X); weights (modes, W, W) as real and imaginary parts.
    """

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(modes, width, width, 2) / width)

    def forward(self, x: Tensor) -> Tensor:
        points = x.shape[-1]
        modes = min(self.modes, points // 2)
        spectrum = torch.fft.rfft(x.float())[..., :modes].permute(2, 0, 1)
        mixed = torch.bmm(spectrum, torch.view_as_complex(self.weight[:modes]))
        return torch.fft.irfft(mixed.permute(1, 2, 0), n=points)


class FNOStepper(nn.Module):
    """`forward(fields, parameters, dt)`: fields (B, C, X) one step later, as an increment.

    Each layer: x <- gelu((1 + scale) (spectral(x) + W x) + shift) + x with scale and
    shift from the equation's parameters and dt.
    """

    def __init__(self, problem: Problem, **options: object) -> None:
        super().__init__()
        parsed = FNOOptions.model_validate(options)
        width = parsed.width
        self.condition = ConditionEmbedding(problem.num_parameters, 64)
        self.lift = nn.Conv1d(problem.num_fields, width, 1)
        self.spectral = nn.ModuleList(SpectralConvolution(width, parsed.modes) for _ in range(parsed.layers))
        self.pointwise = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(parsed.layers))
        self.modulation = nn.ModuleList(nn.Linear(64, 2 * width) for _ in range(parsed.layers))
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)
        self.project = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GELU(), nn.Conv1d(2 * width, problem.num_fields, 1)
        )
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(self, fields: Tensor, parameters: Tensor, dt: Tensor) -> Tensor:
        condition = self.condition(Conditions(parameters, dt))
        x = self.lift(fields)
        for spectral, pointwise, modulation in zip(
            self.spectral, self.pointwise, self.modulation, strict=True
        ):
            scale, shift = modulation(condition).unsqueeze(-1).chunk(2, dim=1)
            x = x + F.gelu((1 + scale) * (spectral(x) + pointwise(x)) + shift)
        return fields + self.gain * self.project(x)


class FNO(GridStepper):
    """`FNOStepper` as a member of the contract."""

    def __init__(self, problem: Problem, **options: object) -> None:
        super().__init__(FNOStepper(problem, **options), problem)
