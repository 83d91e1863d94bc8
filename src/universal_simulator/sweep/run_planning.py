"""Which runs there are: the plan's own, each with its identity, and what is planned after others ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from universal_simulator.configuration import LoadedConfig, load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import ConfigurationError, ExecutorError, UserError
from universal_simulator.identity import IDENTITY_DIGITS, code_version, run_identity
from universal_simulator.run_record import RunRecord
from universal_simulator.sweep.jobs import config_words
from universal_simulator.sweep.plan import Member, Plan
from universal_simulator.sweep.recovery import Healing, heal, heal_physics
from universal_simulator.sweep.rounds import physics_failures
from universal_simulator.sweep.state import Run, SweepState

#: what a healed run has of the one it heals
INHERITED = ("config", "seed", "role", "round", "cost", "key", "machine")
#: a baseline stays what it is, and a failed trial is an answer
HEALED_ROLES = ("member", "reference", "ablation", "compute_matched")
#: placebos of successive rounds count up from here, far from the seeds that plans name
PLACEBO_SEED = 1001


@dataclass(frozen=True)
class Wish:
    """A run asked for, before it has an identity."""

    config: str
    seed: int
    role: str
    round: str
    cost: float
    overrides: tuple[str, ...] = ()
    parent: str | None = None
    key: str = ""
    machine: str = "small"


def refuse_unfit(plan: Plan, data: Mapping[str, Any]) -> None:
    """UserError before anything is trained where the data job's answer lacks what the plan will ask for at its end.

    data: `regimes` and, of a file of the user's own, `groups_per_split`.
    """
    regimes, groups = data.get("regimes"), data.get("groups_per_split")
    if regimes is not None and plan.headline_regime not in regimes:
        raise UserError(
            f"headline_regime {plan.headline_regime!r} is not in {plan.dataset}, which holds {', '.join(regimes)}"
        )
    if groups is not None and not (groups and all(groups.values())):
        empty = ", ".join(name for name, count in groups.items() if not count) or "all of them"
        raise UserError(
            f"{plan.dataset}: no initial condition in the splits a sweep needs: {empty}; bring more trajectories, or "
            "fill all five in the file's dataset 'split'"
        )


def first_runs(plan: Plan) -> list[Wish]:
    """Baseline seeds, references, and the members of the plan's written rounds with their placebos."""
    config = plan.baseline.config
    wishes = [Wish(config, seed, "baseline", "baseline", 1.0, key=config) for seed in plan.baseline.seeds]
    for peer in plan.references:
        if peer.compute_matched_to is None:
            wishes.append(_wish(peer, "ablation" if peer.ablates else "reference"))
    for index, round_ in enumerate(plan.rounds):
        wishes += [_wish(member, "member", round_.name) for member in round_.members]
        if round_.kind == "members" and round_.placebo:
            wishes.append(
                Wish(
                    config, PLACEBO_SEED + index, "placebo", round_.name, 1.0, key=f"placebo of {round_.name}"
                )
            )
    return wishes


def _wish(member: Member, role: str, round_name: str | None = None) -> Wish:
    return Wish(
        member.config,
        member.seed,
        role,
        round_name or role,
        member.cost,
        member.overrides,
        key=member.key,
        machine=member.machine,
    )


def identified(plan: Plan, wishes: Sequence[Wish], *, data_identity: str, known: Sequence[Run]) -> list[Run]:
    """Each wish with its run id; two of the same effective config and seed are refused as duplicates."""
    configs = {_digest(run): run.config for run in known}
    runs = []
    for wish in wishes:
        run = _identify(plan, wish, data_identity)
        if _digest(run) in configs:
            other = configs[_digest(run)]
            words = f"{wish.config} and {other} have the same effective config and seed: a duplicate"
            raise ConfigurationError(plan.name, [words])
        configs[_digest(run)] = wish.config
        runs.append(run)
    return runs


def _identify(plan: Plan, wish: Wish, data_identity: str) -> Run:
    loaded = _load(plan, wish)
    name = loaded.config.name
    run_id = run_identity(name, config_hash=loaded.hash, data_identity=data_identity, seed=wish.seed)
    return Run(run_id=run_id, **asdict(wish))


def _digest(run: Run) -> str:
    return run.run_id[-IDENTITY_DIGITS:]


def refuse_other_code(state: SweepState) -> None:
    """Results of two codes are never mixed. Asked before anything is opened: what is at work there stays at work."""
    told = state.journal.of("runs_planned")
    if told and (planned := told[0].data["code_version"]) != code_version():
        raise UserError(
            f"{state.folder} was planned by other code ({planned[:10]}, now {code_version()[:10]}); "
            "results of two codes are never mixed: bring that code back, or start a new folder"
        )


def refuse_incomplete(state: SweepState, runs: Sequence[str], what: str) -> None:
    """A job that failed for reasons of its surroundings is no result: nothing is decided on it."""
    broken = [
        job
        for job in (f"{what}:{run}" for run in runs)
        if state.failed(job) and not state.failed_for_good(job)
    ]
    if broken:
        raise ExecutorError(
            f"incomplete: {len(broken)} job(s) failed and nothing was decided: {', '.join(broken)}. "
            "Mend the cause and type the command again. Last words of the first:\n"
            f"{state.last_words(broken[0])}"
        )


def plan_appended_runs(state: SweepState) -> None:
    """Journal the runs of rounds of members that were appended after the first were planned."""
    appended = {name for e in state.journal.of("plan_amended") for name in e.data["appended"]}
    there = {(run.round, run.key, run.seed) for run in state.runs}
    wishes = [w for w in first_runs(state.plan) if w.round in appended]
    wishes = [w for w in wishes if (w.round, w.key, w.seed) not in there]
    runs = identified(state.plan, wishes, data_identity=state.data_identity, known=state.runs)
    for run in runs:
        state.journal.append("run_added", run=asdict(run), why=f"round {run.round} was appended")


def plan_healed_runs(state: SweepState) -> bool:
    """Journal the healed run of each that failed and that a rule can cure; a baseline stays as it is."""
    found = False
    for run in _curable(state):
        record = state.record(run.run_id) if state.failed(f"train:{run.run_id}") else None
        if record is not None:
            effective = flatten(_load(state.plan, run).config.model_dump(mode="json"))
            healing = heal(record.failure_kind, record.failure or "", effective)
            found |= _plan_healed(state, run, healing)
    return found


def plan_physics_healed_runs(state: SweepState) -> bool:
    """Journal the healed run of each member that trained well and fails a physics gate of small-eval."""
    evaluations = state.evaluations("small_eval")
    seeds = [evaluations[run] for run in state.baselines() if run in evaluations]
    if not state.plan.healing.physics or not seeds:
        return False
    found = False
    for run in _curable(state):
        if run.role != "member" or run.run_id not in evaluations:
            continue
        failed = physics_failures(state.plan.gates, evaluations[run.run_id], seeds[0])
        if failed:
            effective = flatten(_load(state.plan, run).config.model_dump(mode="json"))
            found |= _plan_healed(state, run, heal_physics("; ".join(failed), effective))
    return found


def _curable(state: SweepState) -> list[Run]:
    """Runs that may be healed: no baseline, not healed yet, not at the end of their line."""
    healed = {run.parent for run in state.runs}
    return [
        run
        for run in state.runs
        if run.role in HEALED_ROLES
        and run.run_id not in healed
        and state.generation(run) < state.plan.healing.generations
    ]


def _plan_healed(state: SweepState, run: Run, healing: Healing | None) -> bool:
    if healing is None:
        return False
    wish = Wish(
        **{name: getattr(run, name) for name in INHERITED},
        overrides=(*run.overrides, *healing.overrides),
        parent=run.run_id,
    )
    again = _identify(state.plan, wish, state.data_identity)
    if _digest(again) in map(_digest, state.runs):
        return False  # the cured config is in the plan already: it has been tried
    state.journal.append("run_healed", run=asdict(again), healing=asdict(healing))
    return True


def plan_compute_matched_runs(state: SweepState) -> bool:
    """Journal references that get as many training FLOPs as another run was measured to use.

    With F the training FLOPs measured of the target, f those of the same config trained as the
    plan has it, and n its steps: n F / f steps, in every stage alike. Only when both have ended.
    """
    plan = state.plan
    planned = {run.key for run in state.runs}
    found = False
    for peer in plan.references:
        if peer.compute_matched_to is None or peer.key in planned:
            continue
        target, own = state.trained(peer.compute_matched_to), state.trained(peer.config)
        if target is None or own is None:
            continue
        overrides = (*peer.overrides, *_scaled_steps(own, target))
        wish = replace(_wish(peer, "compute_matched"), overrides=overrides)
        run = _identify(plan, wish, state.data_identity)
        if _digest(run) in map(_digest, state.runs):
            continue  # it has the target's compute as it is
        state.journal.append("run_added", run=asdict(run), why=f"as many training FLOPs as {target.run_id}")
        found = True
    return found


def _scaled_steps(own: RunRecord, target: RunRecord) -> list[str]:
    """Overrides that scale the steps of every trained stage; a stage that stopped early counts in full."""
    assert own.training is not None
    assert target.training is not None
    ours, training = own.training.result, own.training.result.effective_config["training"]
    done = ours.optimiser_steps / training["operator"]["steps"]
    ratio = target.training.result.compared_flops / (ours.compared_flops / done)
    return [
        f"training.{stage}.{key}={max(1, round(ratio * training[stage][key]))}"
        for stage in ours.stages
        if stage in training
        for key in ("steps", "patience_steps")
    ]


def _load(plan: Plan, run: Wish | Run) -> LoadedConfig:
    words = config_words(plan, seed=run.seed, overrides=run.overrides)
    return load_config(run.config, words, profile=plan.profile)
