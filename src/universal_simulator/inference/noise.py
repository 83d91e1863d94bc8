"""Where a member's noise comes from: the seed and the initial condition, nothing else."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_of(seed: int, initial: Tensor, *, stream: str = "") -> torch.Generator:
    """The random generator of one trajectory, from the seed and its first frame (C, X).

    stream: of what is drawn; another name, other numbers, so that drawing one thing more changes no other.

    Neither the batch it is rolled out in nor its place there has a say, so results do not depend
    on the batch size; the same initial condition under another parameter draws the same noise.
    The generator lives on the CPU: draw there, then move, and every device sees the same noise.
    """
    values = initial.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4")
    digest = hashlib.sha256(f"{seed}|{stream}".encode() + values.tobytes()).digest()
    # 63 bits: torch refuses what does not fit a signed integer on some builds
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
