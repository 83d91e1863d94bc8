"""How far an ensemble can be trusted, drawn: calibration, ranks, spread against error, its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.canvas import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    as_png,
    blank,
    holes,
    quiet_axis,
)
from universal_simulator.evaluation.evaluator import Examples
from universal_simulator.run_record import RegimeResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: before and after recalibration: suffix of the curves, colour, name
KINDS = (("_raw", ORANGE, "raw"), ("", BLUE, "recalibrated"))
#: range of the spread-skill axes: beyond, only the direction matters
SPREAD_LIMITS = (0.25, 4.0)


def ensemble_picture(regime: RegimeResult, examples: Examples, truth: Trajectories, *, dpi: int) -> str:
    """Above: coverage against level, ranks, spread over error by lead time and by predicted spread, and
    the error of the point forecast over the operator's by lead time.

    Below: the members of the median trajectory with the headline's prediction and the truth, at three frames.
    """
    if examples.members is None:
        raise ValueError("a deterministic prediction has no members to draw")
    figure = blank(10.0, 4.7, dpi)
    margins = {"left": 0.05, "right": 0.985, "wspace": 0.28}
    above = figure.subplots(1, 5, gridspec_kw={**margins, "bottom": 0.57, "top": 0.95})
    _calibration(above[0], regime)
    _ranks(above[1], regime)
    _spread_in_time(above[2], truth.times_s[1:].tolist(), regime)
    _spread_in_bins(above[3], regime)
    _gain(above[4], truth.times_s[1:].tolist(), regime)
    below = figure.subplots(
        1, len(examples.frames), squeeze=False, gridspec_kw={**margins, "bottom": 0.09, "top": 0.43}
    )[0]
    _members(below, examples, truth)
    for axis in (*above, *below):
        quiet_axis(axis, left=True, bottom=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, color="#e8ebee", lw=0.6)
        axis.set_axisbelow(True)
    return as_png(figure)


def _title(axis: Axes, text: str, below: str) -> None:
    axis.set_title(text, fontsize=8.5, color=INK, loc="left", y=1.0)
    axis.set_xlabel(below, fontsize=8, color=INK, labelpad=1)


def _calibration(axis: Axes, regime: RegimeResult) -> None:
    levels = holes(regime.curves["coverage_level"])
    axis.plot([0, 1], [0, 1], color=FAINT, lw=0.8, ls=(0, (4, 3)))
    for suffix, colour, name in KINDS:
        axis.plot(levels, holes(regime.curves[f"coverage{suffix}"]), color=colour, lw=1.5, label=name)
        _band(axis, levels, regime, f"coverage{suffix}", colour)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.legend(fontsize=6.5, frameon=False, loc="upper left", labelcolor=INK)
    _title(axis, "truth inside the interval", "level of the interval")


def _ranks(axis: Axes, regime: RegimeResult) -> None:
    """Shares of the truth's ranks, times the number of ranks: flat at 1 is right."""
    for suffix, colour, _ in KINDS:
        shares = np.array(holes(regime.curves[f"rank_histogram{suffix}"]))
        axis.stairs(shares * len(shares), np.arange(len(shares) + 1), color=colour, lw=1.4)
    axis.axhline(1.0, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, len(regime.curves["rank_histogram"]))
    _title(axis, "rank of the truth (flat is right)", "members below the truth")


def _spread_in_time(axis: Axes, times: Sequence[float], regime: RegimeResult) -> None:
    for suffix, colour, _ in KINDS:
        axis.plot(times, holes(regime.curves[f"spread_skill{suffix}"]), color=colour, lw=1.5)
        _band(axis, times, regime, f"spread_skill{suffix}", colour)
    axis.set_xlim(0, times[-1])
    _ratio_axis(axis)
    _title(axis, "spread over error, lead time", "t [s]")


def _spread_in_bins(axis: Axes, regime: RegimeResult) -> None:
    """Absent below four members."""
    for shift, (suffix, colour, _) in zip((-0.15, 0.15), KINDS, strict=True):
        name = f"spread_skill_binned{suffix}"
        if name in regime.curves:
            places = np.arange(1, len(regime.curves[name]) + 1)
            value, low, high = (holes(regime.curves[f"{name}{end}"]) for end in ("", "_low", "_high"))
            axis.vlines(places + shift, low, high, color=colour, lw=3, alpha=0.3)
            axis.plot(places + shift, value, "o", color=colour, ms=3.5)
            axis.set_xticks(places)
    _ratio_axis(axis)
    _title(axis, "spread over error, by spread", "bin of predicted spread")


def _gain(axis: Axes, times: Sequence[float], regime: RegimeResult) -> None:
    """nRMSE of the point forecast as a share of the operator's, with the interval of the paired gain."""
    share, low, high = (1 - np.array(holes(regime.curves[f"point_gain{e}"])) for e in ("", "_low", "_high"))
    axis.fill_between(times, high, low, color=BLUE, alpha=0.15, lw=0)
    axis.plot(times, share, color=BLUE, lw=1.5)
    axis.axhline(1.0, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    axis.set_xlim(0, times[-1])
    _title(axis, "error, point over operator", "t [s]")


def _ratio_axis(axis: Axes) -> None:
    axis.axhline(1.0, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    axis.set_yscale("log")
    axis.set_ylim(*SPREAD_LIMITS)
    axis.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axis.minorticks_off()


def _band(axis: Axes, x: Sequence[float], regime: RegimeResult, name: str, colour: str) -> None:
    low, high = (holes(regime.curves[f"{name}_{end}"]) for end in ("low", "high"))
    axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _members(axes: Sequence[Axes], examples: Examples, truth: Trajectories) -> None:
    """The first field of the first example, which is the median trajectory."""
    assert examples.members is not None
    x = truth.grid.coordinates().numpy()
    row = int(examples.rows[0])
    for axis, frame, members in zip(axes, examples.frames, examples.members[0].transpose(0, 1), strict=True):
        axis.plot(x, truth.fields[row, frame + 1, 0].numpy(), color=INK, lw=2.2, alpha=0.45)
        for member in members[:, 0].numpy():
            axis.plot(x, member, color=BLUE, lw=0.6, alpha=0.55)
        axis.plot(x, examples.predicted[0, frame, 0].numpy(), color=ORANGE, lw=1.1)
        _title(axis, f"{examples.names[0]} trajectory, t = {float(truth.times_s[frame + 1]):.3g} s", "x")
