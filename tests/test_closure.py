"""What `pip install universal-simulator` must never bring, and what no file imports unasked."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"ray", "wandb", "mlflow", "vastai", "borb", "skypilot", "ipython", "transformers"}


def core_closure() -> set[str]:
    """Names of all distributions that the core's requirements bring, as installed here."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        waiting = [Requirement(text) for text in tomllib.load(file)["project"]["dependencies"]]
    found: set[str] = set()
    while waiting:
        name = waiting.pop().name.lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [
            r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate({"extra": ""})
        ]
    return found


def test_the_core_stays_light() -> None:
    closure = core_closure()
    assert {"torch", "numpy", "pydantic-core", "httpcore"} <= closure, "the walk follows requirements"
    assert closure & HEAVY == set()


def imported_at_once(path: Path) -> set[str]:
    """Top-level packages that importing this file imports (what functions import is their callers' wish)."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


def test_no_file_imports_an_extra_unasked() -> None:
    files = sorted((ROOT / "src").rglob("*.py"))
    assert len(files) > 80
    assert {str(path): found for path in files if (found := imported_at_once(path) & HEAVY)} == {}
