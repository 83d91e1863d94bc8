"""Equations declare; nobody else assumes.

Losses, rewards, guards, augmentation and metrics read these declarations. What an equation
(or a user's own data set) does not declare is not applicable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.physics.domain import BoundaryCondition, FieldSpec, ParameterSpec

#: symmetries that map fields to fields on the same grid, exactly
REPRESENTING = frozenset({"shift", "reflection"})


@dataclass(frozen=True)
class Equation:
    """Name, fields, parameters and the laws that hold exactly.

    conserved: names of integrals that stay constant (`integral`: of each field).
    dissipated: names of functionals that never grow (`energy`, `total_variation`, `maximum`).
    symmetries: maps of solutions to solutions (`shift`, `galilean`, `reflection`, `amplitude_time`).
    linear: the equation is linear, so a linearised predictor would be the equation itself.
    diffusion: the field's L2 norm about its mean w falls as d/dt ||w||^2 = -2 k ||w_x||^2 with
        k = diffusion * (the first parameter); None: nothing is declared.
    """

    name: str
    fields: tuple[FieldSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    boundary: BoundaryCondition
    conserved: tuple[str, ...] = ()
    dissipated: tuple[str, ...] = ()
    symmetries: frozenset[str] = frozenset()
    non_negative: bool = False
    linear: bool = False
    diffusion: float | None = None
    source: str = ""

    def require_symmetries(self, names: Sequence[str], source: str) -> None:
        """Refuse what is not declared; `source` is the configuration key that asked for it."""
        undeclared = [name for name in names if name not in self.symmetries]
        if undeclared:
            declared = ", ".join(sorted(self.symmetries)) or "none"
            raise ConfigurationError(
                source,
                [
                    f"{name!r} is not a declared symmetry of {self.name!r} (declared: {declared})"
                    for name in undeclared
                ],
            )

    def require_representations(self, source: str) -> None:
        """Refuse where neither symmetry is declared by which a field has other representations on its grid."""
        if not self.symmetries & REPRESENTING:
            raise ConfigurationError(
                source,
                [
                    f"{self.name!r} declares neither {' nor '.join(sorted(REPRESENTING))}, so every field has one "
                    f"representation only; set {source}=false"
                ],
            )


#: u_t + (u^2/2)_x = (nu/pi) u_xx, periodic. The nu/pi is PDEBench's convention.
BURGERS = Equation(
    name="burgers",
    fields=(FieldSpec("u", "m/s"),),
    parameters=(ParameterSpec("nu", "m^2/s", 1e-4, 10.0),),
    boundary=BoundaryCondition.PERIODIC,
    conserved=("integral",),
    dissipated=("energy", "total_variation", "maximum"),
    symmetries=frozenset({"shift", "galilean", "reflection", "amplitude_time"}),
    diffusion=1 / math.pi,
    source="Takamoto et al. 2022 (PDEBench), appendix D.2",
)

#: u_t + beta u_x = 0, periodic. Exact solution u(x - beta t, 0).
ADVECTION = Equation(
    name="advection",
    fields=(FieldSpec("u", "1"),),
    parameters=(ParameterSpec("beta", "m/s", -10.0, 10.0),),
    boundary=BoundaryCondition.PERIODIC,
    conserved=("integral", "energy"),
    dissipated=("total_variation", "maximum"),
    symmetries=frozenset({"shift"}),
    linear=True,
    source="Takamoto et al. 2022 (PDEBench), appendix D.1",
)

#: u_t + (u^2/2)_x + u_xx + nu u_xxxx = 0, periodic; u_xx has coefficient 1 m^2/s. Energy enters at
#: wavelengths above 2 pi sqrt(nu) and leaves below, so nothing but the mean is monotone or kept.
#: u -> a u(x, a t) would need the coefficient of u_xx scaled as well: with nu as the only
#: parameter `amplitude_time` maps no solution to another.
KURAMOTO_SIVASHINSKY = Equation(
    name="kuramoto_sivashinsky",
    fields=(FieldSpec("u", "m/s"),),
    parameters=(ParameterSpec("nu", "m^4/s", 0.1, 10.0),),
    boundary=BoundaryCondition.PERIODIC,
    conserved=("integral",),
    symmetries=frozenset({"shift", "galilean", "reflection"}),
    source="Kuramoto & Tsuzuki 1976; form and solver of Kassam & Trefethen 2005",
)

#: every equation whose physics is known, by the name that files and configs give it
DECLARED = {equation.name: equation for equation in (BURGERS, ADVECTION, KURAMOTO_SIVASHINSKY)}


def undeclared(field_names: Sequence[str], parameter_names: Sequence[str]) -> Equation:
    """Physics of a user's own array: nothing is known, so nothing is checked or guarded."""
    return Equation(
        name="undeclared",
        fields=tuple(FieldSpec(name, "unknown") for name in field_names),
        parameters=tuple(ParameterSpec(name, "unknown") for name in parameter_names),
        boundary=BoundaryCondition.UNDECLARED,
    )


def equation_named(
    name: str, *, field_names: Sequence[str] = ("u",), parameter_names: Sequence[str] = ("parameter",)
) -> Equation:
    if name == "undeclared":
        return undeclared(field_names, parameter_names)
    if name not in DECLARED:
        raise UserError(f"no equation {name!r}; known: {', '.join([*DECLARED, 'undeclared'])}")
    return DECLARED[name]
