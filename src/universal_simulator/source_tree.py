"""What the code is made of: the files of a checkout that travel with a run, and their hash.

The package, the configs, the plans and the pinned dependencies, picked by name, so that no `.git`, run
folder, key file or stray link is among them. `archive_hash` is over names and contents: equal on the
machine that sends the archive and on the one that unpacked it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from universal_simulator.errors import UserError

PACKAGE = "src/universal_simulator"
#: what a source tree may hold; anything else is left out
SUFFIXES = frozenset({".py", ".html", ".css", ".js", ".json", ".yaml", ".yml", ".typed"})
#: the pinned versions of everything that is imported
LOCK = "constraints.txt"
#: files beside the folders; the first two must be there
PINS = ("pyproject.toml", LOCK, "README.md", "LICENSE")


def checkout_root() -> Path:
    """The checkout this package runs from."""
    return Path(__file__).resolve().parents[2]


def archive_hash() -> str | None:
    """SHA-256 of what a code archive made here and now holds; None where none can be made.

    That is where the package is installed without its checkout, or a file of it is a link. Read once per
    process and working folder: what runs was imported then.
    """
    return _archive_hash(checkout_root(), Path.cwd())


@functools.cache
def _archive_hash(root: Path, working_folder: Path) -> str | None:
    try:
        return hash_of_files(archived_files(root, working_folder))
    except UserError:  # no whole checkout: the record says None, and packing one tells the reason
        return None


def lock_hash() -> str | None:
    """SHA-256 of the pinned dependencies (`constraints.txt`); None outside a checkout."""
    path = checkout_root() / LOCK
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def archived_files(root: Path, working_folder: Path) -> dict[str, bytes]:
    """Name -> content of the checkout at `root`, configs and plans of `working_folder` in front of its own.

    That is the order in which names of configs are looked up.
    """
    files = collect(root)
    if working_folder.resolve() != root.resolve():
        files |= dict(_below(working_folder, "configs")) | dict(_below(working_folder, "plans"))
    return files


def collect(root: Path) -> dict[str, bytes]:
    """Name in the archive -> content."""
    missing = [name for name in PINS[:2] if not (root / name).is_file()]
    if missing or not (root / PACKAGE / "__init__.py").is_file():
        wanted = ", ".join([*missing, *([] if (root / PACKAGE).is_dir() else [PACKAGE])])
        raise UserError(
            f"{root} is no checkout of universal-simulator ({wanted} missing), and what runs on rented "
            "machines is a pinned archive of one; clone the repository and `pip install -e .` there"
        )
    files = dict(_below(root, PACKAGE)) | dict(_below(root, "configs")) | dict(_below(root, "plans"))
    for name in PINS:
        if (root / name).is_file():
            files[name] = _read(root / name)
    return files


def hash_of_files(files: Mapping[str, bytes]) -> str:
    """SHA-256 over (name, length, content) of every file in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _below(root: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """Files under root/folder that a source tree may hold, without caches and hidden ones."""
    for path in sorted((root / folder).rglob("*")):
        name = path.relative_to(root)
        parts = name.parts
        if (
            any(part.startswith(".") or part == "__pycache__" for part in parts)
            or path.suffix not in SUFFIXES
        ):
            continue
        if path.is_file() or path.is_symlink():
            yield PurePosixPath(*parts).as_posix(), _read(path)


def _read(path: Path) -> bytes:
    if path.is_symlink():
        raise UserError(f"{path} is a link, which could lead anywhere; put the file itself there")
    return path.read_bytes()
