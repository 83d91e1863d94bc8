"""When an instance that does not answer may be given up: never on one witness's word.

    the instance   does not answer over its shell, several times, over `unreachable_s` seconds
    the service    says, several times, that it is stopped, offline, unknown or not there

Both together give it up: it is stopped and its disk kept; at once, and as gone, where complete listings do
not show it any more. Where the service calls
it well, four times as long is waited; while the service does not answer either, the fault may be this
machine's own network, and the time does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from universal_simulator.executors.vast_replies import Instance

#: well: the service shows it at work; ill: stopped, exited, offline; absent: complete listings lack it
Health = Literal["well", "ill", "absent"]
WITNESSES = 3
#: how much longer an instance is waited for that the service calls well
PATIENCE = 4.0


def health_of(instance: Instance | None) -> Health:
    """`instance` as the service shows it; None where complete listings do not."""
    if instance is None:
        return "absent"
    ill = instance.outbid or instance.silent or instance.actual_status in ("exited", "stopped")
    return "ill" if ill else "well"


@dataclass
class Silence:
    """Counted from the last answer on; times in seconds."""

    unreachable_s: float
    unanswered: int = 0
    #: the last look had no answer
    now_silent: bool = False
    called_ill: int = 0
    called_absent: int = 0
    quiet_s: float = 0.0
    _last: float | None = None

    def heard(self) -> None:
        """It answered: everything before is forgotten."""
        self.unanswered = self.called_ill = self.called_absent = 0
        self.quiet_s, self._last, self.now_silent = 0.0, None, False

    def unheard(self, now: float, health: Health | None) -> None:
        """It did not answer at `now`, and the service says `health`; None where that is silent too."""
        self.now_silent = True
        if health is not None and self._last is not None:
            self.quiet_s += max(0.0, now - self._last)
        self._last = now if health is not None else None
        self.unanswered += health is not None
        self.called_ill += health in ("ill", "absent")
        self.called_absent = (
            self.called_absent + 1 if health == "absent" else 0 if health else self.called_absent
        )

    @property
    def gone(self) -> bool:
        """Complete listings do not show it any more."""
        return min(self.unanswered, self.called_absent) >= WITNESSES

    @property
    def verdict(self) -> str | None:
        """Why it may be given up, or None while it may not."""
        if self.gone:
            return f"silent, and {self.called_absent} times in a row the service knew no such instance"
        if min(self.unanswered, self.called_ill) >= WITNESSES and self.quiet_s >= self.unreachable_s:
            return f"silent for {self.quiet_s:.0f} s, and the service says {self.called_ill} times it is not running"
        if self.unanswered >= PATIENCE * WITNESSES and self.quiet_s >= PATIENCE * self.unreachable_s:
            return f"silent for {self.quiet_s:.0f} s, although the service calls it running"
        return None
