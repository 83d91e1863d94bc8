"""Progress with ETA: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time


class ProgressLine:
    """`update(phase, done, total, detail)`; writes to stderr. A new phase starts a new estimate."""

    def __init__(self, interval_s: float | None = None) -> None:
        self.terminal = sys.stderr.isatty()
        self.interval_s = interval_s or (0.3 if self.terminal else 20.0)
        self.phase = ""
        self.first_done = 0.0
        self.started = self.told = time.monotonic()

    def update(self, phase: str, done: float, total: float, detail: str = "") -> None:
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.started, self.first_done = phase, now, done
        elif now - self.told < self.interval_s and done < total:
            return
        self.told = now
        made = done - self.first_done
        eta = (now - self.started) * (total - done) / made if made > 0 else None
        text = f"{phase}: {100 * done / total:3.0f} %"
        if eta is not None and done < total:
            text += f", {_duration(eta)} left"
        if detail:
            text += f"; {detail}"
        if self.terminal:
            sys.stderr.write(f"\r\033[K{text}" + ("\n" if done >= total else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
