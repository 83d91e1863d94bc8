"""The driver: durable, resumable at every append, the same result every time; what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.killed_drivers import paid_twice
from universal_simulator.configuration import load_config
from universal_simulator.errors import (
    BudgetError,
    ConfigurationError,
    ExecutorError,
    IntegrityError,
    SweepLockedError,
    UserError,
)
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.identity import run_identity
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_json
from universal_simulator.sweep.compute import compute_rows
from universal_simulator.sweep.driver import estimate_sweep, locked, rebuild_reports, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.leaderboard import PLAN_COLUMNS, leaderboard_path, result_digest
from universal_simulator.sweep.plan import Member, load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.state import SweepState, refuse_unjournalled_opening

PLAN = load_plan("smoke")


def test_whole_sweep_leaves_the_plans_artifacts(tmp_path: Path) -> None:
    state = run_sweep("smoke", tmp_path, executor=FakeExecutor())
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"].startswith("sweep_round_a_lr3e4_w5")
    lines = leaderboard_path(tmp_path).read_text().splitlines()
    assert tuple(lines[0].split(",")[:10]) == PLAN_COLUMNS
    rows = list(csv.DictReader(lines))
    assert {(r["ece"], r["ece_members"], r["ece_conditions"]) for r in rows} == {("0.03", "4", "8")}
    assert {line.split(",")[2] for line in lines[1:]} == {"baseline", "reference", "small_eval", "champion"}
    page = report_path(tmp_path).read_text()
    assert len(page) < 300_000
    assert champion["sentence"] in page
    assert len(state.journal.of("test_opened")) == 1
    before = (leaderboard_path(tmp_path).read_bytes(), report_path(tmp_path).read_bytes())
    for path in (leaderboard_path(tmp_path), report_path(tmp_path)):
        path.unlink()
    rebuild_reports(tmp_path)
    assert (leaderboard_path(tmp_path).read_bytes(), report_path(tmp_path).read_bytes()) == before


@pytest.mark.parametrize("begin", [run_sweep, estimate_sweep])
def test_a_plan_whose_runs_can_never_start_here_is_refused_before_anything_is_made(
    tmp_path: Path, begin: Callable[..., SweepState]
) -> None:
    executor = LocalProcessExecutor(1, gpus=[])
    words = (
        r"sota: a run on the machine 'large' asks for gpus 1, this machine lends 0: .*`machines` of the plan"
    )
    with pytest.raises(ExecutorError, match=words):
        begin("sota", tmp_path, executor=executor)
    assert not SweepState(tmp_path).journal.of("job_intent")
    assert not list(tmp_path.glob("data*"))


def test_a_finished_sweep_is_refused_nowhere(tmp_path: Path) -> None:
    class Small(FakeExecutor):
        opened = 0

        def open(self, folder: Path | str) -> None:
            self.opened += folder == tmp_path

        def refuse_impossible(self, job: Job) -> None:
            raise ExecutorError(f"{job.job_id} asks for more")

    run_sweep("smoke", tmp_path, executor=FakeExecutor())
    executor = Small()
    run_sweep("smoke", tmp_path, executor=executor)
    assert executor.opened == 1
    with pytest.raises(ExecutorError, match="smoke: a run on the machine 'small' asks for more"):
        run_sweep("smoke", tmp_path / "another", executor=Small())


def test_finished_sweep_does_nothing_again(tmp_path: Path) -> None:
    run_sweep("smoke", tmp_path, executor=FakeExecutor())
    journal = (tmp_path / "journal.jsonl").read_bytes()
    again = FakeExecutor()
    run_sweep("smoke", tmp_path, executor=again)
    assert again.submitted == []
    assert (tmp_path / "journal.jsonl").read_bytes() == journal


class Killed(BaseException):
    """Not an Exception: nothing in the driver may catch it."""


@pytest.mark.parametrize("after", [False, True])
def test_driver_killed_at_every_append_ends_in_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    whole = run_sweep(PLAN, tmp_path / "whole", executor=FakeExecutor())
    total, digest = len(whole.journal.events), result_digest(whole)
    original = Journal.append
    for point in range(total):
        folder = tmp_path / f"killed-{point}"

        def append(self: Journal, kind: str, point: int = point, **data: object) -> object:
            if len(self.events) == point and not after:
                raise Killed
            event = original(self, kind, **data)
            if event.number == point and after:
                raise Killed
            return event

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", append)
            with pytest.raises(Killed):
                run_sweep(PLAN, folder, executor=FakeExecutor())
        resumed = run_sweep(PLAN, folder, executor=FakeExecutor())
        assert result_digest(resumed) == digest, point
        assert paid_twice(resumed) == [], point


def test_what_the_surroundings_broke_is_no_result_and_is_tried_again(tmp_path: Path) -> None:
    """A full disk under the only member: nothing decided, nothing opened; typed again, it goes on."""
    probe = run_sweep("smoke", tmp_path / "probe", executor=FakeExecutor())
    run = next(run for run in probe.runs if run.role == "member")
    for job in (f"train:{run.run_id}", f"full:{run.run_id}"):
        folder = tmp_path / job.replace(":", "-")
        with pytest.raises(ExecutorError, match="incomplete: 1 job"):
            run_sweep("smoke", folder, executor=FakeExecutor(exit_codes={job: [1]}))
        state = SweepState(folder)
        assert state.decision("champion") is None
        assert state.journal.of("test_opened") == []
        again = FakeExecutor()
        resumed = run_sweep("smoke", folder, executor=again)
        assert again.submitted[0] == job
        assert result_digest(resumed) == result_digest(probe)


def test_an_opening_that_was_not_answered_is_no_finished_sweep(tmp_path: Path) -> None:
    probe = run_sweep("smoke", tmp_path / "probe", executor=FakeExecutor())
    opened = probe.journal.of("test_opened")[0].data["runs"][0]
    with pytest.raises(ExecutorError, match="incomplete: 1 job"):
        run_sweep("smoke", tmp_path / "x", executor=FakeExecutor(exit_codes={f"test:{opened}": [1]}))
    assert SweepState(tmp_path / "x").decision("sweep_finished") is None
    resumed = run_sweep("smoke", tmp_path / "x", executor=FakeExecutor())
    assert len(resumed.journal.of("test_opened")) == 1, "the same look at the data, not a second one"
    assert result_digest(resumed) == result_digest(probe)


def test_results_of_another_code_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sweep("smoke", tmp_path, executor=FakeExecutor())
    monkeypatch.setattr("universal_simulator.sweep.run_planning.code_version", lambda: "f" * 64)
    with pytest.raises(UserError, match="planned by other code"):
        run_sweep("smoke", tmp_path, executor=FakeExecutor())


def test_a_record_changed_by_hand_is_refused(tmp_path: Path) -> None:
    state = run_sweep("smoke", tmp_path, executor=FakeExecutor())
    member = next(run for run in state.runs if run.role == "member")
    path = RunFolder(tmp_path, member.run_id).summary
    path.write_text(path.read_text().replace('"value": 0.05', '"value": 0.01'))
    with pytest.raises(IntegrityError, match="not those the journal saw"):
        rebuild_reports(tmp_path)


def test_a_used_up_budget_leaves_leaderboard_and_report_and_the_sweep_goes_on(tmp_path: Path) -> None:
    class Slow(FakeExecutor):
        """Each job says that it took ten minutes; the plan has half an hour."""

        def submit(self, job: Job) -> None:
            super().submit(job)
            self.ended[-1] = JobEnd(job.job_id, self.ended[-1].exit_code, 610.0)

    with pytest.raises(BudgetError, match="used up"):
        run_sweep("smoke", tmp_path, executor=Slow())
    state = SweepState(tmp_path)
    assert state.decision("champion") is None
    assert "used up" in report_path(tmp_path).read_text()
    rows = leaderboard_path(tmp_path).read_text().splitlines()
    assert len(rows) > 1
    assert state.seconds_spent == pytest.approx(2400, abs=700)


def test_killed_run_is_tried_again_and_a_second_time_the_sweep_stops(tmp_path: Path) -> None:
    probe = run_sweep("smoke", tmp_path / "probe", executor=FakeExecutor())
    job = next(f"train:{run.run_id}" for run in probe.runs if run.role == "member")
    once = run_sweep("smoke", tmp_path / "once", executor=FakeExecutor(exit_codes={job: [-9]}))
    assert once.done(job)
    with pytest.raises(ExecutorError, match="incomplete"):
        run_sweep("smoke", tmp_path / "twice", executor=FakeExecutor(exit_codes={job: [-9, -9]}))
    assert run_sweep("smoke", tmp_path / "twice", executor=FakeExecutor()).done(job)
    with pytest.raises(ExecutorError, match="data could not be made"):
        run_sweep("smoke", tmp_path / "data", executor=FakeExecutor(exit_codes={"data": [1]}))


def test_folder_of_another_plan_and_a_second_driver_are_refused(tmp_path: Path) -> None:
    run_sweep("smoke", tmp_path, executor=FakeExecutor())
    with pytest.raises(UserError, match="profile: 'smoke' there, 'embedded' given"):
        run_sweep("sota_embedded", tmp_path, executor=FakeExecutor())
    with locked(tmp_path), pytest.raises(SweepLockedError):
        run_sweep("smoke", tmp_path, executor=FakeExecutor())


def test_only_a_journalled_opening_opens_the_test_split(tmp_path: Path) -> None:
    state = run_sweep("smoke", tmp_path, executor=FakeExecutor())
    opened = state.journal.of("test_opened")[0].data
    other = next(run.run_id for run in state.runs if run.run_id not in opened["runs"])
    refuse_unjournalled_opening(RunFolder(tmp_path, opened["runs"][0]).path, opened["opening"])
    for run_id, opening in ((opened["runs"][0], "by hand"), (other, opened["opening"])):
        with pytest.raises(UserError, match="no journalled opening"):
            refuse_unjournalled_opening(RunFolder(tmp_path, run_id).path, opening)


def test_tampered_record_and_foreign_folder_are_refused(tmp_path: Path) -> None:
    state = run_sweep("smoke", tmp_path, executor=FakeExecutor())
    path = RunFolder(tmp_path, state.runs[0].run_id).summary
    path.write_text(path.read_text().replace('"nrmse"', '"nrmsee"').replace('"run_id"', '"run_idd"'))
    with pytest.raises(IntegrityError, match="not a valid RunRecord"):
        rebuild_reports(tmp_path)
    with pytest.raises(IntegrityError, match="holds no sweep"):
        SweepState(tmp_path / "nowhere")


def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    plan = load_plan("smoke")
    twin = tmp_path / "twin.yaml"
    twin.write_text("extends: sweep_round_a_lr3e4_w5\ntags: [other]\n")
    member = plan.rounds[0].members[0].model_copy(update={"config": str(twin)})
    doubled = plan.rounds[0].model_copy(update={"members": (*plan.rounds[0].members, member)})
    with pytest.raises(ConfigurationError, match="duplicate"):
        run_sweep(plan.model_copy(update={"rounds": (doubled,)}), tmp_path / "s", executor=FakeExecutor())


class MeteredExecutor(FakeExecutor):
    """Records carry the effective config; the Fourier operator uses ten times the baseline's FLOPs for its headline."""

    def work(self, job: Job) -> None:
        super().work(job)
        if job.arguments[0] != "run":
            return
        words = list(job.arguments)
        files = RunFolder(words[words.index("--folder") + 1], words[words.index("--run-id") + 1])
        record = read_document(files.summary, RunRecord)
        assert record.training is not None
        given = [word for word in words[2:] if "=" in word]
        config = load_config(words[1], given, profile="smoke").config
        steps = config.training.operator.steps
        changes = {
            "effective_config": config.model_dump(mode="json"),
            "training_flops": 7e6 * steps,
            "headline_flops": 1e6 * steps * (10 if words[1].startswith("fno") else 1),
            "optimiser_steps": steps,
            "stages": config.training.stages,
        }
        result = record.training.result.model_copy(update=changes)
        training = record.training.model_copy(update={"result": result})
        write_json(files.summary, record.model_copy(update={"training": training}))


def test_compute_matched_reference_gets_the_measured_flops_of_its_target(tmp_path: Path) -> None:
    plan = load_plan("smoke")
    matched = Member(config="rerun_txxoc8a8", compute_matched_to="fno_reference")
    plan = plan.model_copy(update={"references": (*plan.references, matched)})
    state = run_sweep(plan, tmp_path, executor=MeteredExecutor())
    run = next(run for run in state.runs if run.role == "compute_matched")
    record, target = state.record(run.run_id), state.trained("fno_reference")
    assert record is not None
    assert target is not None
    assert record.training is not None
    assert target.training is not None
    assert record.training.result.headline_flops == target.training.result.headline_flops
    ours = load_config(run.config, run.overrides, profile="smoke").config.training
    plain = load_config(run.config, profile="smoke").config.training
    assert ours.operator.steps == 10 * plain.operator.steps
    assert ours.codec.patience_steps == 10 * plain.codec.patience_steps
    assert state.done(f"full:{run.run_id}")
    (row, *_) = [row for row in compute_rows(state) if row.run_id == run.run_id]
    assert row.flops_ratio == 10
    page = report_path(tmp_path).read_text()
    assert "The same compute for the baseline" in page
    assert "breaks its own rule in 1 of 1 members" in page
    again = MeteredExecutor()
    run_sweep(plan, tmp_path, executor=again)
    assert again.submitted == []


def test_a_headline_regime_that_the_data_lack_stops_before_any_training(tmp_path: Path) -> None:
    class Other(FakeExecutor):
        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[0] == "data":
                job.log.write_text(json.dumps({"identity": "d", "regimes": ["nu=0.3"]}, indent=1) + "\n")

    executor = Other()
    with pytest.raises(UserError, match=r"'nu=0.05' is not in burgers_smoke, which holds nu=0.3"):
        run_sweep("smoke", tmp_path, executor=executor)
    assert executor.submitted == ["data"]


def test_a_plan_on_a_data_file_tells_every_run_and_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "my data.hdf5"
    path.write_bytes(b"")
    plan = load_plan("smoke").model_copy(update={"dataset": str(path)})
    commands: dict[str, tuple[str, ...]] = {}

    class Listening(FakeExecutor):
        def submit(self, job: Job) -> None:
            commands[job.job_id] = job.arguments
            super().submit(job)

    state = run_sweep(plan, tmp_path / "sweep", executor=Listening())
    assert commands["data"][:3] == ("data", "info", str(path))
    words = commands[f"train:{state.runs[0].run_id}"]
    loaded = load_config(words[1], [w for w in words[2:] if "=" in w], profile="smoke")
    assert loaded.config.data.file == str(path)
    assert loaded.config.data.dataset is None
    assert state.runs[0].run_id == run_identity(
        loaded.config.name, config_hash=loaded.hash, data_identity="d", seed=0
    )
