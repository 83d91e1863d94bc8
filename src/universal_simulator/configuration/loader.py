"""The one loader: base <- profile's overlay <- what extends it <- profile's rule <- overrides.

A profile's overlay is laid over the file named `base` alone: what a config above it says itself stays.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from universal_simulator.configuration.combinations import impossible
from universal_simulator.configuration.documents import (
    flatten,
    merge,
    merged,
    parse_overrides,
    read_layers,
    sound,
)
from universal_simulator.configuration.locations import DATA_FILES, find
from universal_simulator.configuration.profiles import (
    PLAN_TERMS,
    STAGES,
    Profile,
    apply_profile,
    load_profile,
)
from universal_simulator.configuration.schema import (
    PENDING_SECTIONS,
    FNOOptions,
    LatentSurrogateOptions,
    ModelConfig,
    RunConfig,
)
from universal_simulator.configuration.unread_settings import unread, without_unread
from universal_simulator.errors import ConfigurationError
from universal_simulator.run_record import content_hash

#: keys that never change a result of the same hardware class
_WITHOUT_EFFECT = ("name", "tags", "seed", "threads", "profile", "tracking", "device")
BUILT_IN_OPTIONS: dict[str, type[BaseModel]] = {
    "universal_simulator.model.latent_surrogate:LatentSurrogate": LatentSurrogateOptions,
    "universal_simulator.model.fno:FNO": FNOOptions,
}


@dataclass(frozen=True)
class LoadedConfig:
    """`config` is effective; `plan_values` are as written; `rules` say what the profile changed."""

    config: RunConfig
    plan_values: dict[str, Any]
    rules: dict[str, str]
    source: str

    @property
    def hash(self) -> str:
        """Hash of everything but the seed that changes the result."""
        return config_hash(self.config)

    def rows(self) -> list[tuple[str, Any, Any, str]]:
        """(key, plan's value, effective value, rule) of every key, for `usim config show`."""
        plan, effective = flatten(self.plan_values), flatten(self.config.model_dump(mode="json"))
        aliases = {
            f"training.{stage}.{key}": f"training.{stage}.{plan_key}"
            for stage in STAGES
            for plan_key, key in PLAN_TERMS
        }
        rows = []
        for key, value in effective.items():
            section = key.split(".")[0]
            rule = self.rules.get(key, "")
            if section in PENDING_SECTIONS:
                rule = "not run: only a steady problem has this stage"
            if section == "ttc" and key != "ttc.enabled" and not self.config.ttc.enabled:
                rule = "not read: test-time compute is off (ttc.enabled)"
            elif (reason := unread(key, effective)) is not None:
                rule = f"not read: {reason}"
            rows.append((key, plan.get(aliases.get(key, key)), value, rule))
        return rows


def config_hash(config: RunConfig) -> str:
    """Of what changes a result; a user's own module counts with its source."""
    values = config.model_dump(mode="json")
    values["model"]["source"] = _source_hash(config.model.import_path)
    for key in (*_WITHOUT_EFFECT, *PENDING_SECTIONS):
        values.pop(key)
    values["data"].pop("resident_gib")
    ttc = values.pop("ttc")
    if config.ttc.enabled:
        values["ttc"] = ttc if config.ttc.combine != "regress" else without_unread(flatten({"ttc": ttc}))
    for key in ("dataset", "file"):
        # its content counts, by the data identity; where it lies does not
        if _is_file(values["data"][key]):
            values["data"][key] = Path(values["data"][key]).name
    if "diff_residual" not in config.training.stages:
        values["model"].pop("corrector")
        values["training"].pop("ensemble_validation")
    for stage in STAGES:
        if stage not in config.training.stages:
            values["training"].pop(stage)
    return content_hash(values)


def _is_file(named: Any) -> bool:
    return isinstance(named, str) and Path(named).suffix in DATA_FILES


def _brings_file(data: dict[str, Any]) -> bool:
    return bool(data.get("file")) or _is_file(data.get("dataset"))


def _source_hash(import_path: str) -> str | None:
    """SHA-256 of the module that holds a user's own class; None for ours (the code version has it)."""
    module = import_path.partition(":")[0]
    if not module or module.partition(".")[0] == __package__.partition(".")[0]:
        return None
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def load_config(
    name: str | Path, overrides: Sequence[str] = (), *, profile: str | None = None
) -> LoadedConfig:
    """Read, merge, rescale and validate; every fault at once in one ConfigurationError."""
    path = find("configs", name)
    layers = read_layers(path, "configs")
    plan_values = merge({"name": path.stem}, merged(layers))
    if plan_values.get("problem") == "steady":
        raise ConfigurationError(
            str(path), ["problem: a steady problem has no time; `usim run` alone reads such a config"]
        )
    if plan_values.get("name") == "base":
        plan_values["name"] = path.stem
    given = parse_overrides(overrides)
    chosen = given.pop("profile", None) or profile or plan_values.get("profile")
    if not isinstance(chosen, str):
        raise ConfigurationError(str(path), [f"profile: expected a name, got {chosen!r}"])
    loaded_profile = load_profile(chosen)
    no_mapping = [
        name
        for name, overlaid in loaded_profile.overlay.items()
        if isinstance(overlaid, dict) and name in plan_values and not isinstance(plan_values[name], dict)
    ]
    faults = [f"{name}: must be a mapping, got {plan_values[name]!r}" for name in no_mapping]
    own = {key: value for key, value in _above_base(layers).items() if key not in (*no_mapping, "name")}
    values = merge(merge(plan_values, loaded_profile.overlay), own)
    own_data = plan_values.get("data")
    brings = isinstance(own_data, dict) and (own_data.get("dataset") or _brings_file(own_data))
    if isinstance(own_data, dict) and brings and isinstance(values.get("data"), dict):
        # a config about one data set keeps it; the profile's is for those that name none
        values["data"]["dataset"] = own_data.get("dataset")
    values["profile"] = loaded_profile.name
    training = values.get("training", {})
    for stage in STAGES:
        if not isinstance(training, dict) or not isinstance(training.get(stage, {}), dict):
            raise ConfigurationError(str(path), [f"training.{stage}: must be a mapping"])
    rules = _overlay_rules(loaded_profile, flatten(plan_values), flatten(own), flatten(values))
    values = merge(values, _plan_terms(given, faults))
    values, rescaled, rule_faults = apply_profile(values, loaded_profile)
    rules |= rescaled
    values = merge(values, given)
    for key in flatten(given):
        rules[key] = "given on the command line"
    given_data = given.get("data")
    if isinstance(given_data, dict) and given_data.get("file") and "dataset" not in given_data:
        values["data"]["dataset"] = None
    config = _validate(values, str(path), faults + rule_faults)
    return LoadedConfig(config, plan_values, rules, str(path))


def _above_base(layers: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """What the layers above the file named `base` say themselves; all of them where there is none."""
    names = [path.stem for path, _ in layers]
    first = len(names) - names[::-1].index("base") if "base" in names else 0
    return merged(layers[first:])


def _overlay_rules(
    profile: Profile, plan: Mapping[str, Any], own: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, str]:
    """Of each key of the overlay, flattened as the others: who gave the value that counts, where two differ."""
    rules = {}
    for key, overlaid in flatten(profile.overlay).items():
        if values.get(key) != overlaid:
            rules[key] = f"the config's own, not profile {profile.name}'s {overlaid}"
        elif key not in own and plan.get(key) != overlaid:
            rules[key] = f"set by profile {profile.name}"
    return rules


def _plan_terms(given: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """Take epochs and patience_epochs out of the overrides: the profile's rule turns them into steps."""
    training = given.get("training")
    found = {}
    for name in STAGES:
        stage = training.get(name) if isinstance(training, dict) else None
        if not isinstance(stage, dict):
            continue
        terms = {plan_key: stage.pop(plan_key) for plan_key, _ in PLAN_TERMS if plan_key in stage}
        for plan_key, key in PLAN_TERMS:
            if plan_key in terms and key in stage:
                faults.append(f"training.{name}: give one of {plan_key} and {key}, not both")
        if terms:
            found[name] = terms
    return {"training": found} if found else {}


def config_of_values(values: Mapping[str, Any], source: str) -> LoadedConfig:
    """An effective configuration as a record holds it: validated anew, nothing merged or rescaled."""
    return LoadedConfig(_validate(dict(values), source, []), dict(values), {}, source)


def _validate(values: dict[str, Any], source: str, faults: list[str]) -> RunConfig:
    """Everything wrong at once: keys, types, options and the combinations that no wrong value is part of."""
    values = merge(values, {})
    model, wrong = values.get("model"), set[str]()
    usual = ModelConfig.model_fields["import_path"].default
    kind = BUILT_IN_OPTIONS.get(str(model.get("import_path", usual))) if isinstance(model, dict) else None
    if isinstance(model, dict) and kind is not None and isinstance(model.get("options", {}), dict):
        options, told, aside = sound(kind, model.get("options", {}), "model.options.")
        faults, wrong = faults + told, wrong | aside
        values["model"] = {**model, "options": {} if options is None else options.model_dump(mode="json")}
    config, told, aside = sound(RunConfig, values)
    faults, wrong = faults + told, wrong | aside
    if config is not None:
        faults += [found.words for found in impossible(config) if not found.touches(wrong)]
    if faults or config is None:
        raise ConfigurationError(source, faults)
    return config
