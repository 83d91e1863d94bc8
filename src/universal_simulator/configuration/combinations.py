"""Combinations of values that no single key shows to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from universal_simulator.configuration.documents import flatten
from universal_simulator.configuration.schema import BUILT_STAGES, RunConfig
from universal_simulator.configuration.unread_settings import unread

#: what can be trained one after the other
STAGE_ORDERS = tuple(
    (*first, "operator", *last)
    for first in ((), ("codec",))
    for last in ((), ("diff_residual",), ("diff_residual", "consistency_distill"))
)


@dataclass(frozen=True)
class Impossible:
    """What cannot be, in words that begin with the key to change, and all keys that have a part in it."""

    words: str
    keys: tuple[str, ...]

    def touches(self, keys: set[str]) -> bool:
        """Is one of `keys` (dotted; a section stands for all in it) a part of this?"""
        return any(own == key or own.startswith(f"{key}.") for own in self.keys for key in keys)


def impossible(config: RunConfig) -> list[Impossible]:
    """All of them, in the order of the sections."""
    return [*_of_stages(config), *_of_curriculum(config), *_of_search(config), *_of_sizes(config)]


def _of_stages(config: RunConfig) -> Iterator[Impossible]:
    stages = config.training.stages
    foreign = [stage for stage in stages if stage not in BUILT_STAGES]
    for stage in foreign:
        yield Impossible(
            f"training.stages: {stage!r} is no stage of an equation with a time; those are "
            f"{', '.join(BUILT_STAGES)}",
            ("training.stages",),
        )
    if not foreign and stages not in STAGE_ORDERS:
        allowed = " or ".join(f"[{', '.join(order)}]" for order in STAGE_ORDERS)
        yield Impossible(
            f"training.stages: expected {allowed}, got [{', '.join(stages)}]", ("training.stages",)
        )
    if "diff_residual" in stages and config.model.reencode_every is None:
        yield Impossible(
            "model.reencode_every: the diff_residual stage needs it, the steps of a segment that it corrects",
            ("model.reencode_every", "training.stages"),
        )
    if config.evaluation.ensemble_groups is not None and config.evaluation.headline != "deterministic":
        yield Impossible(
            "evaluation.ensemble_groups: the mean of an ensemble can only be the headline where every "
            "trajectory has one; set evaluation.headline=deterministic or evaluation.ensemble_groups=null",
            ("evaluation.ensemble_groups", "evaluation.headline"),
        )
    if config.steady_prior.epochs:
        yield Impossible(
            "steady_prior.epochs: the steady prior generates solutions of a steady equation, this config's has "
            "a time: only 0 is allowed (configs/steady_darcy.yaml trains one)",
            ("steady_prior.epochs",),
        )


def _of_curriculum(config: RunConfig) -> Iterator[Impossible]:
    training, data = config.training, config.data
    shares, lengths = training.curriculum_shares, training.rollout_curriculum
    if len(lengths) != len(shares):
        yield Impossible(
            f"training.curriculum_shares: needs one entry per entry of rollout_curriculum, has {len(shares)} "
            f"for {len(lengths)}",
            ("training.curriculum_shares", "training.rollout_curriculum"),
        )
    elif abs(sum(shares) - 1) > 1e-6:
        yield Impossible(
            f"training.curriculum_shares: sum to {sum(shares):g}, need 1", ("training.curriculum_shares",)
        )
    if (data.dataset is None) == (data.file is None):
        yield Impossible(
            "data: give exactly one of data.dataset (a name) and data.file (a path)",
            ("data.dataset", "data.file"),
        )


def _of_search(config: RunConfig) -> Iterator[Impossible]:
    """Of test-time compute, where it is on."""
    ttc = config.ttc
    if not ttc.enabled:
        return
    effective = flatten({"ttc": ttc.model_dump(mode="json")})
    if ttc.combine == "regress" and ttc.solver == "residual" and ttc.residual_threshold == 0:
        yield Impossible(
            "ttc.solver: residual is a cost, and a regressed answer without a threshold asks none; "
            "set ttc.residual_threshold, or take ttc.solver=correction or off",
            ("ttc.solver", "ttc.combine", "ttc.residual_threshold", "ttc.enabled"),
        )
    if ttc.tau_range[0] >= ttc.tau_range[1] and unread("ttc.tau_range", effective) is None:
        yield Impossible(
            f"ttc.tau_range: expected a lower and a higher share, got {list(ttc.tau_range)}",
            ("ttc.tau_range", "ttc.enabled"),
        )
    if config.model.reencode_every is None:
        yield Impossible(
            "model.reencode_every: test-time compute needs it, it acts where a segment ends",
            ("model.reencode_every", "ttc.enabled"),
        )
    if ttc.residual_threshold > 0 and not ttc.reward_steps:
        yield Impossible(
            "ttc.residual_threshold: is a share of the learned reward's 95th percentile; "
            "train one (ttc.reward_steps), or set the threshold to 0",
            ("ttc.residual_threshold", "ttc.reward_steps", "ttc.enabled"),
        )


def _of_sizes(config: RunConfig) -> Iterator[Impossible]:
    """Heads and channel groups divide the width they cut."""
    options = config.model.options
    if "operator" not in options or "decoder" not in options:
        return
    for section, sizes, divisors in (
        ("model.options.operator", options["operator"], ("heads", "group_size")),
        ("model.corrector", config.model.corrector.model_dump(), ("heads", "group_size")),
        ("model.options.decoder", options["decoder"], ("heads",)),
    ):
        for key in divisors:
            if sizes["hidden"] % sizes[key]:
                yield Impossible(
                    f"{section}.{key}: {sizes[key]} does not divide hidden {sizes['hidden']}",
                    (f"{section}.{key}", f"{section}.hidden"),
                )
