"""The real thing: a driver killed with SIGKILL again and again ends in the same results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_sweep.py"


@pytest.mark.slow
def test_sweep_killed_five_times_ends_in_the_same_results(tmp_path: Path) -> None:
    words = [str(tmp_path / "killed"), "--whole", str(tmp_path / "whole"), "--kills", "5", "--seconds", "50"]
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), "smoke", *words], capture_output=True, text=True, timeout=900
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert len(json.loads(answer.stdout)["kills"]) >= 3
