"""Seconds at work where wall clocks are set, and where they are those of two hosts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from universal_simulator.executors.fence import Fence
from universal_simulator.executors.work_span import WorkSpan, since_boot


class Boot:
    now = 1000.0

    def __call__(self) -> float | None:
        return self.now


def worker_begins(folder: Path, fence: Fence, began: float) -> None:
    assert fence.issue("ours")
    (lock,) = (folder / ".jobs").glob("*.lock")
    lock.write_text(json.dumps({"pid": 1, "host": "h", "ticket": "ours", "log": "l", "began": began}))


@pytest.mark.parametrize(
    ("worker_ahead_s", "end_ahead_s", "expected"),
    [
        (0.0, 0.0, 600.0),
        # the worker's host is an hour behind, or ahead
        (-3600.0, 0.0, 700.0),
        (3600.0, 0.0, 590.0),
        # the clock was set while it worked
        (0.0, 3600.0, 700.0),
        (0.0, -3600.0, 590.0),
    ],
)
def test_a_clock_that_is_set_or_another_s_charges_no_more_than_can_be(
    tmp_path: Path, worker_ahead_s: float, end_ahead_s: float, expected: float
) -> None:
    """Pending for 100 s, seen at work for 590 s of its 600."""
    boot, fence, wall = Boot(), Fence(tmp_path, "train:a"), time.time()
    span = WorkSpan(fence, "ours", handed_in=True, clock=boot)
    boot.now += 100.0
    span.saw()
    assert span.seconds() == 0.0, "it has not begun"
    worker_begins(tmp_path, fence, wall + 100.0 + worker_ahead_s)
    for _ in range(2):
        span.saw()
        boot.now += 590.0 / 2
    span.saw()
    boot.now += 10.0
    assert span.seconds(wall + 700.0 + end_ahead_s) == pytest.approx(expected)


def test_of_one_taken_over_only_what_was_seen_is_sure(tmp_path: Path) -> None:
    boot, fence = Boot(), Fence(tmp_path, "train:a")
    worker_begins(tmp_path, fence, 5000.0)
    span = WorkSpan(fence, "ours", handed_in=False, clock=boot)
    assert span.seconds(5600.0) == 600.0
    span.saw()
    boot.now += 30.0
    span.saw()
    assert span.seconds(4000.0) == 30.0
    assert WorkSpan(fence, "another", handed_in=False, clock=boot).seconds(5600.0) == 0.0


def test_the_clock_counts() -> None:
    before = since_boot()
    time.sleep(0.01)
    after = since_boot()
    assert (before is None) == (after is None)
    assert before is None or after is None or after > before
