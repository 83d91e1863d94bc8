"""What can be read from a job's log: its last words, its progress, its answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from universal_simulator.credentials import masked
from universal_simulator.errors import ExecutorError

#: phase of `usim run` -> from which share of the job to which (of stochastic members trained in the embedded
#: profile: .70 to .77 training, .13 to .21 calibration, .10 to .18 small-eval); another job's phase is all of it
PHASES = {
    "train": (0.0, 0.7),
    "calibration": (0.7, 0.88),
    "small_eval": (0.88, 1.0),
    "small_eval_ttc": (0.99, 1.0),
}
#: seconds of a training go with its share of optimiser steps to this power: the cheap ones (the codec's, those of
#: short rollouts) come first
STEEPER = 1.4
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
    """How far a running job last said it is (`phase: 43 %`), of all its phases, below 1."""
    found = re.findall(r"^(\w+): +(\d+) %", tail(path), re.MULTILINE)
    if not found:
        return 0.0
    phase, percent = found[-1]
    begin, end = PHASES.get(phase, (0.0, 1.0))
    done = (int(percent) / 100) ** (STEEPER if phase == "train" else 1.0)
    return min(begin + (end - begin) * done, 0.99)


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
