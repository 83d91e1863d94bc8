"""What can be read from a job's log: its last words, its progress, its answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from universal_simulator.credentials import masked
from universal_simulator.errors import ExecutorError

#: bytes at the end of a log that hold its last lines, however long it has grown
TAIL_BYTES = 16_384


def tail(path: Path, lines: int = 12) -> str:
    """The last lines with secrets masked, or a remark that there is no log."""
    if not path.exists():
        return "(no log)"
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return masked("\n".join(text.splitlines()[-lines:]))


def live_share(path: Path) -> float:
    """What a running job last said of its progress (`phase: 43 %`), below 1."""
    found = re.findall(r"^\w+: +(\d+) %", tail(path), re.MULTILINE)
    return min(max(map(int, found)) / 100, 0.99) if found else 0.0


def answer(path: Path) -> dict[str, Any]:
    """The last line of JSON that a `--json` command wrote."""
    if path.exists():
        for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            if line.startswith("{"):
                value = json.loads(line)
                assert isinstance(value, dict)
                return value
    raise ExecutorError(f"{path} holds no result line")
