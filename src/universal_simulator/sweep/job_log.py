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
    """The last JSON object that a `--json` command wrote to its log, on one line or on several."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for index in reversed([number for number, line in enumerate(lines) if line.startswith("{")]):
        try:
            value, _ = json.JSONDecoder().raw_decode("\n".join(lines[index:]))
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            return value
    raise ExecutorError(f"{path} holds no result line")
