"""Files on their way to an instance: read where they lie, and sent on from where they broke off.

    incoming/SHA256      what has arrived of one file, always its beginning: every writer begins where
                         the file ends and writes at its place, so one that was thought dead and writes
                         on late changes nothing
    incoming/KEY.done    the SHA-256 of what was last checked whole and put into its place

A large file goes by itself; small ones go together in a tar, written beside the sweep and not into
memory. Whatever arrives is checked by its SHA-256 there before it is put where it belongs, and checked
once, however often its sending is begun again.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tarfile
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from universal_simulator.executors.course import Turn, Way
from universal_simulator.executors.transport import DamagedCopy, InstanceRefused, RemoteFolder, checked_name

#: bytes from which a file goes by itself
LARGE = 64 << 20
_BLOCK = 4 << 20
#: of checking what has arrived, on a slow disk there
_CHECKED_BYTES_PER_S = 20e6
#: (path, size, time of last change) -> SHA-256, so that the same data are read once for all instances
_DIGESTS: dict[tuple[str, int, int], str] = {}


def send(folder: RemoteFolder, files: Mapping[str, Path], *, scratch: Path) -> Way:
    """Files by their paths in `folder`, where `agent.py` lies; yields bytes so far, returns how many files.

    Raises DamagedCopy where one arrived otherwise than it left, InstanceRefused where it finds no room.
    """
    for name in files:
        checked_name(name)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    small = {name: path for name, path in sorted(files.items()) if sizes[name] < LARGE}
    moved = 0
    if small:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=scratch, prefix=".bundle.") as bundle:
            with tarfile.open(fileobj=bundle, mode="w") as archive:
                turn = Turn()
                for name, path in small.items():
                    _add(archive, name, path)
                    if turn.over():
                        yield 0
                        turn.begin()
            bundle.flush()
            moved = yield from _send_one(folder, Path(bundle.name), None, 0)
    for name in sorted(files.keys() - small.keys()):
        moved = yield from _send_one(folder, files[name], name, moved)
    return len(files)


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    """With nothing of the file but its bytes, so that the same files are the same tar."""
    entry = tarfile.TarInfo(name)
    with open(path, "rb") as file:
        entry.size, entry.mode = os.fstat(file.fileno()).st_size, 0o644
        archive.addfile(entry, file)


def _send_one(folder: RemoteFolder, path: Path, target: str | None, base: int) -> Generator[int, None, int]:
    """`target` None: a tar, to be unpacked. Returns `base` and its bytes."""
    digest = yield from _digest(path, base)
    size, arriving = path.stat().st_size, f"incoming/{digest}"
    key = "bundle" if target is None else hashlib.sha256(target.encode()).hexdigest()[:16]
    have = (
        f'mkdir -p incoming job; touch job/alive; if [ "$(cat incoming/{key}.done 2>/dev/null)" = {digest} ]; '
        f"then echo done; else stat -c %s {arriving} 2>/dev/null || echo 0; fi"
    )
    before = -1
    while (answer := folder.run(have).decode(errors="replace").strip()) != "done":
        there = int(answer) if answer.isdecimal() and len(answer) < 20 else size + 1
        if there == size:
            yield from _settle(folder, digest, key, target, base + size)
        elif there > size:
            folder.run(f"rm -f {arriving}")
            raise DamagedCopy(f"{path.name}: more has arrived than was sent; it is sent again")
        elif there <= before:
            raise InstanceRefused(f"{path.name}: of {size} bytes the instance took {there} and no more")
        else:
            before = there
            yield from _receive(folder, path, f"{arriving} {there:d}", base, there)
    return base + size


def _receive(
    folder: RemoteFolder, path: Path, where: str, base: int, offset: int
) -> Generator[int, None, None]:
    with open(path, "rb") as given, tempfile.TemporaryFile() as output:
        given.seek(offset)
        script = f"python3 agent.py receive job {where}"
        yield from folder.moving(
            script, base=base + offset, given=given, output=output, within_s=float("inf")
        )


def _settle(
    folder: RemoteFolder, digest: str, key: str, target: str | None, moved: int
) -> Generator[int, None, None]:
    """Check it there, and put it into its place. Raises DamagedCopy, with nothing of it left there."""
    arriving = f"incoming/{digest}"
    place = f"tar -xf {arriving} && rm {arriving}"
    if target is not None:
        place = f'd=$(dirname {shlex.quote(target)}) && mkdir -p "$d" && mv {arriving} {shlex.quote(target)}'
    script = (
        f"touch job/alive; if echo '{digest}  {arriving}' | sha256sum -c - >/dev/null 2>&1; "
        f"then {place} && echo {digest} > incoming/{key}.done; else rm -f {arriving}; echo damaged; fi"
    )
    with tempfile.TemporaryFile() as output:
        limit_s = folder.patience.command_s + moved / _CHECKED_BYTES_PER_S
        yield from folder.moving(script, base=moved, output=output, within_s=limit_s, silent=True)
        if output.read(100).strip() == b"damaged":
            raise DamagedCopy("a file arrived otherwise than it left; it is sent again")


def _digest(path: Path, moved: int) -> Generator[int, None, str]:
    """SHA-256 of a file, read in pieces; yields `moved`."""
    stat = path.stat()
    known = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    if known not in _DIGESTS:
        digest, turn = hashlib.sha256(), Turn()
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if turn.over():
                    yield moved
                    turn.begin()
        _DIGESTS[known] = digest.hexdigest()
    return _DIGESTS[known]
