"""Where the committed configs and plans are: the working folder, the checkout, or the wheel."""

from __future__ import annotations

from pathlib import Path

from universal_simulator.errors import UserError

#: endings by which a data file is told from the name of a specification
DATA_FILES = (".hdf5", ".h5")
_PACKAGE = Path(__file__).resolve().parents[1]


def find(kind: str, name: str | Path) -> Path:
    """`name` as a path, or as a file of the folder `kind` (`configs`, `configs/data`, `plans`)."""
    given = Path(name)
    if not given.name or "\0" in str(name):
        raise UserError(f"{str(name)!r} is not the name of a {kind} file")
    candidates = [given]
    if given.suffix not in (".yaml", ".yml"):
        candidates.append(given.with_name(given.name + ".yaml"))
    folders = [Path.cwd() / kind, _PACKAGE.parents[1] / kind, _PACKAGE / "_files" / kind]
    candidates += [folder / f"{given.name.removesuffix('.yaml')}.yaml" for folder in folders]
    for path in candidates:
        if path.is_file():
            return path.resolve()
    known = sorted({p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.yaml")})
    raise UserError(f"no {kind} file {str(name)!r}; known: {', '.join(known) or 'none'}")
