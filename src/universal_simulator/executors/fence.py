"""At most one process works for a job, wherever it runs on a shared folder.

A scheduler can lose sight of a process that goes on (a dead head, a cut network) or start one late
that was given up long ago. Two files beside the sweep rule both out:

    FOLDER/.jobs/NAME.ticket   the submission that may run now; only the driver writes it
    FOLDER/.jobs/NAME.lock     held (flock) by the process at work, with its number and host

A worker takes the lock, then compares its ticket with the file's, then becomes the job. So a driver
that holds the lock and changes the ticket knows that no older submission will ever start, and one
that finds the lock free knows that none is at work. The lock is the process's own: the kernel lets
go of it however the process ends. Across hosts this needs a file system with working flock
(local disks, NFS 4, Lustre mounted with `flock`).

As a program it is what a scheduler starts in place of the job:

    python -m universal_simulator.executors.fence FOLDER JOB_ID TICKET LOG MEMORY_GIB -- COMMAND ...
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from universal_simulator.credentials import without_secrets
from universal_simulator.errors import UserError
from universal_simulator.executors.child_process import limit_memory
from universal_simulator.run_record import write_atomically

#: exit code of a worker that may not run: another submission has the ticket
REFUSED = 75


@dataclass(frozen=True)
class Holder:
    """The process at work: its number, host, submission, log, and when it began (Unix seconds)."""

    pid: int
    host: str
    ticket: str
    log: str
    began: float


class Fence:
    """The two files of one job."""

    def __init__(self, folder: Path, job_id: str) -> None:
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", job_id)[:80]
        name = f"{plain}-{hashlib.sha256(job_id.encode()).hexdigest()[:8]}"
        self._ticket = folder / ".jobs" / f"{name}.ticket"
        self._lock = folder / ".jobs" / f"{name}.lock"

    @property
    def ticket(self) -> str | None:
        """The submission that may run now; None where there never was one, "" after a withdrawal."""
        return self._ticket.read_text(encoding="utf-8") if self._ticket.exists() else None

    @property
    def held(self) -> bool:
        """Whether a process is at work."""
        if not self._lock.exists():
            return False
        with open(self._lock, "r+b") as file:
            return not _locked(file.fileno())

    @property
    def last(self) -> Holder | None:
        """Who is, or last was, at work."""
        return _holder(self._lock.read_bytes()) if self._lock.exists() else None

    def issue(self, ticket: str) -> bool:
        """Let this submission run and no other ("" for none); False where one is at work."""
        with self._taken() as taken:
            if taken:
                write_atomically(self._ticket, ticket)
            return taken

    def kill_here(self, ticket: str) -> None:
        """SIGKILL to the process of this submission and its group, if it is at work on this host."""
        last = self.last
        if last is None or last.ticket != ticket or last.host != socket.gethostname() or not self.held:
            return
        try:
            leads = os.getpgid(last.pid) == last.pid
            (os.killpg if leads else os.kill)(last.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def enter(self, ticket: str, log: str) -> bool:
        """Wait for the lock and hold it in this process and what it becomes.

        False where another submission has the ticket (or none has).
        """
        descriptor = os.open(self._lock, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if self.ticket != ticket:
            os.close(descriptor)
            return False
        holder = Holder(os.getpid(), socket.gethostname(), ticket, log, time.time())
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        os.set_inheritable(descriptor, True)
        return True

    @contextmanager
    def _taken(self) -> Iterator[bool]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield _locked(descriptor)
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(content: bytes) -> Holder | None:
    """None where nobody has written a name yet."""
    try:
        about = json.loads(content)
        host, ticket, log = (str(about[name]) for name in ("host", "ticket", "log"))
        return Holder(int(about["pid"]), host, ticket, log, float(about["began"]))
    except (ValueError, KeyError, TypeError):
        return None


def main(words: list[str]) -> int:
    """Become the job, or say why not and give the exit code. The job gets no secret of ours."""
    folder, job_id, ticket, log, memory_gib, dashes, *command = words
    if dashes != "--" or not command:
        raise UserError("expected FOLDER JOB_ID TICKET LOG MEMORY_GIB -- COMMAND ...")
    fence = Fence(Path(folder), job_id)
    if fence.ticket is None:
        print(
            f"{socket.gethostname()} does not see {folder} (no ticket for {job_id} there): workers need "
            "the sweep's folder on storage shared with the driver, under the same path"
        )
        return REFUSED
    if not fence.enter(ticket, log):
        print(f"{job_id}: submission {ticket} was withdrawn or replaced; not started")
        return REFUSED
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if float(memory_gib):
        limit_memory(float(memory_gib))
    return os.execvpe(command[0], command, without_secrets(os.environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
