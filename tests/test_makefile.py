"""What the Makefile would do; nothing is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def steps(*words: str) -> str:
    """The commands of an installation from nothing."""
    command = ["make", "--dry-run", "--always-make", ".venv/installed", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_pytorch_comes_from_the_index_that_was_asked_for_and_nothing_else_does() -> None:
    asked = [line for line in steps("TORCH_INDEX=https://wheels.example/cpu").splitlines() if "pip" in line]
    assert ["--index-url https://wheels.example/cpu torch==" in line for line in asked] == [True, False]
    assert "index-url" not in steps("TORCH_INDEX=")
