"""Regimes: one per value of a few, a few bins of many, alike in every split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from universal_simulator.data.arrays import import_array
from universal_simulator.data.regimes import BINS, MANY, RegimeRule
from universal_simulator.data.splits import SPLITS
from universal_simulator.physics.equations import BURGERS, undeclared


def rows(values: np.ndarray) -> dict[str, torch.Tensor]:
    column = values[:, None]
    return RegimeRule.of(column).rows(torch.from_numpy(column).float(), BURGERS)


def test_a_few_values_are_a_regime_each() -> None:
    published = np.array([0.001, 0.002, 0.004, 0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 1.0, 2.0, 4.0])
    found = rows(np.tile(published, 5))
    assert list(found) == [f"nu={value:g}" for value in published]
    assert all(len(part) == 5 for part in found.values())


def test_many_values_are_a_few_bins_of_equal_count_named_by_their_ends() -> None:
    values = np.random.default_rng(0).permutation(np.geomspace(0.001, 1.0, 200))
    found = rows(values)
    assert [len(part) for part in found.values()] == [50] * BINS
    for label, part in found.items():
        low, high = (float(end) for end in label.removeprefix("nu=").split(".."))
        assert values[part.numpy()].min() == pytest.approx(low, rel=1e-3)
        assert values[part.numpy()].max() == pytest.approx(high, rel=1e-3)
    assert next(iter(found)).startswith("nu=0.001..")
    assert list(found)[-1].endswith("..1")


@given(st.lists(st.floats(2**-13, 10, width=32), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_every_trajectory_lies_in_exactly_one_regime_and_equal_values_lie_together(
    values: list[float],
) -> None:
    given_values = np.array(values)
    found = rows(given_values)
    together = torch.cat(list(found.values())).sort().values
    assert torch.equal(together, torch.arange(len(values)))
    distinct = len({f"{value:.6g}" for value in values})
    assert len(found) == distinct if len(set(values)) <= MANY else len(found) <= BINS
    regime = {int(row): label for label, part in found.items() for row in part}
    assert all(len({regime[i] for i, v in enumerate(values) if v == value}) == 1 for value in values)


def test_a_value_most_trajectories_share_is_never_cut() -> None:
    found = rows(np.concatenate([np.full(150, 0.5), np.linspace(0.1, 0.4, 30), np.linspace(0.6, 0.9, 30)]))
    (home,) = [part for part in found.values() if 0 in part]
    assert set(range(150)) <= set(home.tolist())


def test_no_parameter_is_one_regime() -> None:
    nothing = RegimeRule.of(np.empty((3, 0))).rows(torch.empty(3, 0), undeclared(["u"], []))
    assert list(nothing) == ["all"]
    assert nothing["all"].tolist() == [0, 1, 2]


def test_a_users_array_with_a_value_for_every_trajectory_has_the_same_labels_everywhere(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(1)
    np.save(tmp_path / "mine.npy", generator.normal(size=(120, 4, 8)))
    data = import_array(
        tmp_path / "mine.npy",
        tmp_path / "mine.hdf5",
        axes=("trajectory", "time", "x"),
        dt_s=0.1,
        dx=0.1,
        parameter="depth",
        values=generator.uniform(1, 5, 120),
    )
    assert len(data.info.regimes) == BINS
    for split in (*SPLITS, "all"):
        part = data.load(split)
        assert set(part.regimes()) <= set(data.info.regimes), split
        half = part.subset(torch.arange(len(part) // 2))
        assert set(half.regimes()) <= set(part.regimes()), split
    assert tuple(data.load("all").regimes()) == data.info.regimes
