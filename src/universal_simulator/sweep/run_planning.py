"""Which runs there are: the plan's own, each with its identity, and what is planned after others ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.identity import IDENTITY_DIGITS, code_version, run_identity
from universal_simulator.sweep.plan import Plan
from universal_simulator.sweep.recovery import MAX_GENERATIONS, heal
from universal_simulator.sweep.state import Run, SweepState


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


def first_runs(plan: Plan) -> list[Wish]:
    """Baseline seeds, references, and the members of the plan's written rounds."""
    wishes = [Wish(plan.baseline.config, seed, "baseline", "baseline", 1.0) for seed in plan.baseline.seeds]
    for peer in plan.references:
        role = "ablation" if peer.ablates else "reference"
        wishes.append(Wish(peer.config, 0, role, role, peer.cost))
    wishes += [Wish(m.config, 0, "member", r.name, m.cost) for r in plan.rounds for m in r.members]
    return wishes


def identified(plan: Plan, wishes: Sequence[Wish], *, data_identity: str, known: Sequence[Run]) -> list[Run]:
    """Each wish with its run id; two of the same effective config and seed are refused as duplicates."""
    configs = {run.run_id[-IDENTITY_DIGITS:]: run.config for run in known}
    runs = []
    for wish in wishes:
        loaded = load_config(wish.config, [f"seed={wish.seed}", *wish.overrides], profile=plan.profile)
        name = loaded.config.name
        run_id = run_identity(name, config_hash=loaded.hash, data_identity=data_identity, seed=wish.seed)
        digest = run_id[-IDENTITY_DIGITS:]
        if digest in configs:
            words = (
                f"{wish.config} and {configs[digest]} have the same effective config and seed: a duplicate"
            )
            raise ConfigurationError(plan.name, [words])
        configs[digest] = wish.config
        runs.append(Run(run_id=run_id, **asdict(wish)))
    return runs


def refuse_other_code(state: SweepState) -> None:
    """Results of two codes are never mixed."""
    planned = state.journal.of("runs_planned")[0].data["code_version"]
    if planned != code_version():
        raise UserError(
            f"{state.folder} was planned by other code ({planned[:10]}, now {code_version()[:10]}); "
            "results of two codes are never mixed: bring that code back, or start a new folder"
        )


def plan_healed_runs(state: SweepState) -> bool:
    """Journal the healed run of each failed one that a rule can cure; a baseline stays as it is."""
    plan = state.plan
    healed = {run.parent for run in state.runs}
    found = False
    for run in state.runs:
        if run.role == "baseline" or run.run_id in healed or not state.failed(f"train:{run.run_id}"):
            continue
        record = state.record(run.run_id)
        if record is None or state.generation(run) >= MAX_GENERATIONS:
            continue
        loaded = load_config(run.config, [f"seed={run.seed}", *run.overrides], profile=plan.profile)
        effective = flatten(loaded.config.model_dump(mode="json"))
        healing = heal(record.failure_kind, record.failure or "", effective)
        if healing is None:
            continue
        wish = Wish(
            run.config,
            run.seed,
            run.role,
            run.round,
            run.cost,
            (*run.overrides, *healing.overrides),
            run.run_id,
        )
        (again,) = identified(plan, [wish], data_identity=state.data_identity, known=state.runs)
        state.journal.append("run_healed", run=asdict(again), healing=asdict(healing))
        found = True
    return found
