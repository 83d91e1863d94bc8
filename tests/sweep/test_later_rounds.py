"""Rounds C and D through the real driver, with an executor that knows how good each config is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.fake_executor import RATE, FakeExecutor, KnowingExecutor
from tests.sweep.records import evaluation
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.run_record import RunFolder, RunRecord, content_hash, read_document, write_json
from universal_simulator.sweep.driver import resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.fates import fate
from universal_simulator.sweep.leaderboard import leaderboard_path, result_digest
from universal_simulator.sweep.plan import Plan, load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.state import JOURNAL, Run, SweepState


def of_role(state: SweepState, role: str, round_name: str | None = None) -> list[Run]:
    return [r for r in state.runs if r.role == role and round_name in (None, r.round)]


def outcome(state: SweepState, round_name: str) -> dict[str, str]:
    (event,) = [e for e in state.journal.of("round_ended") if e.data["round"] == round_name]
    return {key: event.data[key] for key in ("outcome", "sentence")}


def test_search_and_refinement_each_start_from_the_champion_of_their_moment(tmp_path: Path) -> None:
    state = run_sweep("smoke_iterate", tmp_path, executor=KnowingExecutor())
    trials = of_role(state, "trial")
    assert len(trials) == 3
    assert all(run.seed == 0 for run in trials)
    opened = {e.data["round"]: e.data for e in state.journal.of("round_opened")}
    assert opened["C"]["base"].startswith("sweep_round_a_lr3e4_w5")
    assert opened["C"]["left_out"] == {}, "the TTC threshold is scored without training"
    for run in trials:
        about = state.about(run.run_id)
        low, high = about["box"][RATE]
        assert low <= about["values"][RATE] <= high
        assert run.overrides[0] == f"{RATE}={about['values'][RATE]!r}"
    assert outcome(state, "C")["outcome"] == "promoted", outcome(state, "C")
    assert [run.seed for run in of_role(state, "confirmation", "C")] == [101, 102, 103]
    # round D stands on what C found, and its refinement keeps C's values
    (refined,) = of_role(state, "refinement")
    assert opened["D"]["base"] in {run.run_id for run in trials}
    assert refined.overrides[:3] == next(r.overrides for r in trials if r.run_id == opened["D"]["base"])
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"] == refined.run_id
    assert [e.data.get("round") for e in state.journal.of("champion")] == [None, "C", "D"]
    # the placebo of each round is its base with another seed
    for run in of_role(state, "placebo"):
        assert run.overrides == next(r.overrides for r in state.runs if r.run_id == opened[run.round]["base"])
    # why each was kept: who led for a while, and who passed beside the winner of C
    assert fate(state, refined.run_id) == "kept: champion"
    assert fate(state, opened["D"]["base"]) == f"promoted: champion until {refined.run_id}"
    told = sorted(fate(state, run.run_id) for run in trials if run.run_id != opened["D"]["base"])
    assert told[0] == "rejected: fails improvement (nu=0.05), no_regression (nu=0.1)"
    assert told[1].startswith(
        f"rejected: passes every gate, but its round promotes one and {opened['D']['base']} is lower"
    )
    page = report_path(tmp_path).read_text()
    for part in (
        "Rounds after the written ones",
        "Round C (search): promoted",
        "0 of 2 placebos passed the improvement gate",
        "The headline stays deterministic, guarded, without TTC",
        outcome(state, "C")["sentence"],
    ):
        assert part in page, part
    again = KnowingExecutor()
    assert result_digest(run_sweep("smoke_iterate", tmp_path, executor=again)) == result_digest(state)
    assert again.submitted == []


def test_a_passing_placebo_voids_the_round(tmp_path: Path) -> None:
    executor = KnowingExecutor()
    executor.placebo = 0.5
    state = run_sweep("smoke_iterate", tmp_path, executor=executor)
    assert [outcome(state, name)["outcome"] for name in "CD"] == ["void", "void"]
    assert of_role(state, "confirmation") == []
    champion = state.decision("champion")
    assert champion is not None
    assert champion["champion"] == state.members("A")[0].run_id


def test_a_round_whose_placebo_has_no_result_promotes_nothing(tmp_path: Path) -> None:
    """Diverged in round C and in a written round: the gate was not held to it, and the rate does not count it."""
    probe = run_sweep("smoke_iterate", tmp_path / "probe", executor=KnowingExecutor())
    (placebo,) = of_role(probe, "placebo", "C")
    executor = KnowingExecutor(exit_codes={f"train:{placebo.run_id}": [1]})
    executor.failure_kind = "DivergenceError"
    state = run_sweep("smoke_iterate", tmp_path / "later", executor=executor)
    assert outcome(state, "C")["outcome"] == "void"
    assert "could not be judged" in outcome(state, "C")["sentence"]
    assert "C" not in [e.data.get("round") for e in state.journal.of("champion")]
    page = report_path(tmp_path / "later").read_text()
    assert "0 of 1 placebos" in page
    values = load_plan("smoke").model_dump(mode="json")
    values["rounds"][0]["placebo"] = True
    plan = Plan.model_validate(values)
    whole = run_sweep(plan, tmp_path / "whole", executor=FakeExecutor())
    assert (whole.decision("promotions") or {})["promoted"] != []
    (placebo,) = of_role(whole, "placebo")
    broken = FakeExecutor(exit_codes={f"train:{placebo.run_id}": [1]})
    broken.failure_kind = "DivergenceError"
    state = run_sweep(plan, tmp_path / "written", executor=broken)
    assert (state.decision("promotions") or {})["promoted"] == []
    assert not state.journal.of("placebo")[0].data["judged"]


def test_a_winner_that_does_not_hold_on_fresh_seeds_is_no_champion(tmp_path: Path) -> None:
    executor = KnowingExecutor()
    executor.fresh_seeds = 2.0
    state = run_sweep("smoke_iterate", tmp_path, executor=executor)
    told = outcome(state, "C")
    assert told["outcome"] == "not confirmed"
    assert "fresh seeds" in told["sentence"]
    assert [e.data.get("round") for e in state.journal.of("champion")] == [None, "D"]


def test_a_winner_whose_fresh_seeds_break_physics_is_no_champion(tmp_path: Path) -> None:
    class Leaking(KnowingExecutor):
        """Seed 102 loses mass."""

        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[0] == "run" and "seed=102" in job.arguments:
                words = list(job.arguments)
                files = RunFolder(
                    Path(words[words.index("--folder") + 1]), words[words.index("--run-id") + 1]
                )
                record = read_document(files.summary, RunRecord)
                leaky = {"small_eval": evaluation(files.run_id, 0.001, gap=0.9)}
                write_json(files.summary, record.model_copy(update={"evaluations": leaky}))

    state = run_sweep("smoke_iterate", tmp_path, executor=Leaking())
    told = outcome(state, "C")
    assert told["outcome"] == "not confirmed"
    assert "conservation_gap" in told["sentence"]


def changed(rounds: dict[str, object] | None = None, **plan: object) -> Plan:
    """smoke_iterate with another round C, or other keys."""
    values = load_plan("smoke_iterate").model_dump(mode="json")
    values["rounds"][1] |= rounds or {}
    return Plan.model_validate(values | plan)


def test_rounds_that_are_not_worth_it_are_skipped_with_the_reason(tmp_path: Path) -> None:
    cases = {
        "not needed": changed({"unless_below": 0.06}),
        "target reached": changed(rest_at_tier="minimum"),
        "not affordable": changed(max_hours=1e-3),
        "not worth it": changed({"forecast": {"relative_reduction": [0.0, 0.05]}}),
        "by the plan": changed(skip_rounds={"C": "by the plan"}),
    }
    for number, (reason, plan) in enumerate(cases.items()):
        state = run_sweep(plan, tmp_path / str(number), executor=KnowingExecutor())
        skipped = {e.data["round"]: e.data["reason"] for e in state.journal.of("round_skipped")}
        assert skipped["C"].startswith(reason), reason
        assert of_role(state, "trial") == []


def test_a_round_that_was_not_affordable_asks_again_under_another_budget(tmp_path: Path) -> None:
    poor = changed({"unless_below": None}, max_hours=1e-3)
    state = run_sweep(poor, tmp_path, executor=KnowingExecutor())
    assert {e.data["affordable"] for e in state.journal.of("round_skipped")} == {False}
    opened = len(state.journal.of("test_opened"))
    assert opened == 1
    rich = poor.model_copy(update={"max_hours": 9.0})
    with pytest.raises(UserError, match="test_openings: 2"):
        resume_sweep(tmp_path, plan=rich, executor=KnowingExecutor())
    plan = rich.model_copy(update={"open_test_for_champion": False})
    state = resume_sweep(tmp_path, plan=plan, executor=KnowingExecutor())
    assert len(of_role(state, "trial")) == 3
    assert outcome(state, "C")["outcome"] == "promoted"
    assert "Round C (search): promoted" in report_path(tmp_path).read_text()
    resume_sweep(tmp_path, executor=(again := KnowingExecutor()))
    assert again.submitted == []


def test_a_round_skipped_for_another_reason_stays_skipped(tmp_path: Path) -> None:
    plan = changed({"unless_below": 0.06}, open_test_for_champion=False)
    run_sweep(plan, tmp_path, executor=KnowingExecutor())
    richer = plan.model_copy(update={"max_hours": 99.0})
    state = resume_sweep(tmp_path, plan=richer, executor=KnowingExecutor())
    assert [e.data["round"] for e in state.journal.of("round_skipped")].count("C") == 1


def scored(state: SweepState) -> dict[str, Any]:
    (event,) = state.journal.of("inference_scored")
    return event.data


def test_keys_without_training_are_scored_on_the_winners_model_by_evaluation_alone(tmp_path: Path) -> None:
    executor = KnowingExecutor()
    state = run_sweep("smoke_iterate", tmp_path, executor=executor)
    told = scored(state)
    (promoted,) = [e.data for e in state.journal.of("champion") if e.data.get("round") == "C"]
    assert told["run"] == promoted["champion"], "on what round C found, not on what it started from"
    assert [score["value"] for score in told["scores"]] == [0.28, 0.315, 0.35, 0.385, 0.42]
    assert [score["own"] for score in told["scores"]] == [False, False, True, False, False]
    assert all(score["evaluations"] == 40 for score in told["scores"])
    jobs = [job for job in executor.submitted if job.startswith("ttc_")]
    assert len(jobs) == 1, "one job for all values: no run, no training, nothing among the baselines"
    (words,) = [e.data["arguments"] for e in state.journal.of("job_intent") if e.data["job"] == jobs[0]]
    assert words[0] == "evaluate"
    assert len(state.baselines()) == 3
    assert not any(word.startswith("ttc.") for run in state.runs for word in run.overrides)
    assert "lowest" in told["sentences"][0]
    assert "at 0.315: worth a change" in told["sentences"][0]
    page = report_path(tmp_path).read_text()
    assert told["sentences"][0].replace("'", "&#39;") in page
    assert f"on the stored model of {told['run']}, small-eval, 0 s in all" in page


def test_a_round_of_such_keys_alone_trains_nothing(tmp_path: Path) -> None:
    search = {"keys": ["ttc.residual_threshold", "ttc.candidates"], "trials": 3, "values": 3}
    executor = KnowingExecutor()
    state = run_sweep(changed({"search": search}), tmp_path, executor=executor)
    assert [run for run in state.runs if run.round == "C"] == []
    assert outcome(state, "C")["sentence"] == "round C: none of its keys needs training"
    told = scored(state)
    assert told["run"] == state.members("A")[0].run_id
    assert [s["value"] for s in told["scores"] if s["key"] == "ttc.candidates"] == [6.0, 8.0, 10.0]
    asked = [word for e in state.journal.of("job_intent") for word in e.data["arguments"]]
    assert "ttc.candidates=6" in asked, "a whole number stays one"


def test_scoring_that_fails_is_told_and_decides_nothing(tmp_path: Path) -> None:
    probe = KnowingExecutor()
    whole = run_sweep("smoke_iterate", tmp_path / "probe", executor=probe)
    (job,) = [job for job in probe.submitted if job.startswith("ttc_")]
    state = run_sweep("smoke_iterate", tmp_path / "x", executor=KnowingExecutor(exit_codes={job: [1]}))
    assert scored(state)["scores"] == []
    assert scored(state)["failure"] is not None
    assert state.decision("champion") == whole.decision("champion")
    assert len(state.journal.of("test_opened")) == 1
    assert "not scored" in report_path(tmp_path / "x").read_text()


@pytest.fixture(scope="module")
def iterated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iterated")
    run_sweep("smoke_iterate", folder, executor=KnowingExecutor())
    return folder


def cut(iterated: Path, folder: Path, number: int) -> None:
    """What a driver would leave that is killed before this event."""
    shutil.copytree(iterated, folder)
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join(lines[:number]))


class Lying(KnowingExecutor):
    """So many scores are of another model, or torn, or one of them is missing."""

    place = KnowingExecutor.__name__  # type: ignore[assignment] # goes on with what that one left

    def __init__(self, times: int, how: str) -> None:
        super().__init__()
        self.times, self.how = times, how

    def score(self, files: RunFolder, settings: list[str]) -> None:
        super().score(files, settings)
        if self.times > 0:
            self.times -= 1
            spoil(files, self.how)


def spoil(files: RunFolder, how: str) -> None:
    for path in (files.path / "evaluations").glob("small_eval_ttc_*"):
        text = path.read_text()
        if how == "is of another model":
            path.write_text(text.replace(content_hash(files.run_id), "0" * 64))
        elif how == "is not a valid":
            path.write_text(text[: len(text) // 2])
        elif how == "does not tell evaluations_per_sample":
            path.write_text(text.replace('"evaluations_per_sample"', '"anything"'))
        else:
            path.unlink()
            return


SPOILED = ("is of another model", "is not a valid", "does not tell evaluations_per_sample", "does not exist")


@pytest.mark.parametrize(("how", "times"), [*((how, 1) for how in SPOILED), (SPOILED[0], 9)])
def test_a_score_that_lies_is_asked_again_and_then_told_as_a_failure(
    tmp_path: Path, iterated: Path, how: str, times: int
) -> None:
    """It decides nothing, so it holds nobody up: the sweep finishes, and says so of a worker that always lies."""
    whole = SweepState(iterated)
    (job,) = {e.data["job"] for e in whole.journal.of("job_intent") if e.data["job"].startswith("ttc_")}
    asked = next(e.number for e in whole.journal.of("job_intent") if e.data["job"] == job)
    cut(iterated, tmp_path / "x", asked)
    executor = Lying(times, how)
    state = resume_sweep(tmp_path / "x", executor=executor)
    assert executor.submitted.count(job) == 2
    first, *_ = [e.data["refused"] for e in state.journal.of("job_ended") if e.data["job"] == job]
    assert how in first[0]
    assert state.finished
    assert state.decision("champion") == whole.decision("champion")
    if times == 1:
        assert result_digest(state) == result_digest(whole)
        return
    assert scored(state)["scores"] == []
    assert how in scored(state)["failure"]
    resume_sweep(tmp_path / "x", executor=(again := KnowingExecutor()))
    assert again.submitted == []


def test_a_score_damaged_after_it_came_back_is_told_and_holds_nobody_up(
    tmp_path: Path, iterated: Path
) -> None:
    """As a power cut leaves it, or a journal of a driver that believed every score."""
    (told,) = SweepState(iterated).journal.of("inference_scored")
    cut(iterated, tmp_path / "x", told.number)
    spoil(RunFolder(tmp_path / "x", told.data["run"]), "does not exist")
    state = resume_sweep(tmp_path / "x", executor=(executor := KnowingExecutor()))
    assert told.data["job"] not in executor.submitted
    assert "does not exist" in scored(state)["failure"]
    assert state.finished
    assert "not scored" in report_path(tmp_path / "x").read_text()


def test_a_diverged_trial_is_an_answer_and_a_broken_one_is_run_again(tmp_path: Path) -> None:
    probe = run_sweep("smoke_iterate", tmp_path / "probe", executor=KnowingExecutor())
    first = of_role(probe, "trial")[0]
    executor = KnowingExecutor(exit_codes={f"train:{first.run_id}": [1]})
    executor.failure_kind = "DivergenceError"
    state = run_sweep("smoke_iterate", tmp_path / "diverged", executor=executor)
    assert len(of_role(state, "trial")) == 3
    assert state.journal.of("run_healed") == []
    with pytest.raises(Exception, match="round C lost"):
        run_sweep(
            "smoke_iterate",
            tmp_path / "broken",
            executor=KnowingExecutor(exit_codes={f"train:{first.run_id}": [1]}),
        )
    resumed = run_sweep("smoke_iterate", tmp_path / "broken", executor=KnowingExecutor())
    assert result_digest(resumed) == result_digest(probe)


def test_faults_of_later_rounds_are_told_when_the_plan_is_read(tmp_path: Path) -> None:
    text = """
extends: smoke_iterate
rest_at_tier: heaven
skip_rounds: {Z: no such round}
rounds:
  - {name: C, kind: search, hypothesis: h, forecast: {below: 1.0}, search: {keys: [training.operator.lr]}}
  - name: D
    kind: refine
    hypothesis: h
    forecast: {below: 1.0}
    refinements: [{name: x, set: {training.operator.epoch: 3}}]
  - {name: E, hypothesis: h, forecast: {below: 1.0}, members: [{config: sweep_round_a_lr3e4_w5}]}
  - {name: F, hypothesis: h, forecast: {below: 1.0}, kind: search, confirm: [1, 2, 3]}
"""
    path = tmp_path / "faulty.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_plan(path)
    told = "\n".join(caught.value.faults)
    for part in (
        "'heaven' is no tier",
        "'Z' is no round",
        "no key 'training.operator.lr'",
        "training.operator.epoch: unknown key",
        "rounds.2: a round of members after one that starts from the champion",
        "a round of kind search needs search",
    ):
        assert part in told, told


def test_a_placebo_of_a_written_round_is_another_seed_of_the_baseline(tmp_path: Path) -> None:
    values = load_plan("smoke").model_dump(mode="json")
    values["rounds"][0]["placebo"] = True
    plan = Plan.model_validate(values)
    state = run_sweep(plan, tmp_path / "calm", executor=FakeExecutor())
    (event,) = state.journal.of("placebo")
    assert not event.data["void"]

    class Lucky(FakeExecutor):
        def quality(self, config: str, seed: int, words: list[str]) -> float:
            return 0.01 if seed > 1000 else super().quality(config, seed, words)

    lucky = run_sweep(plan, tmp_path / "lucky", executor=Lucky())
    promoted = lucky.decision("promotions")
    assert promoted is not None
    assert promoted["promoted"] == []


def test_a_page_of_very_many_runs_shows_the_best_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("universal_simulator.sweep.report.PAGE_RUNS", 8)
    values = load_plan("smoke").model_dump(mode="json")
    members = [
        {"config": "sweep_round_a_lr3e4_w5", "overrides": [f"{RATE}={3e-4 + i * 1e-5!r}"]} for i in range(8)
    ]
    values["rounds"][0]["members"] = members
    state = run_sweep(Plan.model_validate(values), tmp_path, executor=KnowingExecutor())
    page = report_path(tmp_path).read_text()
    assert f"8 of {len(state.runs)} runs shown" in page
    best = min(state.members(), key=lambda run: float(run.overrides[0].partition("=")[2]))
    worst = max(state.members(), key=lambda run: float(run.overrides[0].partition("=")[2]))
    assert best.run_id in page
    assert worst.run_id not in page
    assert worst.run_id in leaderboard_path(tmp_path).read_text()


@pytest.mark.slow
def test_rounds_c_and_d_run_for_real(tmp_path: Path) -> None:
    """Real trainings of two optimiser steps an epoch: three trials, a placebo each, a refinement."""
    run_sweep("smoke_iterate", tmp_path, executor=LocalProcessExecutor(2))
    state = SweepState(tmp_path)
    assert len(of_role(state, "trial")) == 3
    assert len(of_role(state, "placebo")) == 2
    assert len(of_role(state, "refinement")) == 1
    assert {e.data["round"] for e in state.journal.of("round_ended")} == {"C", "D"}
    told = scored(state)
    assert told["failure"] is None
    assert len({score["result"] for score in told["scores"]}) > 1, "the threshold changes what is answered"
    values = {state.about(run.run_id)["values"][RATE] for run in of_role(state, "trial")}
    assert len(values) == 3
    for run in of_role(state, "trial"):
        record = state.record(run.run_id)
        assert record is not None
        assert record.training is not None
        trained = record.training.result.effective_config["training"]["operator"]["learning_rate"]
        assert trained == state.about(run.run_id)["values"][RATE]
