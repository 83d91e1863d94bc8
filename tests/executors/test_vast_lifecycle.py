"""What a rented job goes through, one trouble at a time, on simulated work; and the pieces by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.executors.loopback_vast import LoopbackVast, offer
from tests.executors.simulated_stage import Stage, cut_off
from tests.executors.vast_faults import ENDPOINT_MOODS, KEY
from universal_simulator.errors import ExecutorError, UserError
from universal_simulator.sweep.executor import Job, Resources


def test_a_job_goes_its_way_and_costs_what_its_ledger_says(stage: Stage) -> None:
    machine = stage.begin()
    assert machine is not None
    assert machine.label is not None
    assert machine.body["disk"] == 64.0
    assert KEY not in str(machine.body)
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [0]
    assert not stage.server.live()
    (lease,) = stage.ledger.leases.values()
    kinds = [event.kind for event in stage.ledger.journal.events]
    assert kinds == ["opened", "intended", "rented", "starting", "placed", "ended", "gone"]
    bill = stage.server.spent_usd("usim-")
    assert bill <= lease.cost_usd <= bill + 0.8 * (stage.server.load_s + 60) / 3600
    assert lease.cost_usd == pytest.approx(0.8, abs=0.05)


def test_one_stuck_loading_is_destroyed_and_the_next_offer_taken(stage: Stage) -> None:
    stage.server.offers = [offer(1), offer(2, dph_total=0.9)]
    machine = stage.begin(wait_s=10.0)
    assert machine is not None
    machine.stuck = True
    stage.driver.wait(stage.driver.settings.startup_s + 120)
    (second,) = stage.server.live("usim-")
    assert second.id != machine.id
    assert [lease.offer_id for lease in stage.ledger.leases.values()] == [1, 2]
    assert [lease.reason[:20] for lease in stage.ledger.leases.values()] == ["not ready after 900 ", ""]


def test_when_every_instance_is_stuck_the_job_is_told_lost(stage: Stage) -> None:
    stage.settle(startups_per_start=3)
    stage.server.load_s = 1e9
    stage.begin()
    for _ in range(6):
        stage.driver.wait(900.0)
    assert stage.codes() == [-255]
    assert not stage.server.live()
    assert len(stage.ledger.leases) == 3
    assert "3 instances failed before the job began" in stage.driver.job("train:a").log.read_text()


def test_the_driver_s_own_network_being_gone_says_nothing_about_instances(stage: Stage) -> None:
    machine = stage.begin()
    assert machine is not None
    stage.world.cuts(machine)
    stage.server.plan("one", *["503"] * 400)
    stage.server.plan("list", *["503"] * 400)
    stage.driver.wait(5400.0)
    assert stage.codes() == []
    assert stage.server.live() == [machine]
    assert not any("DELETE" in request for request in stage.server.requests)


def test_silence_counts_only_with_two_witnesses(stage: Stage) -> None:
    machine = stage.begin()
    assert machine is not None
    stage.server.host_dies(machine)
    stage.driver.wait(600.0)
    assert stage.codes() == [], "not yet"
    stage.driver.wait(900.0)
    assert stage.codes() == [-255]
    assert stage.driver.ends["train:a"][0].lost
    assert machine.cur_state == "stopped"
    assert [lease.instance_id for lease in stage.ledger.all_kept()] == [machine.id]


def test_a_lost_job_is_told_only_when_its_instance_is_seen_stopped(stage: Stage) -> None:
    machine = stage.begin()
    assert machine is not None
    stage.server.host_dies(machine)
    stage.server.plan("change", *["ignored"] * 5000)
    stage.driver.wait(3600.0)
    assert stage.codes() == [], "it may still be at work"
    assert stage.driver.executor is not None
    assert stage.driver.executor.state("train:a") == "unknown"
    stage.server.calm()
    stage.driver.wait(300.0)
    assert stage.codes() == [-255]


def test_an_outbid_spot_job_goes_on_elsewhere_from_its_last_copy(stage: Stage) -> None:
    stage.settle(spot=True)
    machine = stage.begin(wait_s=2000.0)
    assert machine is not None
    assert machine.body["price"] == pytest.approx(0.33)
    stage.server.outbid(machine)
    stage.driver.wait(2000.0)
    assert stage.codes() == [-255]
    # the bid stays too low: it is asked for what it holds, and does not start
    stage.server.plan("change", *["ignored"] * 500)
    stage.driver.submit("train:a")
    stage.driver.wait(5400.0)
    assert stage.codes() == [-255, 0]
    again = stage.world.worked_s["train:a"] - 3600.0
    assert 0 < again <= stage.driver.settings.checkpoint_s + 120
    stage.driver.wait(60.0)
    assert not stage.server.live(), "with the result at home nothing is kept"


def test_an_instance_that_hears_nothing_stops_itself_and_its_results_come_home(stage: Stage) -> None:
    stage.begin()
    stage.driver.executor = None
    stage.clock.sleep(6 * 3600)
    billed = stage.server.spent_usd("usim-")
    assert billed < 0.8 * (stage.world.silence_s + 300) / 3600 + 6 * 64 * 0.0002
    stage.driver.start()
    stage.driver.wait(1200.0)
    assert stage.codes() == [-255]
    assert stage.world.saved_s["train:a"] > 1500, "what it had done came home from its disk"


def test_each_kind_of_fault_at_each_endpoint_is_met_and_survived(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """The state machine draws faults by chance; here none can stay out."""
    for endpoint, moods in ENDPOINT_MOODS.items():
        for number, mood in enumerate(moods):
            stage = Stage(service, tmp_path / f"{endpoint}{number}", {"train:a": 600.0})
            service.offers = [offer(i, dph_total=0.8 + i / 100) for i in range(1, 5)]
            foreign = service.rent("mine")
            service.plan(endpoint, mood)
            stage.begin(wait_s=300.0)
            if endpoint == "change":
                (machine,) = service.live("usim-")
                cut_off(stage, machine, now=True)
                stage.driver.cancel("train:a")
                cut_off(stage, machine, now=False)
                stage.driver.submit("train:a")
            for _ in range(4):
                stage.driver.wait(600.0)
            stage.driver.wait(60.0)
            assert service.faults[f"{endpoint}: {mood}"] == 1, f"{endpoint}: {mood} did not occur"
            assert stage.codes()[-1] == 0, f"{endpoint}: {mood}"
            assert "train:a" in stage.world.results
            assert stage.driver.executor is not None
            stage.driver.executor.cancel_all()
            assert service.live() == [foreign], f"{endpoint}: {mood}"
            assert not stage.world.breaches + list(stage.world.destroyed.values())
            assert all(count == 1 for count in service.creates.values())


def test_one_at_a_time_and_in_the_order_given(service: LoopbackVast, tmp_path: Path) -> None:
    stage = Stage(service, tmp_path, {"train:a": 600.0, "train:b": 600.0, "train:c": 600.0})
    stage.driver.start()
    assert stage.driver.executor is not None
    stage.driver.executor.slots = 1
    for name in ("train:a", "train:b", "train:c"):
        stage.driver.submit(name)
    stage.driver.wait(300.0)
    states = [stage.driver.executor.state(f"train:{x}") for x in "abc"]
    assert states == ["running", "waiting", "waiting"]
    stage.driver.wait(600.0)
    stage.driver.wait(300.0)
    states = [stage.driver.executor.state(f"train:{x}") for x in "abc"]
    assert states == ["ended", "running", "waiting"]


def test_a_job_waits_until_its_process_is_seen_at_work(stage: Stage) -> None:
    """The driver charges work, not waiting for a slot, an offer or an instance that loads."""
    stage.server.load_s = 400.0
    stage.server.offers = []
    stage.begin(wait_s=60.0)
    assert stage.driver.executor is not None
    assert stage.driver.executor.state("train:a") == "waiting", "no offer"
    stage.server.offers = [offer(1)]
    stage.driver.wait(200.0)
    assert len(stage.server.live("usim-")) == 1
    assert stage.driver.executor.state("train:a") == "waiting", "loading"
    stage.driver.wait(600.0)
    assert stage.driver.executor.state("train:a") == "running"
    stage.driver.wait(4000.0)
    (end,) = stage.driver.ends["train:a"]
    assert end.seconds == 3600.0, "waiting is no part of it"


def test_the_executor_rents_for_the_jobs_of_its_driver_alone(service: LoopbackVast, tmp_path: Path) -> None:
    """The canary is the driver's: one more of the executor's own would be paid twice."""
    stage = Stage(service, tmp_path, {"train:a": 600.0, "train:b": 600.0})
    stage.begin("train:a", "train:b", wait_s=300.0)
    assert [lease.job_id for lease in stage.ledger.leases.values()] == ["train:a", "train:b"]
    stage.driver.wait(900.0)
    stage.driver.wait(900.0)
    assert (stage.codes("train:a"), stage.codes("train:b")) == ([0], [0])
    assert len(stage.server.creates) == 2


def test_jobs_that_cannot_leave_this_machine_are_refused_before_anything_is_rented(stage: Stage) -> None:
    stage.driver.start()
    executor, job = stage.driver.executor, stage.driver.job("train:a")
    assert executor is not None
    for bad, message in [
        (Job("x", ("run", "c", "data.file=mine.hdf5"), job.log, stage.folder), "data.dataset=NAME"),
        (Job("x", ("run", "c"), job.log), "give Job.folder"),
        (Job("x", ("run", "c"), job.log, stage.folder, Resources(machine_class="huge")), "no machine class"),
        (Job("x", ("run", "c"), job.log, stage.folder, Resources(gpus=2)), "gpus 2"),
    ]:
        with pytest.raises((ExecutorError, UserError), match=message):
            executor.submit(bad)
    assert not stage.server.requests


def test_an_end_that_was_told_leaves_no_instance_behind_though_the_job_is_submitted_again(
    stage: Stage,
) -> None:
    stage.world.fails = frozenset({"train:a"})
    stage.begin(wait_s=1700.0)
    stage.server.plan("destroy", *["ignored"] * 100)
    stage.driver.wait(300.0)
    assert stage.codes() == [3]
    assert stage.server.live("usim-")
    stage.world.fails = frozenset()
    stage.driver.submit("train:a")
    stage.server.calm()
    stage.driver.wait(300.0)
    assert len(stage.server.live("usim-")) == 1, "the old one is gone, the new one at work"
