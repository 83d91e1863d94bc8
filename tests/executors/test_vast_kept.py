"""Results that do not come home: asked for again, kept on a stopped disk, fetched by the next driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.executors.loopback_vast import LoopbackVast, Machine
from tests.executors.simulated_stage import Stage, cut_off


def cancelled_out_of_reach(stage: Stage) -> Machine:
    """The instance of a job at work that was cancelled while nobody could reach it."""
    machine = stage.begin(wait_s=1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.driver.cancel("train:a")
    return machine


def test_results_that_come_back_damaged_are_asked_for_again(stage: Stage) -> None:
    machine = stage.begin(wait_s=3500.0)
    assert machine is not None
    stage.clock.sleep(600)
    stage.world.moods.extend(["good", "damaged", "good", "refused"])
    stage.driver.wait(300.0)
    assert stage.codes() == [0]
    assert not stage.server.live()


def test_results_that_are_not_the_job_s_are_asked_for_once_and_their_instance_is_kept(stage: Stage) -> None:
    """A lie arrives intact however often it is asked for, and every hour of asking is rent."""
    machine = stage.begin(wait_s=3500.0)
    assert machine is not None
    stage.clock.sleep(600)
    stage.world.moods.extend(["good", "lies"])
    stage.driver.wait(120.0)
    assert (stage.codes(), machine.cur_state) == ([-255], "stopped")
    (lease,) = stage.ledger.all_kept()
    assert "not believed: the record that came back is of other code" in lease.reason
    # submitted again it is asked once more, and where it lies again the job is done elsewhere
    stage.world.moods.extend(["good", "lies"])
    stage.driver.submit("train:a")
    stage.driver.wait(300.0)
    assert len(stage.server.creates) == 2
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, 0]
    assert not stage.server.live()


def test_a_job_cancelled_just_after_its_end_brings_its_result_home_on_a_bad_line(stage: Stage) -> None:
    stage.begin(wait_s=10.0)
    stage.driver.wait(3500.0)
    stage.clock.sleep(300)
    stage.world.moods.extend(["before", "after", "good", "damaged"])
    stage.driver.cancel("train:a")
    assert stage.codes() == [0]
    assert "train:a" in stage.world.results
    assert not stage.server.live()


@pytest.mark.parametrize("finished", [True, False])
def test_a_job_cancelled_on_a_line_that_stays_bad_leaves_its_results_on_a_stopped_disk(
    stage: Stage, finished: bool
) -> None:
    """Not 20 seconds of it, and not the whole patience, destroy what is nowhere else."""
    machine = stage.begin(wait_s=3500.0 if finished else 1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.clock.sleep(300)
    asked = stage.clock()
    stage.driver.cancel("train:a")
    patience_s = stage.driver.settings.cancel_patience_s
    assert patience_s < stage.clock() - asked < patience_s + 60
    assert stage.codes() == [-15]
    assert (machine.cur_state, list(stage.server.machines)) == ("stopped", [machine.id])
    (lease,) = stage.ledger.all_kept()
    assert "is stopped and KEPT for train:a: cancelled" in stage.driver.job("train:a").log.read_text()
    # its GPU bills no more, its disk does, and the ledger says so
    billed, known = stage.server.spent_usd("usim-"), lease.spent_usd(stage.clock())
    stage.clock.sleep(10 * 3600)
    assert stage.server.spent_usd("usim-") - billed == pytest.approx(10 * 64 * 0.0002)
    assert lease.spent_usd(stage.clock()) - known == pytest.approx(10 * 0.1)
    # submitted again it is asked first, and nothing is worked or paid for a second time
    cut_off(stage, machine, now=False)
    stage.driver.submit("train:a")
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert stage.world.worked_s["train:a"] <= 3600.0 + 60.0
    assert len(stage.server.creates) == 1
    assert not stage.server.live()


def test_results_that_arrive_damaged_for_hours_are_kept_and_fetched_by_the_next_driver(stage: Stage) -> None:
    stage.begin(wait_s=3500.0)
    (machine,) = stage.server.live("usim-")
    stage.world.moods.extend(["good", *["damaged"] * 2000])
    stage.driver.wait(900.0)
    assert (stage.codes(), machine.cur_state) == ([], "running"), "minutes of it are no reason to give up"
    stage.driver.wait(2 * 3600.0)
    assert (stage.codes(), machine.cur_state) == ([-255], "stopped")
    assert "train:a" not in stage.world.results
    told = [text for text in stage.driver.texts if "KEPT" in text]
    assert f"usim cloud reap {stage.folder} --all" in told[-1]
    # the driver dies and is typed again; its journal says that the job was lost
    stage.driver.executor = None
    stage.world.moods.clear()
    stage.clock.sleep(86400)
    stage.driver.start()
    stage.driver.submit("train:a")
    stage.driver.wait(900.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, 0]
    assert stage.world.worked_s["train:a"] == 3600.0
    assert not stage.server.live()
    # two submissions to the driver, neither hours nor dollars of which are told twice
    lost, done = stage.driver.ends["train:a"]
    assert lost.submission != done.submission
    assert lost.seconds > 3600.0
    assert done.seconds == 0.0
    assert lost.usd is not None
    assert done.usd is not None
    assert done.usd < 0.2
    assert lost.usd + done.usd <= stage.ledger.spent_usd(stage.clock())


def test_what_was_kept_is_brought_home_though_nobody_submits_its_job_again(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = Stage(service, tmp_path, {"train:a": 3600.0, "train:b": 3600.0})
    machine = cancelled_out_of_reach(stage)
    before = stage.world.saved_s["train:a"]
    stage.driver.executor = None
    cut_off(stage, machine, now=False)
    stage.driver.start()
    stage.driver.submit("train:b")
    stage.driver.wait(300.0)
    assert stage.world.saved_s["train:a"] > before
    assert stage.codes("train:a") == [-15], "its end was told once"
    assert [m.label for m in stage.server.live("usim-") if "train.a" in str(m.label)] == []


def test_a_job_submitted_after_a_recall_brought_its_result_home_ends_with_it_and_rents_nothing(
    stage: Stage,
) -> None:
    machine = stage.begin(wait_s=3500.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.clock.sleep(300)
    stage.driver.cancel("train:a")
    stage.driver.executor = None
    cut_off(stage, machine, now=False)
    stage.driver.start()
    assert stage.driver.executor is not None
    while stage.driver.executor.bring_home(60.0):
        pass
    assert "train:a" in stage.world.results
    # and the driver that fetched it dies before it is asked for it
    stage.driver.executor = None
    stage.driver.start()
    stage.driver.submit("train:a")
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert len(stage.server.creates) == 1
    first, second = stage.driver.ends["train:a"]
    assert first.submission != second.submission
    assert (first.usd, second.usd) != (None, None)
    assert (first.usd or 0.0) + (second.usd or 0.0) <= stage.ledger.spent_usd(stage.clock())
    assert second.seconds < 60.0
    assert not stage.server.live()


def test_a_driver_killed_when_it_woke_what_is_older_than_its_last_lease_is_followed_by_one_that_goes_on_there(
    stage: Stage,
) -> None:
    """The last lease went away at its start, so the one that was kept before was asked again."""
    machine = cancelled_out_of_reach(stage)
    cut_off(stage, machine, now=False)
    stage.driver.executor = None
    ledger, job = stage.ledger, stage.driver.job("train:a")
    words: dict[str, Any] = {"log": job.log, "machine_class": "small", "offer_id": 2, "usd_per_hour": 0.8}
    later = ledger.intend("train:a", job.arguments, **words, now=stage.clock())
    ledger.gone(later.label, stage.clock(), reason="refused")
    ledger.woken(ledger.all_kept()[0].label, stage.clock())
    stage.driver.at_work.add("train:a")
    stage.driver.start()
    assert stage.driver.executor is not None
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert len(stage.server.creates) == 1
    assert not stage.server.live()


def test_a_kept_instance_that_does_not_come_back_is_left_for_another_and_goes_when_the_result_is_home(
    stage: Stage,
) -> None:
    dead = stage.begin(wait_s=1000.0)
    assert dead is not None
    stage.server.host_dies(dead)
    stage.driver.wait(2000.0)
    assert stage.codes() == [-255]
    stage.driver.submit("train:a")
    stage.driver.wait(1200.0)
    assert dead in stage.server.live("usim-")
    assert len(stage.server.live("usim-")) == 2
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, 0]
    assert not stage.server.live()


def test_a_job_cancelled_before_its_instance_was_woken_is_told_no_cost_of_the_earlier_attempt(
    stage: Stage,
) -> None:
    cancelled_out_of_reach(stage)
    executor = stage.driver.executor
    assert executor is not None
    executor.slots = 0
    stage.driver.submit("train:a")
    assert executor.state("train:a") == "waiting"
    assert executor.use("train:a").usd == 0.0
    stage.driver.cancel("train:a")
    first, second = stage.driver.ends["train:a"]
    assert first.usd is not None
    assert first.usd > 0.2
    assert (second.usd, second.seconds, second.submission) == (0.0, 0.0, "")
    assert len(stage.ledger.all_kept()) == 1
