"""What no type can say of a plan: that its configs load, its metrics are measured, its data hold its regime.

Works on the plan as read, before and beside its validation, so that every fault is told at once.
What is of the wrong type here is left to the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten, read_mapping, validate
from universal_simulator.configuration.inference_settings import with_settings, words_of
from universal_simulator.configuration.locations import find
from universal_simulator.configuration.profiles import load_profile
from universal_simulator.configuration.schema import RunConfig
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.evaluation.glossary import entry

#: metrics of a run that no evaluation measures
RUN_METRICS = ("wall_clock",)


def is_data_file(dataset: str) -> bool:
    """A file of the user's own, not the name of a specification."""
    return Path(dataset).suffix in (".hdf5", ".h5")


def data_words(dataset: str) -> tuple[str, ...]:
    """What every config is told where the plan runs on a data file of its own."""
    return (f"data.file={json.dumps(dataset)}",) if is_data_file(dataset) else ()


def plan_faults(values: Mapping[str, Any]) -> list[str]:
    """Every fault in words, each beginning with where it is."""
    return [
        *_config_faults(values),
        *_role_faults(values),
        *_left_out_faults(values),
        *_repeat_faults(values),
        *_metric_faults(values),
        *_ladder_faults(values),
        *_continuation_faults(values),
        *_score_faults(values),
        *_data_faults(values),
    ]


def _members(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, member) of the baseline, the references and every round, as far as they are mappings."""
    baseline = values.get("baseline")
    if isinstance(baseline, Mapping):
        yield "baseline", baseline
    for index, reference in enumerate(_list(values, "references")):
        if isinstance(reference, Mapping):
            yield f"references.{index}", reference
    for number, round_ in enumerate(_list(values, "rounds")):
        for index, member in enumerate(_list(round_, "members")):
            if isinstance(member, Mapping):
                yield f"rounds.{number}.members.{index}", member


def _list(values: Any, key: str) -> Sequence[Any]:
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, list) else []


def _config_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """Every config loads under the plan's profile, with the words the plan adds."""
    profile, dataset = values.get("profile"), values.get("dataset")
    if isinstance(profile, str):
        try:
            load_profile(profile)
        except UserError as error:
            yield from _told("profile", error)
            profile = None
    file_words = data_words(dataset) if isinstance(dataset, str) else ()
    told: set[tuple[str, ...]] = set()
    for where, member in _members(values):
        config, words = member.get("config"), _list(member, "overrides")
        if not isinstance(config, str) or not all(isinstance(word, str) for word in words):
            continue
        if (config, *words) in told:
            continue
        told.add((config, *words))
        try:
            loaded = load_config(
                config, [*file_words, *words], profile=profile if isinstance(profile, str) else None
            )
        except UserError as error:
            yield from _told(f"{where}.config", error)
            continue
        yield from _predictor_faults(f"{where}.config", loaded.config)


def _predictor_faults(where: str, config: RunConfig) -> Iterator[str]:
    """The headline predictor of a plan is deterministic, guarded and without test-time compute, of every config."""
    ends = (
        "the plan's predictor is deterministic, guarded, without TTC, and figures of another are not compared"
    )
    if config.evaluation.headline != "deterministic":
        yield f"{where}: evaluation.headline is {config.evaluation.headline}, needs deterministic: {ends}"
    for guard, on in config.guards.model_dump().items():
        if not on:
            yield f"{where}: guards.{guard} is off, needs true: {ends}"
    if config.ttc.enabled:
        yield f"{where}: ttc.enabled is true, needs false: {ends} (`ttc.settings` of a plan scores it beside)"


def _told(where: str, error: UserError) -> Iterator[str]:
    if isinstance(error, ConfigurationError):
        yield from (f"{where}: {Path(error.source).name}: {fault}" for fault in error.faults)
    else:
        yield f"{where}: {error}"


def _role_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What only references, and what only members of rounds may say; names that are none of this plan."""
    configs = {member.get("config") for _, member in _members(values)}
    for where, member in _members(values):
        for key in ("ablates", "compute_matched_to"):
            target = member.get(key)
            if target is None:
                continue
            if not where.startswith("references"):
                yield f"{where}.{key}: only a reference can say that"
            elif target not in configs:
                yield f"{where}: {key} {target!r} is no config of this plan"
            elif key == "compute_matched_to" and target == member.get("config"):
                yield f"{where}: {key} names the config itself"
        machines = values.get("machines")
        known = {"small", *(machines if isinstance(machines, Mapping) else ())}
        if member.get("machine", "small") not in known:
            yield f"{where}.machine: {member['machine']!r} is none of the plan's machines: {', '.join(sorted(known))}"
        if where.startswith("references") and member.get("forced"):
            yield f"{where}.forced: a reference is no candidate"


def _left_out_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What is told as left out of the references is not among them."""
    skipped = values.get("skip_references")
    there = {member.get("config") for where, member in _members(values) if where.startswith("references")}
    for name in skipped if isinstance(skipped, Mapping) else ():
        if name in there:
            yield f"skip_references: {name!r} is a reference of this plan; leave it out of one of the two"


def _repeat_faults(values: Mapping[str, Any]) -> Iterator[str]:
    seeds = _list(values.get("baseline"), "seeds")
    if len({str(seed) for seed in seeds}) < len(seeds):
        yield "baseline.seeds: a seed is given twice"
    names = [r.get("name") for r in _list(values, "rounds") if isinstance(r, Mapping)]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"rounds: {name} is the name of two rounds"
    seen: dict[tuple[Any, ...], str] = {}
    for where, member in _members(values):
        if member.get("compute_matched_to") or not isinstance(member.get("config"), str):
            continue
        words = tuple(str(word) for word in _list(member, "overrides"))
        for seed in seeds if where == "baseline" else [member.get("seed", 0)]:
            other = seen.setdefault((member["config"], words, seed), where)
            if other != where:
                yield f"{where}: {member['config']} is a member twice; a repeat needs another seed"


def _metric_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """Gates, limits and tiers name metrics that somebody measures."""
    named: list[tuple[str, Any]] = []
    gates = values.get("gates")
    if isinstance(gates, Mapping):
        for kind in ("small_eval", "hard_abort", "limits"):
            found = gates.get(kind)
            named += [(f"gates.{kind}", name) for name in found] if isinstance(found, Mapping) else []
    for number, tier in enumerate(_list(values, "tiers")):
        for index, criterion in enumerate(_list(tier, "criteria")):
            if isinstance(criterion, Mapping) and "metric" in criterion:
                named.append((f"tiers.{number}.criteria.{index}", criterion["metric"]))
    for where, name in named:
        if isinstance(name, str) and not _is_metric(name, tier=where.startswith("tiers")):
            yield f"{where}: {name!r} is no metric that is measured"


def _is_metric(name: str, *, tier: bool) -> bool:
    if tier and name in RUN_METRICS:
        return True
    try:
        entry(name)
    except KeyError:
        return False
    return True


def _ladder_faults(values: Mapping[str, Any]) -> Iterator[str]:
    rungs = [r for r in _list(values, "ladder") if isinstance(r, Mapping)]
    for index, (upper, lower) in enumerate(pairwise(rungs), 1):
        high, low = upper.get("below"), lower.get("below")
        if isinstance(high, int | float) and isinstance(low, int | float) and not high > low:
            yield f"ladder.{index}.below: {low} after {high}; each rung must lie below the one before"
    names = [r.get("name") for r in rungs]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"ladder: {name!r} is the name of two rungs"


def _continuation_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What rounds after the written ones refer to exists; they come last."""
    rounds = [r for r in _list(values, "rounds") if isinstance(r, Mapping)]
    names = [r.get("name") for r in rounds]
    skipped = values.get("skip_rounds")
    for name in skipped if isinstance(skipped, Mapping) else ():
        if name not in names:
            yield f"skip_rounds: {name!r} is no round of this plan ({', '.join(map(str, names))})"
        elif rounds[names.index(name)].get("kind", "members") == "members":
            yield f"skip_rounds: {name!r} has members; leave them out of the plan instead"
    tiers = [t.get("name") for t in _list(values, "tiers") if isinstance(t, Mapping)]
    tier = values.get("rest_at_tier")
    if tier is not None and tier not in tiers:
        yield f"rest_at_tier: {tier!r} is no tier of this plan ({', '.join(map(str, tiers))})"
    seen_later = False
    for number, round_ in enumerate(rounds):
        later = round_.get("kind", "members") != "members"
        if seen_later and not later:
            yield f"rounds.{number}: a round of members after one that starts from the champion"
        seen_later = seen_later or later
        yield from _change_faults(values, round_, f"rounds.{number}")


def _change_faults(values: Mapping[str, Any], round_: Mapping[str, Any], where: str) -> Iterator[str]:
    """Refinements load on the baseline's config: a misspelt key is told now, not hours later."""
    profile, baseline = values.get("profile"), values.get("baseline")
    config = baseline.get("config") if isinstance(baseline, Mapping) else None
    names = [r.get("name") for r in _list(round_, "refinements") if isinstance(r, Mapping)]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"{where}.refinements: {name!r} is the name of two"
    if not isinstance(config, str) or not isinstance(profile, str):
        return
    changes = [r.get("set") for r in _list(round_, "refinements") if isinstance(r, Mapping)]
    search = round_.get("search")
    known = None
    for index, change in enumerate(changes):
        if not isinstance(change, Mapping):
            continue
        try:
            words = [f"{key}={json.dumps(value)}" for key, value in change.items()]
            loaded = load_config(config, words, profile=profile)
        except UserError as error:
            yield from _told(f"{where}.refinements.{index}.set", error)
            continue
        yield from _predictor_faults(f"{where}.refinements.{index}.set", loaded.config)
    for key in _list(search, "keys"):
        if known is None:
            try:
                known = flatten(load_config(config, profile=profile).config.model_dump(mode="json"))
            except UserError:
                return  # told where the baseline is checked
        if key not in known:
            yield f"{where}.search.keys: the config has no key {key!r}"


def _score_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings of test-time compute load on the baseline's config, now and not at the end."""
    profile, baseline = values.get("profile"), values.get("baseline")
    config = baseline.get("config") if isinstance(baseline, Mapping) else None
    settings = [setting for setting in _list(values.get("ttc"), "settings") if isinstance(setting, str)]
    if not settings or not isinstance(config, str) or not isinstance(profile, str):
        return
    try:
        ttc = load_config(config, profile=profile).config.ttc
    except UserError:
        return  # told where the baseline is checked
    for index, setting in enumerate(settings):
        try:
            with_settings(ttc, words_of(setting))
        except UserError as error:
            yield from _told(f"ttc.settings.{index}", error)


def _data_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """The data set exists and, where its specification says so, holds the headline regime."""
    dataset, headline = values.get("dataset"), values.get("headline_regime")
    if not isinstance(dataset, str):
        return
    if is_data_file(dataset):
        if not Path(dataset).is_file():
            yield f"dataset: {dataset} does not exist"
        return  # what regimes it holds is asked of the file itself, before anything is planned
    try:
        path = find("configs/data", dataset)
        spec = validate(DatasetSpec, read_mapping(path), str(path))
    except UserError as error:
        yield from _told("dataset", error)
        return
    known = [f"{value:g}" for value in spec.parameter_values]
    if isinstance(headline, str) and headline.partition("=")[2] not in known:
        yield f"headline_regime: {headline!r} is not in {dataset}, which has the values {', '.join(known)}"
