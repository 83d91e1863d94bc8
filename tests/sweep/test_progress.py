"""What a sweep says is left, held against how long it then took: a measured embedded sweep, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator.cli.progress import ProgressLine
from universal_simulator.sweep import driver
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.job_log import live_share
from universal_simulator.sweep.plan import load_plan
from universal_simulator.sweep.progress import Outlook, SweepProgress, in_words

#: seconds of training and of full-eval by config, two jobs at a time on two cores, 2026-11-25
TOOK = {
    "rerun_txxoc8a8": (64.0, 22.0),
    "fno_reference": (63.0, 37.0),
    "ablation_baseline_plain_frame": (30.0, 29.0),
    "sweep_round_a_lr2e4_w3": (112.0, 35.0),
    "sweep_round_a_lr3e4_w5": (81.0, 25.0),
    "sweep_round_a_lr45e4_w5": (72.0, 21.0),
    "sweep_round_b_capacity_up": (162.0, 47.0),
    "sweep_round_b_deeper": (151.0, 40.0),
    "sweep_aggressive_sota": (567.0, 145.0),
}
#: what Aggressive's log said of its training, evenly over 76 % of the job
TRAINED = (0, 16, 24, 33, 38, 43, 47, 51, 53, 56, 59, 59, 73, 80, 81, 86, 92, 97, 100)
LOOK_S = 4.0


class Replayed(FakeExecutor):
    """Jobs take what they took; their logs say what they said."""

    def __init__(self, speed: float = 1.0) -> None:
        super().__init__()
        self.now = 0.0
        self.speed = speed
        self.at_work: dict[str, tuple[Job, float, float]] = {}

    def seconds(self, job: Job) -> float:
        kind, _, run_id = job.job_id.partition(":")
        if kind == "data":
            return 45.0 / self.speed
        return TOOK[run_id.partition("-s")[0]][kind != "train"] / self.speed

    def submit(self, job: Job) -> None:
        super().submit(job)
        self.ended.pop()
        self.at_work[job.job_id] = (job, self.now, self.seconds(job))
        self.write_logs()

    def wait(self, timeout_s: float) -> list[JobEnd]:
        if timeout_s:
            self.now += LOOK_S
        self.write_logs()
        over = [name for name, (_, begun, takes) in self.at_work.items() if self.now - begun >= takes]
        return [JobEnd(name, 0, self.at_work.pop(name)[2]) for name in over]

    def write_logs(self) -> None:
        for job, begun, takes in self.at_work.values():
            share = min(1.0, (self.now - begun) / takes)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            if job.job_id.startswith("train:"):
                job.log.write_text(words(share))
            elif job.job_id != "data":
                job.log.write_text(f"full_eval: {100 * share:3.0f} %\n")


def words(share: float) -> str:
    if share < 0.76:
        return f"train: {TRAINED[int(share / 0.76 * (len(TRAINED) - 1))]:3d} %, 1 min 42 s left\n"
    return "train: 100 %\n" + (
        "calibration:  50 %\n" if share < 0.9 else "calibration: 100 %\nsmall_eval:  50 %\n"
    )


class Recorded(SweepProgress):
    outlooks: list[tuple[float, Outlook]]

    def seen(self, shares: dict[str, float], running: Sequence[str]) -> Outlook:  # type: ignore[override] # as the queue calls it
        self.outlooks.append((self.clock(), super().seen(shares, running)))
        return self.outlooks[-1][1]


def replay(folder: Path, monkeypatch: pytest.MonkeyPatch, executor: Replayed) -> list[tuple[float, Outlook]]:
    found: list[tuple[float, Outlook]] = []

    def progress(*args: object, **given: object) -> Recorded:
        made = Recorded(*args, **given, clock=lambda: executor.now)  # type: ignore[arg-type] # passed on
        made.outlooks = found
        return made

    monkeypatch.setattr(driver, "SweepProgress", progress)
    plan = load_plan("sota_embedded").model_copy(update={"headline_regime": "nu=0.05"})
    run_sweep(plan, folder, executor=executor)
    return found


@pytest.mark.parametrize("speed", [1.0, 2.5])
def test_what_is_left_is_said_late_enough_to_be_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float
) -> None:
    """Nothing is said of the speed while data are made; then within a quarter, whatever the machine."""
    executor = Replayed(speed)
    found = replay(tmp_path, monkeypatch, executor)
    end = executor.now
    shares = [outlook.share for _, outlook in found]
    assert shares == sorted(shares)
    assert shares[0] < 0.01
    assert shares[-1] > 0.97
    said = [(now, outlook.left_s) for now, outlook in found if outlook.left_s is not None]
    begun = said[0][0]
    assert 45 / speed < begun < 0.15 * end, "not while data are made, but soon"
    for now, left in said:
        assert left is not None
        assert left == pytest.approx(end - now, rel=0.25, abs=0.03 * end), f"at {now:.0f} s of {end:.0f} s"


def test_a_jobs_share_holds_calibration_and_evaluation(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    told = []
    for text in ("", "train:  50 %\n", "train: 100 %\n", "calibration:  50 %\n", "small_eval:  50 %\n"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(text)
        told.append(live_share(log))
    assert told == pytest.approx([0.0, 0.265, 0.7, 0.79, 0.94], abs=1e-3)
    log.write_text("full_eval:  40 %\n")
    assert live_share(log) == pytest.approx(0.4)


def test_a_line_says_nothing_of_what_is_left_before_a_twentieth_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ProgressLine(interval_s=1e-9)
    for done in (0, 4, 5, 50, 100):
        line.update("train", done, 100)
    told = capsys.readouterr().err.splitlines()
    assert ["left" in text for text in told] == [False, False, True, True, False]
    quiet = ProgressLine(interval_s=1e-9, estimates=False)
    quiet.update("sweep", 0.0, 1.0, "a")
    quiet.update("sweep", 0.5, 1.0, "about 11 min left; b")
    assert capsys.readouterr().err.splitlines() == ["sweep:   0 %; a", "sweep:  50 %; about 11 min left; b"]


def test_seconds_are_named_only_where_they_are_known() -> None:
    assert [in_words(s) for s in (7.4, 75, 599, 601, 7000)] == [
        "7 s",
        "1 min 15 s",
        "9 min 59 s",
        "10 min",
        "117 min",
    ]
