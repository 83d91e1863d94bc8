"""The pinned code that a rented instance runs: one tar.gz, the same bytes for the same files.

It holds the package, the configs, the plans and the pinned dependencies, picked by name, so that no
`.git`, run folder, key file or stray link can slip in. Its hash is over names and contents, not over
the compressed bytes, which depend on the zlib at hand; an instance checks the file's own SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import SecretStr

from universal_simulator.credentials import secrets_at_hand
from universal_simulator.errors import UserError

PACKAGE = "src/universal_simulator"
#: what a source tree may hold; anything else is left out
SUFFIXES = frozenset({".py", ".html", ".css", ".js", ".json", ".yaml", ".yml", ".typed"})
#: files beside the folders; the first two must be there
PINS = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class CodeArchive:
    """`hash` names the content, `file_hash` the bytes of the file as sent; both SHA-256."""

    content: bytes
    hash: str
    file_hash: str
    names: tuple[str, ...]


def checkout_root() -> Path:
    """The checkout this package runs from."""
    return Path(__file__).resolve().parents[3]


def pack_code(
    root: Path | None = None,
    *,
    working_folder: Path | None = None,
    secrets: Sequence[SecretStr] = (),
) -> CodeArchive:
    """The archive of the checkout at `root`, configs and plans of `working_folder` in front of its own.

    That is the order in which names of configs are looked up here. Raises UserError where the checkout
    is incomplete, a file is a link, or one of `secrets` or of the user's own stands in any file.
    """
    root = root or checkout_root()
    files = collect(root)
    overlay = working_folder or Path.cwd()
    if overlay.resolve() != root.resolve():
        files |= dict(_below(overlay, "configs")) | dict(_below(overlay, "plans"))
    known = {*secrets_at_hand(), *(secret.get_secret_value() for secret in secrets)}
    for name, data in files.items():
        for secret in known:
            if secret.encode() in data:
                raise UserError(f"{name} holds a secret key; it must not leave this machine: take it out")
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise UserError(f"the code weighs {size >> 20} MiB, at most {MAX_BYTES >> 20} are sent")
    content = _tar(files)
    return CodeArchive(
        content, content_hash_of(files), hashlib.sha256(content).hexdigest(), tuple(sorted(files))
    )


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


def content_hash_of(files: Mapping[str, bytes]) -> str:
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


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(files[name]), 0o644, 0
            archive.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()
