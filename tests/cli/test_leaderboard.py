"""`usim leaderboard` in a terminal of 80 columns: what it is about is never cut."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Here
from universal_simulator.sweep.leaderboard import COLUMNS, leaderboard_path

RUNS = {
    "ablation_baseline_plain_frame-s0-829e4902ac": ("ablation", "0.0314159"),
    "sweep_round_b_capacity_up-s10-40ff17b90b": ("full_eval", "0.0000123456"),
    "rerun_txxoc8a8-s0-723af44918": ("champion", "10.0"),
    "fno_reference-s0-74f262afd9": ("reference", ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = leaderboard_path(tmp_path)
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="0.00123456789")
        writer.writeheader()
        for regime in ("nu=0.01", "nu=0.1"):
            for run_id, (label, nrmse) in RUNS.items():
                writer.writerow(
                    {
                        "run_id": run_id,
                        "label": label,
                        "nrmse": nrmse,
                        "suite": "full_eval",
                        "regime": regime,
                        "params": 2057720,
                        "test_openings": 1,
                    }
                )
    return tmp_path


def test_eighty_columns_hold_every_run_id_and_nrmse(
    folder: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = here("leaderboard", str(folder))
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "full_eval, nu=0.01"
    assert all(len(line) <= 80 for line in lines[:-1]), max(lines[:-1], key=len)
    for nrmse, run_id in zip(("0.03142", "1.235e-05", "10", "-"), RUNS, strict=True):
        found = [line.split() for line in lines if run_id in line.split()]
        assert [words[0] for words in found] == [nrmse] * 2, run_id
    assert lines[-1].startswith("sealed test split: opened 1 time;")


def test_a_wide_terminal_has_gap_and_parameters_and_json_every_column(
    folder: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert here("leaderboard", str(folder)).out.count(" 0.001235   2057720 ") == 2 * len(RUNS)
    rows = json.loads(here("leaderboard", str(folder), "--json").out)
    assert list(rows[0]) == list(COLUMNS)
    assert {row["run_id"] for row in rows} == set(RUNS)
