"""Nobody pays for an executor that was not chosen."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["cli", "executors.ray_cluster"])
def test_ray_is_never_imported(module: str) -> None:
    """Not even by its own executor, which talks HTTP to it."""
    code = (
        f"import sys, universal_simulator.{module}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'ray', 'torch', 'grpc'}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
