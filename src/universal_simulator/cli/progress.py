"""Progress with ETA: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

#: share of what a phase began with that must be done before its speed is believed
TOLD_FROM = 0.05


class ProgressLine:
    """`update(phase, done, total, detail)`; writes to stderr. A new phase starts a new estimate.

    estimates: False where `detail` says better how long it takes than an even pace would.
    """

    def __init__(self, interval_s: float | None = None, *, estimates: bool = True) -> None:
        self.estimates = estimates
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
        made, asked = done - self.first_done, total - self.first_done
        text = f"{phase}: {100 * done / total:3.0f} %"
        if self.estimates and done < total and made > 0 and made >= TOLD_FROM * asked:
            text += f", {_duration((now - self.started) * (total - done) / made)} left"
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
