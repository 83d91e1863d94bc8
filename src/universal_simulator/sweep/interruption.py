"""Signals that ask a driver to end, heard at a moment of its own choosing.

Between two looks at its jobs the driver may be anywhere, also between an intent and its launch. So the
first SIGTERM, SIGHUP or SIGINT is only noted, and raised by `check`. A second SIGINT (Ctrl-C again)
interrupts at once; what has no end in the journal then is settled by the next sitting, as after SIGKILL.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from universal_simulator.errors import UsimError
from universal_simulator.sweep.executor import Executor

ASKING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interruption:
    """A context; does nothing outside the main thread, where no signal arrives."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in ASKING}
            for number, before in self._before.items():
                if before is not signal.SIG_IGN:
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raises KeyboardInterrupt after SIGINT, SystemExit (128 + number) after another of the signals."""
        if self.asked is signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            raise SystemExit(128 + self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number)


@contextmanager
def ended_after(executor: Executor) -> Iterator[None]:
    """Every job is ended after what is done within. Where that raised, an end that fails is a note to it, never
    in its place; else it is raised, after all was journalled and written."""
    try:
        yield
    except BaseException as error:
        try:
            executor.cancel_all()
        except (UsimError, OSError) as trouble:
            error.add_note(f"not every job was seen to end: {trouble}")
        raise
    executor.cancel_all()
