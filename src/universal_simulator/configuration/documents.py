"""YAML in, plain mappings out: strict reading, `extends`, dotted overrides, fault collection."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from universal_simulator.configuration.locations import find
from universal_simulator.errors import ConfigurationError

ModelT = TypeVar("ModelT", bound=BaseModel)


#: the parser written in C where there is one: a sweep reads a config per member
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):  # type: ignore[valid-type, misc] # chosen at import
    """Safe loader that refuses duplicate keys and reads 1e-3 as the number it is."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not text", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


def _integer(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    """Decimal only: YAML 1.1 would read 010 as 8 and 1:30 as 90."""
    text = str(loader.construct_scalar(node))
    if not re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
        raise yaml.constructor.ConstructorError(
            None, None, f"{text!r} is not a plain decimal number", node.start_mark
        )
    return int(text)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _integer)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(source, [f"not valid YAML: {' '.join(str(error).split())}"]) from error


def read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), [f"cannot be read: {error}"]) from error
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise ConfigurationError(str(path), ["must be a mapping of keys to values"])
    return value


def read_layers(path: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """The file and what it `extends`, and so on, the lowest first; cycles are refused."""
    chain: list[Path] = []
    layers: list[tuple[Path, dict[str, Any]]] = []
    current: Path | None = path
    while current is not None:
        if current in chain:
            names = " -> ".join(p.stem for p in [*chain, current])
            raise ConfigurationError(str(path), [f"'extends' runs in a circle: {names}"])
        chain.append(current)
        layer = read_mapping(current)
        parent = layer.pop("extends", None)
        layers.append((current, layer))
        if parent is not None and not isinstance(parent, str):
            raise ConfigurationError(str(current), ["'extends' must name one file"])
        sibling = current.parent / f"{parent}.yaml"
        current = None if parent is None else sibling if sibling.is_file() else find(kind, parent)
    return layers[::-1]


def read_extended(path: Path, kind: str) -> dict[str, Any]:
    """The file merged over what it `extends`."""
    return merged(read_layers(path, kind))


def merged(layers: Iterable[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """Each layer over those before it."""
    out: dict[str, Any] = {}
    for _, layer in layers:
        out = merge(out, layer)
    return out


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else replaces what was there.

    Options belong to their class: naming another `import_path` drops the options below.
    """
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _another_class(old, value):
            old = {name: item for name, item in old.items() if name != "options"}
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _another_class(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "import_path" in above and above["import_path"] != below.get("import_path")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` words -> nested mapping; values are read as YAML."""
    faults: list[str] = []
    out: dict[str, Any] = {}
    for word in overrides:
        key, separator, text = word.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            faults.append(f"{word!r}: expected key=value, e.g. training.operator.learning_rate=3e-4")
            continue
        value: Any = parse(text, f"override {key}")
        for part in reversed(parts):
            value = {part: value}
        out = merge(out, value)
    if faults:
        raise ConfigurationError("overrides", faults)
    return out


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {dotted key: leaf}."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        dotted = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            out.update(flatten(item, f"{dotted}."))
        else:
            out[dotted] = item
    return out


def validate(kind: type[ModelT], value: Mapping[str, Any], source: str) -> ModelT:
    """Validated model, or every fault at once, unknown keys with their nearest neighbour."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError(source, describe_faults(kind, error)) from error


#: how deep sections are nested, and so how often what is missing can turn up
_DEPTH = 6


def sound(
    kind: type[ModelT], value: Mapping[str, Any], prefix: str = ""
) -> tuple[ModelT | None, list[str], set[str]]:
    """The model, what is wrong, and the dotted keys that were set aside to make it.

    Wrong values give way to their defaults (1 where a number has none), so that what is right can be judged
    further; where that does not help the model is None.
    """
    faults: list[str] = []
    rest, aside = copy.deepcopy(dict(value)), set[str]()
    for attempt in range(_DEPTH):
        try:
            return kind.model_validate(rest), faults, aside
        except ValidationError as error:
            if attempt == 0:
                faults = describe_faults(kind, error, prefix)
            for item in error.errors():
                aside.add(prefix + _set_aside(kind, rest, item["loc"], missing=item["type"] == "missing"))
    return None, faults, aside


def _set_aside(
    kind: type[BaseModel], value: dict[str, Any], where: tuple[int | str, ...], *, missing: bool
) -> str:
    """Take the deepest key of a place out of `value`, or put what stands for it there; its dotted name."""
    section: Any = value
    annotation: Any = kind
    path: list[str] = []
    for part in where:
        if not isinstance(part, str) or not isinstance(section, dict):
            break
        field = annotation.model_fields.get(part) if _is_model(annotation) else None
        annotation = None if field is None else field.annotation
        path.append(part)
        inner = section.get(part)
        if not (isinstance(inner, dict) and _is_model(annotation)) or part == where[-1]:
            break
        section = inner
    if not path:
        return ""
    section.pop(path[-1], None)
    if missing:
        section[path[-1]] = {} if _is_model(annotation) else "missing" if annotation is str else 1
    return ".".join(path)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def describe_faults(kind: type[BaseModel], error: ValidationError, prefix: str = "") -> list[str]:
    faults = []
    known = sorted(_known_keys(kind))
    for item in error.errors():
        where = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            # a section of a wrong name is told with what was given in it
            if isinstance(item["input"], Mapping) and item["input"]:
                where += "." + next(iter(flatten(item["input"])))
            near = nearest(where.removeprefix(prefix), known)
            hint = f"; did you mean {prefix + near!r}?" if near else ""
            faults.append(f"{where}: unknown key{hint}")
        elif item["type"] == "missing":
            faults.append(f"{where}: missing")
        else:
            faults.append(f"{where}: {item['msg']}, got {_short(item['input'])}")
    return faults


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key that was probably meant: a setting for a setting, of the same section first.

    An abbreviation by initials counts (`lr` for learning_rate), then likeness of the last part, then of all.
    """
    settings = [k for k in known if not any(other.startswith(f"{k}.") for other in known)]
    section, _, name = key.rpartition(".")
    sections = sorted({k.rpartition(".")[0] for k in settings})
    near = difflib.get_close_matches(section, sections, 1, 0.6) if section else [""]
    beside = [k for k in (settings if section else known) if k.rpartition(".")[0] in near]
    for candidates in (beside, settings):
        names = {k.rpartition(".")[2]: k for k in reversed(candidates)}
        for last, whole in sorted(names.items()):
            if name == last or (len(name) > 1 and name == "".join(part[0] for part in last.split("_"))):
                return whole
        if found := difflib.get_close_matches(name, list(names), 1, 0.5):
            return names[found[0]]
    return next(iter(difflib.get_close_matches(key, known, 1, 0.5)), None)


def _known_keys(kind: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _known_keys(annotation, f"{prefix}{name}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
