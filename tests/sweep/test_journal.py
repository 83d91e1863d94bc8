"""The journal's file: torn tails are told and cut, damage is refused with its line, older journals are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.errors import (
    IntegrityError,
)
from universal_simulator.run_record import content_hash
from universal_simulator.sweep.driver import rebuild_reports, run_sweep
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.state import SweepState


def test_readers_never_cut_the_journal(tmp_path: Path) -> None:
    run_sweep("smoke", tmp_path, executor=FakeExecutor())
    path = tmp_path / "journal.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"half a line')
    torn = path.read_bytes()
    SweepState(tmp_path)
    rebuild_reports(tmp_path)
    assert path.read_bytes() == torn


def test_torn_tail_is_told(tmp_path: Path) -> None:
    run_sweep("smoke", tmp_path, executor=FakeExecutor())
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b'{"torn')
    told: list[str] = []
    run_sweep("smoke", tmp_path, executor=FakeExecutor(), progress=lambda share, text: told.append(text))
    assert any("torn" in text for text in told)


def test_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for number in range(3):
        journal.append("event", value=number)
    raw = path.read_bytes()
    start = raw.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(start, len(raw)):
        path.write_bytes(raw[:length])
        again = Journal(path)
        assert len(again.events) == 2
        assert (again.cut is not None) == (length > start)
        again.append("event", value=2)
        assert [e.data["value"] for e in Journal(path).events] == [0, 1, 2]


def test_damage_is_refused_with_its_line_and_cut_nowhere(tmp_path: Path) -> None:
    """Also in a last line that has its end: it was whole once, and what it told was acted upon."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for number in range(4):
        journal.append("event", value=number)
    raw = path.read_bytes()
    for position in range(0, len(raw) - 1, 7):
        if raw[position] == 10:
            continue
        damaged = bytearray(raw)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        line = raw[:position].count(10) + 1
        with pytest.raises(IntegrityError, match=rf":{line}: .*") as caught:
            Journal(path)
        assert ("the last one" in str(caught.value)) == (line == 4)
        assert path.read_bytes() == bytes(damaged)


def test_a_journal_of_before_plan_keys_were_added_is_still_read(tmp_path: Path) -> None:
    """Stored plans lack keys of later versions: their hash is of what was stored."""
    state = run_sweep("smoke", tmp_path / "new", executor=FakeExecutor())
    old = Journal(tmp_path / "old" / "journal.jsonl")
    for event in state.journal.events:
        data = dict(event.data)
        if event.kind == "sweep_started":
            plan = dict(data["plan"])
            plan["rounds"] = [
                {
                    **r,
                    "members": [
                        {k: m[k] for k in ("config", "forced", "cost", "ablates")} for m in r["members"]
                    ],
                }
                for r in plan["rounds"]
            ]
            data = {"plan": plan, "plan_hash": content_hash(plan)}
        if event.kind == "runs_planned":
            keys = ("run_id", "config", "seed", "role", "round", "cost")
            data["runs"] = [{k: run[k] for k in keys} for run in data["runs"]]
        old.append(event.kind, **data)
    again = SweepState(tmp_path / "old")
    assert again.plan == state.plan
    assert [run.key for run in again.runs] == [run.key for run in state.runs]
