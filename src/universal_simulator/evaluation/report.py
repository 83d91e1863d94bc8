"""`reports/eval_{run_id}.{json,csv,html}`: true, readable, self-contained, without JavaScript."""

from __future__ import annotations

import base64
import csv
import io
from typing import TYPE_CHECKING

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.run_record import (
    EvaluationRecord,
    RunFolder,
    RunRecord,
    write_atomically,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("suite", "regime", "metric", "value", "low", "high", "unit", "better", "applicable", "reason")


def write_report(
    folder: RunFolder, record: RunRecord, suite: str, *, truth: Trajectories, predictions: dict[str, Tensor]
) -> None:
    """All three files of the latest evaluation `suite` (json and csv hold every suite)."""
    evaluation = record.evaluations[suite]
    write_json(folder.report("json"), record)
    write_atomically(folder.report("csv"), metrics_csv(record))
    pictures = {
        label: field_picture(truth.subset(rows), predictions[label], evaluation, label)
        for label, rows in truth.regimes().items()
    }
    curves = {label: curve_picture(evaluation, label) for label in evaluation.result.regimes}
    environment = Environment(
        loader=PackageLoader("universal_simulator.evaluation"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("evaluation.html").render(
        record=record, evaluation=evaluation, pictures=pictures, curves=curves
    )
    write_atomically(folder.report("html"), page)


def metrics_csv(record: RunRecord) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for suite, evaluation in sorted(record.evaluations.items()):
        for regime, result in evaluation.result.regimes.items():
            for name, metric in sorted(result.metrics.items()):
                row = (metric.value, metric.low, metric.high, metric.unit, metric.better)
                writer.writerow((suite, regime, name, *row, metric.applicable, metric.reason))
    return buffer.getvalue()


def field_picture(part: Trajectories, predicted: Tensor, evaluation: EvaluationRecord, label: str) -> str:
    """Space-time truth, prediction, error of a median, a p95 and the worst trajectory (PNG, base64)."""
    errors = torch.tensor(evaluation.result.regimes[label].per_group["nrmse"])
    order = errors.argsort()
    picks = {
        "median": int(order[len(order) // 2]),
        "95th percentile": int(order[min(len(order) - 1, int(0.95 * len(order)))]),
        "worst": int(order[-1]),
    }
    figure = _figure(7.2, 5.4)
    axes = figure.subplots(len(picks), 3, sharex=True, sharey=True)
    x_end, t_end = part.grid.lengths[0], float(part.times_s[-1])
    for row, (name, index) in enumerate(picks.items()):
        truth = part.fields[index, 1:, 0].T
        guess = predicted[index, :, 0].T
        scale = float(truth.abs().max())
        error_scale = max(float((guess - truth).abs().nan_to_num(0.0).max()), 1e-9)
        for column, (values, limit) in enumerate(
            ((truth, scale), (guess, scale), (guess - truth, error_scale))
        ):
            axis = axes[row][column]
            image = axis.imshow(
                values.numpy(),
                origin="lower",
                aspect="auto",
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                extent=(0, t_end, 0, x_end),
                interpolation="nearest",
            )
            figure.colorbar(image, ax=axis, pad=0.02).ax.tick_params(labelsize=6)
            axis.tick_params(labelsize=6)
            if row == 0:
                axis.set_title(("truth", "prediction", "prediction - truth")[column], fontsize=8)
            if column == 0:
                axis.set_ylabel(f"{name}\nnrmse {errors[index]:.3g}\nx", fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("t [s]", fontsize=7)
    return _png(figure)


def curve_picture(evaluation: EvaluationRecord, label: str) -> str:
    """Error and correlation against rollout step, with the trivial predictors as lines."""
    regime = evaluation.result.regimes[label]
    figure = _figure(7.2, 2.4)
    left, right = figure.subplots(1, 2)
    steps = range(1, len(regime.curves["nrmse"]) + 1)
    left.semilogy(steps, [v if v else float("nan") for v in regime.curves["nrmse"]], color="#1f4e79")
    for name, metrics in evaluation.result.references.get(label, {}).items():
        value = metrics["nrmse"].value
        if value and value > 0:
            style = ":" if name.startswith("classical") else "--"
            left.axhline(value, color="#999999", lw=0.7, ls=style)
            left.text(len(steps), value, name, fontsize=5, ha="right", va="bottom", color="#555555")
    left.set_xlabel("rollout step", fontsize=7)
    left.set_ylabel("nrmse (mean over trajectories)", fontsize=7)
    right.plot(
        steps, [v if v is not None else float("nan") for v in regime.curves["correlation"]], color="#1f4e79"
    )
    right.axhline(0.8, color="#999999", lw=0.7, ls="--")
    right.set_xlabel("rollout step", fontsize=7)
    right.set_ylabel("correlation with the truth", fontsize=7)
    for axis in (left, right):
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=80)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()
