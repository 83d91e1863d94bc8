"""Splits by initial condition: one group lies in one split under every parameter value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from universal_simulator.errors import DataError, LeakageError

SPLITS = ("train", "calibration", "validation", "selection", "test")
#: where a file brings no split of its own
FRACTIONS = {"train": 0.6, "calibration": 0.1, "validation": 0.1, "selection": 0.1, "test": 0.1}
#: the calibration split's two halves: for recalibrating uncertainty, for training learned rewards
CALIBRATION_HALVES = ("calibration_uncertainty", "calibration_rewards")


def split_by_group(groups: Sequence[str], *, source: Path | None = None) -> np.ndarray:
    """Split index per row, from group hashes alone: sorted hashes, cut by FRACTIONS. source: for a refusal."""
    distinct = sorted(set(groups))
    if len(distinct) < len(SPLITS):
        raise DataError(
            f"{_of(source)}{len(distinct)} distinct initial conditions cannot fill {len(SPLITS)} splits; use the file "
            "for evaluation only (`usim evaluate RUN --data FILE`), or bring more trajectories"
        )
    edges = np.cumsum([FRACTIONS[name] for name in SPLITS])
    counts = np.maximum(np.diff(np.floor(edges * len(distinct)), prepend=0), 1).astype(int)
    counts[0] += len(distinct) - counts.sum()
    labels = np.repeat(np.arange(len(SPLITS)), counts)
    of_group = dict(zip(distinct, labels.tolist(), strict=True))
    return np.array([of_group[group] for group in groups], dtype=np.int8)


def calibration_halves(
    groups: Sequence[str], *, source: Path | None = None
) -> tuple[frozenset[str], frozenset[str]]:
    """The groups of the calibration split as two halves, in the order of CALIBRATION_HALVES.

    By sorted hash, so from the groups alone: whatever is loaded of a half later, the other never
    shares an initial condition with it. An odd one goes to the first. One group has no two halves.
    """
    distinct = sorted(set(groups))
    if len(distinct) < 2:
        raise DataError(
            f"{_of(source)}the calibration split has {len(distinct)} initial condition(s); its two halves (recalibration "
            "and learned rewards) need at least 2, bring more trajectories"
        )
    middle = (len(distinct) + 1) // 2
    return frozenset(distinct[:middle]), frozenset(distinct[middle:])


def _of(source: Path | None) -> str:
    return "" if source is None else f"{source}: "


def audit(groups: Mapping[str, Sequence[str]]) -> None:
    """Raise LeakageError if any initial condition appears in two splits."""
    seen: dict[str, str] = {}
    shared: dict[tuple[str, str], int] = {}
    for split, members in groups.items():
        for group in set(members):
            other = seen.setdefault(group, split)
            if other != split:
                shared[other, split] = shared.get((other, split), 0) + 1
    if shared:
        found = "; ".join(f"{n} in both {a} and {b}" for (a, b), n in sorted(shared.items()))
        raise LeakageError(
            f"initial conditions appear in two splits: {found}; the same first frame under "
            "another parameter value counts too. Regenerate the data or drop its 'split' dataset"
        )
