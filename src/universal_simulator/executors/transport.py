"""How this machine speaks to an instance: a port of one verb, and files on top of it.

An adapter runs one shell script there. `RemoteFolder` puts and gets files through that verb, checked by
their hashes on both sides. What comes back is foreign: bounded in size, unpacked without links or ways
out of the folder, read as text only after unprintable characters are gone.
"""

from __future__ import annotations

import abc
import hashlib
import io
import json
import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

from universal_simulator.errors import ExecutorError, UnreachableError
from universal_simulator.executors.vast_replies import brief, printable

#: bytes of text that one answer may have
MAX_TEXT_BYTES = 4 << 20
MANIFEST = "MANIFEST.json"


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
    """Seconds for one short command, and bytes per second below which a transfer is given up."""

    command_s: float = 60.0
    bytes_per_s: float = 100_000.0

    def transfer_s(self, size: int) -> float:
        return self.command_s + size / self.bytes_per_s


class Transport(abc.ABC):
    """One instance's shell. Scripts start in the same folder every time."""

    @abc.abstractmethod
    def run(
        self, script: str, *, stdin: Path | None = None, stdout: Path | None = None, timeout_s: float
    ) -> bytes:
        """Run a POSIX shell script there; its output, or nothing where it goes to the file `stdout`.

        Raises InstanceUnreachable where no answer came within `timeout_s` seconds (it may have run),
        InstanceRefused where the script ended with an exit code other than 0.
        """


@final
class RemoteFolder:
    """The folder `name` of an instance, below the one where scripts start. `name` needs no quoting."""

    def __init__(self, transport: Transport, name: str, patience: Patience | None = None) -> None:
        self.transport, self.name = transport, name
        self.patience = patience or Patience()

    def run(self, script: str, *, timeout_s: float | None = None) -> bytes:
        """A script in this folder, which is made if need be."""
        return self.transport.run(self._inside(script), timeout_s=timeout_s or self.patience.command_s)

    def put(self, content: bytes, path: str) -> None:
        """One file, whole or not at all; refused by the instance unless it arrived as it left."""
        digest, target = hashlib.sha256(content).hexdigest(), shlex.quote(path)
        script = (
            f'd=$(dirname {target}) && mkdir -p "$d" && cat > {target}.part && '
            f"echo '{digest}  '{target}.part | sha256sum -c - >/dev/null && mv {target}.part {target}"
        )
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            self.transport.run(
                self._inside(script),
                stdin=Path(file.name),
                timeout_s=self.patience.transfer_s(len(content)),
            )

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Many files by their paths in this folder, verified there by SHA-256 before this returns."""
        if not files:
            return
        with tempfile.NamedTemporaryFile() as packed:
            sums = _pack(files, packed.name)
            with tempfile.NamedTemporaryFile() as sent:
                with tarfile.open(sent.name, "w") as outer:
                    entry = tarfile.TarInfo(".sums")
                    entry.size = len(sums)
                    outer.addfile(entry, io.BytesIO(sums))
                    outer.add(packed.name, ".files.tar")
                self.transport.run(
                    self._inside(
                        "tar -xf - && tar -xf .files.tar && rm .files.tar && "
                        "sha256sum -c --quiet .sums && rm .sums"
                    ),
                    stdin=Path(sent.name),
                    timeout_s=self.patience.transfer_s(os.path.getsize(sent.name)),
                )

    def get(self, script: str, staging: Path, *, max_bytes: int) -> dict[str, str]:
        """Unpack into `staging`, which is emptied first, the tar that `script` writes; path -> SHA-256.

        Its last entry is MANIFEST.json, {path: SHA-256}. Raises DamagedCopy unless exactly those files
        arrived with those hashes.
        """
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with tempfile.NamedTemporaryFile(dir=staging.parent, prefix=".incoming.") as arrived:
            limited = f"( {script} ) | head -c {max_bytes + 1}"
            self.transport.run(
                self._inside(limited),
                stdout=Path(arrived.name),
                timeout_s=self.patience.transfer_s(max_bytes),
            )
            if os.path.getsize(arrived.name) > max_bytes:
                raise DamagedCopy(f"more than {max_bytes >> 20} MiB came from the instance; not kept")
            return _unpack(Path(arrived.name), staging)

    def tail(self, path: str, lines: int) -> str:
        """The last lines of a file there, made printable; "" where it does not exist."""
        script = f"tail -n {lines:d} {shlex.quote(path)} 2>/dev/null | tail -c {MAX_TEXT_BYTES} || true"
        return printable(self.run(script).decode(errors="replace"))

    def _inside(self, script: str) -> str:
        return f"mkdir -p {self.name} && cd {self.name} && {{ {script}\n}}"


def _pack(files: Mapping[str, Path], target: str) -> bytes:
    """A tar of the files at `target`; their SHA-256 in the format of sha256sum."""
    lines = []
    with tarfile.open(target, "w") as archive:
        for name in sorted(files):
            _checked_name(name)
            data = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
            lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    return "".join(lines).encode()


def _unpack(packed: Path, staging: Path) -> dict[str, str]:
    try:
        with tarfile.open(packed, "r:") as archive:
            for entry in archive:
                if not entry.isfile():
                    raise DamagedCopy(f"{brief(entry.name)!r} in a copy is no plain file; not kept")
                _checked_name(entry.name)
                archive.extract(entry, staging, filter="data", set_attrs=False)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DamagedCopy(f"a copy could not be unpacked: {brief(str(error))}") from None
    try:
        stated = json.loads((staging / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise DamagedCopy("a copy came without its list of hashes, so its end is missing") from None
    (staging / MANIFEST).unlink()
    found = {
        path.relative_to(staging).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in staging.rglob("*")
        if path.is_file()
    }
    if stated != found:
        raise DamagedCopy(f"a copy of {len(found)} files does not match the hashes it was sent with")
    return found


def _checked_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name or any(ord(c) < 32 for c in name):
        raise DamagedCopy(f"{brief(name)!r} is no path inside a folder")
