"""The ablation of test-time compute on a tiny model: one command, one joint table, every row and control."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch

from tests.inference.test_search import model, world
from tests.scripts import script
from universal_simulator.evaluation.equal_cost import KINDS, Answer, Spent


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return script("ttc_ablation")


def test_seeds_are_pooled_per_initial_condition_before_they_are_paired(ablation: ModuleType) -> None:
    def answers(*rows: list[float]) -> list[Answer]:
        return [Answer(torch.tensor(row), Spent(1, 1, 1), 1) for row in rows]

    groups = ("a", "b", "c", "d")
    theirs = answers([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])  # in the mean 2.5 everywhere
    ours = answers([0.0, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0])
    found = ablation.paired(ours, theirs, groups)
    assert (found["gain"], found["low"], found["high"]) == pytest.approx((0.2, 0.2, 0.2))
    assert found["by_seed"] == pytest.approx([0.4, 0.0])


@pytest.mark.slow
def test_every_row_stands_in_the_table_and_controls_spend_what_they_control(ablation: ModuleType) -> None:
    truth = world(3)
    seeds = [ablation.seed_of(model(), truth) for _ in range(2)]
    table = ablation.joint(seeds, truth.groups)
    json.dumps(table, allow_nan=False)
    rows = table["rows"]
    assert {"operator", "ensemble mean of 2", "representations 2", "classical solver, same grid"} <= set(rows)
    search = rows[ablation.CONTROLLED]
    for name in ("at random", "first"):
        control = rows[f"{ablation.CONTROLLED}, {name}"]
        assert control["evaluations"] == pytest.approx(search["evaluations"], rel=0.3)
    assert set(search["at_equal"]) == set(KINDS)
    for found in search["at_equal"].values():
        assert found[found["best"]]["gain"] == min(v["gain"] for k, v in found.items() if k != "best")
    assert rows["operator"]["gain_over_operator"]["gain"] == 0
    ablation.told("nu=0.05", table)
