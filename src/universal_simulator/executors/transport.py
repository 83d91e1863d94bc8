"""How this machine speaks to an instance: a port of one verb, and files on top of it.

An adapter begins one shell script there. `RemoteFolder` puts and gets files through that verb, checked by
their hashes on both sides; `sending` sends what is large. What comes back is foreign: bounded in size and
time, unpacked without links or ways out of the folder, read as text only after unprintable characters are
gone.
"""

from __future__ import annotations

import abc
import hashlib
import json
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, final

from universal_simulator.errors import ExecutorError, UnreachableError
from universal_simulator.executors.course import Turn
from universal_simulator.executors.shell_process import Running
from universal_simulator.executors.vast_replies import brief, printable

#: bytes of text that one answer may have
MAX_TEXT_BYTES = 4 << 20
MANIFEST = "MANIFEST.json"
#: one look at a transfer takes at most this long
SLICE_S = 0.02
#: between two looks no more than this counts as time in which something could have moved
LOOKED_AWAY_S = 10.0


class InstanceUnreachable(UnreachableError):
    """No answer from the instance: nothing may be concluded about what runs there."""


class InstanceRefused(ExecutorError):
    """The instance answered, and what was asked of it failed there."""


class DamagedCopy(ExecutorError):
    """Files arrived, and not as they left: asked again they may."""


class WrongResult(ExecutorError):
    """Files arrived as they left and are not the job's: asked again they would be the same."""


@dataclass(frozen=True)
class Patience:
    """Seconds for one short command; a transfer is given up below `bytes_per_s`, or when nothing moved
    for `stuck_s` seconds."""

    command_s: float = 60.0
    bytes_per_s: float = 100_000.0
    stuck_s: float = 120.0

    def transfer_s(self, size: int) -> float:
        return self.command_s + size / self.bytes_per_s


class Transport(abc.ABC):
    """One instance's shell. Scripts start in the same folder every time."""

    @abc.abstractmethod
    def begin(self, script: str, *, given: IO[bytes] | None, output: IO[bytes]) -> Running:
        """Begin a POSIX shell script there. It reads `given` from where that stands, and writes to the
        empty file `output`. Raises InstanceUnreachable where the instance is known not to answer."""


def ask(transport: Transport, script: str, *, timeout_s: float, given: IO[bytes] | None = None) -> bytes:
    """Run a script to its end; its output.

    Raises InstanceUnreachable where no answer came within `timeout_s` seconds (it may have run),
    InstanceRefused where the script ended with an exit code other than 0.
    """
    with tempfile.TemporaryFile() as output:
        running = transport.begin(script, given=given, output=output)
        try:
            if not running.ended(timeout_s):
                raise InstanceUnreachable(f"no answer within {timeout_s:.0f} s")
            running.result()
        finally:
            running.kill()
        return output.read()


@final
class RemoteFolder:
    """The folder `name` of an instance, below the one where scripts start. `name` needs no quoting."""

    def __init__(self, transport: Transport, name: str, patience: Patience | None = None) -> None:
        self.transport, self.name = transport, name
        self.patience = patience or Patience()

    def run(self, script: str, *, timeout_s: float | None = None) -> bytes:
        """A short script in this folder, which is made if need be."""
        return ask(self.transport, self._inside(script), timeout_s=timeout_s or self.patience.command_s)

    def put(self, content: bytes, path: str) -> None:
        """One small file, whole or not at all; refused by the instance unless it arrived as it left."""
        digest, target = hashlib.sha256(content).hexdigest(), shlex.quote(path)
        script = (
            f'd=$(dirname {target}) && mkdir -p "$d" && cat > {target}.part && '
            f"echo '{digest}  '{target}.part | sha256sum -c - >/dev/null && mv {target}.part {target}"
        )
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            limit_s = self.patience.transfer_s(len(content))
            ask(self.transport, self._inside(script), given=file, timeout_s=limit_s)

    def moving(
        self,
        script: str,
        *,
        base: int = 0,
        given: IO[bytes] | None = None,
        output: IO[bytes],
        within_s: float,
        silent: bool = False,
    ) -> Generator[int, None, None]:
        """A script that moves many bytes, or works long (`silent`: nothing moves meanwhile); yields `base`
        and what has moved. Raises like `ask`, and InstanceUnreachable when it moves no more."""
        running = self.transport.begin(self._inside(script), given=given, output=output)
        passed_s, quiet_s, last, then = 0.0, 0.0, 0, time.monotonic()
        try:
            while not running.ended(SLICE_S):
                # while nobody looked, a sleeping machine too, nothing can be said
                step_s = min(time.monotonic() - then, LOOKED_AWAY_S)
                moved, then = running.moved(), time.monotonic()
                quiet_s = 0.0 if moved != last else quiet_s + step_s
                passed_s, last = passed_s + step_s, moved
                if passed_s > within_s or (quiet_s > self.patience.stuck_s and not silent):
                    raise InstanceUnreachable(f"{moved} bytes in {passed_s:.0f} s, none for {quiet_s:.0f} s")
                yield base + moved
            running.result()
        finally:
            running.kill()

    def get(self, script: str, staging: Path, *, max_bytes: int) -> Generator[int, None, dict[str, str]]:
        """Unpack into `staging`, which is emptied first, the tar that `script` writes; path -> SHA-256.

        Its last entry is MANIFEST.json, {path: SHA-256}. Raises DamagedCopy unless exactly those files
        arrived with those hashes. A generator that yields the bytes so far.
        """
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        limited = f"( {script} ) | head -c {max_bytes + 1}"
        with tempfile.TemporaryFile(dir=staging.parent, prefix=".incoming.") as arrived:
            yield from self.moving(limited, output=arrived, within_s=self.patience.transfer_s(max_bytes))
            begin = arrived.tell()
            size = arrived.seek(0, 2) - begin
            arrived.seek(begin)
            if size > max_bytes:
                raise DamagedCopy(f"more than the {max_bytes} bytes that were told came; not kept")
            return (yield from _unpack(arrived, staging, size))

    def tail(self, path: str, lines: int) -> str:
        """The last lines of a file there, made printable; "" where it does not exist."""
        script = f"tail -n {lines:d} {shlex.quote(path)} 2>/dev/null | tail -c {MAX_TEXT_BYTES} || true"
        return printable(self.run(script).decode(errors="replace"))

    def _inside(self, script: str) -> str:
        return f"mkdir -p {self.name} && cd {self.name} && {{ {script}\n}}"


def _unpack(packed: IO[bytes], staging: Path, size: int) -> Generator[int, None, dict[str, str]]:
    turn = Turn()
    try:
        with tarfile.open(fileobj=packed, mode="r:") as archive:
            for entry in archive:
                if not entry.isfile():
                    raise DamagedCopy(f"{brief(entry.name)!r} in a copy is no plain file; not kept")
                checked_name(entry.name)
                archive.extract(entry, staging, filter="data", set_attrs=False)
                if turn.over():
                    yield size
                    turn.begin()
    except (tarfile.TarError, EOFError) as error:
        raise DamagedCopy(f"a copy could not be unpacked: {brief(str(error))}") from None
    try:
        stated = json.loads((staging / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        raise DamagedCopy("a copy came without its list of hashes, so its end is missing") from None
    (staging / MANIFEST).unlink()
    found = {}
    for path in staging.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                found[path.relative_to(staging).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
            if turn.over():
                yield size
                turn.begin()
    if stated != found:
        raise DamagedCopy(f"a copy of {len(found)} files does not match the hashes it was sent with")
    return found


def checked_name(name: str) -> None:
    """Raises DamagedCopy for what is no path inside a folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name or any(ord(c) < 32 for c in name):
        raise DamagedCopy(f"{brief(name)!r} is no path inside a folder")
