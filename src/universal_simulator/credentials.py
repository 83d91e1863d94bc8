"""The user's secrets: read from the environment or the user's own key files, shown nowhere.

Three services want one: Weights & Biases (`WANDB_API_KEY`, or the netrc file that `wandb login`
writes), Vast.ai (`VAST_API_KEY`, or the key file of Vast.ai's own tool) and Ray's job API
(`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, or `~/.ray/auth_token`). They travel in the environment
of the one process that needs them and in headers, never on a command line. Training jobs get
none of them (`without_secrets`); what is written for people or machines to read is masked
(`masked`); a command line that holds one is refused (`refuse_secrets`).
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from universal_simulator.errors import UserError

MASK = "***"
WANDB_URL = "https://api.wandb.ai"
#: variables that only these services' own clients need; no training job gets them
OUR_VARIABLES = ("WANDB_API_KEY", "VAST_API_KEY", "RAY_AUTH_TOKEN")
#: variables whose values are taken for secrets too, where they do not look like a word or a path
_SECRET_NAME = re.compile(r"(API_?KEY|ACCESS_KEY|AUTH_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.I)
#: shorter values would mask ordinary words
_SHORTEST = 8
_T = TypeVar("_T")


def read_vast_key(environment: Mapping[str, str], key_file: Path | None = None) -> SecretStr:
    """The user's key: from `key_file` if named, else VAST_API_KEY, else the files of Vast.ai's own tool."""
    if key_file is None and environment.get("VAST_API_KEY", "").strip():
        return checked_key(environment["VAST_API_KEY"], "VAST_API_KEY")
    files = [key_file] if key_file else _vast_files(environment)
    for path in files:
        text = _content(path)
        if text is not None:
            return checked_key(text, str(path))
    names = " or ".join(map(str, files))
    raise UserError(f"no Vast.ai key: set VAST_API_KEY, or write the key into {names}")


def checked_key(text: str, source: str, service: str = "Vast.ai") -> SecretStr:
    """One that fits a header; anything else would be quoted in an error of the HTTP library."""
    key = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]{8,512}", key):
        raise UserError(f"{source} holds no {service} key: expected one word of 8 to 512 plain characters")
    return SecretStr(key)


def find_wandb_key(environment: Mapping[str, str], url: str = WANDB_URL) -> SecretStr | None:
    """The key for the server at `url`: WANDB_API_KEY, else the netrc file; None where there is none."""
    given = environment.get("WANDB_API_KEY", "").strip()
    if given:
        return checked_key(given, "WANDB_API_KEY", "Weights & Biases")
    host = urlsplit(url).netloc
    for path in _netrc_files(environment):
        try:
            found = netrc.netrc(str(path)).authenticators(host)
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            raise UserError(f"{path} cannot be read as a netrc file; mend it, or set WANDB_API_KEY") from None
        return checked_key(found[2], str(path), "Weights & Biases") if found and found[2] else None
    return None


def find_ray_token(environment: Mapping[str, str]) -> SecretStr | None:
    """The token of Ray's job API; None where there is none (a cluster without authentication)."""
    given = environment.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return checked_key(given, "RAY_AUTH_TOKEN", "Ray")
    for path in _ray_files(environment):
        text = _content(path)
        if text is not None:
            return checked_key(text, str(path), "Ray")
    return None


def secrets_at_hand(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """value -> where it comes from, of every secret in the environment and the user's key files.

    Files that cannot be read hold nothing that could leak through this process.
    """
    environment = os.environ if environment is None else environment
    found = {
        value.strip(): name
        for name, value in environment.items()
        if (name in OUR_VARIABLES or (_SECRET_NAME.search(name) and _looks_random(value.strip())))
        and len(value.strip()) >= _SHORTEST
    }
    for path in (*_vast_files(environment), *_ray_files(environment)):
        try:
            text = (_content(path) or "").strip()
        except UserError:
            continue
        if len(text) >= _SHORTEST:
            found.setdefault(text, str(path))
    for path in _netrc_files(environment):
        try:
            hosts = netrc.netrc(str(path)).hosts
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        for entry in hosts.values():
            if entry[2] and len(entry[2]) >= _SHORTEST:
                found.setdefault(entry[2], str(path))
    return found


def masked(value: _T, secrets: Iterable[str] | None = None) -> _T:
    """`value` (text, bytes, or JSON-like) with every secret in it as `***`; longest first."""
    known = sorted(secrets_at_hand() if secrets is None else secrets, key=len, reverse=True)
    return _masked(value, known) if known else value


def _masked(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, bytes):
        for secret in known:
            value = value.replace(secret.encode(), MASK.encode())
        return value
    if isinstance(value, Mapping):
        return {_masked(key, known): _masked(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, known) for item in value]
    if isinstance(value, tuple):
        return tuple(_masked(item, known) for item in value)
    return value


def refuse_secrets(words: Iterable[str], what: str) -> None:
    """UserError if a command line holds a secret: any user of that machine could read it there."""
    known = secrets_at_hand()
    for position, word in enumerate(words):
        for secret, source in known.items():
            if secret in word:
                raise UserError(
                    f"{what}: word {position + 1} of its command holds the secret of {source}; secrets never "
                    "travel on a command line, leave it out (the environment and key files are read)"
                )


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a training job: everything but the keys of services it never talks to."""
    return {name: value for name, value in environment.items() if name not in OUR_VARIABLES}


def _looks_random(value: str) -> bool:
    return bool(re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)) and "/" not in value[:1]


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())


def _vast_files(environment: Mapping[str, str]) -> list[Path]:
    settings = Path(environment.get("XDG_CONFIG_HOME") or _home(environment) / ".config")
    return [settings / "vastai" / "vast_api_key", _home(environment) / ".vast_api_key"]


def _ray_files(environment: Mapping[str, str]) -> list[Path]:
    named = environment.get("RAY_AUTH_TOKEN_PATH", "").strip()
    return [Path(named)] if named else [_home(environment) / ".ray" / "auth_token"]


def _netrc_files(environment: Mapping[str, str]) -> list[Path]:
    """The first that exists is the one `wandb` itself reads."""
    named = environment.get("NETRC", "").strip()
    return [Path(named)] if named else [_home(environment) / ".netrc", _home(environment) / "_netrc"]


def _content(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"the key file {path} cannot be read: {error.strerror}") from None
