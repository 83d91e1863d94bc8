"""What all pictures of a page share: ink, colours, quiet axes, small files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1c2733", "#8a94a0"
#: prediction, classical solver, predictors that know nothing, other neural predictors
BLUE, ORANGE, GREY, GREEN = "#1f5fa8", "#c2571a", "#8a94a0", "#2b8a63"
#: colours of an indexed PNG
PALETTE = 256


def quiet_axis(axis: Axes, *, left: bool, bottom: bool) -> None:
    """Small grey lettering, at the left and below where asked."""
    axis.tick_params(labelsize=7, colors=INK, length=2, labelleft=left, labelbottom=bottom)
    for spine in axis.spines.values():
        spine.set_color("#c4cbd2")


def blank(width: float, height: float, dpi: int) -> Figure:
    """An empty figure of width x height inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi)


def as_png(figure: Figure) -> str:
    """Base64 of an indexed PNG; the same figure gives the same bytes."""
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", metadata={"Software": None})
    image = Image.open(whole).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def holes(values: Sequence[float | None]) -> list[float]:
    """A frame without a value is a hole in the line, not a zero."""
    return [math.nan if v is None else v for v in values]
