"""Child processes that never outlive whoever started them (Linux), and the end of whole groups.

Every child leads a process group of its own, so that what it started ends with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

GIB = 2**30
_PR_SET_PDEATHSIG = 1


def start_child(
    command: Sequence[str],
    *,
    output: IO[bytes],
    environment: Mapping[str, str],
    memory_gib: float | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` as leader of a new group, killed when the calling thread's process dies.

    memory_gib: see `limit_memory`. Raises OSError where it cannot be started.
    """

    def prepare() -> None:
        if memory_gib is not None:
            limit_memory(memory_gib)
        die_with_parent()

    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=prepare,
    )


def die_with_parent() -> None:
    """Between fork and exec: SIGKILL for this process when its parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(memory_gib: float) -> None:
    """Bound the private writable memory of this process and what it becomes.

    RLIMIT_DATA: heaps and anonymous maps, not address space merely reserved; an allocation beyond
    it fails inside the process.
    """
    import resource

    limit = int(memory_gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def reap_if_ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code once the child has ended and nothing of its group is left, else None.

    The group is killed while the dead leader still holds its number, so no stranger is hit.
    """
    if process.returncode is None and hasattr(os, "waitid"):
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return None
        _signal_group(process.pid, signal.SIGKILL)
    return process.poll()


def end_child(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> int:
    """SIGTERM to the group, SIGKILL after `grace_s`; returns the exit code when it is gone."""
    deadline = time.monotonic() + grace_s
    code = reap_if_ended(process)
    if code is None:
        _signal_group(process.pid, signal.SIGTERM)
    while code is None:
        time.sleep(0.02)
        if time.monotonic() >= deadline:
            _signal_group(process.pid, signal.SIGKILL)
        code = reap_if_ended(process)
    return code


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return
