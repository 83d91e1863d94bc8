"""A sweep goes on with another budget or more rounds; its past stays as it was journalled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.errors import BudgetError, ExecutorError, UserError
from universal_simulator.sweep.driver import resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.plan import Member, Plan, Round, load_plan
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
