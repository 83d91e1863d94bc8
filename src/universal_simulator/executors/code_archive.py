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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from universal_simulator.credentials import secrets_at_hand
from universal_simulator.errors import UserError
from universal_simulator.source_tree import archived_files, checkout_root, hash_of_files

MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class CodeArchive:
    """`hash` names the content, `file_hash` the bytes of the file as sent; both SHA-256."""

    content: bytes
    hash: str
    file_hash: str
    names: tuple[str, ...]


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
    files = archived_files(root, working_folder or Path.cwd())
    known = {*secrets_at_hand(), *(secret.get_secret_value() for secret in secrets)}
    for name, data in files.items():
        for secret in known:
            if secret.encode() in data:
                raise UserError(f"{name} holds a secret key; it must not leave this machine: take it out")
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise UserError(f"the code weighs {size >> 20} MiB, at most {MAX_BYTES >> 20} are sent")
    content = _tar(files)
    return CodeArchive(
        content, hash_of_files(files), hashlib.sha256(content).hexdigest(), tuple(sorted(files))
    )


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
