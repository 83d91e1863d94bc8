"""The one loader: base <- profile's overlay <- what extends it <- profile's rule <- overrides.

A profile's overlay is laid over the file named `base` alone: what a config above it says itself stays.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from universal_simulator.configuration.documents import (
    describe_faults,
    flatten,
    merge,
    merged,
    parse_overrides,
    read_layers,
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
    BUILT_STAGES,
    PENDING_SECTIONS,
    FNOOptions,
    LatentSurrogateOptions,
    RunConfig,
)
from universal_simulator.configuration.unread_settings import unread, without_unread
from universal_simulator.errors import ConfigurationError
from universal_simulator.run_record import content_hash

#: keys that never change a result of the same hardware class
_WITHOUT_EFFECT = ("name", "tags", "seed", "threads", "profile", "tracking", "device")
#: what can be trained one after the other
STAGE_ORDERS = tuple(
    (*first, "operator", *last)
    for first in ((), ("codec",))
    for last in ((), ("diff_residual",), ("diff_residual", "consistency_distill"))
)
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
    """Everything wrong at once: keys, types, options and, where those allow, combinations."""
    values = merge(values, {})
    model = values.get("model")
    kind = BUILT_IN_OPTIONS.get(str(model.get("import_path"))) if isinstance(model, dict) else None
    if isinstance(model, dict) and kind is not None and isinstance(model.get("options", {}), dict):
        try:
            options = kind.model_validate(model.get("options", {}))
            values["model"] = {**model, "options": options.model_dump(mode="json")}
        except ValidationError as error:
            faults = faults + describe_faults(kind, error, "model.options.")
            values["model"] = {**model, "options": {}}
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        faults = faults + describe_faults(RunConfig, error)
        faults += _impossible_beside(values, error)
        raise ConfigurationError(source, faults) from error
    faults = faults + _impossible(config)
    if faults:
        raise ConfigurationError(source, faults)
    return config


def _impossible_beside(values: dict[str, Any], error: ValidationError) -> list[str]:
    """Impossible combinations among what is left when unknown keys are set aside."""
    rest = copy.deepcopy(values)
    for item in error.errors():
        *sections, last = item["loc"]
        if item["type"] != "extra_forbidden":
            return []
        section: Any = rest
        for part in sections:
            section = section[part]
        del section[last]
    return _impossible(RunConfig.model_validate(rest))


def _impossible(config: RunConfig) -> list[str]:
    """Combinations that no single key shows to be wrong."""
    faults = []
    training = config.training
    for stage in training.stages:
        if stage not in BUILT_STAGES:
            faults.append(
                f"training.stages: {stage!r} is no stage of an equation with a time; those are "
                f"{', '.join(BUILT_STAGES)}"
            )
    if not faults and training.stages not in STAGE_ORDERS:
        allowed = " or ".join(f"[{', '.join(order)}]" for order in STAGE_ORDERS)
        faults.append(f"training.stages: expected {allowed}, got [{', '.join(training.stages)}]")
    if "diff_residual" in training.stages and config.model.reencode_every is None:
        faults.append(
            "model.reencode_every: the diff_residual stage needs it, the steps of a segment that it corrects"
        )
    if config.evaluation.ensemble_groups is not None and config.evaluation.headline != "deterministic":
        faults.append(
            "evaluation.ensemble_groups: the mean of an ensemble can only be the headline where every "
            "trajectory has one; set evaluation.headline=deterministic or ensemble_groups=null"
        )
    if config.steady_prior.epochs:
        faults.append(
            "steady_prior.epochs: the steady prior generates solutions of a steady equation, this config's has "
            "a time: only 0 is allowed (configs/steady_darcy.yaml trains one)"
        )
    faults += _impossible_search(config)
    if len(training.rollout_curriculum) != len(training.curriculum_shares):
        faults.append("training.curriculum_shares: needs one entry per entry of rollout_curriculum")
    elif abs(sum(training.curriculum_shares) - 1) > 1e-6:
        faults.append(f"training.curriculum_shares: sum to {sum(training.curriculum_shares):g}, need 1")
    if (config.data.dataset is None) == (config.data.file is None):
        faults.append("data: give exactly one of data.dataset (a name) and data.file (a path)")
    options = config.model.options
    if "operator" in options and "decoder" in options:
        operator, decoder = options["operator"], options["decoder"]
        for key in ("heads", "group_size"):
            if operator["hidden"] % operator[key]:
                faults.append(
                    f"model.options.operator.{key}: {operator[key]} does not divide hidden {operator['hidden']}"
                )
        corrector = config.model.corrector
        for key, value in (("heads", corrector.heads), ("group_size", corrector.group_size)):
            if corrector.hidden % value:
                faults.append(f"model.corrector.{key}: {value} does not divide hidden {corrector.hidden}")
        if decoder["hidden"] % decoder["heads"]:
            faults.append(
                f"model.options.decoder.heads: {decoder['heads']} does not divide hidden {decoder['hidden']}"
            )
    return faults


def _impossible_search(config: RunConfig) -> list[str]:
    """Of test-time compute, where it is on."""
    ttc, faults = config.ttc, []
    if not ttc.enabled:
        return []
    effective = flatten({"ttc": ttc.model_dump(mode="json")})

    def live(key: str) -> bool:
        return unread(key, effective) is None

    if ttc.combine == "regress" and ttc.solver == "residual" and ttc.residual_threshold == 0:
        faults.append(
            "ttc.solver: residual is a cost, and a regressed answer without a threshold asks none; "
            "set ttc.residual_threshold, or take ttc.solver=correction or off"
        )
    if ttc.tau_range[0] >= ttc.tau_range[1] and live("ttc.tau_range"):
        faults.append(f"ttc.tau_range: expected a lower and a higher share, got {list(ttc.tau_range)}")
    if config.model.reencode_every is None:
        faults.append("model.reencode_every: test-time compute needs it, it acts where a segment ends")
    if ttc.residual_threshold > 0 and not ttc.reward_steps:
        faults.append(
            "ttc.residual_threshold: is a share of the learned reward's 95th percentile; "
            "train one (ttc.reward_steps), or set the threshold to 0"
        )
    return faults
