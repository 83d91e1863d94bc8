"""What was mirrored where: a memo, so that a second sync has nothing to do. Never the truth.

Lost or damaged, it is begun again: offline mirrors are rebuilt whole, online ones go on after the
rows that the server says it has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from universal_simulator.errors import IntegrityError
from universal_simulator.run_record import Document, read_document, write_json


class Entry(Document):
    """`stamp` of the files as they were; `rows` sent so far; `where`: a folder, or an address.

    `uploaded`: of an offline mirror, the rows that the user's own `wandb sync` had taken before it was
    written; it holds only those after them, because an upload appends.
    """

    stamp: str
    destination: str
    rows: int
    where: str
    uploaded: int = 0


class Ledger(Document):
    schema_version: Literal[1] = 1
    runs: dict[str, Entry] = Field(default_factory=dict)


def ledger_path(out: Path) -> Path:
    return out / "ledger.json"


def read_ledger(out: Path) -> Ledger:
    path = ledger_path(out)
    if not path.exists():
        return Ledger()
    try:
        return read_document(path, Ledger)
    except IntegrityError:
        return Ledger()


def rows_uploaded(entry: Entry | None) -> int:
    """Rows that the server has from uploads of this run's offline mirrors."""
    if entry is None or entry.destination != "offline":
        return 0
    marked = list(Path(entry.where).glob("*.wandb.synced"))
    return entry.rows if marked else entry.uploaded


def note(out: Path, run_id: str, entry: Entry) -> None:
    """Remember one mirrored run."""
    ledger = read_ledger(out)
    write_json(ledger_path(out), ledger.model_copy(update={"runs": {**ledger.runs, run_id: entry}}))
