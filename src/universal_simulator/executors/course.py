"""A transfer under way, which goes on whenever somebody steps it, so that one loop serves many instances.

What does the work is a generator: it yields the bytes moved so far whenever it would have to wait, and
returns the number of files. What it holds (a child process, an open file) ends with it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import final

from universal_simulator.errors import ExecutorError

#: yields bytes moved so far, returns the number of files
Way = Generator[int, None, int]


#: seconds of this machine's own work (reading, hashing) after which others have their turn
WORK_S = 0.5


class Turn:
    """When a transfer that does not wait, but works, has worked long enough."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._began = time.monotonic()

    def over(self) -> bool:
        return time.monotonic() - self._began > WORK_S


class TransferFailed(ExecutorError):
    """This machine could not do its part (disk full, no memory); no finding about the instance."""


@final
class Course:
    """`moved`: bytes so far, of files that were there before too."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.moved = 0

    def step(self) -> int | None:
        """As far as it goes without waiting: the number of files once it is done, None before.

        Raises as the transfer does, TransferFailed for what this machine lacks; then it is over.
        """
        try:
            self.moved = next(self._way)
        except StopIteration as end:
            return int(end.value)
        except (OSError, MemoryError) as error:
            raise TransferFailed(f"this machine failed it: {str(error) or type(error).__name__}") from error
        return None

    def cancel(self) -> None:
        """Nothing of it goes on; what has arrived stays where it is."""
        self._way.close()
