"""Where tensors live: chosen when a run starts, recorded with what it measured, no part of who it is.

A run's id says config, data, code and seed; the device, like the number of threads, is the hardware
class under which its result can be repeated bit for bit. So `auto` may mean another device on
another machine and the run is still the one that was planned.
"""

from __future__ import annotations

import torch

from universal_simulator.errors import UserError


def resolve(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU; a device that is not there is refused."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= count:
            raise UserError(
                f"device {name!r} was asked for, {count or 'no'} CUDA device(s) are here; "
                "use device=auto or device=cpu"
            )
        return torch.device("cuda", device.index or 0)
    return device


def warning(name: str, device: torch.device, profile: str | None) -> str | None:
    """Of a run that was planned for a GPU and will take days: `auto` found none for the full profile."""
    if (name, device.type, profile) != ("auto", "cpu", "full"):
        return None
    return (
        "warning: device auto found no CUDA device, so this run of the full profile trains on the CPU, which takes "
        "days: run it where a GPU is (nvidia-smi shows them), or with --profile embedded or standard"
    )


def describe(device: torch.device) -> str:
    """`cpu`, or `cuda:0 (NVIDIA H100 80GB HBM3)`."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def synchronise(device: torch.device) -> None:
    """Wait for what was launched: only then does a clock tell how long it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gib(device: torch.device) -> float | None:
    """Most memory that tensors held on an accelerator so far; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
