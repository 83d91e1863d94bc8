"""What a run is: a hash of everything that changes its result."""

from __future__ import annotations

import hashlib
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from universal_simulator.run_record import content_hash

#: hex digits at the end of a run id that say who it is; what stands before is for the reader
IDENTITY_DIGITS = 10


@cache
def code_version() -> str:
    """SHA-256 over the package's own sources and the torch version."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = "absent"
    digest.update(torch_version.split("+")[0].encode())
    return digest.hexdigest()


def commit() -> str | None:
    """The checkout's commit, with `-dirty` where files were changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude", "*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = answer.stdout.strip()
    return found if answer.returncode == 0 and re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found) else None


def package_versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    found = {}
    for name in ("torch", "numpy", "scipy", "h5py"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def input_hash(*, config_hash: str, data_identity: str, seed: int) -> str:
    """Hash of effective config, data, code and seed: equal inputs, equal results."""
    return content_hash({"config": config_hash, "data": data_identity, "code": code_version(), "seed": seed})


def run_identity(name: str, *, config_hash: str, data_identity: str, seed: int) -> str:
    """`{name}-s{seed}-{10 hex digits}`."""
    digest = input_hash(config_hash=config_hash, data_identity=data_identity, seed=seed)
    return f"{name}-s{seed}-{digest[:IDENTITY_DIGITS]}"
