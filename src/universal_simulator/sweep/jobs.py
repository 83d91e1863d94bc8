"""The commands of a sweep, as jobs: data, training, evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from universal_simulator.run_record import RunFolder, content_hash
from universal_simulator.sweep.executor import Job, Resources
from universal_simulator.sweep.plan import Plan
from universal_simulator.sweep.plan_checks import data_words, is_data_file
from universal_simulator.sweep.state import Run

DATA = "data"
#: how the id of a score of test-time compute begins
SCORE = "ttc_"
#: what stands before each setting that is scored
SETTING = "--ttc-set"


def log_path(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.log"


def log_of(folder: Path, job_id: str) -> Path:
    """A log of a job of which only the name is known: its own, or that of the run in whose folder it writes."""
    what, _, about = job_id.partition(":")
    if about and (files := RunFolder(folder, about)).path.exists():
        return files.log
    return log_path(folder, f"{what}_{about}" if about else what)


def data_job(plan: Plan, folder: Path) -> Job:
    """Generates the plan's data set, or reads a file of the user's own; answers who it is."""
    words: tuple[str, ...] = ("data", "generate", plan.dataset, "--folder", str(folder), "--json")
    if is_data_file(plan.dataset):
        words = ("data", "info", plan.dataset, "--verify", "--json")
    return Job(DATA, words, log_path(folder, DATA), folder)


def config_words(plan: Plan, *, seed: int, overrides: Sequence[str]) -> tuple[str, ...]:
    """What a config is told in this plan: the same for its identity and for its job."""
    return (f"seed={seed}", *data_words(plan.dataset), *overrides)


def training_job(plan: Plan, folder: Path, run: Run) -> Job:
    """Trains and small-evaluates; refused by the run itself if it is not the run that was planned."""
    words = ("run", run.config, "--folder", str(folder), "--profile", plan.profile, "--run-id", run.run_id)
    return Job(
        training_id(run.run_id),
        (*words, *config_words(plan, seed=run.seed, overrides=run.overrides)),
        RunFolder(folder, run.run_id).log,
        folder,
        resources(plan, run.machine),
    )


def evaluation_job(plan: Plan, folder: Path, run: Run, suite: str, *, opening: str | None = None) -> Job:
    """`suite` full, or test with the journalled opening that allows it."""
    files = RunFolder(folder, run.run_id)
    words = ["evaluate", str(files.path), "--suite", suite]
    if opening is not None:
        words += ["--opening", opening]
    log = files.path / f"evaluate_{suite}.log"
    return Job(evaluation_id(run.run_id, suite), tuple(words), log, folder, resources(plan, run.machine))


def scoring_job(
    plan: Plan,
    folder: Path,
    run: Run,
    settings: Sequence[str],
    *,
    groups: int | None = None,
    reward_groups: int | None = None,
) -> Job:
    """Scores settings of test-time compute on a trained run (`ttc.key=value` words); trains nothing.

    groups: initial conditions that are diagnosed. reward_groups: a reward trained for it sees at most.
    """
    files, name = RunFolder(folder, run.run_id), content_hash(list(settings))[:6]
    words = ["evaluate", str(files.path), "--suite", "small"]
    words += [] if groups is None else ["--ttc-groups", str(groups)]
    words += [] if reward_groups is None else ["--ttc-reward-groups", str(reward_groups)]
    words += [part for setting in settings for part in (SETTING, setting)]
    log = files.path / f"evaluate_ttc_{name}.log"
    return Job(f"{SCORE}{name}:{run.run_id}", tuple(words), log, folder, resources(plan, run.machine))


def decides_nothing(job_id: str) -> bool:
    """A score of test-time compute: no ceiling that forbids it may stop or cancel anything else."""
    return job_id.startswith(SCORE)


def resources(plan: Plan, machine: str) -> Resources:
    """What a job on this class of machine asks of its executor."""
    about = plan.machine(machine)
    return Resources(
        threads=about.threads, gpus=about.gpus, memory_gib=about.memory_gib, machine_class=machine
    )


def training_id(run_id: str) -> str:
    return f"train:{run_id}"


def evaluation_id(run_id: str, suite: str) -> str:
    return f"{suite}:{run_id}"
