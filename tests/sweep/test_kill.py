"""The real thing: a driver killed with SIGKILL ends in the same results, and owns up to what it spent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.killed_drivers import EVERYTHING, HOW, Diverging, course, paid_twice
from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.state import JOURNAL, SweepState
from universal_simulator.sweep.work_clock import GRACE_S

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "kill_sweep.py"


def killed(folder: Path, kind: str, points: Sequence[str], *, plan: str = "smoke") -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "tests.sweep.killed_drivers", str(folder), kind, plan, *points]
    answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def held(found: Sequence[dict[str, Any]]) -> None:
    """Same results; one paid end for each intent; never charged less than was worked, and little more; no job
    that ended well is submitted again.
    """
    whole = found[0]
    for point in found:
        assert point["digest"] == whole["digest"], point
        assert point["paid"] == point["intents"], point
        assert point["paid_twice"] == [], point
        assert point["attempts"] >= point["launches"] >= whole["launches"], point
        # ends are journalled to the millisecond
        assert point["seconds"] >= point["worked_s"] - 0.001 * len(point["paid"]), point
        # an intent's time is rounded down to the second
        assert point["seconds"] <= point["worked_s"] + (GRACE_S + 1) * point["abandoned"] + 0.1, point


@pytest.mark.parametrize(
    ("kind", "points"),
    [("mortal", ["before:6", "torn:13", "after:16"]), ("lasting", ["before:8", "after:5", "torn:20"])],
)
def test_a_driver_killed_at_an_append_doubles_nothing_and_hides_nothing(
    tmp_path: Path, kind: str, points: list[str]
) -> None:
    found = killed(tmp_path, kind, points)
    held(found)
    assert len(found) == 1 + len(points)
    if kind == "mortal":
        assert all(point["abandoned"] for point in found[1:])
        assert all(point["launches"] > found[0]["launches"] for point in found[1:3])
    else:  # what goes on without a driver is never launched twice
        assert all(point["launches"] == found[0]["launches"] for point in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mortal", "lasting"])
@pytest.mark.parametrize("how", HOW)
def test_killed_at_every_append(tmp_path: Path, kind: str, how: str) -> None:
    found = killed(tmp_path, kind, [f"{how}:all"])
    held(found)
    assert len(found) == 1 + found[0]["events"] > 30


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), [("mortal", "after"), ("lasting", "torn")])
def test_killed_at_every_append_of_a_sweep_that_has_everything(tmp_path: Path, kind: str, how: str) -> None:
    """Canary, calibrations, a healed member, a budget used up and amended, search, refinement, both scores."""
    found = killed(tmp_path, kind, [f"{how}:all"], plan="everything")
    held(found)
    assert len(found) == 1 + found[0]["events"] > 90
    assert set(EVERYTHING) <= set(found[0]["kinds"])
    if kind == "lasting":
        assert all(point["launches"] == found[0]["launches"] for point in found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SweepState:
    return course("everything", tmp_path_factory.mktemp("whole") / "x", Diverging)


def cut(whole: SweepState, folder: Path, point: int) -> SweepState:
    """What a driver leaves that is killed before this event, gone on with."""
    shutil.copytree(whole.folder, folder)
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join(lines[:point]))
    return course("everything", folder, Diverging)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_at_an_event_a_sweep_that_has_everything_ends_alike(
    tmp_path: Path, whole: SweepState, step: int
) -> None:
    """The same results, and nothing is paid twice."""
    assert set(EVERYTHING) <= {event.kind for event in whole.journal.events}
    for point in range(1, len(whole.journal.events), step):
        state = cut(whole, tmp_path / "cut", point)
        assert result_digest(state) == result_digest(whole), point
        assert paid_twice(state) == [], point
        shutil.rmtree(tmp_path / "cut")


def test_what_diverged_is_not_trained_again_because_its_driver_died_before_it_said_so(
    tmp_path: Path, whole: SweepState
) -> None:
    (given_up,) = whole.journal.of("job_given_up")
    state = cut(whole, tmp_path / "cut", given_up.number)
    assert state.attempts(given_up.data["job"]) == 1
    assert len(state.journal.of("job_given_up")) == 1
    assert result_digest(state) == result_digest(whole)


@pytest.mark.slow
def test_sweep_killed_five_times_ends_in_the_same_results(tmp_path: Path) -> None:
    words = [str(tmp_path / "killed"), "--whole", str(tmp_path / "whole"), "--kills", "5", "--seconds", "50"]
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), "smoke", *words], capture_output=True, text=True, timeout=900
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert len(json.loads(answer.stdout)["kills"]) >= 3
