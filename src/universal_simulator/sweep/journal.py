"""The durable truth of a sweep: one numbered, checksummed, fsynced line per event.

    {"n": 3, "kind": "run_finished", "data": {...}, "at": "...", "sum": "..."}

`sum` is the SHA-256 of the line without it. Intent is written before a side effect, the
outcome after. A torn last line (the writer died in it, so it has no end) is cut off and reported; damage
anywhere else is refused, naming the line: a last line with its end was on the disk before anything followed from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from universal_simulator.errors import IntegrityError

VERSION = 1
#: a power cut while it was written can leave it so as well
LAST = ". It is the last one: cut it off by hand only where what it told may be done, and paid, again"


@dataclass(frozen=True)
class Event:
    number: int
    kind: str
    data: dict[str, Any]
    at: str


class Journal:
    """Append-only; construct to replay, `append` to add. One writer (the folder's lock) at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._of_kind: dict[str, list[Event]] = {}
        self.cut: str | None = None
        self._torn_at: int | None = None
        if path.exists():
            self._replay()

    def append(self, kind: str, **data: Any) -> Event:
        """The only writer cuts a torn tail; readers leave the file as it is.

        An append that fails (the disk is full) raises OSError and has not happened: what of it reached
        the file is cut off before the next one.
        """
        if self._torn_at is not None:
            with open(self.path, "r+b") as file:
                file.truncate(self._torn_at)
                os.fsync(file.fileno())
            self._torn_at = None
        event = Event(len(self.events), kind, data, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        line = _encode(event)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if before == 0:
                self._sync_names()
        except BaseException as error:
            # an interruption too: a line in the file and not in memory would get its number twice
            self._torn_at = before if self.path.exists() else None
            if isinstance(error, OSError):
                error.filename = error.filename or str(self.path)
            raise
        self._keep(event)
        return event

    def _sync_names(self) -> None:
        """A new file outlives a power cut only when the folders that name it are on the disk too."""
        if os.name != "posix":
            return
        for folder in (self.path.parent, self.path.parent.parent):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def of(self, kind: str) -> list[Event]:
        return list(self._of_kind.get(kind, ()))

    def _keep(self, event: Event) -> None:
        self.events.append(event)
        self._of_kind.setdefault(event.kind, []).append(event)

    def _replay(self) -> None:
        raw = self.path.read_bytes()
        lines = raw.split(b"\n")
        tail = lines.pop()
        good = 0
        for number, line in enumerate(lines):
            event = _decode(line, number)
            if event is None:
                last = number == len(lines) - 1 and not tail
                raise IntegrityError(
                    f"{self.path}:{number + 1}: this line does not match its checksum or number; "
                    f"restore the file from a copy, or start a new folder{LAST if last else ''}"
                )
            self._keep(event)
            good += len(line) + 1
        if tail:
            self.cut = tail.decode(errors="replace")
            self._torn_at = good


def _encode(event: Event) -> bytes:
    body = {"v": VERSION, "n": event.number, "kind": event.kind, "data": event.data, "at": event.at}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return (text[:-1] + f',"sum":"{checksum}"}}\n').encode()


def _decode(line: bytes, number: int) -> Event | None:
    try:
        body = json.loads(line)
        checksum = body.pop("sum")
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    if hashlib.sha256(text.encode()).hexdigest() != checksum or body.get("n") != number:
        return None
    if body["v"] > VERSION:
        raise IntegrityError(
            f"the journal was written by a newer version (format {body['v']}, this one reads "
            f"{VERSION}); upgrade universal-simulator to go on"
        )
    return Event(body["n"], body["kind"], body["data"], body["at"])
