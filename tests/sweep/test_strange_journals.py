"""A journal of a newer version, and one written while the clock jumped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.errors import ExecutorError, IntegrityError
from universal_simulator.sweep import journal as journal_module
from universal_simulator.sweep.driver import rebuild_reports, run_sweep
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.plan import load_plan

PLAN = load_plan("smoke")


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sweep(PLAN, tmp_path, executor=FakeExecutor())
    with monkeypatch.context() as newer:
        newer.setattr(journal_module, "VERSION", journal_module.VERSION + 1)
        Journal(tmp_path / "journal.jsonl").append("something_new", value=1)
    before = (tmp_path / "journal.jsonl").read_bytes()
    executor = FakeExecutor()
    for attempt in (
        lambda: run_sweep(PLAN, tmp_path, executor=executor),
        lambda: rebuild_reports(tmp_path),
    ):
        with pytest.raises(IntegrityError, match=r"newer version .*upgrade universal-simulator"):
            attempt()
    assert executor.submitted == []
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_clock_set_back_changes_nothing_but_the_times_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_sweep(PLAN, tmp_path / "whole", executor=FakeExecutor())
    member = next(run for run in whole.runs if run.role == "member")
    with pytest.raises(ExecutorError, match="incomplete"):
        run_sweep(PLAN, tmp_path / "real", executor=FakeExecutor(exit_codes={f"train:{member.run_id}": [1]}))
    long_ago = time.gmtime(0)
    monkeypatch.setattr(journal_module.time, "gmtime", lambda *seconds: long_ago)
    again = FakeExecutor()
    resumed = run_sweep(PLAN, tmp_path / "real", executor=again)
    assert again.submitted[0] == f"train:{member.run_id}"
    assert [event.number for event in resumed.journal.events] == list(range(len(resumed.journal.events)))
    assert resumed.journal.events[-1].at < resumed.journal.events[0].at
    assert result_digest(resumed) == result_digest(whole)
