"""Test-time compute on the baseline: asked last, told with its bound, decides nothing. And who judged the students."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.records import run_record
from universal_simulator.errors import BudgetError, ConfigurationError
from universal_simulator.run_record import (
    EvaluationRecord,
    Metric,
    RunFolder,
    RunRecord,
    StochasticResult,
    content_hash,
    read_document,
    write_json,
)
from universal_simulator.sweep.baseline_scores import EVENT
from universal_simulator.sweep.driver import resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd, JobState, Use
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.plan import Plan, load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.spending import Ledger
from universal_simulator.sweep.state import JOURNAL, SweepState
from universal_simulator.sweep.students import students_sentence

SETTINGS = ("ttc.beam=2", "ttc.beam=2 ttc.combine=regress")


def plan(folder: Path, *, asked: bool = True) -> Plan:
    folder.mkdir(exist_ok=True)
    file = folder / "plan.yaml"
    words = "ttc: {settings: [ttc.beam=2, ttc.beam=2 ttc.combine=regress], groups: 12, reward_groups: 16}\n"
    file.write_text("extends: smoke\n" + (words if asked else ""))
    return load_plan(file)


class Diagnosing(FakeExecutor):
    """Its scores bring diagnostics; the reward knows nothing."""

    def score(self, files: RunFolder, settings: list[str]) -> None:
        super().score(files, settings)
        found = {
            "ttc_oracle_gain": Metric(value=0.25, low=0.2, high=0.3, better="higher"),
            "ttc_answer_gain": Metric(value=0.05, low=-0.1, high=0.1, better="higher"),
            "ttc_reward_informs": Metric(value=0.0, better="higher", reason="no better than random"),
        }
        for path in (files.path / "evaluations").glob("small_eval_ttc_*"):
            record = read_document(path, EvaluationRecord)
            regimes = {
                label: regime.model_copy(update={"metrics": regime.metrics | found})
                for label, regime in record.result.regimes.items()
            }
            result = record.result.model_copy(update={"regimes": regimes})
            write_json(path, record.model_copy(update={"result": result}))


def test_the_baselines_first_seed_is_scored_last_and_decides_nothing(tmp_path: Path) -> None:
    executor = Diagnosing()
    plain = run_sweep(plan(tmp_path / "p", asked=False), tmp_path / "plain", executor=FakeExecutor())
    assert not plain.journal.of(EVENT)
    state = run_sweep(plan(tmp_path / "q"), tmp_path / "x", executor=executor)
    (event,) = state.journal.of(EVENT)
    baseline = state.baselines()[0]
    assert event.data["run"] == baseline
    jobs = [job for job in executor.submitted if job.startswith("ttc_")]
    assert jobs == [executor.submitted[-1]], "one job, after everything else"
    (words,) = [e.data["arguments"] for e in state.journal.of("job_intent") if e.data["job"] == jobs[0]]
    for option, value in (("--ttc-groups", "12"), ("--ttc-reward-groups", "16"), ("--ttc-set", SETTINGS[0])):
        assert words[words.index(option) + 1] == value
    assert SETTINGS[1] in words, "a setting of two keys is one word of the command"
    champion, other = (s.decision("champion") for s in (state, plain))
    assert champion is not None
    assert other is not None
    assert champion["champion"] == other["champion"]
    assert [(s["setting"], s["regime"]) for s in event.data["scores"]] == [
        (setting, regime) for setting in SETTINGS for regime in ("nu=0.05", "nu=0.1")
    ]
    page = report_path(tmp_path / "x").read_text()
    assert page.index("ttc_oracle_gain") < page.index("ttc_answer_gain")
    assert "TTC (learned), uninformed: ttc.beam=2, nu=0.05" in page
    assert "20% of the bound" in page
    asked = len(executor.submitted)
    again = resume_sweep(tmp_path / "x", executor=executor)
    assert len(again.journal.of(EVENT)) == 1
    assert len(executor.submitted) == asked, "told once"


def test_the_score_waits_for_its_runs_test_and_for_no_other(tmp_path: Path) -> None:
    """Nobody else writes into the run's folder meanwhile, and no worker is idle while the champion is judged."""
    state = run_sweep(plan(tmp_path / "q"), tmp_path / "x", executor=FakeExecutor())
    (event,) = state.journal.of(EVENT)
    order = [(e.kind, e.data["job"]) for e in state.journal.events if e.kind in ("job_intent", "job_ended")]
    begun = order.index(("job_intent", event.data["job"]))
    test = ("job_ended", f"test:{event.data['run']}")
    assert order.index(test) < begun
    decided = [n for n, e in enumerate(state.journal.events) if e.kind == "champion"]
    opened = [n for n, e in enumerate(state.journal.events) if e.kind == "test_opened"]
    assert decided[0] < opened[0] < state.journal.events.index(event)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_sweep(plan(folder / "q"), folder / "x", executor=FakeExecutor())
    return folder / "x"


def cut(finished: Path, folder: Path, kind: str, job: str = "", *, before: bool = False) -> SweepState:
    """What a driver leaves that is killed after, or before, the first event of this kind (about this sort of job)."""
    shutil.copytree(finished, folder)
    events = Journal(folder / JOURNAL).events
    last = next(e for e in events if e.kind == kind and e.data.get("job", "").startswith(job)).number
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join(lines[: last + (not before)]))
    return SweepState(folder)


def score_of(finished: Path) -> str:
    return str(SweepState(finished).journal.of(EVENT)[0].data["job"])


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_score_that_ended_before_its_driver_died_is_not_paid_again(
    tmp_path: Path, finished: Path, exit_code: int
) -> None:
    job = score_of(finished)
    if exit_code == 0:
        state = cut(finished, tmp_path / "x", EVENT, before=True)
    else:
        state = cut(finished, tmp_path / "x", "job_ended", "ttc_", before=True)
        Ledger(state).pay(JobEnd(job, exit_code, 1.0))
        state.journal.append("job_given_up", job=job, log="broken", final=False, ceiling=False)
    assert state.attempts(job) == 1
    state = resume_sweep(tmp_path / "x", executor=(second := FakeExecutor()))
    assert second.submitted == []
    assert state.attempts(job) == 1
    (event,) = state.journal.of(EVENT)
    assert (event.data["failure"] is None) == (exit_code == 0)
    assert state.finished


def test_a_score_left_at_work_is_taken_over_before_the_tests_beside_it_have_ended(
    tmp_path: Path, finished: Path
) -> None:
    """A dead driver left it at work, and a test with it."""

    class AtWork(FakeExecutor):
        place = FakeExecutor.__name__  # type: ignore[assignment] # in the place of the dead driver's

        def attach(self, job_id: str, folder: Path | str) -> bool:
            words = next(
                e.data["arguments"] for e in state.journal.of("job_intent") if e.data["job"] == job_id
            )
            self.work(Job(job_id, tuple(words), tmp_path / "log", Path(folder)))
            self.ended.append(JobEnd(job_id, 0, 0.1))
            return True

    state, job = cut(finished, tmp_path / "x", "job_intent", "ttc_"), score_of(finished)
    (test,) = (name for name in state.open_attempts() if name.startswith("test:"))
    begun = len(state.journal.events)
    state = resume_sweep(tmp_path / "x", executor=(second := AtWork()))
    assert second.submitted == []
    after = [(e.kind, e.data["job"]) for e in state.journal.events[begun:] if "job" in e.data]
    assert after[:2] == [("job_attached", test), ("job_attached", job)]


class Greedy(FakeExecutor):
    """The score never ends by itself and uses 100 s between two looks; the named test ends when it has been ended."""

    def __init__(self, test: str = "none") -> None:
        super().__init__()
        self.test = test
        self.used: dict[str, float] = {}
        self.at_work: dict[str, Job] = {}

    @property
    def place(self) -> str:
        return FakeExecutor.__name__

    def submit(self, job: Job) -> None:
        if job.job_id.startswith(("ttc_", self.test)):
            self.submitted.append(job.job_id)
            self.at_work[job.job_id] = job
            self.used[job.job_id] = 0.0
        else:
            super().submit(job)

    def wait(self, timeout_s: float) -> list[JobEnd]:
        for name in self.at_work:
            self.used[name] += 100.0 if name.startswith("ttc_") else 10.0
        if list(self.at_work) == [self.test]:
            self.work(self.at_work.pop(self.test))
            self.ended.append(JobEnd(self.test, 0, self.used[self.test]))
        return super().wait(timeout_s)

    def state(self, job_id: str) -> JobState:
        return "running" if job_id in self.at_work else super().state(job_id)

    def use(self, job_id: str) -> Use:
        return Use(seconds=self.used.get(job_id))

    def cancel(self, job_id: str) -> JobEnd | None:
        if self.at_work.pop(job_id, None) is None:
            return super().cancel(job_id)
        return JobEnd(job_id, -15, self.used[job_id])


def not_scored(state: SweepState) -> str:
    """Why; everything else is decided, tested and finished."""
    (event,) = state.journal.of(EVENT)
    assert event.data["scores"] == []
    assert state.finished
    assert not state.journal.of("sweep_stopped")
    assert all(state.done(f"test:{run}") for e in state.journal.of("test_opened") for run in e.data["runs"])
    assert not any(e.data.get("interrupted") for e in state.journal.of("job_ended"))
    return str(event.data["failure"])


@pytest.mark.parametrize("beside", [True, False])
def test_a_score_that_takes_too_long_ends_neither_the_sealed_test_nor_the_sweep(
    tmp_path: Path, finished: Path, beside: bool
) -> None:
    """Beside the champion's test it may use half of what is left, and so it may alone: nothing is ever in its way."""
    state = cut(finished, tmp_path / "x", "test_opened")
    champion = state.decision("champion")
    assert champion is not None
    executor = Greedy(f"test:{champion['champion']}" if beside else "none")
    state = resume_sweep(tmp_path / "x", executor=executor)
    assert "it decides nothing, and with as much again sweep would come to" in not_scored(state)
    assert 700.0 < executor.used[score_of(finished)] <= 1000.0, "of half an hour"
    assert "Not scored: " in report_path(tmp_path / "x").read_text()


def test_a_score_that_cannot_be_paid_is_not_asked_and_a_decided_sweep_ends(
    tmp_path: Path, finished: Path
) -> None:
    """An earlier attempt used up the sweep. A larger budget takes no decision again for such a job."""
    state = cut(finished, tmp_path / "x", "job_ended", "ttc_", before=True)
    Ledger(state).pay(JobEnd(score_of(finished), -15, 4000.0), interrupted=True)
    state.journal.append("sweep_stopped", reason="as a driver did that asked the score like anything else")
    state = resume_sweep(tmp_path / "x", executor=(second := FakeExecutor()))
    assert second.submitted == []
    (event,) = state.journal.of(EVENT)
    assert "not launched: " in event.data["failure"]
    assert "its ceiling in the plan" in event.data["failure"]
    assert state.finished
    larger = state.plan.model_copy(update={"max_hours": 9.0})
    state = resume_sweep(tmp_path / "x", plan=larger, executor=(third := FakeExecutor()))
    assert third.submitted == []
    assert not state.journal.of("plan_amended")[0].data["reopened_decisions"]
    assert state.finished


def test_an_executors_own_ceiling_under_the_score_alone_leaves_no_decided_sweep_unfinished(
    tmp_path: Path, finished: Path
) -> None:
    class Poor(FakeExecutor):
        place = FakeExecutor.__name__  # type: ignore[assignment] # goes on with what that one left

        def submit(self, job: Job) -> None:
            if job.job_id.startswith("ttc_"):
                raise BudgetError("2.00 USD of 1.50 USD")
            super().submit(job)

    cut(finished, tmp_path / "x", "test_opened")
    state = resume_sweep(tmp_path / "x", executor=Poor())
    (event,) = state.journal.of(EVENT)
    assert event.data["failure"] == "2.00 USD of 1.50 USD"
    assert state.finished


def test_a_score_that_fails_ends_no_sweep_and_is_told(tmp_path: Path) -> None:
    asked = plan(tmp_path / "q")
    probe = FakeExecutor()
    run_sweep(asked, tmp_path / "probe", executor=probe)
    job = probe.submitted[-1]
    state = run_sweep(asked, tmp_path / "x", executor=FakeExecutor(exit_codes={job: [1]}))
    (event,) = state.journal.of(EVENT)
    assert event.data["failure"] is not None
    assert event.data["scores"] == []
    assert state.finished
    assert "Not scored" in report_path(tmp_path / "x").read_text()


def test_a_score_of_another_model_is_told_and_shown_by_nobody(tmp_path: Path) -> None:
    class Lying(FakeExecutor):
        def score(self, files: RunFolder, settings: list[str]) -> None:
            super().score(files, settings)
            for path in (files.path / "evaluations").glob("small_eval_ttc_*"):
                path.write_text(path.read_text().replace(content_hash(files.run_id), "0" * 64))

    state = run_sweep(plan(tmp_path / "q"), tmp_path / "x", executor=Lying())
    (event,) = state.journal.of(EVENT)
    assert "is of another model than was asked for" in event.data["failure"]
    assert event.data["scores"] == []
    assert state.finished


def test_settings_are_checked_with_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("extends: smoke\nttc: {settings: [ttc.beem=2, training.operator.steps=1]}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_plan(file)
    told = "; ".join(caught.value.faults)
    assert "ttc.settings.0" in told
    assert "ttc.settings.1" in told
    assert load_plan("sota_embedded").ttc is not None
    assert load_plan("smoke").ttc is None


def judged(run: str, gate: str, decision: str) -> RunRecord:
    record = run_record(run, "c", 0, {})
    assert record.training is not None
    none = Metric(value=None)
    found = StochasticResult(
        sampler="student",
        decision=decision,
        crps={},
        teacher_gain=none,
        student_share=none,
        noise={},
        weights={},
        groups=4,
        members=4,
        steps=None,
        gate=gate,  # type: ignore[arg-type] # one of the answers
    )
    result = record.training.result.model_copy(update={"stochastic": found})
    return record.model_copy(update={"training": record.training.model_copy(update={"result": result})})


def test_a_student_that_nobody_judged_is_told_from_one_that_passed() -> None:
    assert students_sentence({"a": run_record("a", "c", 0, {})}) is None
    few = "on 4 initial conditions what the student keeps is noise"
    records = {
        "a": judged("a", "pass", "kept"),
        "b": judged("b", "not evaluable", few),
        "c": judged("c", "not evaluable", few),
        "d": judged("d", "fail", "lost"),
    }
    told = students_sentence(records)
    assert told is not None
    assert "passed on 1 run, failed on 1 run, where the teacher answers, was NOT JUDGED on 2 runs" in told
    assert told.count(few) == 1
