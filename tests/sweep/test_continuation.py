"""Rounds after the written ones: conditions, refinements, placebo, early stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.run_record import RunFolder, write_json
from universal_simulator.sweep.continuation import (
    Standing,
    false_promotions,
    live_change,
    memory_growth,
    placebo_verdict,
    reason_to_skip,
)
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.early_stop import judge, window_value
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.plan import Plan, load_plan
from universal_simulator.sweep.report import report_path

STANDING = Standing(champion=0.05, tiers_met=("minimum",), hours_left=2.0, hours_per_run=0.1)


def skip(standing: Standing = STANDING, **changes: object) -> str | None:
    given = {
        "runs": 12,
        "not_below": 0.035,
        "target_tier": "stretch",
        "expected_gain": 0.2,
        "needed_gain": 0.11,
    }
    return reason_to_skip(standing, **(given | changes))  # type: ignore[arg-type]  # a test's shorthand


def test_a_round_begins_only_when_it_can_matter_and_says_why_not() -> None:
    assert skip() is None
    assert "not needed: the champion's nrmse 0.05 is below 0.06" in str(skip(not_below=0.06))
    assert "target reached" in str(skip(target_tier="minimum"))
    assert "12 runs of 6.0 minutes, measured on the champion, are 1.20 hours; 1.00 are left" in str(
        skip(Standing(0.05, (), 1.0, 0.1))
    )
    dollars = Standing(0.05, (), 2.0, 0.1, usd_left=5.0, usd_per_run=0.5)
    assert "12 runs of 0.50 USD, as billed for the champion, are 6.00 USD; 5.00 are left" in str(
        skip(dollars)
    )
    assert skip(Standing(0.05, (), 2.0, 0.1, usd_left=6.0, usd_per_run=0.5)) is None
    assert "not worth it: its forecast hopes for 5% at most" in str(skip(expected_gain=0.05))
    assert skip(not_below=None, target_tier=None, expected_gain=None) is None


def test_a_refinement_keeps_its_live_keys_and_says_what_it_left_out() -> None:
    effective = flatten(
        load_config("sweep_aggressive_sota", profile="embedded").config.model_dump(mode="json")
    ) | {"training.stages": ["codec", "operator"]}
    longer = live_change(
        "epochs 40+15+15",
        {"training.operator.epochs": 40, "training.diff_residual.epochs": 15, "ttc.reward_weights.mass": 2.0},
        effective,
    )
    assert longer.words == ("training.operator.epochs=40",)
    assert "trains no diff_residual stage" in longer.left_out["training.diff_residual.epochs"]
    assert "off for this member" in longer.left_out["ttc.reward_weights.mass"]
    assert longer.refused is None
    # the words are what the loader takes, and they change the run
    changed = load_config("sweep_aggressive_sota", longer.words, profile="embedded")
    assert changed.config.training.operator.steps == effective["training.operator.steps"] * 40 // 30
    dropped = live_change("depth", {"model.options.operator.stochastic_depth": 0.1}, effective)
    assert dropped.words == ("model.options.operator.stochastic_depth=0.1",)
    only_ttc = live_change("rewards", {"ttc.reward_weights.mass": 2.0}, effective)
    assert only_ttc.refused == "none of its keys is live for this champion"
    same = live_change("same", {"model.options.latent_dim": 48}, effective)
    assert "has it already" in same.left_out["model.options.latent_dim"]


def test_a_larger_model_runs_only_where_its_memory_fits() -> None:
    effective = {"model.options.latent_dim": 48, "model.options.latent_tokens": 48}
    wide = {"model.options.latent_dim": 64, "model.options.latent_tokens": 64}
    assert memory_growth(wide, effective) == pytest.approx((64 / 48) ** 4)
    assert live_change("wide", wide, effective, peak_memory_gib=1.0, memory_limit_gib=4.0).refused is None
    refused = live_change("wide", wide, effective, peak_memory_gib=2.0, memory_limit_gib=4.0).refused
    assert "6.3 GiB, exceeds 4 GiB" in str(refused)
    assert "not measured" in str(live_change("wide", wide, effective, memory_limit_gib=4.0).refused)


def test_a_passing_placebo_voids_the_round_and_all_of_them_give_the_rate() -> None:
    passing, failing = (GateResult("improvement", "nu", answer, "figures") for answer in ("pass", "fail"))
    assert placebo_verdict([passing]).void
    assert not placebo_verdict([failing]).void
    for unjudged in ([], [GateResult("improvement", "nu", "not_evaluable", "protocols differ")]):
        verdict = placebo_verdict(unjudged, missing="it diverged")
        assert verdict.void
        assert not verdict.judged
        assert "could not be judged" in verdict.sentence
        assert ("protocols differ" if unjudged else "it diverged") in verdict.sentence
    rate = false_promotions([True, False, False, False])
    # 2.5 % and 97.5 % quantiles of Beta(1.5, 3.5)
    assert (rate.low, rate.high) == pytest.approx((0.0272, 0.7170), abs=2e-3)
    assert "1 of 4 placebos" in rate.sentence
    assert "unknown" in false_promotions([]).sentence
    assert false_promotions([False]).low == 0.0


def write_log(path: Path, losses: list[float], *, torn: bool = False) -> Path:
    lines = [json.dumps({"step": i + 1, "rollout": loss, "total": loss}) for i, loss in enumerate(losses)]
    lines.insert(len(lines) // 2, json.dumps({"step": len(lines) // 2, "validation_raw": 9.0}))
    path.write_text("\n".join(lines) + ('\n{"step": 99' if torn else "\n"))
    return path


def test_curves_are_compared_at_the_same_fraction_of_each_schedule(tmp_path: Path) -> None:
    """A member of twice the steps is judged at its own 30-40 %, not at the baseline's step."""
    short = write_log(tmp_path / "short", [1.0 - i / 200 for i in range(100)])
    long = write_log(tmp_path / "long", [1.0 - i / 400 for i in range(200)], torn=True)
    ours, theirs = window_value(long, 200), window_value(short, 100)
    assert ours is not None
    assert ours == pytest.approx(theirs, abs=0.01)
    assert window_value(write_log(tmp_path / "young", [1.0] * 39), 100) is None
    assert window_value(write_log(tmp_path / "passed", [1.0] * 40), 100) == 1.0
    assert window_value(tmp_path / "missing", 100) is None


def test_a_member_far_behind_is_stopped_and_one_within_a_deviation_is_not() -> None:
    seeds = [0.9, 1.0, 1.1]
    assert judge(1.11, seeds).stop
    assert not judge(1.09, seeds).stop
    assert not judge(0.5, seeds).stop
    assert "more than 1 standard deviation (0.1)" in judge(1.2, seeds).sentence
    assert not judge(5.0, [1.0, 1.0, None]).stop
    assert not judge(None, seeds).stop


class Watched(FakeExecutor):
    """Trainings leave their metrics; a member goes on until it is cancelled or has been waited for."""

    def __init__(self, member_loss: float) -> None:
        super().__init__()
        self.member_loss = member_loss
        self.at_work: list[JobEnd] = []
        self.cancelled: list[str] = []
        self.idle = 0

    def submit(self, job: Job) -> None:
        super().submit(job)
        if job.arguments[0] == "run":
            run_id = job.arguments[job.arguments.index("--run-id") + 1]
            files = RunFolder(Path(job.arguments[job.arguments.index("--folder") + 1]), run_id)
            write_json(files.config, {"config": {"training": {"operator": {"steps": 100}}}})
            member = job.arguments[1] == "sweep_round_a_lr3e4_w5"
            loss = self.member_loss if member else 1.0 + 0.01 * int(run_id.split("-s")[1][0])
            write_log(files.metrics_log("operator"), [loss] * 50)
            if member:
                files.summary.unlink()
                self.at_work.append(self.ended.pop())
                self.job = job

    def wait(self, timeout_s: float) -> list[JobEnd]:
        ended = super().wait(timeout_s)
        self.idle = 0 if ended or not self.at_work else self.idle + 1
        if self.idle < 3:
            return ended
        self.work(self.job)
        return [self.at_work.pop()]

    def cancel(self, job_id: str) -> JobEnd | None:
        self.cancelled.append(job_id)
        self.at_work = []
        return JobEnd(job_id, -15, 0.1)


@pytest.mark.parametrize(
    ("loss", "asked", "stopped"), [(1.5, True, True), (1.5, False, False), (0.9, True, False)]
)
def test_the_driver_ends_a_member_that_lies_behind_and_says_why(
    tmp_path: Path, loss: float, asked: bool, stopped: bool
) -> None:
    values = load_plan("smoke").model_dump(mode="json") | {"early_stop": asked}
    values["rounds"][0]["members"][0]["forced"] = False
    executor = Watched(loss)
    state = run_sweep(Plan.model_validate(values), tmp_path, executor=executor)
    (member,) = state.members()
    assert (executor.cancelled == [f"train:{member.run_id}"]) == stopped
    assert state.failed_for_good(f"train:{member.run_id}") == stopped
    champion = state.decision("champion")
    assert champion is not None
    assert champion["beat_baseline"] != stopped
    if stopped:
        page = report_path(tmp_path).read_text()
        assert "stopped early: rollout loss 1.5 between 30% and 40% of its schedule" in page
        assert "Failed jobs" not in page
