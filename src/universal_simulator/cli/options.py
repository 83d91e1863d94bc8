"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Parameter = Annotated[
    float | None,
    typer.Option(
        "--nu", help="the parameter (nu of Burgers, beta of advection), where neither file nor name says it"
    ),
]
