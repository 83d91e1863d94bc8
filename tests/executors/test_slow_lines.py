"""Data of real size on real lines: what is slow, stuck or too large for one instance costs no other anything."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.executors.loopback_vast import LoopbackVast, offer
from tests.executors.simulated_cloud import SimulatedWorkplace
from tests.executors.simulated_stage import Stage
from universal_simulator.errors import ExecutorError
from universal_simulator.executors.course import Way

GB = 10**9


def on_stage(service: LoopbackVast, folder: Path, **needs_s: float) -> Stage:
    stage = Stage(service, folder, {f"train:{name}": seconds for name, seconds in needs_s.items()})
    service.offers = [offer(number, dph_total=0.8 + number / 100) for number in range(1, 9)]
    return stage


def well(stage: Stage, *names: str, instances: int) -> None:
    """Each job ended well, once, on as many instances in all; none stopped itself because nobody looked."""
    assert {name: stage.codes(name) for name in names} == {name: [0] for name in names}
    assert len(stage.server.creates) == instances
    assert stage.world.counts["stopped themselves"] == 0
    assert not stage.world.breaches
    assert not stage.server.live()


def test_an_upload_of_forty_minutes_beside_a_healthy_job_costs_one_instance_each(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=3600.0, b=9000.0)
    stage.world.cargo["train:a"] = 30 * GB
    stage.begin("train:b", "train:a", wait_s=1800.0)
    executor = stage.driver.executor
    assert executor is not None
    assert executor.state("train:a") == "waiting", "it is sent to, and uses up no hours of work"
    stage.driver.wait(1200.0)
    assert executor.state("train:a") == "running"
    sent_s = 30 * GB / stage.world.up_bytes_per_s
    (lease,) = stage.ledger.of_job("train:a")
    assert lease.placed_at is not None
    assert sent_s < lease.placed_at - lease.began < sent_s + stage.server.load_s + 60
    disks = list(stage.world.disks.values())
    assert max(disk.gap_s for disk in disks) <= stage.driver.settings.poll_s + 10, "both were looked at"
    for _ in range(3):
        stage.driver.wait(4000.0)
    well(stage, "train:a", "train:b", instances=2)


def test_heavy_jobs_are_rented_for_one_after_the_other_as_they_share_the_uplink(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """Together they would each bill the time of all."""
    names = ("train:a", "train:b", "train:c")
    stage = on_stage(service, tmp_path, a=3600.0, b=3600.0, c=3600.0)
    stage.world.cargo = dict.fromkeys(names, 10 * GB)
    stage.begin(*names)
    for _ in range(8):
        stage.driver.wait(1800.0)
    well(stage, *names, instances=3)
    leases = sorted(stage.ledger.leases.values(), key=lambda lease: lease.began)
    for before, after in pairwise(leases):
        assert before.placed_at is not None
        assert 0 <= after.began - before.placed_at < 60, "the next is rented when the uplink is free"
    idle_usd = sum(0.8 * ((x.placed_at or 0.0) - x.began) / 3600 for x in leases)
    assert idle_usd < 3 * 0.8 * (800 + 120) / 3600


def test_a_stuck_copy_home_stops_no_look_at_the_others_and_is_kept_in_the_end(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0, b=6000.0)
    stage.world.harvest["train:a"] = 5 * GB
    machine = stage.begin("train:a", "train:b", wait_s=300.0)
    assert machine is not None
    stage.world.trickling.add(machine.id)
    stage.driver.wait(4000.0)
    stage.driver.wait(4000.0)
    assert stage.codes("train:a") == [-255]
    assert [lease.job_id for lease in stage.ledger.all_kept()] == ["train:a"]
    assert machine.cur_state == "stopped"
    assert stage.codes("train:b") == [0]
    assert stage.world.counts["stopped themselves"] == 0
    # on a good line it comes home, and nothing is worked twice
    stage.world.trickling.clear()
    stage.driver.submit("train:a")
    stage.driver.wait(2000.0)
    stage.driver.wait(60.0)
    assert stage.codes("train:a") == [-255, 0]
    assert stage.world.worked_s["train:a"] == 600.0
    assert len(stage.server.creates) == 2


def test_a_copy_home_that_takes_longer_than_any_patience_goes_on_while_bytes_move(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0)
    stage.settle(results_patience_s=300.0)
    stage.world.harvest["train:a"] = 6 * GB
    stage.world.down_bytes_per_s = 2e6
    stage.begin()
    for _ in range(4):
        stage.driver.wait(2000.0)
    well(stage, "train:a", instances=1)


def test_an_offer_whose_line_is_told_to_be_slow_is_not_taken_for_what_is_sent_much(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0, b=600.0)
    service.offers = [offer(1, inet_down=50.0), offer(2, dph_total=0.9, inet_down=None)]
    stage.world.cargo["train:a"] = 5 * GB
    stage.begin("train:a", "train:b", wait_s=60.0)
    taken = {lease.job_id: lease.offer_id for lease in stage.ledger.leases.values()}
    assert taken == {"train:a": 2, "train:b": 1}


def test_a_line_that_is_too_slow_is_given_back_for_another_instance(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0)
    stage.world.cargo["train:a"] = 5 * GB
    machine = stage.begin(wait_s=60.0)
    assert machine is not None
    stage.world.trickling.add(machine.id)
    begun = stage.clock()
    while machine in stage.server.live():
        stage.driver.wait(60.0)
    startup_s = stage.driver.settings.startup_s
    assert startup_s - 120 < stage.clock() - begun < startup_s + 180
    for _ in range(3):
        stage.driver.wait(1000.0)
    assert stage.codes() == [0]
    first, second = stage.ledger.leases.values()
    assert "at least 100 Mbit/s are asked for (send_mbit_per_s_at_least)" in first.reason
    assert (first.offer_id, second.offer_id) == (1, 2)


@pytest.mark.parametrize("how", ["stuck", "driver dies"])
def test_a_sending_that_breaks_off_goes_on_where_it_was(
    service: LoopbackVast, tmp_path: Path, how: str
) -> None:
    stage = on_stage(service, tmp_path, a=600.0)
    stage.world.cargo["train:a"] = 20 * GB
    stage.begin(wait_s=900.0)
    if how == "stuck":
        (machine,) = stage.server.live()
        stage.world.cuts(machine)
        stage.driver.wait(60.0)
        stage.world.moods.append("stuck")
        stage.world.cuts(machine)
    else:
        stage.driver.executor = None
        stage.clock.sleep(200)
        stage.driver.start()
    for _ in range(3):
        stage.driver.wait(1000.0)
    well(stage, "train:a", instances=1)
    (lease,) = stage.ledger.leases.values()
    sent_s = 20 * GB / stage.world.up_bytes_per_s
    assert sent_s < (lease.placed_at or 0.0) - lease.began < sent_s + 400


def test_a_driver_that_dies_while_it_sends_leaves_an_instance_that_stops_itself(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0)
    stage.world.cargo["train:a"] = 20 * GB
    machine = stage.begin(wait_s=900.0)
    assert machine is not None
    stage.driver.executor = None
    stage.clock.sleep(stage.world.silence_s + 120)
    assert machine.cur_state == "stopped"


def test_what_can_never_be_sent_in_time_is_refused_before_anything_is_rented(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0)
    stage.world.cargo["train:a"] = 90 * GB
    stage.driver.start()
    assert stage.driver.executor is not None
    with pytest.raises(ExecutorError, match=r"90\.0 GB would be sent to each instance, 7200 s at 100 Mbit/s"):
        stage.driver.executor.submit(stage.driver.job("train:a"))
    assert not stage.server.creates


def test_the_rent_of_sending_counts_before_anything_is_rented(service: LoopbackVast, tmp_path: Path) -> None:
    """40 minutes and a second patience at $0.81 an hour on top of what every instance keeps back."""
    for ceiling, rented in ((1.5, 0), (1.7, 1)):
        stage = on_stage(service, tmp_path / str(ceiling), a=600.0)
        stage.world.cargo["train:a"] = 30 * GB
        stage.settle(ceiling_usd=ceiling)
        stage.begin(wait_s=30.0)
        assert len(stage.server.creates) == rented


def test_a_disk_that_is_full_here_while_one_is_sent_to_ends_no_other(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = on_stage(service, tmp_path, a=600.0, b=3600.0)
    stage.settle(startups_per_start=2)

    class NoRoom(SimulatedWorkplace):
        def bring(self) -> Way:
            yield 0
            if self.job.job_id == "train:a":
                raise OSError(28, "No space left on device")
            return (yield from super().bring())

    stage.world.workplace = lambda job, lease, instance: NoRoom(stage.world, job, instance.id)  # type: ignore[method-assign]
    stage.begin("train:a", "train:b")
    stage.driver.wait(4000.0)
    stage.driver.wait(4000.0)
    assert not stage.driver.spent_out
    assert stage.codes("train:a") == [-255]
    assert stage.codes("train:b") == [0]
    log = stage.driver.job("train:a").log.read_text()
    assert "this machine failed it: [Errno 28] No space left on device" in log
    assert not stage.server.live()


def test_several_that_nobody_answers_for_are_cancelled_side_by_side(
    service: LoopbackVast, tmp_path: Path
) -> None:
    names = ("train:a", "train:b", "train:c")
    stage = on_stage(service, tmp_path, a=9000.0, b=9000.0, c=9000.0)
    stage.begin(*names, wait_s=600.0)
    executor, machines = stage.driver.executor, stage.server.live()
    assert executor is not None
    for machine in machines[:2]:
        stage.world.cuts(machine)
    begun = stage.clock()
    executor.ask_to_end(names)
    for name in names:
        stage.driver.cancel(name)
    patience_s = stage.driver.settings.cancel_patience_s
    assert patience_s < stage.clock() - begun < patience_s + 90, "one patience for all"
    assert [stage.codes(name) for name in names] == [[-15], [-15], [-15]]
    assert executor.wait(1.0) == []
    assert [machine.cur_state for machine in machines[:2]] == ["stopped", "stopped"]


def test_while_one_is_cancelled_the_others_are_looked_at(service: LoopbackVast, tmp_path: Path) -> None:
    stage = on_stage(service, tmp_path, a=9000.0, b=9000.0)
    machine = stage.begin("train:a", "train:b", wait_s=600.0)
    assert machine is not None
    stage.settle(cancel_patience_s=3000.0)
    executor = stage.driver.executor
    assert executor is not None
    for job in executor._jobs.values():
        job.settings = stage.driver.settings
    stage.world.cuts(machine)
    begun = stage.clock()
    stage.driver.cancel("train:a")
    assert stage.clock() - begun > stage.world.silence_s
    assert stage.world.counts["stopped themselves"] <= 1, "only the one that was cut off"
    (other,) = (disk for disk in stage.world.disks.values() if disk.job == "train:b")
    assert other.gap_s <= stage.driver.settings.poll_s + 10
    assert executor.state("train:b") == "running"


def test_a_second_start_is_a_breach_unless_the_end_of_this_very_job_was_never_written(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """Of the simulated world itself: what it forgives."""
    stage = on_stage(service, tmp_path, a=600.0, b=600.0)
    stage.world.kill_in, stage.world.kill_where = 12, "before"
    stage.begin("train:a", "train:b", wait_s=900.0)
    assert stage.driver.executor is None
    (unwritten,) = stage.world.unwritten
    other: Any = {"train:a": "train:b", "train:b": "train:a"}[unwritten]
    stage.world.results[other] = 1
    for name, breaches in ((unwritten, 0), (other, 1)):
        machine = stage.server.rent("usim-x")
        machine.loading_since = None
        SimulatedWorkplace(stage.world, stage.driver.job(name), machine.id).start()
        told = [text for text in stage.world.breaches if "after its result had come home" in text]
        assert len(told) == breaches, name
    stage.driver.start()
    stage.driver.wait(900.0)
    assert not stage.world.unwritten, "once its end is written nothing is forgiven any more"
