"""Where a mirror goes: decided from the user's own W&B settings before anything of W&B is started.

Asked in this order: `--mode`, WANDB_DISABLED, WANDB_MODE, the settings files that `wandb online`,
`wandb offline` and `wandb disabled` write. Where none of them speaks: online if there is a key,
else offline, which touches no network.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from universal_simulator.credentials import WANDB_URL, find_wandb_key
from universal_simulator.errors import UserError

Mode = Literal["online", "offline", "disabled"]
_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@dataclass(frozen=True)
class Destination:
    """`entity`: None is the account's default. `reason` tells who decided the mode."""

    mode: Mode
    reason: str
    url: str
    entity: str | None

    @property
    def name(self) -> str:
        """What a ledger compares: the same run at another destination is another mirror."""
        return f"online:{self.url}:{self.entity or ''}" if self.mode == "online" else self.mode


def decide(
    environment: Mapping[str, str], *, requested: str | None = None, folder: Path | None = None
) -> Destination:
    """The destination; UserError for an unknown mode, and for online without a key.

    folder: where a project's own `wandb/settings` would lie (default: the working folder).
    """
    settings = _settings(environment, folder or Path.cwd())
    url = environment.get("WANDB_BASE_URL") or settings.get("base_url") or WANDB_URL
    url = url.rstrip("/")
    key = find_wandb_key(environment, url)
    mode, reason = _mode(environment, settings, requested)
    if mode is None:
        mode = "online" if key else "offline"
        reason = "a key is there" if key else "nothing is configured"
    if mode == "online" and key is None:
        raise UserError(
            f"online was asked for ({reason}), but there is no key for {url}: set WANDB_API_KEY, run "
            "`wandb login`, or give --mode offline"
        )
    return Destination(mode, reason, url, environment.get("WANDB_ENTITY") or settings.get("entity"))


def _mode(
    environment: Mapping[str, str], settings: Mapping[str, str], requested: str | None
) -> tuple[Mode | None, str]:
    if environment.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes") and requested is None:
        return "disabled", "WANDB_DISABLED"
    named = (
        (requested, "--mode"),
        (environment.get("WANDB_MODE"), "WANDB_MODE"),
        (settings.get("mode"), "the W&B settings file"),
        ("disabled" if settings.get("disabled", "").lower() == "true" else None, "the W&B settings file"),
    )
    for value, source in named:
        if value:
            if value not in _MODES:
                raise UserError(f"{source} says {value!r}; allowed are online, offline and disabled")
            return _MODES[value], source
    return None, ""


def _settings(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The user's global file, overruled by the working folder's own; unreadable ones are told."""
    home = Path(environment.get("HOME") or Path.home())
    config = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    hidden = folder / ".wandb" / "settings"
    found: dict[str, str] = {}
    for path in (config / "settings", hidden if hidden.is_file() else folder / "wandb" / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            raise UserError(f"{path} cannot be read as W&B settings; mend it or remove it") from None
        if parser.has_section("default"):
            found |= dict(parser["default"])
    return found
