"""A sweep goes on with another budget or more rounds; its past stays as it was journalled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.cli.leaderboard import leaderboard
from universal_simulator.errors import BudgetError, ExecutorError, UserError
from universal_simulator.sweep.driver import resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.leaderboard import leaderboard_rows
from universal_simulator.sweep.plan import (
    Budget,
    Ceiling,
    Forecast,
    Member,
    Plan,
    Refinement,
    Round,
    load_plan,
)
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.state import SweepState

PLAN = load_plan("smoke")


class Slow(FakeExecutor):
    """Every job says that it took ten minutes."""

    def submit(self, job: Job) -> None:
        super().submit(job)
        self.ended[-1] = JobEnd(job.job_id, self.ended[-1].exit_code, 610.0)


def appended(plan: Plan, name: str, config: str) -> Plan:
    one = plan.rounds[0].model_copy(update={"name": name, "members": (Member(config=config),)})
    return plan.model_copy(update={"rounds": (*plan.rounds, Round.model_validate(one.model_dump()))})


def test_a_larger_budget_is_journalled_and_the_sweep_goes_on(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="used up"):
        run_sweep(PLAN, tmp_path, executor=Slow())
    numbers = [run.run_id for run in SweepState(tmp_path).runs]
    richer = PLAN.model_copy(update={"max_hours": 9.0})
    with pytest.raises(UserError, match=r"(?s)max_hours: 0.5 there, 9.0 given.*usim sweep resume"):
        run_sweep(richer, tmp_path, executor=FakeExecutor())
    executor = Slow()
    state = resume_sweep(tmp_path, plan=richer, executor=executor)
    (event,) = state.journal.of("plan_amended")
    assert event.data["difference"] == "  max_hours: 0.5 there, 9.0 given"
    assert state.plan == richer
    assert state.decision("champion") is not None
    assert [run.run_id for run in state.runs] == numbers
    begun = [e.data["job"] for e in state.journal.of("job_intent")]
    assert len(begun) == len(set(begun)), "nothing is paid twice"
    again = FakeExecutor()
    resume_sweep(tmp_path, executor=again)
    assert again.submitted == []


def test_a_round_appended_in_time_takes_part(tmp_path: Path) -> None:
    stopped = FakeExecutor(exit_codes={"data": [0]})
    probe = run_sweep(PLAN, tmp_path / "probe", executor=FakeExecutor())
    first = probe.runs[0].run_id
    stopped.exit_codes = {f"train:{first}": [1]}
    with pytest.raises(ExecutorError, match="incomplete"):
        run_sweep(PLAN, tmp_path / "real", executor=stopped)
    longer = appended(PLAN, "B", "sweep_round_b_deeper")
    state = resume_sweep(tmp_path / "real", plan=longer, executor=FakeExecutor())
    (run,) = state.members("B")
    assert run.run_id in state.gates("small_eval")
    assert {item["round"] for item in (state.decision("promotions") or {})["promoted"]} == {"A", "B"}
    assert [run.run_id for run in state.runs][: len(probe.runs)] == [run.run_id for run in probe.runs]


def test_a_round_of_members_comes_too_late_once_the_gates_are_decided(tmp_path: Path) -> None:
    run_sweep(PLAN, tmp_path, executor=FakeExecutor())
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(UserError, match="the gates of this sweep are decided"):
        resume_sweep(tmp_path, plan=appended(PLAN, "B", "sweep_round_b_deeper"), executor=FakeExecutor())
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_an_edited_past_is_refused_with_the_difference(tmp_path: Path) -> None:
    run_sweep(PLAN, tmp_path, executor=FakeExecutor())
    before = (tmp_path / "journal.jsonl").read_bytes()
    laxer = PLAN.gates.improvement.model_copy(update={"relative": 0.01})
    gates = PLAN.gates.model_copy(update={"improvement": laxer})
    round_ = PLAN.rounds[0].model_copy(update={"hypothesis": "It was expected all along."})
    for changes, words in (
        ({"gates": gates}, r"gates.improvement.relative: 0.11 there, 0.01 given"),
        ({"rounds": (round_,)}, r"rounds.A.hypothesis: 'None; .* there, 'It was expected all along.' given"),
        ({"rounds": ()}, r"rounds.A.name: 'A' there, None given"),
    ):
        edited = PLAN.model_copy(update={**changes, "max_hours": 3.0})
        with pytest.raises(UserError, match=words):
            resume_sweep(tmp_path, plan=edited, executor=FakeExecutor())
    assert (tmp_path / "journal.jsonl").read_bytes() == before


class Improving(FakeExecutor):
    """Stochastic depth helps by half, so an appended round of refinements has a new champion."""

    def quality(self, config: str, seed: int, words: list[str]) -> float:
        value = super().quality(config, seed, words)
        return value / 2 if any("stochastic_depth" in word for word in words) else value


def refined(plan: Plan, **changes: object) -> Plan:
    """The plan with a round of one refinement behind its own."""
    depth = Refinement(name="depth", set={"model.options.operator.stochastic_depth": 0.1})
    more = Round(name="D", kind="refine", hypothesis="h", forecast=Forecast(below=1.0), refinements=(depth,))
    return plan.model_copy(update={"rounds": (*plan.rounds, more), "rest_at_tier": None, **changes})


def test_the_sealed_split_is_opened_a_second_time_only_where_the_plan_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PLAN.model_copy(update={"rest_at_tier": None})
    run_sweep(plan, tmp_path, executor=Improving())
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"opened 1 time.*test_openings: 2"):
        resume_sweep(tmp_path, plan=refined(plan), executor=Improving())
    assert (tmp_path / "journal.jsonl").read_bytes() == before, "refused before anything is spent"
    state = resume_sweep(tmp_path, plan=refined(plan, test_openings=2), executor=Improving())
    champion = state.decision("champion")
    assert champion is not None
    assert [e.data["opening"] for e in state.journal.of("test_opened")] == ["smoke-1", "smoke-2"]
    assert champion["champion"] in state.journal.of("test_opened")[1].data["runs"]
    assert {row["test_openings"] for row in leaderboard_rows(state)} == {2}
    assert "Opened 2 times in this sweep: smoke-1 for" in report_path(tmp_path).read_text()
    leaderboard(tmp_path)
    assert "opened 2 times" in capsys.readouterr().out
    again = Improving()
    resume_sweep(tmp_path, executor=again)
    assert again.submitted == []


def test_appended_rounds_can_go_on_without_the_sealed_split(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"rest_at_tier": None})
    run_sweep(plan, tmp_path, executor=Improving())
    sealed = refined(plan, open_test_for_champion=False)
    state = resume_sweep(tmp_path, plan=sealed, executor=Improving())
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"] not in state.evaluations("test")
    assert len(state.journal.of("test_opened")) == 1
    # opened again by taking the word back, it still stays within the plan's count
    state = resume_sweep(tmp_path, plan=refined(plan), executor=Improving())
    assert len(state.journal.of("test_opened")) == 1
    assert "was not judged on it: the plan allows 1" in report_path(tmp_path).read_text()


def capped(**ceiling: float) -> Plan:
    return PLAN.model_copy(
        update={"max_hours": 9.0, "rest_at_tier": None, "budget": Budget(run=Ceiling.model_validate(ceiling))}
    )


class Long(FakeExecutor):
    """A member's training takes 2000 s."""

    def submit(self, job: Job) -> None:
        super().submit(job)
        if job.job_id.startswith("train:sweep"):
            self.ended[-1] = JobEnd(job.job_id, self.ended[-1].exit_code, 2000.0)


def test_a_full_eval_that_a_ceiling_refused_is_named_and_asked_again_with_a_higher_one(
    tmp_path: Path,
) -> None:
    state = run_sweep(capped(hours=0.5), tmp_path, executor=Long())
    (member,) = state.members("A")
    first = state.decision("champion")
    assert first is not None
    assert first["champion"] in state.baselines()
    assert f"Not evaluated: ceiling: {member.run_id}" in first["sentence"]
    assert state.failed_for_good(f"full:{member.run_id}")
    richer = capped(hours=2.0)
    with pytest.raises(UserError, match=r"opened 1 time.*test_openings: 2"):
        resume_sweep(tmp_path, plan=richer, executor=Long())
    again = Long()
    state = resume_sweep(tmp_path, plan=richer.model_copy(update={"test_openings": 2}), executor=again)
    assert again.submitted[0] == f"full:{member.run_id}"
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"] == member.run_id
    assert "ceiling" not in champion["sentence"]
    assert state.finished
    resume_sweep(tmp_path, executor=(idle := Long()))
    assert idle.submitted == []


def test_a_training_that_a_ceiling_refused_takes_part_once_it_is_raised_and_only_then(tmp_path: Path) -> None:
    """Ended by a signal at its first launch; the ceiling allows no second."""
    (member,) = run_sweep(PLAN, tmp_path / "probe", executor=FakeExecutor()).members("A")
    job, folder = f"train:{member.run_id}", tmp_path / "real"
    sealed = capped(attempts=1).model_copy(update={"open_test_for_champion": False})
    state = run_sweep(sealed, folder, executor=FakeExecutor(exit_codes={job: [-15]}))
    assert state.refused_by_ceiling(job)
    assert (state.decision("promotions") or {})["promoted"] == []
    same = sealed.model_copy(update={"stall_timeout_s": 77.0})
    state = resume_sweep(folder, plan=same, executor=(idle := FakeExecutor()))
    assert idle.submitted == []
    assert state.failed_for_good(job)
    raised = same.model_copy(update={"budget": Budget(run=Ceiling(attempts=2))})
    state = resume_sweep(folder, plan=raised, executor=FakeExecutor())
    assert state.done(job)
    assert [item["run_id"] for item in (state.decision("promotions") or {})["promoted"]] == [member.run_id]
    assert (state.decision("champion") or {})["champion"] == member.run_id
