"""Forecast, canary and testimony: what is known before money is spent, and who is believed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.errors import BudgetError, ExecutorError
from universal_simulator.identity import code_version
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_json
from universal_simulator.sweep import canary
from universal_simulator.sweep.candidates import planned_refinements
from universal_simulator.sweep.driver import estimate_sweep, run_sweep
from universal_simulator.sweep.executor import LOST_EXIT_CODE, Job, JobEnd
from universal_simulator.sweep.forecast import Forecast, as_document, makespan, outcomes
from universal_simulator.sweep.later_bound import later_bound
from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.plan import Budget, Ceiling, Machine, Round, load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.state import SweepState

PLAN = load_plan("smoke")
PRICED = PLAN.model_copy(update={"machines": {"small": Machine(price_usd_per_hour=3.6)}, "max_hours": 1.0})


def test_estimate_trains_nothing_and_the_sweep_goes_on_from_it(tmp_path: Path) -> None:
    executor = FakeExecutor()
    state = estimate_sweep(PRICED, tmp_path, executor=executor)
    assert {job.partition(":")[0] for job in executor.submitted} == {"data", "calibrate"}
    document = as_document(state, workers=2)
    assert [(line["key"], line["runs"]) for line in document["members"]] == [
        ("rerun_txxoc8a8", 3),
        ("fno_reference", 1),
        ("sweep_round_a_lr3e4_w5", 1),
    ]
    assert document["members"][0]["usd"] == pytest.approx(3 * (120 + 60) * 0.001)
    total = document["total"]
    # 5 trainings of 120 s, 5 full-evals and 3 test evaluations of 60 s, references twice 5 s
    assert total["worker_hours"] == pytest.approx((5 * 120 + 5 * 60 + 3 * 60 + 2 * 5) / 3600)
    assert total["wall_s"] == pytest.approx(3 * 120 + 3 * 60 + 2 * 60 + 2 * 5)
    assert total["full_evals"] == 5
    assert total["usd"] == pytest.approx(0.001 * 3600 * total["worker_hours"]), "all that takes time is paid"
    again = FakeExecutor()
    finished = run_sweep(PRICED, tmp_path, executor=again)
    assert not any(job.startswith(("data", "calibrate")) for job in again.submitted)
    rows = outcomes(finished)
    assert {row.what for row in rows} == {"train", "full", "test"}
    assert all(row.took_s == pytest.approx(0.1) for row in rows)
    assert {row.forecast_s for row in rows} == {120.0, 60.0}
    assert {round(row.forecast_usd, 6) for row in rows} == {0.12, 0.06}
    assert all(row.took_usd == pytest.approx(0.0001) for row in rows)
    page = report_path(tmp_path).read_text()
    assert "Forecast and outcome" in page
    (told,) = [row for row in page.split("<tr>") if "fno_reference" in row and "<td>train</td>" in row]
    cells = [cell.split("<")[0] for cell in told.split('class="n">')[1:6]]
    assert [float(cell) for cell in cells] == [120.0, 0.1, 0.00083, 0.12, 0.0001]
    assert result_digest(finished) == result_digest(
        run_sweep(PRICED, tmp_path / "x", executor=FakeExecutor())
    )


def test_what_jobs_are_billed_for_beside_their_work_is_measured_and_forecast(tmp_path: Path) -> None:
    """Rented instances load and are installed for five minutes each, and it is not only trainings that need one."""

    class Renting(FakeExecutor):
        remote = True

        def submit(self, job: Job) -> None:
            super().submit(job)
            self.ended[-1] = replace(self.ended[-1], usd=0.001 * (300.0 + 0.1))

    plan = PRICED.model_copy(update={"budget": Budget(sweep=Ceiling(usd=5.0))})
    state = estimate_sweep(plan, tmp_path, executor=Renting())
    total = as_document(state, workers=2)["total"]
    assert (total["jobs"], total["overhead_s"]) == (5 + 5 + 3, pytest.approx(300.0, abs=0.01))
    work_s = 5 * 120 + 5 * 60 + 3 * 60 + 2 * 5
    assert total["usd"] == pytest.approx(0.001 * (work_s + 13 * 300))
    assert total["worker_hours"] == pytest.approx(work_s / 3600), "waiting is no work"
    assert total["wall_s"] == pytest.approx(3 * 420 + 3 * 360 + 2 * 360 + 2 * 5)
    # data, canary and three calibrations
    assert total["spent_usd"] == pytest.approx(5 * 0.3001)
    assert total["crosses"] == (
        f"{total['usd'] + total['spent_usd']:.2f} USD are forecast, budget.sweep.usd is 5",
    )
    local = estimate_sweep(PRICED, tmp_path / "local", executor=FakeExecutor())
    assert as_document(local, workers=2)["total"]["overhead_s"] == 0.0


def test_what_follows_the_written_rounds_is_bounded_and_said(tmp_path: Path) -> None:
    """Round C: two trials, a placebo and three seeds; round D: two refinements, one at three times the cost."""

    class Sized(FakeExecutor):
        remote = True

        def submit(self, job: Job) -> None:
            super().submit(job)
            self.ended[-1] = replace(self.ended[-1], usd=0.001 * (300.0 + 0.1))

        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[0] == "calibrate" and "sweep_round_a" in job.job_id:
                job.log.write_text(json.dumps({k: 2 * v for k, v in self.calibration.items()}) + "\n")

    words = {"hypothesis": "h", "forecast": {"relative_reduction": [0.1, 0.3]}}
    search = {"keys": ["training.operator.learning_rate", "ttc.residual_threshold"], "trials": 2}
    wide = {"model.options.latent_dim": 128}
    refinements = [{"name": f"at {cost}", "set": wide, "cost": cost} for cost in (1, 3)]
    later = [
        {"name": "C", "kind": "search", "search": search, "placebo": True, "confirm": [1, 2, 3], **words},
        {"name": "D", "kind": "refine", "refinements": refinements, **words},
    ]
    plan = PRICED.model_copy(update={"rounds": (*PRICED.rounds, *map(Round.model_validate, later))})
    said: list[str] = []
    state = estimate_sweep(plan, tmp_path, executor=Sized(), progress=lambda share, text: said.append(text))
    found = later_bound(state)
    assert found is not None
    # each as the member: twice 120 s a training, twice 60 s a full-eval
    work_s = (2 + 1 + 3 + 1 + 3) * 240 + 4 * 120
    assert (found.rounds, found.trainings, found.full_evals, found.scores) == (("C", "D"), 8, 4, 1)
    assert found.like.startswith("sweep_round_a")
    assert found.worker_hours == pytest.approx(work_s / 3600)
    assert found.usd == pytest.approx(0.001 * (work_s + (8 + 4) * 300))
    assert found.sentence in said[-1]
    assert later_bound(estimate_sweep(PRICED, tmp_path / "plain", executor=FakeExecutor())) is None


def test_a_forecast_journalled_before_overheads_were_measured_is_read(tmp_path: Path) -> None:
    state = estimate_sweep(PRICED, tmp_path, executor=FakeExecutor())
    told = state.decision("forecast")
    assert told is not None
    state.journal.append("forecast", measured=told["measured"], unmeasured={})
    total = as_document(SweepState(tmp_path), workers=2)["total"]
    assert (total["overhead_s"], total["spent_usd"]) == (0.0, 0.0)
    assert total["usd"] > 0


def test_a_refinement_is_forecast_as_many_times_its_config_as_the_plan_says(tmp_path: Path) -> None:
    state = estimate_sweep(PRICED, tmp_path, executor=FakeExecutor())
    base = next(run for run in state.runs if run.role == "reference")
    assert base.cost == 1.5
    for name, cost in {"deeper": 2 * base.cost, "another": base.cost}.items():
        run = replace(base, run_id=name, role="refinement", key=name, cost=cost, overrides=("a.b=1",))
        state.journal.append("run_added", run=asdict(run), why="")
    seconds = {name: Forecast(state).seconds(f"train:{name}") for name in ("deeper", "another", base.run_id)}
    assert seconds == {"deeper": 240.0, "another": 120.0, base.run_id: 120.0}
    assert Forecast(state).seconds("full:deeper") == 120.0


@pytest.mark.parametrize(
    ("observed", "gib"),
    [
        ({"peak_memory_gib": 3.0, "peak_device_memory_gib": 40.0, "device": "cuda:0 (NVIDIA H100)"}, 40.0),
        ({"peak_memory_gib": 3.0, "peak_device_memory_gib": None, "device": "cpu"}, 3.0),
        ({"peak_memory_gib": 3.0}, 3.0),
        ({"peak_memory_gib": 3.0, "device": "cuda:0 (NVIDIA H100)"}, None),
    ],
)
def test_what_must_fit_is_the_memory_of_the_device_that_trained(
    tmp_path: Path, observed: dict[str, object], gib: float | None
) -> None:
    """ "If VRAM allows": what the process held in main memory says nothing of it."""

    class Measuring(FakeExecutor):
        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[0] == "run":
                path = RunFolder.of_path(job.log.parent).summary
                record = read_document(path, RunRecord)
                assert record.training is not None
                training = record.training.model_copy(update={"observation": observed})
                write_json(path, record.model_copy(update={"training": training}))

    state = run_sweep(PLAN.model_copy(update={"calibrate": True}), tmp_path, executor=Measuring())
    assert {row.took_gib for row in outcomes(state) if row.what == "train"} == {gib}
    wide = {"model.options.latent_dim": 128}
    limits = {"fits": 1000.0, "too large": 100.0}
    round_ = Round.model_validate(
        {
            "name": "E",
            "kind": "refine",
            "hypothesis": "Wider is better.",
            "forecast": {"relative_reduction": [0.1, 0.3]},
            "refinements": [{"name": n, "set": wide, "memory_limit_gib": limits[n]} for n in limits],
        }
    )
    fits, large = planned_refinements(state, round_, state.members()[0])
    if gib is None:
        assert "was not measured" in str(fits.refused)
    else:
        assert fits.refused is None
    assert ("exceeds 100 GiB" in str(large.refused)) == (gib == 40.0)


def test_full_evals_begin_with_references_and_the_longest(tmp_path: Path) -> None:
    """Else the longest is launched when the others end, and the machine waits for it alone."""

    class Timed(FakeExecutor):
        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[0] == "run":
                files = RunFolder.of_path(job.log.parent)
                record = read_document(files.summary, RunRecord)
                took = 9.0 if "aggressive" in job.job_id else 2.0 if "-s1-" in job.job_id else 1.0
                small = record.evaluations["small_eval"].model_copy(
                    update={"observation": {"wall_clock_s": took, "code_version": code_version()}}
                )
                write_json(files.summary, record.model_copy(update={"evaluations": {"small_eval": small}}))

    executor = Timed()
    plan = load_plan("sota_embedded").model_copy(update={"headline_regime": "nu=0.05"})
    run_sweep(plan, tmp_path, executor=executor)
    full = [job for job in executor.submitted if job.startswith("full:")]
    order = [job.removeprefix("full:").rpartition("-")[0] for job in full]
    # what takes as long as each other stays in the order of the plan
    assert order[:4] == [
        "fno_reference-s0",
        "sweep_aggressive_sota-s0",
        "rerun_txxoc8a8-s1",
        "ablation_baseline_plain_frame-s0",
    ]
    assert len(order) >= 7


def test_the_forecast_stops_a_sweep_before_it_spends_too_much(tmp_path: Path) -> None:
    """0.30 USD and 0.12 a training: two are launched, the third would cross the ceiling."""
    budget = Budget(sweep=Ceiling(usd=0.30))
    plan = PRICED.model_copy(update={"budget": budget, "calibrate": True})

    class Costly(FakeExecutor):
        def submit(self, job: Job) -> None:
            super().submit(job)
            seconds = 120.0 if job.arguments[0] == "run" else 0.0
            self.ended[-1] = JobEnd(job.job_id, self.ended[-1].exit_code, seconds)

    executor, told = Costly(), []
    with pytest.raises(BudgetError, match=r"sweep to 0.36 USD of 0.30"):
        run_sweep(plan, tmp_path, executor=executor, progress=lambda share, text: told.append(text))
    assert sum(job.startswith("train:") for job in executor.submitted) == 2
    assert any("USD are forecast, budget.sweep.usd is 0.3" in text for text in told)


def test_a_launch_is_weighed_with_what_its_job_is_billed_for_beside_its_work(tmp_path: Path) -> None:
    """120 s of training, and half an hour in which an instance loads and is sent the data: 1.92 USD each."""

    class Renting(FakeExecutor):
        remote = True

        def submit(self, job: Job) -> None:
            super().submit(job)
            seconds = 120.0 if job.arguments[0] == "run" else 0.1
            self.ended[-1] = replace(self.ended[-1], seconds=seconds, usd=0.001 * (1800.0 + seconds))

    plan = PRICED.model_copy(update={"calibrate": True, "budget": Budget(sweep=Ceiling(usd=9.2 + 3.0))})
    executor = Renting()
    # data, canary and three calibrations for 9.12, then one training for 1.92; another would be beyond 12.20
    with pytest.raises(BudgetError, match=r"train:\S+ would take sweep to 12.96 USD of 12.20"):
        run_sweep(plan, tmp_path, executor=executor)
    assert sum(job.startswith("train:") for job in executor.submitted) == 1
    state = SweepState(tmp_path)
    assert state.seconds_spent < 3600 * plan.max_hours, "it is no work: only dollars hold it"
    weighed, run = Forecast(state), state.runs[0].run_id
    assert weighed.overhead_s(f"train:{run}") == weighed.overhead_s(f"ttc_abc:{run}") == pytest.approx(1800.0)
    assert weighed.overhead_s("data") == weighed.overhead_s("canary:x") == 0.0


class Unlucky(FakeExecutor):
    """Calibrations whose ids hold `name` end so; every other is measured, the baseline as cheaper."""

    place = "FakeExecutor"
    name, code, lost = "fno_reference", LOST_EXIT_CODE, True

    def submit(self, job: Job) -> None:
        if job.arguments[0] == "calibrate" and self.name in job.job_id:
            self.submitted.append(job.job_id)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text("no memory left\n")
            self.ended.append(JobEnd(job.job_id, self.code, 0.1, lost=self.lost))
        elif job.job_id.startswith("train:"):
            raise SystemExit(137)
        else:
            super().submit(job)

    def work(self, job: Job) -> None:
        super().work(job)
        if job.arguments[0] == "calibrate" and "rerun" in job.job_id:
            less = {k: v / 2 for k, v in self.calibration.items()}
            job.log.write_text(json.dumps(less) + "\n")


class Broken(Unlucky):
    code, lost = 1, False


@pytest.mark.parametrize("unlucky", [Unlucky, Broken])
def test_what_could_not_be_measured_is_counted_as_the_costliest_of_what_was_and_said(
    tmp_path: Path, unlucky: type[Unlucky]
) -> None:
    """The one launch that would be weighed at nothing could be half of the budget."""
    plan, told = PLAN.model_copy(update={"calibrate": True}), []
    with pytest.raises(SystemExit):
        run_sweep(plan, tmp_path, executor=unlucky(), progress=lambda share, text: told.append(text))
    state = SweepState(tmp_path)
    run = next(run for run in state.runs if run.config == "fno_reference")
    member = next(member for member in plan.rounds[0].members)
    # baseline 60 s at cost 1, the member 120 s at its own: the larger per unit of cost, times 1.5
    per_cost = max(60.0, 120.0 / member.cost)
    assert Forecast(state).seconds(f"train:{run.run_id}") == pytest.approx(1.5 * per_cost)
    document = as_document(state, workers=1)
    assert document["unmeasured"] == {"fno_reference": "no memory left"}
    assert {line["key"]: line["measured"] for line in document["members"]}["fno_reference"] is False
    assert document["total"]["jobs"] == 13
    said = next(text for text in told if text.startswith("forecast:"))
    assert said.endswith(
        "; fno_reference could not be measured (no memory left) and is counted as the costliest of what was"
    )
    # the next sitting measures it, and nothing else again
    again = FakeExecutor()
    state = run_sweep(plan, tmp_path, executor=again)
    asked = [job for job in again.submitted if job.startswith("calibrate:")]
    assert [Unlucky.name in job for job in asked] == [True]
    assert Forecast(state).seconds(f"train:{run.run_id}") == 120.0
    first, second = state.journal.of("forecast")
    assert second.data["spent"] == first.data["spent"]


def test_nothing_is_launched_where_nothing_could_be_measured(tmp_path: Path) -> None:
    class Dark(Unlucky):
        name = ""

    executor = Dark()
    with pytest.raises(ExecutorError, match=r"no launch can be weighed:\n.*: no memory left"):
        run_sweep(PLAN.model_copy(update={"calibrate": True}), tmp_path, executor=executor)
    assert {job.partition(":")[0] for job in executor.submitted} == {"data", "calibrate"}
    assert run_sweep(
        PLAN.model_copy(update={"calibrate": True}), tmp_path, executor=FakeExecutor()
    ).finished


def test_makespan_is_that_of_workers_coming_free() -> None:
    assert makespan([5, 3, 3, 2], 2) == 7
    assert makespan([5, 3, 3, 2], 1) == 13
    assert makespan([], 3) == 0


def test_canary_goes_first_on_remote_executors_and_where_the_plan_asks(tmp_path: Path) -> None:
    class Remote(FakeExecutor):
        remote = True

    order = []
    for name, executor, wanted in (
        ("remote", Remote(), None),
        ("asked", FakeExecutor(), True),
        ("local", FakeExecutor(), None),
        ("refused", Remote(), False),
    ):
        plan = PLAN.model_copy(update={"canary": wanted})
        state = run_sweep(plan, tmp_path / name, executor=executor)
        kinds = [job.partition(":")[0] for job in executor.submitted]
        order.append(kinds[1])
        assert len(state.runs) == 5  # the canary is no run of the sweep
        again = FakeExecutor()
        run_sweep(plan, tmp_path / name, executor=again)
        assert again.submitted == []
    assert order == ["canary", "canary", "train", "train"]


def kinds(executor: FakeExecutor) -> list[str]:
    """Of the jobs submitted, each once, in their order."""
    return list(dict.fromkeys(job.partition(":")[0] for job in executor.submitted))


def test_nothing_is_measured_before_the_canary_is_back(tmp_path: Path) -> None:
    """Calibrations of every member are spending too: in a sweep and in an estimate alike."""
    plan = PLAN.model_copy(update={"canary": True, "calibrate": True})
    asked, whole = FakeExecutor(), FakeExecutor()
    estimate_sweep(plan, tmp_path / "estimate", executor=asked)
    assert kinds(asked) == ["data", "canary", "calibrate"]
    run_sweep(plan, tmp_path / "sweep", executor=whole)
    assert kinds(whole)[:4] == ["data", "canary", "calibrate", "train"]
    dead = FakeExecutor(exit_codes={job: [1] for job in asked.submitted if job.startswith("canary:")})
    with pytest.raises(ExecutorError, match="the canary failed, nothing else was started"):
        estimate_sweep(plan, tmp_path / "dead", executor=dead)
    assert kinds(dead) == ["data", "canary"]


def test_a_canary_speaks_for_its_executor_and_its_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(FakeExecutor):
        place = "Elsewhere http://there:8265"

    plan = PLAN.model_copy(update={"canary": True})
    first = estimate_sweep(plan, tmp_path, executor=FakeExecutor())
    (event,) = first.journal.of("canary_passed")
    assert event.data["executor"] == "FakeExecutor"
    assert event.data["code"] == canary.archive_hash()
    again, other = FakeExecutor(), Elsewhere()
    estimate_sweep(plan, tmp_path, executor=again)
    assert again.submitted == []
    estimate_sweep(plan, tmp_path, executor=other)
    assert kinds(other) == ["canary"]
    monkeypatch.setattr(canary, "archive_hash", lambda: "b" * 64)
    edited = FakeExecutor()
    state = estimate_sweep(plan, tmp_path, executor=edited)
    assert kinds(edited) == ["canary"]
    passed = state.journal.of("canary_passed")
    assert len({event.data["run"] for event in passed}) == 3, "each went all the way, in a folder of its own"
    run_sweep(plan, tmp_path, executor=FakeExecutor())
    finished = Elsewhere()
    run_sweep(plan, tmp_path, executor=finished)
    assert finished.submitted == [], "a finished sweep has nothing left to start"


@pytest.mark.parametrize("fault", ["fails", "no model", "other code"])
def test_a_canary_that_fails_or_comes_back_unsound_stops_the_sweep(tmp_path: Path, fault: str) -> None:
    class Unsound(FakeExecutor):
        def submit(self, job: Job) -> None:
            super().submit(job)
            if not job.job_id.startswith("canary:"):
                return
            files = RunFolder(tmp_path, job.job_id.partition(":")[2])
            if fault == "fails":
                job.log.write_text("the worker has no data\n")
                self.ended[-1] = JobEnd(job.job_id, 1, 0.1)
            elif fault == "no model":
                files.model.unlink()
            else:
                lie(files, code_version="f" * 64)

    executor = Unsound()
    plan = PLAN.model_copy(update={"canary": True})
    words = {
        "fails": "the canary failed(?s:.*)no data",
        "no model": "model.safetensors did not come back",
        "other code": "trained by other code",
    }
    with pytest.raises(ExecutorError, match=words[fault]):
        run_sweep(plan, tmp_path, executor=executor)
    assert [job.partition(":")[0] for job in executor.submitted] == ["data", "canary"]
    mended = FakeExecutor()
    state = run_sweep(plan, tmp_path, executor=mended)
    assert state.decision("champion") is not None


def lie(files: RunFolder, **changes: object) -> None:
    """Rewrite what a worker recorded."""
    record = read_document(files.summary, RunRecord)
    assert record.training is not None
    result = record.training.result.model_copy(update=changes)
    training = record.training.model_copy(update={"result": result})
    write_json(files.summary, record.model_copy(update={"training": training}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code_version": "f" * 64}, "trained by other code"),
        ({"data_identity": "e"}, "trained on other data"),
        ({"config_hash": "0" * 64}, "its config 0000000000 and seed 0 are not those of"),
        ({"seed": 5}, "seed 5 are not those of"),
    ],
)
def test_a_worker_that_lies_decides_nothing(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """A record of another hash is refused, nothing is concluded; typed again with a sound worker it goes on."""

    class Lying(FakeExecutor):
        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[:2] == ("run", "sweep_round_a_lr3e4_w5"):
                lie(RunFolder(tmp_path, job.arguments[job.arguments.index("--run-id") + 1]), **changes)

    with pytest.raises(ExecutorError, match=words):
        run_sweep(PLAN, tmp_path, executor=Lying())
    state = SweepState(tmp_path)
    assert state.decision("small_eval_gates") is None
    (refused,) = [e for e in state.journal.of("job_ended") if e.data["refused"]]
    assert refused.data["results"] == {}
    assert refused.data["exit_code"] == 0
    (kept,) = RunFolder(tmp_path, refused.data["job"].partition(":")[2]).path.glob("refused-*.json")
    assert read_document(kept, RunRecord).status == "finished"
    sound = FakeExecutor()
    finished = run_sweep(PLAN, tmp_path, executor=sound)
    assert sound.submitted[0] == refused.data["job"]
    assert finished.decision("champion") is not None


def test_a_job_that_leaves_no_record_is_not_done(tmp_path: Path) -> None:
    class Forgetful(FakeExecutor):
        def work(self, job: Job) -> None:
            if job.arguments[0] != "evaluate":
                super().work(job)

    with pytest.raises(ExecutorError, match="its full_eval is not in the record"):
        run_sweep(PLAN, tmp_path, executor=Forgetful())
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[-1])["kind"] == "job_given_up"
