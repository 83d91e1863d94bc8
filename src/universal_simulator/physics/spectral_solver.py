"""Reference solutions of smooth periodic problems: Fourier collocation and ETDRK4.

The linear terms are integrated exactly, the flux by the fourth-order exponential Runge-Kutta
scheme of Cox & Matthews (2002) with the contour-integral coefficients of Kassam &
Trefethen (2005, eq. 26-29). Products are dealiased by the 2/3 rule; mass is conserved to
round-off because the flux is a derivative. Burgers needs its shock resolved: the cell Reynolds
number max|u| dx pi / nu should stay below about 2. Kuramoto-Sivashinsky needs wavenumbers
of several 1 / sqrt(nu) kept: three points per sqrt(nu) err by 1e-8 in a second, one by 1e-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from universal_simulator.physics.domain import Grid
from universal_simulator.physics.spectral import fourier_shift, wavenumbers

#: max|u| dt / dx; ETDRK4 on a dealiased grid is stable to about 1.3
COURANT = 1.0
#: internal step of Kuramoto-Sivashinsky in its own unit of time (seconds where nu = 1 m^4/s)
KURAMOTO_SIVASHINSKY_STEP = 0.05


def solve_burgers(
    initial: Tensor, nu: Tensor, times_s: Tensor, grid: Grid, *, courant: float = COURANT
) -> Tensor:
    """u (B, X) at times_s[0] -> (B, T, X) at times_s, in the precision of `initial` (use float64).

    nu (B,). The time step follows max|u| of the batch, which never grows.
    """
    points = initial.shape[-1]
    k = wavenumbers(points, grid.lengths[0]).to(initial)
    linear = -(nu.to(initial)[:, None] / math.pi) * k.square()
    flux = -0.5j * k * (torch.arange(k.shape[0], device=k.device) < points / 3)

    def tendency(spectrum: Tensor) -> Tensor:
        u = torch.fft.irfft(spectrum, n=points)
        return flux * torch.fft.rfft(u * u)

    spectrum = torch.fft.rfft(initial)
    frames = [initial]
    times = times_s.tolist()
    for before, after in pairwise(times):
        fastest = max(float(frames[-1].abs().max()), 1e-6)
        count = max(1, math.ceil((after - before) * fastest / (courant * grid.spacing[0])))
        coefficients = _coefficients(linear, (after - before) / count)
        spectrum = _advance(spectrum, coefficients, tendency, count)
        frames.append(torch.fft.irfft(spectrum, n=points))
    return torch.stack(frames, dim=1)


def solve_kuramoto_sivashinsky(
    initial: Tensor,
    nu: Tensor,
    times_s: Tensor,
    grid: Grid,
    *,
    step: float = KURAMOTO_SIVASHINSKY_STEP,
) -> Tensor:
    """u_t + (u^2/2)_x + u_xx + nu u_xxxx = 0: u (B, X) at times_s[0] -> (B, T, X) at times_s.

    u in m/s, nu (B,) in m^4/s, the coefficient of u_xx is 1 m^2/s; in the precision of
    `initial` (use float64). Rescaled by x / sqrt(nu), t / nu and u sqrt(nu) the equation has
    no parameter, so the internal step is fixed: at most `step` times the smallest nu of the
    batch, and tests/physics shows its order: 4 as it goes to zero, near 3 at the default, where
    the slaved modes with nu k^4 step > 1 lag behind. With the default one second at nu = 1 is
    exact to 3e-7 of rms(u) (1e-6 at worst) on the attractor, where |u| <= 3.5; a hundred seconds
    of chaos on L = 22 m make 3e-4 of it (2e-2 at worst). A mean flow c adds to |u|: over five
    seconds c = 1 costs 1e-5, c = 10 costs 2e-2, so solve in the frame that rides with it. From
    ten times the attractor's amplitude a step of 1/4 is unstable and answers NaN, from forty
    times the default is. Source: Kassam & Trefethen 2005, program kursiv.m (step 1/4).
    """
    points = initial.shape[-1]
    k = wavenumbers(points, grid.lengths[0]).to(initial)
    linear = k.square() - nu.to(initial)[:, None] * k**4
    kept = torch.arange(k.shape[0], device=k.device) < points / 3
    flux = -0.5j * k * kept

    def tendency(spectrum: Tensor) -> Tensor:
        u = torch.fft.irfft(spectrum, n=points)
        return flux * torch.fft.rfft(u * u)

    # a mode beyond the 2/3 would only be aliased, or on too coarse a grid grow with nothing to stop it
    spectrum = torch.fft.rfft(initial) * kept
    longest = step * float(nu.min())
    coefficients: tuple[Tensor, ...] = ()
    size = 0.0
    frames = [initial]
    for before, after in pairwise(times_s.tolist()):
        count = max(1, math.ceil((after - before) / longest - 1e-9))
        if not math.isclose(size, (after - before) / count, rel_tol=1e-9):
            size = (after - before) / count
            coefficients = _coefficients(linear, size)
        spectrum = _advance(spectrum, coefficients, tendency, count)
        frames.append(torch.fft.irfft(spectrum, n=points))
    return torch.stack(frames, dim=1)


def _advance(
    spectrum: Tensor, coefficients: tuple[Tensor, ...], tendency: Callable[[Tensor], Tensor], count: int
) -> Tensor:
    full, half, q, f1, f2, f3 = coefficients
    for _ in range(count):
        n1 = tendency(spectrum)
        a = half * spectrum + q * n1
        n2 = tendency(a)
        b = half * spectrum + q * n2
        n3 = tendency(b)
        c = half * a + q * (2 * n3 - n1)
        spectrum = full * spectrum + f1 * n1 + f2 * (n2 + n3) + f3 * tendency(c)
    return spectrum


def _coefficients(linear: Tensor, step: float, contour: int = 16) -> tuple[Tensor, ...]:
    """exp(hL), exp(hL/2) and the four phi-coefficients, by the mean over a unit circle."""
    rows, inverse = torch.unique(linear, dim=0, return_inverse=True)
    angles = (torch.arange(1, contour + 1, dtype=torch.float64, device=linear.device) - 0.5) / contour
    z = step * rows.double()[..., None] + torch.exp(1j * math.pi * angles)
    exp = torch.exp(z)
    q = step * ((torch.exp(z / 2) - 1) / z).mean(-1).real
    f1 = step * ((-4 - z + exp * (4 - 3 * z + z**2)) / z**3).mean(-1).real
    f2 = 2 * step * ((2 + z + exp * (z - 2)) / z**3).mean(-1).real
    f3 = step * ((-4 - 3 * z - z**2 + exp * (4 - z)) / z**3).mean(-1).real
    grown = step * rows.double()
    parts = (grown.exp(), (grown / 2).exp(), q, f1, f2, f3)
    return tuple(part.to(linear)[inverse] for part in parts)


def solve_advection(initial: Tensor, beta: Tensor, times_s: Tensor, grid: Grid) -> Tensor:
    """Exact shift of the band-limited interpolant: u(x, t) = u_0(x - beta t); (B, X) -> (B, T, X)."""
    distance = beta[:, None].to(initial) * (times_s - times_s[0]).to(initial)
    return fourier_shift(initial[:, None].expand(-1, len(times_s), -1), distance, grid)
