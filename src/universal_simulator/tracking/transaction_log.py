"""Reads what W&B leaves on disk offline: a LevelDB-style log of protobuf records.

    file   = header(7 bytes, b":W&B" first), then blocks of 32 KiB
    chunk  = crc32(4) length(2, little-endian) type(1: whole, 2: first, 3: middle, 4: last) data

A block's rest too short for a chunk's head is padding. Used to verify that a mirror is whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from universal_simulator.errors import IntegrityError

BLOCK_BYTES = 32768
HEADER_BYTES = 7
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """Every whole record; IntegrityError where the file is torn or damaged."""
    content = path.read_bytes()
    if content[:4] != b":W&B":
        raise IntegrityError(f"{path} is no W&B transaction log")
    position, parts = HEADER_BYTES, b""
    while position < len(content):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < _CHUNK.size:
            position += left
            continue
        if position + _CHUNK.size > len(content):
            raise IntegrityError(f"{path} is torn at byte {position}")
        checksum, length, kind = _CHUNK.unpack_from(content, position)
        data = content[position + _CHUNK.size : position + _CHUNK.size + length]
        position += _CHUNK.size + length
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            raise IntegrityError(f"{path} is damaged or torn before byte {position}")
        parts = data if kind in (_WHOLE, _FIRST) else parts + data
        if kind in (_WHOLE, _LAST):
            yield parts
