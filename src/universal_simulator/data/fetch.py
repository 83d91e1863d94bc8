"""Download published files: resumed where they broke off, checked before they get their name.

A file under its final name has matched its MD5; until then it is NAME.partial, with NAME.partial.json
saying which version of it (ETag, size) the bytes belong to. Servers are hostile until the checksum
says otherwise: they break off, stall, ignore ranges, change the file meanwhile, or lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import find
from universal_simulator.errors import DataError, UserError

CHUNK_BYTES = 1 << 20
#: attempts in a row without a single new byte before a server is given up
MAX_BARREN_ATTEMPTS = 4
#: bytes per second that a server must deliver on average over the patience of a request
MIN_RATE = 1024
#: kept free beside the file
SPARE_BYTES = 1 << 28
Progress = Callable[[str, int, int], None]


class Published(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    id: int
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Catalogue(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    server: str
    files: dict[str, Published]


def catalogue() -> Catalogue:
    path = find("configs/catalogue", "pdebench")
    return validate(Catalogue, read_mapping(path), str(path))


def published(name: str) -> tuple[Published, str]:
    """The entry called `name` and its address at the publisher's."""
    known = catalogue()
    if name not in known.files:
        raise UserError(f"no published file {name!r}; known: {', '.join(known.files)}")
    entry = known.files[name]
    return entry, f"{known.server}{entry.id}"


@dataclass(frozen=True)
class _Version:
    """What the bytes of a partial file belong to."""

    address: str
    etag: str | None
    size: int


class _Unusable(Exception):
    """This attempt is over; the reason is told if every server ends so."""


def fetch(
    entry: Published,
    addresses: Sequence[str],
    folder: Path,
    *,
    timeout_s: float = 30.0,
    pause_s: float = 2.0,
    progress: Progress | None = None,
) -> Path:
    """The verified file in `folder`, downloaded from the first of `addresses` that delivers it.

    Interrupted and called again, it goes on after the last byte received; a server that trickles
    (below MIN_RATE over twice `timeout_s`) is left for the next. Raises DataError when no server
    delivers, the disk is too small, or what arrives is not what was published, and UserError while
    another download of the same file is at work in `folder`.
    """
    target = folder / entry.file
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{entry.file}.lock")
    try:
        with lock.acquire(timeout=0):
            return _fetch(entry, addresses, target, timeout_s=timeout_s, pause_s=pause_s, progress=progress)
    except Timeout:
        raise UserError(f"{entry.file} is being downloaded into {folder} by another process") from None
    finally:
        if target.is_file():
            Path(lock.lock_file).unlink(missing_ok=True)


def _fetch(
    entry: Published,
    addresses: Sequence[str],
    target: Path,
    *,
    timeout_s: float,
    pause_s: float,
    progress: Progress | None,
) -> Path:
    folder = target.parent
    partial = folder / f"{entry.file}.partial"
    reasons = []
    with httpx.Client(timeout=timeout_s, follow_redirects=True) as client:
        for address in addresses:
            try:
                _download(
                    client, address, partial, patience_s=2 * timeout_s, pause_s=pause_s, progress=progress
                )
                _verify(entry, partial)
            except _Unusable as reason:
                reasons.append(f"{address}: {reason}")
                continue
            os.replace(partial, target)
            _note(partial).unlink(missing_ok=True)
            return target
    raise DataError(
        f"{entry.file} could not be fetched; call again to go on, or give another --mirror\n  "
        + "\n  ".join(reasons)
    )


def _download(
    client: httpx.Client,
    address: str,
    partial: Path,
    *,
    patience_s: float,
    pause_s: float,
    progress: Progress | None,
) -> None:
    """Append until the announced size is there."""
    barren = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _attempt(client, address, partial, patience_s, progress):
                return
            reason = "the connection ended early"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"{type(error).__name__}: {error}"
        after = partial.stat().st_size if partial.exists() else 0
        barren = 0 if after > before else barren + 1
        if barren >= MAX_BARREN_ATTEMPTS:
            raise _Unusable(f"{reason} ({MAX_BARREN_ATTEMPTS} attempts in a row without a new byte)")
        time.sleep(pause_s * barren)


def _attempt(
    client: httpx.Client, address: str, partial: Path, patience_s: float, progress: Progress | None
) -> bool:
    """One request; True once the file is whole."""
    known = _read_note(partial)
    have = partial.stat().st_size if partial.exists() else 0
    resuming = known is not None and known.address == address and 0 < have <= known.size
    if resuming and known is not None and have == known.size:
        return True
    headers = {"Accept-Encoding": "identity"}
    if resuming and known is not None:
        headers["Range"] = f"bytes={have}-"
        if known.etag:
            headers["If-Range"] = known.etag
    with client.stream("GET", address, headers=headers) as reply:
        if reply.status_code not in (200, 206):
            raise httpx.HTTPStatusError(f"answer {reply.status_code}", request=reply.request, response=reply)
        start, size = _extent(reply)
        if reply.status_code == 200 or start != have or (known is not None and size != known.size):
            if start != 0:
                # another version of the file, or another part than was asked for: begin again
                partial.unlink(missing_ok=True)
                return False
            have = 0
        _check_disk(partial, size - have)
        _write_note(partial, _Version(address, reply.headers.get("ETag"), size))
        with open(partial, "ab" if have else "wb") as file:
            looked, had = time.monotonic(), have
            for block in reply.iter_raw():  # as they arrive: what is received is kept
                if have + len(block) > size:
                    raise httpx.RemoteProtocolError("more bytes arrived than were announced")
                file.write(block)
                have += len(block)
                if time.monotonic() - looked > patience_s:
                    if have - had < MIN_RATE * patience_s and have < size:
                        raise _Unusable(f"{have - had} bytes in {patience_s:g} s: it trickles")
                    looked, had = time.monotonic(), have
                if progress is not None:
                    progress("fetch", have, size)
    return have == size


def _extent(reply: httpx.Response) -> tuple[int, int]:
    """(first byte, size of the whole file)."""
    if reply.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        if match is None:
            raise _Unusable(f"unreadable Content-Range {reply.headers.get('Content-Range')!r}")
        return int(match.group(1)), int(match.group(2))
    length = reply.headers.get("Content-Length", "")
    if not length.isdigit():
        raise _Unusable("the server does not say how large the file is")
    return 0, int(length)


def _check_disk(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if free < needed + SPARE_BYTES:
        raise _Unusable(
            f"{partial.parent} has {free / 2**30:.1f} GiB free, {(needed + SPARE_BYTES) / 2**30:.1f} GiB "
            "are needed; make room or give another --folder"
        )


def _verify(entry: Published, partial: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with open(partial, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
        os.fsync(file.fileno())
    if digest.hexdigest() != entry.md5:
        partial.unlink()
        _note(partial).unlink(missing_ok=True)
        raise _Unusable(f"MD5 {digest.hexdigest()}, published {entry.md5}: thrown away")


def _note(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_note(partial: Path) -> _Version | None:
    """None where there is none or it cannot be trusted: then the download begins again."""
    try:
        values = json.loads(_note(partial).read_text(encoding="utf-8"))
        return _Version(str(values["address"]), values["etag"], int(values["size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(partial: Path, version: _Version) -> None:
    _note(partial).write_text(json.dumps(vars(version)), encoding="utf-8")
