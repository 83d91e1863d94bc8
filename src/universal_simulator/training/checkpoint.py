"""The state a killed training goes on from, bit for bit on the same hardware class."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from universal_simulator.errors import IntegrityError
from universal_simulator.run_record import write_atomically

FORMAT = 1


def save_state(path: Path, state: dict[str, Any], *, input_hash: str) -> None:
    """Plain tensors, numbers and lists only; atomic; carries the hash of what it belongs to."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "input_hash": input_hash, "state": state}, buffer)
    data = buffer.getvalue()
    write_atomically(path, hashlib.sha256(data).digest() + data)


def load_state(path: Path, *, input_hash: str) -> dict[str, Any] | None:
    """The stored state, None where there is none; damage or another run's state is refused."""
    if not path.exists():
        return None
    raw = path.read_bytes()
    digest, data = raw[:32], raw[32:]
    if hashlib.sha256(data).digest() != digest:
        raise IntegrityError(
            f"{path} is damaged (checksum); delete it to train this run again from the start"
        )
    try:
        stored = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if stored["format"] != FORMAT or stored["input_hash"] != input_hash:
        raise IntegrityError(
            f"{path} belongs to another config, data, code or seed; delete it to start again"
        )
    return stored["state"]
