"""One driver per sweep folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from universal_simulator.errors import SweepLockedError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises SweepLockedError where another driver holds it.

    The lock belongs to the process: it is free again when its holder is gone, however it ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SweepLockedError(f"another driver is at work in {folder}; wait for it or end it") from error
    try:
        yield
    finally:
        lock.release()
