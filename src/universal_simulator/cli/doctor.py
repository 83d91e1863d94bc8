"""usim doctor"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from universal_simulator.cli.options import Json

_NEEDED = (
    "torch",
    "numpy",
    "h5py",
    "pydantic",
    "yaml",
    "safetensors",
    "jinja2",
    "matplotlib",
    "filelock",
    "scipy",
)
_OPTIONAL = ("ray", "wandb", "optuna")


def doctor(as_json: Json = False) -> None:
    """Check this installation: versions, cores, memory, disk, configs. Exit code 1 if something is broken.

    Example: usim doctor --json
    """
    findings = {"python": (platform.python_version(), sys.version_info >= (3, 11))}
    for name in _NEEDED:
        found = importlib.util.find_spec(name) is not None
        findings[name] = (_version(name) if found else "missing", found)
    findings["cores"] = (str(os.cpu_count()), True)
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    findings["disk free"] = (f"{free_gib:.1f} GiB", free_gib > 2)
    findings["configs"] = _configs()
    for name in _OPTIONAL:
        findings[f"optional {name}"] = ("present" if importlib.util.find_spec(name) else "absent", True)
    if as_json:
        typer.echo(json.dumps({k: {"value": v, "fine": ok} for k, (v, ok) in findings.items()}, indent=1))
    else:
        for name, (value, fine) in findings.items():
            typer.echo(f"{'ok ' if fine else 'BAD'} {name:18} {value}")
    if not all(fine for _, fine in findings.values()):
        raise typer.Exit(1)


def _version(name: str) -> str:
    try:
        return version({"yaml": "PyYAML"}.get(name, name))
    except PackageNotFoundError:
        return "unknown version"


def _configs() -> tuple[str, bool]:
    from universal_simulator.configuration import load_config
    from universal_simulator.errors import UserError

    try:
        load_config("rerun_txxoc8a8", profile="smoke")
    except UserError as error:
        return str(error), False
    return "load", True
