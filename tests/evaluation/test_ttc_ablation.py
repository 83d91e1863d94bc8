"""The ablation of test-time compute on a tiny model: one command, one joint table, every row and control."""

from __future__ import annotations

import copy
import json
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.inference.test_regressed_answer import entry, size_of
from tests.inference.test_search import STEPS, model, world
from tests.model.small_models import LATENT, architecture
from tests.scripts import script
from universal_simulator.evaluation.equal_cost import KINDS, Answer, Spent
from universal_simulator.model.surrogate import Surrogate


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


def fitted(made: Surrogate) -> Surrogate:
    """With a combination that moves the mean somewhere."""
    made = copy.deepcopy(made)
    weights = made.add_combination(entry(*size_of(made))).weights
    weights.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    return made


def with_student() -> Surrogate:
    """Whose student is a network of its own."""
    made = copy.deepcopy(model())
    assert made.corrector is not None
    made.corrector.add_student()
    made.use_sampler("student")
    assert made.corrector.student is not None
    torch.nn.init.normal_(made.corrector.student.project.weight, std=0.3)
    return made


def wider() -> Surrogate:
    torch.manual_seed(1)
    options = {"operator": {"hidden": 128, "heads": 8, "group_size": 16}}
    made = architecture(LATENT, ("galilean",), 4, points=32, latent_tokens=8, latent_dim=8, **options)
    return Surrogate(made).eval()


@pytest.fixture(scope="module")
def table(ablation: ModuleType) -> dict[str, Any]:
    """Of one seed: the model with teacher and student, and a wider operator as its control."""
    truth = world(2)
    samplers = {"teacher": with_student(), "student": with_student()}
    samplers["teacher"].use_sampler("teacher")
    seed = ablation.seed_of(fitted(model()), truth, "nu=0.05", samplers=samplers, control=fitted(wider()))
    found = ablation.joint([seed], truth.groups)
    ablation.told("nu=0.05", found)
    json.dumps(found, allow_nan=False)
    return found


def test_every_row_stands_in_the_table_and_controls_spend_what_they_control(
    ablation: ModuleType, table: dict[str, Any]
) -> None:
    rows = table["rows"]
    assert {"operator", "ensemble centre of 2", "representations 2", "classical solver, same grid"} <= set(
        rows
    )
    search = rows[ablation.CONTROLLED]
    for name in ("at random", "first"):
        control = rows[f"{ablation.CONTROLLED}, {name}"]
        assert control["evaluations"] == pytest.approx(search["evaluations"], rel=0.3)
    assert set(search["at_equal"]) == set(KINDS)
    for found in search["at_equal"].values():
        own = {k: v["gain"] for k, v in found.items() if k != "best" and k not in ablation.OF_CONTROLS}
        assert found[found["best"]]["gain"] == min(own.values())
    assert rows["operator"]["gain_over_operator"]["gain"] == 0
    assert {f"{one} / {other}" for one, other in ablation.PAIRS} == set(table["pairs"])


def test_teacher_student_and_capacity_control_are_rows_of_their_own(
    ablation: ModuleType, table: dict[str, Any]
) -> None:
    rows = table["rows"]
    teacher, student = rows["teacher, mean of 2"], rows["student, mean of 2"]
    assert teacher["nrmse"] != student["nrmse"]
    assert teacher["evaluations"] == 2 * (STEPS + 6 * STEPS)  # three Heun steps are six evaluations
    assert student["evaluations"] == 2 * (STEPS + STEPS)
    alone, twice = rows["capacity control"], rows["control, representations 2"]
    assert alone["evaluations"] == rows["operator"]["evaluations"] == STEPS
    assert alone["operations"] > 1.5 * rows["operator"]["operations"], "told in the model's operator steps"
    assert twice["nrmse"] != alone["nrmse"]
    search = rows[ablation.CONTROLLED]
    for kind in ("evaluations", "operations"):
        found = search["at_equal"][kind]
        assert set(ablation.OF_CONTROLS) <= set(found)
        (size,) = found["control representations"]["sizes"]
        assert size >= 2
    sizes = {kind: search["at_equal"][kind]["control representations"]["sizes"][0] for kind in KINDS}
    assert sizes["operations"] <= search["at_equal"]["operations"]["representations"]["sizes"][0], "dearer"
