"""Settings of test-time compute other than a run's own, as words; for scores on a model that is trained already."""

from __future__ import annotations

import re
from collections.abc import Sequence

from universal_simulator.configuration.documents import flatten, merge, parse_overrides, validate
from universal_simulator.configuration.schema import TTCSection
from universal_simulator.configuration.unread_settings import unread
from universal_simulator.errors import ConfigurationError
from universal_simulator.run_record import content_hash

#: hex digits of a setting's hash in the name of its record
DIGITS = 8


def words_of(setting: str) -> list[str]:
    """One setting of several keys, `ttc.beam=2 ttc.combine=regress`, as its words."""
    return re.split(r"\s+(?=ttc\.)", setting.strip())


def with_settings(ttc: TTCSection, words: Sequence[str]) -> TTCSection:
    """The section, switched on, with `ttc.key=value` words applied; every fault in one ConfigurationError."""
    given = parse_overrides(words)
    strangers = sorted(set(given) - {"ttc"})
    if strangers or not isinstance(given.get("ttc", {}), dict):
        raise ConfigurationError(
            "settings of test-time compute",
            [
                f"{key}: only keys below ttc need no training, e.g. ttc.residual_threshold=0.3"
                for key in strangers
            ]
            or ["ttc: expected ttc.key=value, e.g. ttc.residual_threshold=0.3"],
        )
    values = merge(ttc.model_dump(mode="json"), given.get("ttc", {})) | {"enabled": True}
    asked = validate(TTCSection, values, "settings of test-time compute")
    effective = flatten({"ttc": asked.model_dump(mode="json")})
    reasons = {key: unread(key, effective, trains_reward=False) for key in flatten(given)}
    faults = [f"{key}: {reason}; ask for a key that is read" for key, reason in reasons.items() if reason]
    if faults:
        raise ConfigurationError("settings of test-time compute", faults)
    return asked


def settings_hash(ttc: TTCSection) -> str:
    """Of every setting: what `Predictor.search_hash` says."""
    return content_hash(ttc.model_dump(mode="json"))


def score_label(ttc: TTCSection) -> str:
    """Name of the evaluation of these settings on small-eval, beside the run's own."""
    return f"small_eval_ttc_{settings_hash(ttc)[:DIGITS]}"
