"""Failures that become a changed run by rule, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor, truthful
from tests.sweep.records import evaluation, run_record
from tests.sweep.test_driver import PLAN
from universal_simulator.run_record import RunFolder, write_json
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.report import report_path


def test_diverged_member_is_healed_by_rule_and_the_lineage_is_kept(tmp_path: Path) -> None:
    probe = run_sweep("smoke", tmp_path / "probe", executor=FakeExecutor())
    member = next(run for run in probe.runs if run.role == "member")
    executor = FakeExecutor(exit_codes={f"train:{member.run_id}": [1]})
    executor.failure_kind = "DivergenceError"
    state = run_sweep("smoke", tmp_path / "real", executor=executor)
    healed = state.runs[-1]
    assert healed.parent == member.run_id
    assert healed.run_id != member.run_id
    (event,) = state.journal.of("run_healed")
    assert event.data["healing"]["after"]["training.operator.grad_clip"] == 0.5
    before, after = (
        event.data["healing"][key]["training.operator.learning_rate"] for key in ("before", "after")
    )
    assert after == pytest.approx(0.7 * before)
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"] == healed.run_id
    page = report_path(tmp_path / "real").read_text()
    assert "Healed runs" in page
    assert member.run_id in page
    again = FakeExecutor()
    run_sweep("smoke", tmp_path / "real", executor=again)
    assert again.submitted == []


def test_member_that_fails_physics_is_trained_again_by_rule_where_the_plan_asks(tmp_path: Path) -> None:
    class Leaky(FakeExecutor):
        """The member loses mass until its spectral weight is raised."""

        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[:2] != ("run", "sweep_round_a_lr3e4_w5"):
                return
            words = list(job.arguments)
            files = RunFolder(words[words.index("--folder") + 1], words[words.index("--run-id") + 1])
            cured = "training.loss.lambda_spectral=0.1" in words
            record = run_record(
                files.run_id,
                words[1],
                0,
                {"small_eval": evaluation(files.run_id, 0.05, gap=0.005 if cured else 0.05)},
            )
            write_json(files.summary, truthful(record, job))

    plan = PLAN.model_copy(update={"healing": PLAN.healing.model_copy(update={"physics": True})})
    state = run_sweep(plan, tmp_path / "on", executor=Leaky())
    sick, cured = state.members()
    assert cured.parent == sick.run_id
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"] == cured.run_id
    (event,) = state.journal.of("run_healed")
    assert "conservation_gap" in event.data["healing"]["evidence"]
    assert "guards.mass_projection left: is on already" in report_path(tmp_path / "on").read_text()
    off = run_sweep(PLAN, tmp_path / "off", executor=Leaky())
    assert len(off.members()) == 1
    champion = off.decision("champion")
    assert champion is not None
    assert not champion["beat_baseline"]


def test_healing_has_a_cap_and_never_touches_a_baseline(tmp_path: Path) -> None:
    class Hopeless(FakeExecutor):
        failure_kind = "DivergenceError"

        def submit(self, job: Job) -> None:
            member = job.arguments[:2] == ("run", "sweep_round_a_lr3e4_w5")
            seed_two = "seed=2" in job.arguments
            self.exit_codes[job.job_id] = [1] if member or seed_two else [0]
            super().submit(job)

    state = run_sweep("smoke", tmp_path, executor=Hopeless())
    assert [state.generation(run) for run in state.runs if run.role == "member"] == [0, 1, 2]
    assert sum(run.role == "baseline" for run in state.runs) == 3
    champion = state.decision("champion")
    assert champion is not None
    assert not champion["beat_baseline"]
