"""Is a data file still what its identity says? Cheap enough to ask before every use.

A small file is read in full every time. A large one is read in full once; what was found is noted
beside it (`NAME.verified`: that its values are finite, size, time of change, and a checksum of blocks spread over the file), and
as long as all three agree it is taken for unchanged. A file that was touched, moved or copied
is read in full again. What the note cannot see is a change that keeps size and time of change and
falls between the sampled blocks, such as a rotten disk: `usim data info --verify` reads everything.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from universal_simulator.data import pdebench
from universal_simulator.errors import IntegrityError
from universal_simulator.run_record import write_json

#: up to this a file is read in full every time (a tenth of a second)
SMALL_BYTES = 32 * 2**20
#: blocks that are checksummed of a large file, evenly spread, the first and the last among them
SAMPLED_BLOCKS = 256
BLOCK_BYTES = 4096


class Note(BaseModel):
    """What a full read found, and by what the file is recognised since."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    #: of a note written before values were looked at there is none, and the file is read again
    finite: Literal[True]
    size: int
    changed_ns: int
    sample: str


def current_identity(path: Path) -> str:
    """Content identity (`pdebench.content_identity`), from the note where the file is still the noted one."""
    if path.stat().st_size <= SMALL_BYTES:
        return pdebench.content_identity(path)
    before = _state(path)
    noted = _noted(path)
    if noted is not None and noted.model_dump(exclude={"identity", "finite"}) == before:
        return noted.identity
    identity = pdebench.content_identity(path)
    if os.access(path.parent, os.W_OK):
        write_json(note_path(path), Note.model_validate({"identity": identity, "finite": True, **before}))
    return identity


def require_identity(path: Path, expected: str) -> None:
    """IntegrityError unless the file's content is what `expected` says."""
    found = current_identity(path)
    if found != expected:
        raise IntegrityError(
            f"{path} was changed after it was written: its content hashes to {found[:12]}, it was "
            f"{expected[:12]}; bring the original back, or move the file away and generate it again"
        )


def note_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _state(path: Path) -> dict[str, object]:
    status = path.stat()
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        last = max(0, status.st_size - BLOCK_BYTES)
        for index in range(SAMPLED_BLOCKS):
            file.seek(last * index // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return {"size": status.st_size, "changed_ns": status.st_mtime_ns, "sample": digest.hexdigest()}


def _noted(path: Path) -> Note | None:
    """The note beside the file; one that cannot be read is as good as none."""
    try:
        return Note.model_validate_json(note_path(path).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
