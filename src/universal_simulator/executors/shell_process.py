"""One script at work in an instance's shell, as a child process of this one: asked, never waited for.

It reads and writes files by itself, so no byte of a transfer passes through this process, and it dies
with it (Linux), so that a dead driver sends nothing.
"""

from __future__ import annotations

import abc
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, final

from universal_simulator.executors.child_process import die_with_parent
from universal_simulator.executors.vast_replies import brief


class Running(abc.ABC):
    """A script at work. `result` may be asked once it has ended."""

    @abc.abstractmethod
    def ended(self, within_s: float) -> bool:
        """Whether it has, waiting for that up to `within_s` seconds."""

    @abc.abstractmethod
    def moved(self) -> int:
        """Bytes that it has read of its input and written of its output."""

    @abc.abstractmethod
    def result(self) -> None:
        """Put the output behind whatever came before the script's own. Raises InstanceUnreachable where
        the script may not have run to its end, InstanceRefused for an exit code other than 0."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Here; what it began there may go on."""


@final
class ShellProcess(Running):
    """`judge(exit code, last words)` raises for what was no success, with `output` at its beginning."""

    def __init__(
        self,
        command: Sequence[str],
        judge: Callable[[int, str], None],
        *,
        output: IO[bytes],
        given: IO[bytes] | None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Raises OSError where it cannot be started."""
        self._judge, self._output, self._given = judge, output, given
        self._from = 0 if given is None else given.tell()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (read at its end)
        if given is not None:
            # what Python has buffered of it is not where the child begins
            os.lseek(given.fileno(), self._from, os.SEEK_SET)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL if given is None else given,
            stdout=output,
            stderr=self._words,
            cwd=folder,
            env=None if environment is None else dict(environment),
            # Ctrl-C is for the driver to hear: what comes home goes on meanwhile
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def ended(self, within_s: float) -> bool:
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def moved(self) -> int:
        # the child shares our place in the file
        read = 0 if self._given is None else os.lseek(self._given.fileno(), 0, os.SEEK_CUR) - self._from
        return read + os.fstat(self._output.fileno()).st_size

    def result(self) -> None:
        code = self._process.wait()
        self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, self._words.tell() - 2000))
        said = brief(self._words.read().decode(errors="replace"))
        self._output.seek(0)
        self._judge(code, said)

    def kill(self) -> None:
        if self._process.poll() is None:
            # with what it has begun here, which would hold its files open
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
