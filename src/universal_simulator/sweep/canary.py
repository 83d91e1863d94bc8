"""One short run goes all the way on the chosen executor before the rest start.

It trains two steps of every stage of the baseline's config on the sweep's own data, evaluates,
records and (where the worker is elsewhere) is copied back. What came back is held to what was
asked, like that of every training: this code, these data, this config, a whole model.

A canary that passed speaks for the executor and the code archive it went with, for nothing else. Its seed
is made of both, so that under another executor or other code it is another run, which goes all the
way again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from universal_simulator.configuration import load_config
from universal_simulator.identity import code_version
from universal_simulator.source_tree import archive_hash
from universal_simulator.sweep.executor import Executor, Job
from universal_simulator.sweep.jobs import config_words, training_job
from universal_simulator.sweep.plan import Plan
from universal_simulator.sweep.run_planning import Wish, identified
from universal_simulator.sweep.state import Run, SweepState

KIND = "canary"
STEPS = 2


@dataclass(frozen=True)
class Bond:
    """What a canary speaks for. code: hash of the code archive, of the package alone outside a checkout."""

    executor: str
    code: str

    @property
    def seed(self) -> int:
        """The same bond, the same seed (24 bits)."""
        digest = hashlib.sha256(f"{self.executor}\0{self.code}".encode()).digest()
        return int.from_bytes(digest[:3], "big")


def bond(executor: Executor) -> Bond:
    """Of the canary that would go now."""
    return Bond(executor.place, archive_hash() or code_version())


def passed(state: SweepState, bound: Bond) -> bool:
    """A canary of this bond came back sound."""
    return any(
        (event.data.get("executor"), event.data.get("code")) == (bound.executor, bound.code)
        for event in state.journal.of("canary_passed")
    )


def superseded(state: SweepState, bound: Bond) -> list[str]:
    """Canaries of another bond that have no end: nobody asks for them any more."""
    left = [job for job in state.open_attempts() if job.startswith(f"{KIND}:")]
    return [job for job in left if job != canary_job(state, canary_run(state, bound)).job_id]


def wanted(plan: Plan, executor: Executor) -> bool:
    """As the plan says; where it says nothing, on executors whose workers are elsewhere."""
    return executor.remote if plan.canary is None else plan.canary


def canary_run(state: SweepState, bound: Bond) -> Run:
    """The baseline's config, as short as it can be trained and judged."""
    plan, config = state.plan, state.plan.baseline.config
    whole = load_config(config, config_words(plan, seed=0, overrides=()), profile=plan.profile).config
    words = [f"training.{stage}.steps={STEPS}" for stage in whole.training.stages]
    words += ["training.validations=1", "evaluation.small_groups=2", "evaluation.bootstrap_samples=100"]
    wish = Wish(config, bound.seed, KIND, KIND, 0.1, tuple(words), key=KIND)
    (run,) = identified(plan, [wish], data_identity=state.data_identity, known=())
    return run


def canary_job(state: SweepState, run: Run) -> Job:
    return replace(training_job(state.plan, state.folder, run), job_id=f"{KIND}:{run.run_id}")
