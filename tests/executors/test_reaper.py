"""Labels, and the reaper's rule: what is ours and wanted, ours and an orphan, not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.executors.vast_faults import LIST_FAULTS
from tests.executors.vast_world import LABEL, World, raised
from universal_simulator.errors import UserError
from universal_simulator.executors.reaper import Journalled, decide, new_label, parse_label, reap
from universal_simulator.executors.vast_replies import (
    Instance,
    UnknownOutcome,
)

# --- labels and the reaper's rule ---

WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.]{0,12}", fullmatch=True)


@given(WORD, WORD, st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True), st.integers(0, 999))
def test_a_label_is_read_back_as_it_was_made(project: str, sweep: str, run: str, attempt: int) -> None:
    label = new_label(project, sweep, run, attempt)
    assert parse_label(str(label)) == label
    assert (label.project, label.sweep, label.run, label.attempt) == (project, sweep, run, attempt)
    assert new_label(project, sweep, run, attempt) != label


@pytest.mark.parametrize(
    "parts",
    [
        ("a-b", "s", "r", 0),
        ("a", "s-1", "r", 0),
        ("a", "", "r", 0),
        ("a", "s", "r r", 0),
        ("a", "s", "r", -1),
    ],
)
def test_parts_that_make_no_label_are_refused(parts: tuple[str, str, str, int]) -> None:
    with pytest.raises(UserError, match="is no label"):
        new_label(*parts)


@given(st.none() | st.text() | st.from_regex(r"usim-s1-[a-z0-9-]*", fullmatch=True))
def test_foreign_labels_are_read_or_not_but_never_break(text: str | None) -> None:
    label = parse_label(text)
    assert label is None or str(label) == text


def listing(**labels: str | None) -> list[Instance]:
    return [Instance(id=int(name[1:]), label=label) for name, label in labels.items()]


def test_the_rule_adopts_keeps_and_destroys_ours_and_names_no_other() -> None:
    def name(n: int, sweep: str = "s1", project: str = "usim") -> str:
        return f"{project}-{sweep}-run-{n}-{n:08x}"

    journalled = [
        Journalled(name(1)),
        Journalled(name(1), 1),
        Journalled(name(2)),
        Journalled(name(3), 3),
        Journalled(name(3), 3, wanted=False),
        Journalled(name(4), 40),
        Journalled(name(5), 5),
    ]
    seen = listing(
        i1=name(1),
        i22=name(2),
        i21=name(2),
        i3=name(3),
        i41=name(4),
        i6=name(6),
        i7=name(7, sweep="s10"),
        i8=name(8, project="usim2"),
        i9="usim-s1-",
        i10=None,
        i11="usim-s1-run-01-00000001",
    )

    def ids(instances: tuple[Instance, ...]) -> list[int]:
        return [instance.id for instance in instances]

    verdict = decide(journalled, seen, project="usim", sweep="s1")
    assert ids(verdict.keep) == [1]
    assert ids(verdict.adopt) == [21]
    assert ids(verdict.destroy) == [3, 6, 22, 41]
    assert verdict.missing == (5, 40)
    everywhere = decide(journalled, seen, project="usim", sweep=None)
    assert ids(everywhere.destroy) == [3, 6, 7, 22, 41]


@pytest.mark.parametrize("mood", [*LIST_FAULTS, "503"])
def test_an_unknown_listing_decides_nothing(world: World, mood: str) -> None:
    world.server.rent(LABEL)
    world.server.plan("list", *[mood] * 30)
    raised(UnknownOutcome, reap, world.client, [], project="usim", sweep="s1")
    assert not any("DELETE" in request for request in world.server.requests)


def test_listings_that_lie_once_or_twice_hide_no_orphan(world: World) -> None:
    orphan, kept = world.server.rent(LABEL), world.server.rent("usim-s1-run-1-00000002")
    journal = [Journalled("usim-s1-run-1-00000002", kept.id)]
    world.server.plan("list", "blank", "blank")
    verdict = reap(world.client, journal, project="usim", sweep="s1")
    assert [instance.id for instance in verdict.destroy] == [orphan.id]
    assert (verdict.missing, [i.id for i in verdict.keep]) == ((), [kept.id])
    assert list(world.server.machines) == [kept.id]
