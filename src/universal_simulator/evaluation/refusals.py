"""Questions that a model is not asked: about data it was trained or calibrated on, or that it cannot know."""

from __future__ import annotations

from pathlib import Path

from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import DataError, LeakageError
from universal_simulator.model.surrogate import Surrogate


def refuse_seen(surrogate: Surrogate, truth: Trajectories, file: Path) -> None:
    """Only small-eval is about a split that training looked at (validation), and only of its own data."""
    seen = set(surrogate.architecture.seen_groups)
    shared = {group for group in truth.groups if group[:GROUP_DIGITS] in seen}
    if shared:
        raise LeakageError(
            f"{file}: {len(shared)} of {len(set(truth.groups))} initial conditions were trained or validated "
            "on; evaluate on others"
        )


def refuse_calibrated(surrogate: Surrogate, truth: Trajectories, file: Path) -> None:
    """Uncertainty and rewards are never scored where they were fitted, whatever the suite."""
    architecture = surrogate.architecture
    entries = (architecture.calibration, architecture.reward, architecture.combination)
    fitted = {group for entry in entries if entry is not None for group in entry.groups}
    used = {group for group in truth.groups if group[:GROUP_DIGITS] in fitted}
    if used:
        raise LeakageError(
            f"{file}: the model's ensembles or rewards were calibrated on {len(used)} of {len(set(truth.groups))} initial "
            "conditions; evaluate on others"
        )


def refuse_foreign(surrogate: Surrogate, dataset: Dataset) -> None:
    """A data set of another equation, grid or parameter range is not what the model knows."""
    architecture = surrogate.architecture
    train = f"train one on it (`usim run CONFIG data.file={dataset.path}`)"
    if dataset.equation.name != architecture.equation:
        raise DataError(
            f"{dataset.path} holds {dataset.equation.name!r}, the model was trained on "
            f"{architecture.equation!r}; {train}"
        )
    if dataset.grid.points != architecture.points:
        raise DataError(
            f"{dataset.path} has {dataset.grid.points} points, the model was trained on {architecture.points}; bring "
            f"the data to that grid, or {train}"
        )
    length = dataset.grid.lengths[0]
    if abs(length - architecture.lengths[0]) > 1e-3 * architecture.lengths[0]:
        raise DataError(
            f"{dataset.path} is {length:g} m long, the model was trained on {architecture.lengths[0]:g} m; {train}"
        )
    names = tuple(spec.name for spec in dataset.equation.parameters)
    fields = tuple(spec.name for spec in dataset.equation.fields)
    if (fields, names) != (architecture.field_names, architecture.parameter_names):
        raise DataError(
            f"{dataset.path} holds fields {fields} under parameters {names}, the model knows "
            f"{architecture.field_names} under {architecture.parameter_names}; name them alike (`usim data import`), or {train}"
        )
    if dataset.identity == architecture.data_identity:
        return  # splits of one data set need not have the same extremes
    for name, column, (low, high) in zip(
        names, dataset.header.parameters.T, architecture.parameter_range, strict=True
    ):
        if column.min() < low - 1e-6 * abs(low) or column.max() > high + 1e-6 * abs(high):
            raise DataError(
                f"{dataset.path}: {name} {column.min():g} to {column.max():g} leaves the trained "
                f"range {low:g} to {high:g}; give data within it, or train a model on data that reach there"
            )
