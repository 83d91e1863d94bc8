"""Runs a plan: data, runs, gates, promotions, full-evals, champion, reports.

Every side effect is journalled before it starts and after it ended; everything decided is
a pure function of records. Typed again after any interruption, the sweep goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from universal_simulator.errors import BudgetError, ExecutorError, UserError
from universal_simulator.identity import code_version
from universal_simulator.run_record import RunFolder
from universal_simulator.sweep.amendment import amend, difference
from universal_simulator.sweep.baseline_scores import score_baseline
from universal_simulator.sweep.continuation import placebo_verdict
from universal_simulator.sweep.executor import Executor
from universal_simulator.sweep.forecast import Forecast, longest_first
from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.interruption import Interruption, ended_after
from universal_simulator.sweep.job_log import answer, tail
from universal_simulator.sweep.job_queue import POLL_S, JobQueue
from universal_simulator.sweep.jobs import DATA, data_job, evaluation_job, training_id, training_job
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.leaderboard import write_leaderboard
from universal_simulator.sweep.left_open import elsewhere, refuse_elsewhere
from universal_simulator.sweep.lock import locked
from universal_simulator.sweep.plan import Plan, Round, load_plan
from universal_simulator.sweep.preparation import make_forecast, open_place, send_canary
from universal_simulator.sweep.progress import SweepProgress
from universal_simulator.sweep.report import write_sweep_report
from universal_simulator.sweep.round_course import RoundCourse
from universal_simulator.sweep.rounds import choose_champion, gate_results, promotions
from universal_simulator.sweep.run_planning import (
    first_runs,
    identified,
    plan_appended_runs,
    plan_compute_matched_runs,
    plan_healed_runs,
    plan_physics_healed_runs,
    refuse_incomplete,
    refuse_other_code,
    refuse_unfit,
)
from universal_simulator.sweep.sealed_split import open_test
from universal_simulator.sweep.state import JOURNAL, REFERENCE_ROLES, Run, SweepState

#: fraction of the sweep done (0..1) and what is going on
Progress = Callable[[float, str], None]


def run_sweep(
    plan: Plan | str | Path, folder: Path, *, executor: Executor, progress: Progress | None = None
) -> SweepState:
    """Run the plan in `folder`, or go on with the same plan there."""
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    with locked(folder), Interruption() as interruption:
        return _Driver(_opened(plan, folder, executor), executor, progress, interruption).run()


def resume_sweep(
    folder: Path,
    *,
    executor: Executor,
    plan: Plan | str | Path | None = None,
    progress: Progress | None = None,
    abandon: bool = False,
) -> SweepState:
    """Go on with the sweep in `folder`; a changed plan may bring another budget and appended rounds.

    abandon: what was begun in another place and has no end is lost, all of it, not looked for there.
    """
    given = load_plan(plan) if isinstance(plan, str | Path) else plan
    with locked(folder), Interruption() as interruption:
        state = SweepState(folder)
        refuse_other_code(state)
        if abandon:
            JobQueue(state, executor).abandon(elsewhere(state, executor))
        else:
            refuse_elsewhere(state, executor)
        if given is not None:
            amend(state, given)
        return _Driver(state, executor, progress, interruption).run()


def estimate_sweep(
    plan: Plan | str | Path, folder: Path, *, executor: Executor, progress: Progress | None = None
) -> SweepState:
    """Data, runs, the canary and the forecast, and nothing else; `run_sweep` goes on from there."""
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    with locked(folder), Interruption() as interruption:
        return _Driver(_opened(plan, folder, executor), executor, progress, interruption).estimate()


def rebuild_reports(folder: Path) -> SweepState:
    """Leaderboard and sweep page from journal and records alone."""
    return _write_reports(SweepState(folder))


def _opened(plan: Plan, folder: Path, executor: Executor) -> SweepState:
    """The sweep of this plan in this folder, begun where there is none."""
    journal = Journal(folder / JOURNAL)
    if not journal.events:
        journal.append("sweep_started", plan=plan.model_dump(mode="json"), plan_hash=plan.hash)
    state = SweepState(folder, journal)
    if state.plan.hash != plan.hash:
        raise UserError(
            f"{folder} belongs to another plan:\n{difference(state.plan, plan)}\n"
            f"to go on with it changed: usim sweep resume {folder} --plan PLAN"
        )
    refuse_elsewhere(state, executor)
    refuse_other_code(state)
    return state


class _Driver:
    """The phases of one plan, in their order; each does what is left of it."""

    def __init__(
        self,
        state: SweepState,
        executor: Executor,
        progress: Progress | None,
        interruption: Interruption,
    ) -> None:
        self.state = state
        self.plan = state.plan
        self.folder = state.folder
        self.journal = state.journal
        self.executor = executor
        self.forecast = Forecast(state)
        self.queue = JobQueue(
            state,
            executor,
            forecast=self.forecast.seconds,
            overhead=self.forecast.overhead_s,
            check=interruption.check,
        )
        self.progress = SweepProgress(state, progress, workers=executor.slots)
        self._judged: dict[str, dict[str, list[GateResult]]] = {}

    def run(self) -> SweepState:
        if self.journal.cut is not None:
            self.progress.say(f"the journal's last line was torn and cut off: {self.journal.cut[:60]!r}")
        with ended_after(self.executor):
            try:
                open_place(self.state, self.executor)
                self._phases()
                try:
                    while self.executor.bring_home(POLL_S):
                        self.queue.check()
                finally:
                    self.queue.ledger.journal_billed()
            except BudgetError as error:
                self._stopped(str(error))
                raise
            if not self.state.finished:
                self.journal.append("sweep_finished", champion=self._decided("champion")["champion"])
            _write_reports(self.state)
        self.progress.tell(1.0, "finished")
        return self.state

    def estimate(self) -> SweepState:
        with ended_after(self.executor):
            open_place(self.state, self.executor)
            self._data()
            self._plan_runs()
            send_canary(self.state, self.queue, self.progress.say)
            make_forecast(self.state, self.queue, self.progress.say)
        return self.state

    def _phases(self) -> None:
        self._data()
        self._plan_runs()
        send_canary(self.state, self.queue, self.progress.say)
        if self.plan.calibrate:
            make_forecast(self.state, self.queue, self.progress.say)
        self._train()
        self._small_eval_gates()
        self._promote()
        self._full_evals()
        self._champion()
        self._later_rounds()
        open_test(self.state, self.queue, self.progress)
        score_baseline(self.state, self.queue, self.progress.say)

    def _stopped(self, reason: str) -> None:
        """The ceiling is reached and what ran has ended: what there is so far is told, with the reason."""
        self.journal.append("sweep_stopped", reason=reason)
        _write_reports(self.state)

    def _data(self) -> None:
        job = data_job(self.plan, self.folder)
        self.queue.run(
            [job],
            lambda shares, running: self.progress.look(
                shares, running, f"generating {self.plan.dataset}: {shares.get(DATA, 0.0):.0%}"
            ),
        )
        if not self.state.done(DATA):
            raise ExecutorError(f"the data could not be made; see {job.log}:\n{tail(job.log)}")

    def _plan_runs(self) -> None:
        if self.state.runs:
            plan_appended_runs(self.state)
            return
        data = answer(data_job(self.plan, self.folder).log)
        refuse_unfit(self.plan, data)
        identity = data["identity"]
        runs = identified(self.plan, first_runs(self.plan), data_identity=identity, known=())
        self.journal.append(
            "runs_planned",
            data_identity=identity,
            code_version=code_version(),
            runs=[asdict(run) for run in runs],
        )

    def _train(self) -> None:
        """Every planned run, then what follows from those that ended, until nothing more does."""
        while True:
            self._train_planned()
            followers = (plan_healed_runs, plan_physics_healed_runs, plan_compute_matched_runs)
            if not any(follow(self.state) for follow in followers):
                break
        refuse_incomplete(self.state, [run.run_id for run in self.state.runs], "train")
        baselines = self.state.baselines()
        if all(self.state.failed(training_id(run)) for run in baselines):
            log = RunFolder(self.folder, baselines[0]).log
            raise ExecutorError(
                f"every baseline run failed, nothing can be compared; see {log}:\n{tail(log)}"
            )

    def _train_planned(self) -> None:
        # the longest first; where curves are compared, the baseline's before them
        first = "baseline" if self.plan.early_stop else None
        ordered = sorted(self.state.runs, key=lambda run: (run.role != first, -run.cost))
        jobs = [training_job(self.plan, self.folder, run) for run in ordered]

        def report(shares: Mapping[str, float], running: Sequence[str]) -> None:
            names = ", ".join(f"{name.removeprefix('train:')} {shares[name]:.0%}" for name in running)
            self.progress.look(shares, running, f"training {_whole(shares)}/{len(jobs)}: {names}")

        self.queue.run(jobs, report)

    def _small_eval_gates(self) -> None:
        self._gates("small_eval", [run.run_id for run in self._small_eval_candidates()])

    def _small_eval_candidates(self) -> list[Run]:
        """Members, and the placebos of their rounds."""
        written = {round_.name for round_ in self.plan.rounds if round_.kind == "members"}
        placebos = [run for run in self.state.runs if run.role == "placebo" and run.round in written]
        return [*self.state.members(), *placebos]

    def _gates(self, suite: str, candidates: Sequence[str]) -> dict[str, list[GateResult]]:
        """Gates of candidates against the first baseline seed that finished; journalled once."""
        if suite in self._judged:
            return self._judged[suite]
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
        if self.state.decided(f"{suite}_gates") is None:
            told = {run: [gate.as_dict() for gate in gates] for run, gates in results.items()}
            self.journal.append(f"{suite}_gates", gates=told)
        self._judged[suite] = results
        return results

    def _promote(self) -> None:
        if self.state.decided("promotions") is not None:
            return
        evaluations = self.state.evaluations("small_eval")
        results = self._gates("small_eval", [run.run_id for run in self._small_eval_candidates()])
        chosen = []
        for round_ in self.plan.rounds:
            if self._is_void(round_, results):
                continue
            # a healed run takes the place of the failed one it came from
            runs = {run.key: run.run_id for run in self.state.members(round_.name)}
            chosen += promotions(round_, runs, results, evaluations, headline=self.plan.headline_regime)
        self.journal.append("promotions", promoted=[vars(item) for item in chosen])

    def _is_void(self, round_: Round, results: Mapping[str, Sequence[GateResult]]) -> bool:
        """The placebo of a round of members: the baseline with another seed, against the baseline."""
        for run in self.state.runs:
            if run.role == "placebo" and run.round == round_.name:
                found = results.get(run.run_id, ())
                verdict = placebo_verdict(found, missing=self.state.why_not(training_id(run.run_id)))
                told = [e.data for e in self.journal.of("placebo") if e.data["run"] == run.run_id]
                if not told or told[-1]["sentence"] != verdict.sentence:
                    self.journal.append("placebo", round=round_.name, run=run.run_id, **asdict(verdict))
                return verdict.void
        return False

    def _promoted(self) -> list[str]:
        return [item["run_id"] for item in self._decided("promotions")["promoted"]]

    def _full_evals(self) -> None:
        references = [run.run_id for run in self.state.runs if run.role in REFERENCE_ROLES]
        runs = [*references, *self._promoted(), *self.state.baselines()]
        done = [run for run in runs if self.state.done(training_id(run))]
        ordered = longest_first(done, self.forecast)
        jobs = [evaluation_job(self.plan, self.folder, self._run(run), "full") for run in ordered]

        def report(shares: Mapping[str, float], running: Sequence[str]) -> None:
            self.progress.look(shares, running, f"full-eval {_whole(shares)}/{len(jobs)}")

        self.queue.run(jobs, report)
        refuse_incomplete(self.state, runs, "full")

    def _champion(self) -> None:
        results = self._gates("full_eval", self._promoted())
        if self.state.decided("champion") is not None:
            return
        evaluations = self.state.evaluations("full_eval")
        baseline = next((run for run in self.state.baselines() if run in evaluations), None)
        if baseline is None:
            why = self.state.why_not(f"full:{self.state.baselines()[0]}")
            raise ExecutorError(f"no baseline reached full-eval, so no champion can be named: {why}")
        verdict = choose_champion(
            baseline,
            self._promoted(),
            results,
            evaluations,
            headline=self.plan.headline_regime,
            refused=[run for run in self._promoted() if self.state.refused_by_ceiling(f"full:{run}")],
            seeds=self.state.baselines(),
        )
        self.journal.append("champion", baseline=baseline, **vars(verdict))

    def _later_rounds(self) -> None:
        """Rounds that start from the champion of their moment, one after the other."""
        for index, round_ in enumerate(self.plan.rounds):
            if round_.kind != "members":
                RoundCourse(self.state, self.queue, round_, index, self.progress.say).run()

    def _run(self, run_id: str) -> Run:
        run = self.state.run(run_id)
        assert run is not None, run_id
        return run

    def _decided(self, kind: str) -> dict[str, Any]:
        decision = self.state.decision(kind)
        assert decision is not None, kind
        return decision


def _write_reports(state: SweepState) -> SweepState:
    write_leaderboard(state)
    write_sweep_report(state)
    return state


def _whole(shares: Mapping[str, float]) -> int:
    return sum(share == 1.0 for share in shares.values())
