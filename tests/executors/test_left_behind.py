"""What an earlier driver left at work is looked at from the moment the next one opens, whatever that does first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.loopback_vast import LoopbackVast, Machine, offer
from tests.executors.simulated_stage import Stage

#: what `burgers_full` weighs: 33 minutes at the least speed, longer than an instance waits for its driver
CARGO = 24_700_000_000


@pytest.fixture
def stage(service: LoopbackVast, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(service, tmp_path, {"train:a": 7200.0, "canary:x": 60.0})
    stage.server.offers = [offer(1), offer(2, dph_total=0.9), offer(3, dph_total=0.95)]
    yield stage
    assert not stage.world.breaches
    assert not stage.world.destroyed


def opened_after_a_kill(stage: Stage, *, slots: int = 3) -> None:
    """The next sitting has opened, and attached to nothing yet."""
    stage.driver.executor = None
    stage.clock.sleep(60.0)
    stage.driver.executor = stage.driver.process()
    stage.driver.executor.slots = slots
    assert stage.driver._open()


def begun(stage: Stage, *, wait_s: float = 600.0) -> Machine:
    machine = stage.begin(wait_s=wait_s)
    assert machine is not None
    return machine


def attached(stage: Stage) -> None:
    stage.driver.at_work.add("train:a")
    assert stage.driver._attach("train:a")


@pytest.mark.parametrize("slots", [1, 3])
def test_a_training_at_work_is_looked_at_while_a_canary_of_its_own_size_goes_first(
    stage: Stage, slots: int
) -> None:
    """As after an edited plan: the archive is another, so a canary goes before anything is attached to."""
    stage.world.cargo = {"canary:x": CARGO}
    stage.settle(send_s_at_most=7200.0)
    machine = begun(stage)
    stage.driver.at_work.discard("train:a")
    opened_after_a_kill(stage, slots=slots)
    stage.driver.submit("canary:x")
    while "canary:x" not in stage.driver.ends:
        stage.driver.wait(120.0)
    assert stage.codes("canary:x") == [0]
    assert stage.clock() > stage.world.silence_s
    assert stage.world.counts["stopped themselves"] == 0
    assert machine.cur_state == "running"
    assert stage.world.saved_s["train:a"] > 1800.0, "its checkpoints came home meanwhile"
    attached(stage)
    stage.driver.wait(7200.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [0]
    assert stage.world.worked_s["train:a"] == 7200.0
    assert len(stage.server.creates) == 2
    assert not stage.server.live()


def test_one_that_ends_before_it_is_attached_to_is_given_back_then_and_told_once_afterwards(
    stage: Stage,
) -> None:
    begun(stage, wait_s=7000.0)
    stage.driver.at_work.discard("train:a")
    opened_after_a_kill(stage)
    stage.driver.submit("canary:x")
    for _ in range(6):
        stage.driver.wait(300.0)
        stage.clock.sleep(60.0)
    assert stage.codes("canary:x") == [0]
    assert stage.world.results["train:a"] == 1
    assert stage.codes() == []
    assert not stage.server.live(), "nothing idles until somebody asks for its end"
    attached(stage)
    for _ in range(3):
        stage.driver.wait(60.0)
    assert stage.codes() == [0]
    (end,) = stage.driver.ends["train:a"]
    assert end.seconds == 7200.0


def test_nothing_is_rented_again_for_what_nobody_has_attached_to(stage: Stage) -> None:
    """Its instance was still loading, and never came up: attached to, the job is submitted again."""
    stage.server.load_s = 1e9
    begun(stage, wait_s=30.0)
    stage.driver.at_work.discard("train:a")
    opened_after_a_kill(stage)
    (first,) = stage.server.live("usim-")
    stage.server.load_s = 60.0
    stage.driver.submit("canary:x")
    stage.driver.wait(600.0)
    stage.clock.sleep(900.0)
    stage.driver.wait(0.0)
    assert first.id not in stage.server.machines
    assert [lease.job_id for lease in stage.ledger.leases.values()] == ["train:a", "canary:x"]
    attached(stage)
    stage.driver.wait(7500.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [0]


def test_one_that_was_being_woken_when_its_driver_died_is_not_in_the_way_of_its_job(stage: Stage) -> None:
    machine = begun(stage, wait_s=1000.0)
    stage.world.cuts(machine)
    stage.driver.cancel("train:a")
    assert machine.cur_state == "stopped"
    opened_after_a_kill(stage)
    stage.driver.wait(0.0)
    assert [event.kind for event in stage.ledger.journal.events][-1] == "woken"
    stage.world.cuts(machine)
    opened_after_a_kill(stage)
    stage.driver.submit("train:a")
    stage.driver.wait(8000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert stage.world.worked_s["train:a"] == pytest.approx(7200.0, abs=120.0)
    assert len(stage.server.creates) == 1
    assert not stage.server.live()
