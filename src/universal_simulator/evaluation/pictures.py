"""The pictures one looks for first, as compact PNG: fields, errors against time, spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.canvas import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    as_png,
    blank,
    holes,
    quiet_axis,
)
from universal_simulator.evaluation.evaluator import Examples
from universal_simulator.evaluation.stability import CORRELATION_FLOOR
from universal_simulator.evaluation.trivial import TRIVIAL
from universal_simulator.run_record import Metric, RegimeResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: steps of a colour map: two maps and the lettering fit an indexed PNG without loss to the eye
LEVELS = 81


def field_picture(examples: Examples, truth: Trajectories, *, dpi: int) -> str:
    """Space-time truth, prediction and error of a median, a p95 and the worst trajectory."""
    part = truth.subset(examples.rows)
    count = len(examples.names)
    figure = blank(10.0, 1.75 * count + 0.5, dpi)
    axes = figure.subplots(
        count,
        5,
        squeeze=False,
        gridspec_kw={
            "width_ratios": (1, 1, 0.025, 1, 0.025),
            "wspace": 0.16,
            "hspace": 0.22,
            "left": 0.05,
            "right": 0.945,
            "bottom": 0.4 / (1.75 * count + 0.5),
            "top": 1 - 0.25 / (1.75 * count + 0.5),
        },
    )
    end, start = float(part.times_s[-1]), part.grid.origin[0]
    extent = (0.0, end, start, start + part.grid.lengths[0])
    for row, name in enumerate(examples.names):
        true = part.fields[row, :, 0].double().numpy()
        # the given frame stands before the prediction, so that the three panels share their time axis
        guess = np.concatenate([true[:1], examples.predicted[row, :, 0].double().numpy()])
        size = float(np.abs(true).max()) or 1.0
        reach = min(_largest(guess - true), 2 * size)
        for column, title, values, limit, colours in (
            (0, f"{name} (nRMSE {examples.nrmse[row]:.3g}): truth", true, size, "RdBu_r"),
            (1, "prediction", guess, size, "RdBu_r"),
            (3, "prediction − truth", guess - true, reach, "PuOr_r"),
        ):
            axis = axes[row][column]
            image = axis.imshow(
                values.T,
                origin="lower",
                aspect="auto",
                extent=extent,
                cmap=_colours(colours),
                vmin=-limit,
                vmax=limit,
                interpolation="nearest",
            )
            quiet_axis(axis, left=column == 0, bottom=row == count - 1)
            axis.locator_params(nbins=4, axis="x")
            axis.set_title(title, fontsize=8, color=INK, loc="left", pad=3, y=1.0)
            if row == count - 1:
                axis.set_xlabel("t [s]", fontsize=8, color=INK, labelpad=1)
            if column > 0:
                _colour_bar(figure, image, axes[row][column + 1])
        axes[row][0].set_ylabel("x", fontsize=8, color=INK, labelpad=1)
        _narrow_pair(axes[row])
    return as_png(figure)


def _largest(error: np.ndarray) -> float:
    """Largest finite |error|, never zero: the limit of a colour scale."""
    return float(np.abs(error[np.isfinite(error)]).max(initial=0.0)) or 1e-12


def _colour_bar(figure: Figure, image: Any, axis: Axes) -> None:
    bar = figure.colorbar(image, cax=axis)
    axis.tick_params(labelsize=7, colors=INK, length=2)
    bar.outline.set_visible(False)
    bar.locator = _few_ticks()
    bar.update_ticks()


def _narrow_pair(axes: Sequence[Axes]) -> None:
    """Colour bars stand close to the panel they belong to."""
    for panel, bar in ((axes[1], axes[2]), (axes[3], axes[4])):
        box, place = panel.get_position(), bar.get_position()
        bar.set_position((box.x1 + 0.006, place.y0, 0.009, place.height))


def curve_picture(
    regime: RegimeResult,
    references: dict[str, dict[str, Metric]],
    examples: Examples,
    truth: Trajectories,
    *,
    dpi: int,
) -> str:
    """Error against time, correlation against time, energy spectra of truth and prediction."""
    figure = blank(10.0, 2.9, dpi)
    margins = {"width_ratios": (1.25, 0.9, 1), "left": 0.05, "right": 0.985, "bottom": 0.14, "top": 0.91}
    error, likeness, spectrum = figure.subplots(1, 3, gridspec_kw={**margins, "wspace": 0.3})
    box = error.get_position()
    error.set_position((box.x0, box.y0, box.width - 0.05, box.height))
    times = truth.times_s[1:].tolist()
    _error_curves(error, times, regime, references)
    likeness.plot(times, holes(regime.curves["correlation"]), color=BLUE, lw=1.6)
    likeness.axhline(CORRELATION_FLOOR, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    likeness.set_title("correlation with the truth", fontsize=8.5, color=INK, loc="left", y=1.0)
    lowest = min((v for v in regime.curves["correlation"] if v is not None), default=0.0)
    likeness.set_ylim(min(0.78, lowest), 1.01)
    _spectra(spectrum, times, examples)
    for axis in (error, likeness):
        axis.set_xlabel("t [s]", fontsize=8, color=INK)
        axis.set_xlim(0, times[-1])
        axis.locator_params(nbins=5, axis="x")
    for axis in (error, likeness, spectrum):
        quiet_axis(axis, left=True, bottom=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, color="#e8ebee", lw=0.6)
        axis.set_axisbelow(True)
    return as_png(figure)


def _error_curves(
    axis: Axes, times: Sequence[float], regime: RegimeResult, references: dict[str, dict[str, Metric]]
) -> None:
    curves = {name: holes(values) for name, values in regime.curves.items()}
    axis.set_yscale("log")
    axis.fill_between(times, curves["nrmse_median"], curves["nrmse_p95"], color=BLUE, alpha=0.15, lw=0)
    axis.plot(times, curves["nrmse"], color=BLUE, lw=1.8)
    axis.plot(times, curves["nrmse_persistence"], color=GREY, lw=1.2, ls=(0, (1, 1.5)))
    labels = [
        ("persistence", curves["nrmse_persistence"][-1], GREY),
        ("prediction", curves["nrmse"][-1], BLUE),
    ]
    for name, metrics in references.items():
        value = metrics["nrmse"].value
        if value and name != "persistence":
            axis.axhline(value, color=_colour(name), lw=0.8, ls=(0, (5, 3)))
            labels.append((_short(name), value, _colour(name)))
    low, high = (math.log(limit) for limit in axis.get_ylim())
    heights = [(math.log(value) - low) / (high - low) if value > 0 else 0.0 for _, value, _ in labels]
    for (name, _, colour), height in zip(labels, _apart(heights, 0.05), strict=True):
        axis.text(1.015, height, name, transform=axis.transAxes, fontsize=6.5, va="center", color=colour)
    title = "nRMSE per frame: mean, median to p95; dashed: means of others"
    axis.set_title(title, fontsize=8.5, color=INK, loc="left", x=-0.08, y=1.0)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same heights, moved up where two labels would stand on each other."""
    out = list(heights)
    below = -math.inf
    for index in sorted(range(len(out)), key=out.__getitem__):
        # a curve that ends without a value has no height of its own
        out[index] = below = max(out[index] if math.isfinite(out[index]) else 0.0, below + gap)
    return out


def _spectra(axis: Axes, times: Sequence[float], examples: Examples) -> None:
    shades = ("#9cc3e6", "#4a90cf", "#123f73")[-len(examples.frames) :]
    true, guess = (examples.spectra[name].double().numpy() for name in ("truth", "prediction"))
    modes = np.arange(1, true.shape[1])
    for row, (frame, shade) in enumerate(zip(examples.frames, shades, strict=True)):
        axis.loglog(modes, true[row, 1:], color=shade, lw=3, alpha=0.4)
        axis.loglog(modes, guess[row, 1:], color=shade, lw=1.1, label=f"t = {times[frame]:.2g} s")
    top = float(true[:, 1:].max(initial=0.0)) or 1.0
    shown = true[:, 1:][true[:, 1:] > 1e-14 * top]
    axis.set_ylim(float(shown.min(initial=top)) / 30, 4 * top)
    axis.set_title("energy per mode (broad: truth)", fontsize=8.5, color=INK, loc="left", y=1.0)
    axis.set_xlabel("mode", fontsize=8, color=INK)
    axis.legend(fontsize=6.5, frameon=False, loc="lower left", labelcolor=INK)


def _short(name: str) -> str:
    return name.replace("_", " ").replace("classical ", "solver ")


def _colour(name: str) -> str:
    return GREY if name in TRIVIAL else ORANGE if name.startswith("classical") else GREEN


def _colours(name: str) -> Any:
    from matplotlib import colormaps

    return colormaps[name].resampled(LEVELS).with_extremes(bad="#20262c")


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, symmetric=True)
