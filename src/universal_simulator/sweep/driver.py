"""Runs a plan: data, runs, gates, promotions, full-evals, champion, reports.

Every side effect is journalled before it starts and after it ended; everything decided is
a pure function of records. Typed again after any interruption, the sweep goes on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import ConfigurationError, ExecutorError, SweepLockedError, UserError
from universal_simulator.identity import code_version, run_identity
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.sweep.executor import Executor, Job
from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.leaderboard import write_leaderboard
from universal_simulator.sweep.plan import Plan, load_plan
from universal_simulator.sweep.recovery import MAX_GENERATIONS, heal
from universal_simulator.sweep.report import write_sweep_report
from universal_simulator.sweep.rounds import choose_champion, gate_results, promotions
from universal_simulator.sweep.state import JOURNAL, SweepState, result_hashes

#: fraction of the sweep done (0..1) and what is going on
Progress = Callable[[float, str], None]
#: a job ended by a signal is tried this often in one sitting
MAX_ATTEMPTS = 2
#: failures of a training itself, which another try would repeat
FINAL_FAILURES = ("DivergenceError", "MemoryExhaustedError")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One driver per folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SweepLockedError(f"another driver is at work in {folder}; wait for it or end it") from error
    try:
        yield
    finally:
        lock.release()


def run_sweep(
    plan: Plan | str | Path, folder: Path, *, executor: Executor, progress: Progress | None = None
) -> SweepState:
    """Run the plan in `folder`, or go on with the same plan there."""
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    with locked(folder):
        journal = Journal(folder / JOURNAL)
        if not journal.events:
            journal.append("sweep_started", plan=plan.model_dump(mode="json"), plan_hash=plan.hash)
        state = SweepState(folder, journal)
        if state.plan.hash != plan.hash:
            raise UserError(f"{folder} belongs to another plan:\n{_difference(state.plan, plan)}")
        return _Driver(state, executor, progress).run()


def resume_sweep(folder: Path, *, executor: Executor, progress: Progress | None = None) -> SweepState:
    return run_sweep(SweepState(folder).plan, folder, executor=executor, progress=progress)


def rebuild_reports(folder: Path) -> SweepState:
    """Leaderboard and sweep page from journal and records alone."""
    state = SweepState(folder)
    write_leaderboard(state)
    write_sweep_report(state)
    return state


class _Driver:
    def __init__(self, state: SweepState, executor: Executor, progress: Progress | None) -> None:
        self.state = state
        self.plan = state.plan
        self.folder = state.folder
        self.journal = state.journal
        self.executor = executor
        self.progress = progress

    def run(self) -> SweepState:
        if self.journal.cut is not None:
            self._tell(0.0, f"the journal's last line was torn and cut off: {self.journal.cut[:60]!r}")
        try:
            self._data()
            self._plan_runs()
            self._train()
            self._small_eval_gates()
            self._promote()
            self._full_evals()
            self._champion()
            self._open_test()
        finally:
            self.executor.cancel_all()
        if self.state.decision("sweep_finished") is None:
            self.journal.append("sweep_finished", champion=self._decided("champion")["champion"])
        write_leaderboard(self.state)
        write_sweep_report(self.state)
        self._tell(1.0, "finished")
        return self.state

    def _data(self) -> None:
        job = Job(
            "data",
            ("data", "generate", self.plan.dataset, "--folder", str(self.folder), "--json"),
            self._log("data"),
        )
        self._run_jobs(
            [job],
            lambda shares, _: self._tell(0.05 * shares.get("data", 0), f"generating {self.plan.dataset}"),
        )
        if not self.state.done("data"):
            raise ExecutorError(f"the data could not be made; see {job.log}:\n{_tail(job.log)}")

    def _plan_runs(self) -> None:
        if self.state.runs:
            planned = self.journal.of("runs_planned")[0].data["code_version"]
            if planned != code_version():
                raise UserError(
                    f"{self.folder} was planned by other code ({planned[:10]}, now {code_version()[:10]}); "
                    "results of two codes are never mixed: bring that code back, or start a new folder"
                )
            return
        identity = _last_json(self._log("data"))["identity"]
        plan, items = self.plan, []
        for seed in plan.baseline.seeds:
            items.append((plan.baseline.config, seed, "baseline", "baseline", 1.0))
        for peer in plan.references:
            role = "ablation" if peer.ablates else "reference"
            items.append((peer.config, 0, role, role, peer.cost))
        items += [(m.config, 0, "member", r.name, m.cost) for r in plan.rounds for m in r.members]
        runs: list[dict[str, Any]] = []
        seen: dict[tuple[str, int], str] = {}
        for config, seed, role, round_name, cost in items:
            loaded = load_config(config, [f"seed={seed}"], profile=plan.profile)
            other = seen.setdefault((loaded.hash, seed), config)
            if other != config:
                raise ConfigurationError(
                    plan.name, [f"{config} and {other} have the same effective config: a duplicate"]
                )
            run_id = run_identity(
                loaded.config.name, config_hash=loaded.hash, data_identity=identity, seed=seed
            )
            runs.append(
                {
                    "run_id": run_id,
                    "config": config,
                    "seed": seed,
                    "role": role,
                    "round": round_name,
                    "cost": cost,
                }
            )
        self.journal.append("runs_planned", data_identity=identity, code_version=code_version(), runs=runs)
        self.state = SweepState(self.folder, self.journal)

    def _train(self) -> None:
        """Every planned run, then the healed ones of those that failed, until nothing can be healed."""
        while True:
            self._train_planned()
            if not self._heal():
                break
        self._refuse_incomplete([run.run_id for run in self.state.runs], "train")
        failed = [run for run in self.state.baselines() if self.state.failed(f"train:{run}")]
        if len(failed) == len(self.state.baselines()):
            log = RunFolder(self.folder, failed[0]).log
            raise ExecutorError(
                f"every baseline run failed, nothing can be compared; see {log}:\n{_tail(log)}"
            )

    def _refuse_incomplete(self, runs: Sequence[str], what: str) -> None:
        """A job that failed for reasons of its surroundings is no result: nothing is decided on it."""
        broken = [
            job
            for job in (f"{what}:{run}" for run in runs)
            if self.state.failed(job) and not self.state.failed_for_good(job)
        ]
        if broken:
            logs = [e.data["log"] for e in self.journal.of("job_given_up") if e.data["job"] == broken[0]]
            raise ExecutorError(
                f"incomplete: {len(broken)} job(s) failed and nothing was decided: {', '.join(broken)}. "
                f"Mend the cause and type the command again. Last words of the first:\n{logs[-1]}"
            )

    def _heal(self) -> bool:
        """Plan the healed run of each failed one that a rule can cure; a baseline stays as it is."""
        healed = {run.parent for run in self.state.runs}
        found = False
        for run in self.state.runs:
            if run.role == "baseline" or run.run_id in healed or not self.state.failed(f"train:{run.run_id}"):
                continue
            record = self.state.record(run.run_id)
            if record is None or self.state.generation(run) >= MAX_GENERATIONS:
                continue
            words = [f"seed={run.seed}", *run.overrides]
            loaded = load_config(run.config, words, profile=self.plan.profile)
            effective = flatten(loaded.config.model_dump(mode="json"))
            healing = heal(record.failure_kind, record.failure or "", effective)
            if healing is None:
                continue
            overrides = [*run.overrides, *healing.overrides]
            again = load_config(run.config, [f"seed={run.seed}", *overrides], profile=self.plan.profile)
            identity = self.journal.of("runs_planned")[0].data["data_identity"]
            run_id = run_identity(
                again.config.name, config_hash=again.hash, data_identity=identity, seed=run.seed
            )
            planned = {**vars(run), "run_id": run_id, "overrides": overrides, "parent": run.run_id}
            self.journal.append("run_healed", run=planned, healing=asdict(healing))
            found = True
        if found:
            self.state = SweepState(self.folder, self.journal)
        return found

    def _train_planned(self) -> None:
        ordered = sorted(self.state.runs, key=lambda run: -run.cost)
        costs = {f"train:{run.run_id}": run.cost for run in ordered}
        jobs = [
            Job(
                f"train:{run.run_id}",
                (
                    "run",
                    run.config,
                    "--folder",
                    str(self.folder),
                    "--profile",
                    self.plan.profile,
                    "--run-id",
                    run.run_id,
                    f"seed={run.seed}",
                    *run.overrides,
                ),
                RunFolder(self.folder, run.run_id).log,
            )
            for run in ordered
        ]
        total = sum(costs.values())

        def report(shares: Mapping[str, float], running: Sequence[str]) -> None:
            share = sum(costs[name] * done for name, done in shares.items()) / total
            names = ", ".join(f"{name.removeprefix('train:')} {shares[name]:.0%}" for name in running)
            self._tell(0.05 + 0.7 * share, f"training {_whole(shares)}/{len(jobs)}: {names}")

        self._run_jobs(jobs, report)

    def _small_eval_gates(self) -> None:
        self._gates("small_eval", [run.run_id for run in self.state.runs if run.role == "member"])

    def _gates(self, suite: str, candidates: Sequence[str]) -> dict[str, list[GateResult]]:
        """Gates of candidates against the first baseline seed that finished; journalled once."""
        evaluations = self.state.evaluations(suite)
        seeds = [evaluations[run] for run in self.state.baselines() if run in evaluations]
        results = {
            run: gate_results(
                self.plan.gates,
                evaluations[run],
                seeds[0],
                headline=self.plan.headline_regime,
                baseline_seeds=seeds,
                hard=suite == "full_eval",
            )
            for run in candidates
            if run in evaluations and seeds
        }
        if self.state.decision(f"{suite}_gates") is None:
            told = {run: [gate.as_dict() for gate in gates] for run, gates in results.items()}
            self.journal.append(f"{suite}_gates", gates=told)
        return results

    def _promote(self) -> None:
        if self.state.decision("promotions") is not None:
            return
        evaluations = self.state.evaluations("small_eval")
        results = self._gates("small_eval", [r.run_id for r in self.state.runs if r.role == "member"])
        chosen = []
        for round_ in self.plan.rounds:
            runs = {
                r.config: r.run_id for r in self.state.runs if r.role == "member" and r.round == round_.name
            }
            chosen += promotions(round_, runs, results, evaluations, headline=self.plan.headline_regime)
        self.journal.append("promotions", promoted=[vars(item) for item in chosen])

    def _promoted(self) -> list[str]:
        return [item["run_id"] for item in self._decided("promotions")["promoted"]]

    def _full_evals(self) -> None:
        references = [run.run_id for run in self.state.runs if run.role in ("reference", "ablation")]
        # references first: the pages of the others show them beside their own figures
        runs = [*references, *self._promoted(), *self.state.baselines()]
        jobs = [self._evaluation(run, "full") for run in runs if self.state.done(f"train:{run}")]

        def report(shares: Mapping[str, float], running: Sequence[str]) -> None:
            share = sum(shares.values()) / max(1, len(jobs))
            self._tell(0.75 + 0.2 * share, f"full-eval {_whole(shares)}/{len(jobs)}")

        self._run_jobs(jobs, report)
        self._refuse_incomplete(runs, "full")

    def _champion(self) -> None:
        results = self._gates("full_eval", self._promoted())
        if self.state.decision("champion") is not None:
            return
        evaluations = self.state.evaluations("full_eval")
        baseline = next((run for run in self.state.baselines() if run in evaluations), None)
        if baseline is None:
            raise ExecutorError("no baseline reached full-eval, so no champion can be named")
        verdict = choose_champion(
            baseline, self._promoted(), results, evaluations, headline=self.plan.headline_regime
        )
        self.journal.append("champion", baseline=baseline, **vars(verdict))

    def _open_test(self) -> None:
        """The sealed split, once: for the final champion, its baseline and the references."""
        if not self.plan.open_test_for_champion:
            return
        champion = self._decided("champion")
        references = [run.run_id for run in self.state.runs if run.role == "reference"]
        runs = list(dict.fromkeys([champion["champion"], champion["baseline"], *references]))
        if self.state.decision("test_opened") is None:
            self.journal.append("test_opened", runs=runs, opening=f"{self.plan.name}-1")
        self._run_jobs(
            [self._evaluation(run, "test") for run in runs if self.state.done(f"train:{run}")],
            lambda shares, running: self._tell(0.97, "opening the test split for the champion"),
        )

    def _evaluation(self, run_id: str, suite: str) -> Job:
        files = RunFolder(self.folder, run_id)
        arguments = ["evaluate", str(files.path), "--suite", suite]
        if suite == "test":
            arguments += ["--opening", self._decided("test_opened")["opening"]]
        return Job(f"{suite}:{run_id}", tuple(arguments), files.path / f"evaluate_{suite}.log")

    def _run_jobs(
        self, jobs: Sequence[Job], report: Callable[[Mapping[str, float], Sequence[str]], None]
    ) -> None:
        """Run what is not done yet, `slots` at a time, in the order given.

        report(share done of each job begun, jobs running) is called every two seconds.
        """
        waiting = [
            j for j in jobs if not self.state.done(j.job_id) and not self.state.failed_for_good(j.job_id)
        ]
        tried: dict[str, int] = {}
        running: dict[str, Job] = {}
        started: dict[str, float] = {}
        while waiting or running:
            while waiting and len(running) < self.executor.slots:
                job = waiting.pop(0)
                self.journal.append("job_intent", job=job.job_id, arguments=list(job.arguments))
                self.executor.submit(job)
                running[job.job_id] = job
                started[job.job_id] = time.monotonic()
            shares = {j.job_id: 1.0 for j in jobs if self.state.done(j.job_id)}
            report(shares | {name: _live_share(job.log) for name, job in running.items()}, list(running))
            for end in self.executor.wait(2.0):
                job = running.pop(end.job_id)
                tried[end.job_id] = tried.get(end.job_id, 0) + 1
                self.journal.append(
                    "job_ended",
                    job=end.job_id,
                    exit_code=end.exit_code,
                    seconds=round(end.seconds, 3),
                    results=self._results(end.job_id) if end.exit_code == 0 else {},
                )
                if end.exit_code < 0 and tried[end.job_id] < MAX_ATTEMPTS:
                    waiting.insert(0, job)
                elif end.exit_code != 0:
                    self.journal.append(
                        "job_given_up",
                        job=end.job_id,
                        log=_tail(job.log),
                        final=self._is_final(end.job_id, end.exit_code),
                    )
            spent = sum(event.data["seconds"] for event in self.journal.of("job_ended"))
            spent += sum(time.monotonic() - started[name] for name in running)
            if spent > self.plan.max_hours * 3600:
                raise ExecutorError(
                    f"the budget of {self.plan.max_hours:g} worker hours is used up (max_hours of the "
                    "plan, summed over jobs and resumes); finished runs are kept"
                )

    def _results(self, job_id: str) -> dict[str, dict[str, str]]:
        """run id -> hash of each result that this job added to its record."""
        what, _, run_id = job_id.partition(":")
        path = RunFolder(self.folder, run_id).summary if run_id else None
        if path is None or not path.exists():
            return {}
        found = result_hashes(read_document(path, RunRecord))
        added = {"train": ("training", "small_eval"), "full": ("full_eval",), "test": ("test",)}[what]
        return {run_id: {name: found[name] for name in added if name in found}}

    def _is_final(self, job_id: str, exit_code: int) -> bool:
        """The training itself failed (it diverged, memory is too small); anything else can be mended."""
        what, _, run_id = job_id.partition(":")
        if what != "train" or exit_code < 0:
            return False
        path = RunFolder(self.folder, run_id).summary
        return path.exists() and read_document(path, RunRecord).failure_kind in FINAL_FAILURES

    def _decided(self, kind: str) -> dict[str, Any]:
        decision = self.state.decision(kind)
        assert decision is not None, kind
        return decision

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _tell(self, fraction: float, text: str) -> None:
        if self.progress is not None:
            self.progress(fraction, text)


def _difference(stored: Plan, given: Plan) -> str:
    before, after = flatten(stored.model_dump(mode="json")), flatten(given.model_dump(mode="json"))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return "\n".join(f"  {key}: {before.get(key)!r} there, {after.get(key)!r} given" for key in keys[:10])


def _whole(shares: Mapping[str, float]) -> int:
    return sum(share == 1.0 for share in shares.values())


def _live_share(log: Path) -> float:
    """What a running job last said of its progress (`phase: 43 %`), below 1."""
    found = re.findall(r"^\w+: +(\d+) %", _tail(log), re.MULTILINE)
    return min(max(map(int, found)) / 100, 0.99) if found else 0.0


def _tail(path: Path, lines: int = 12) -> str:
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _last_json(path: Path) -> dict[str, Any]:
    for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith("{"):
            value = json.loads(line)
            assert isinstance(value, dict)
            return value
    raise ExecutorError(f"{path} holds no result line")
