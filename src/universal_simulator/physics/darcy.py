"""Steady flow through a porous line, -(a p')' = f on (0, L), p(0) = p(L) = 0.

a > 0: mobility in m^2/(Pa s), p: pressure in Pa, f: source in 1/s (constant), q = -a p': flux in
m/s, so that q' = f. Finite volumes on X cells of width h; face k = 0 .. X lies left of cell k:

    q_{k+1} - q_k = h f,      q_k = -(p_k - p_{k-1}) / R_k,      R_k = h (1/a_{k-1} + 1/a_k) / 2

with half a cell's resistance at the walls, R_0 = h / (2 a_0), where p is the wall's zero. The flux
is conserved to round-off and p is second order in h for smooth a. The matrix is tridiagonal, and in
one dimension its solution is two running sums: q from the source, p from the flux, the constant of
the first from the second wall. All terms of the second sum are resistances, so nothing cancels.

The permeability is log-normal: log a = sum_k s_k (alpha_k cos + beta_k sin)(pi k x / L), Gaussian with
known spectrum on a circle of 2 L, so that the line's ends are no neighbours. Because log a is
Gaussian, its distribution given log a at some points is known in closed form (`conditioned`): the
exact posterior of p is sampled by solving, and a learned generator can be held against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.physics.domain import BoundaryCondition, FieldSpec, Grid


@dataclass(frozen=True)
class SteadyEquation:
    """A boundary value problem: no time, no rollout. `coefficient` is given, `fields` are sought.

    boundary_value: what the fields are at every wall, in their unit (DIRICHLET).
    """

    name: str
    fields: tuple[FieldSpec, ...]
    coefficient: FieldSpec
    boundary: BoundaryCondition
    boundary_value: float
    source: str


DARCY = SteadyEquation(
    name="darcy",
    fields=(FieldSpec("p", "Pa"),),
    coefficient=FieldSpec("a", "m^2/(Pa s)"),
    boundary=BoundaryCondition.DIRICHLET,
    boundary_value=0.0,
    source="Takamoto et al. 2022 (PDEBench), appendix D.7, in one dimension",
)
#: equations without a time, by the name that specifications give them
STEADY = {DARCY.name: DARCY}


def solve_darcy(mobility: Tensor, source: float, grid: Grid) -> Tensor:
    """Pressure (B, X) at the cell centres from the mobility a (B, X) there; float64 advised.

    Raises ValueError where a is not positive and finite: the problem has no solution there.
    """
    if not ((mobility > 0) & torch.isfinite(mobility)).all():
        raise ValueError("the mobility must be positive and finite everywhere")
    step, points = grid.spacing[0], grid.points[0]
    resistance = _face_resistance(mobility, step)
    gained = step * source * torch.arange(points + 1, dtype=mobility.dtype, device=mobility.device)
    inflow = -(gained * resistance).sum(-1, keepdim=True) / resistance.sum(-1, keepdim=True)
    drops = (inflow + gained) * resistance
    return -drops.cumsum(-1)[..., :-1]


def _face_resistance(mobility: Tensor, step: float) -> Tensor:
    """R (B, X + 1) of the way between neighbouring centres, or a wall and its centre."""
    half = 0.5 * step / mobility
    zero = torch.zeros_like(half[..., :1])
    return torch.cat([zero, half], dim=-1) + torch.cat([half, zero], dim=-1)


def darcy_flux_residual(pressure: Tensor, mobility: Tensor, source: float, grid: Grid) -> Tensor:
    """rms over faces of q - (q_0 + f x), relative to rms of q: (B, X) -> (B,).

    q is the conservative flux of `pressure` with the walls' zero, q_0 its best constant: what is
    left is the part of the flux that the source does not explain. Range [0, inf), lower is better,
    round-off for a solution on this grid, 1 for a flux that knows nothing. NaN where p is constant.
    """
    step, points = grid.spacing[0], grid.points[0]
    wall = torch.full_like(pressure[..., :1], DARCY.boundary_value)
    whole = torch.cat([wall, pressure, wall], dim=-1)
    flux = -whole.diff(dim=-1) / _face_resistance(mobility, step)
    gained = step * source * torch.arange(points + 1, dtype=flux.dtype, device=flux.device)
    unexplained = flux - gained
    unexplained = unexplained - unexplained.mean(-1, keepdim=True)
    return unexplained.square().mean(-1).sqrt() / flux.square().mean(-1).sqrt()


@dataclass(frozen=True)
class LogNormalMobility:
    """log a, Gaussian with spectrum s_k^2 ~ 1 / (1 + (k / corner)^2), k = 1 .. modes.

    deviation: standard deviation of log a at every point. corner: beyond this wavenumber (in half
    periods of the line) the spectrum falls like k^-2: fields are continuous and rough.
    """

    deviation: float
    corner: float
    modes: int

    def __post_init__(self) -> None:
        if not (self.deviation > 0 and self.corner > 0 and self.modes >= 1):
            raise ValueError(f"need a positive deviation, corner and at least one mode, got {self}")

    def amplitudes(self) -> Tensor:
        """s of all coefficients (2 modes,): cosines first, then sines."""
        wavenumber = torch.arange(1, self.modes + 1, dtype=torch.float64)
        power = 1 / (1 + (wavenumber / self.corner).square())
        return self.deviation * (power / power.sum()).sqrt().repeat(2)

    def basis(self, fractions: Tensor) -> Tensor:
        """(2 modes, Q) at positions in fractions of the line."""
        angles = math.pi * torch.arange(1, self.modes + 1, dtype=torch.float64)[:, None] * fractions.double()
        return torch.cat([angles.cos(), angles.sin()])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Coefficients (count, 2 modes), float64."""
        noise = torch.randn(count, 2 * self.modes, generator=generator, dtype=torch.float64)
        return noise * self.amplitudes()

    def log_mobility(self, coefficients: Tensor, fractions: Tensor) -> Tensor:
        """log a (count, Q)."""
        return coefficients @ self.basis(fractions)

    def conditioned(
        self, observed: Tensor, fractions: Tensor, *, members: int, generator: torch.Generator
    ) -> Tensor:
        """Coefficients (B, members, 2 modes) drawn from their distribution given log a at some points.

        observed: log a (B, S) at `fractions` (S,). Draws of the prior are moved by the regression on
        what they miss of the observation (Matheron's rule), which is exact for Gaussians. A ridge of
        1e-10 of the variance keeps the matrix of neighbouring points invertible.
        """
        basis, variance = self.basis(fractions), self.amplitudes().square()
        covariance = basis.T @ (variance[:, None] * basis)
        ridge = 1e-10 * self.deviation**2 * torch.eye(len(fractions), dtype=torch.float64)
        gain = torch.linalg.solve(covariance + ridge, basis.T * variance)
        drawn = self.draw(len(observed) * members, generator).unflatten(0, (-1, members))
        return drawn + (observed.double()[:, None] - drawn @ basis) @ gain
