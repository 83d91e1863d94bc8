"""Money and launches are capped: what is kept, wound down, afforded, asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.executors.loopback_vast import LoopbackVast
from tests.executors.simulated_stage import Stage, cut_off
from universal_simulator.errors import ExecutorError
from universal_simulator.executors.cloud_ledger import CEILING


def test_what_is_kept_is_destroyed_by_the_ceiling_alone_and_it_is_told(stage: Stage) -> None:
    machine = stage.begin(wait_s=1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.driver.cancel("train:a")
    assert stage.driver.executor is not None
    stage.driver.executor.cancel_all()
    assert stage.server.live() == [machine], "the end of a sweep destroys nothing that is nowhere else"
    stage.settle(ceiling_usd=stage.driver.executor.spent_usd() + 0.5)
    stage.driver.executor = None
    stage.clock.sleep(3600)
    stage.driver.start()
    stage.driver.submit("train:a")
    assert stage.driver.spent_out, "waking it could cross the ceiling"
    assert stage.server.live() == [machine], "and its disk does not yet"
    stage.driver.executor, stage.driver.spent_out = None, False
    stage.clock.sleep(6 * 3600)
    stage.driver.start()
    stage.driver.submit("train:b")
    assert stage.driver.spent_out
    assert not stage.server.live()
    assert f"instance {machine.id} was DESTROYED by the ceiling" in stage.driver.texts[-1]
    assert stage.world.destroyed


def test_one_instance_that_fails_while_all_are_wound_down_leaves_no_other_alive(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """A disk that is full here, for one of three: the others end, then all failures are told together."""
    stage = Stage(service, tmp_path, dict.fromkeys(("train:a", "train:b", "train:c"), 9000.0))
    stage.begin("train:a", "train:b", "train:c", wait_s=600.0)
    executor = stage.driver.executor
    assert executor is not None
    (tenant,) = executor._tenants.values()
    real = tenant.ledger.ended

    def full(label: str, *rest: Any, **words: Any) -> Any:
        if "train.a" in label:
            raise OSError(28, "No space left on device", "ledger.jsonl")
        return real(label, *rest, **words)

    tenant.ledger.ended = full  # type: ignore[method-assign]
    with pytest.raises(ExecutorError, match=r"train:a: .*No space left.*asked to stop, its disk is kept"):
        executor.cancel_all()
    (left,) = stage.server.live()
    assert "train.a" in str(left.label)
    assert left.cur_state == "stopped", "its GPU bills no more"
    assert executor.state("train:b") == executor.state("train:c") == "ended"
    tenant.ledger.ended = real  # type: ignore[method-assign]
    executor.cancel_all()
    assert not stage.world.destroyed


@pytest.mark.parametrize("wakes", [True, False])
def test_a_driver_killed_while_it_brings_a_job_destroys_nothing_that_may_have_begun(
    stage: Stage, wakes: bool
) -> None:
    """The intent stands in the ledger before the start; the instance stopped itself meanwhile."""
    stage.world.kill_in = 5
    stage.driver.start()
    stage.driver.submit("train:a")
    stage.driver.wait(600.0)
    assert stage.driver.executor is None
    assert [event.kind for event in stage.ledger.journal.events][-1] == "starting"
    assert stage.world.counts["starts"] == 1
    stage.clock.sleep(7200)
    stage.server.plan("change", *["ignored"] * 500 * (not wakes))
    stage.driver.start()
    stage.driver.cancel("train:a")
    assert stage.codes() == [-15]
    assert not stage.world.destroyed
    assert len(stage.ledger.all_kept()) == (0 if wakes else 1)
    assert (stage.world.saved_s.get("train:a", 0.0) > 1700.0) == wakes


def test_a_full_disk_at_a_checkpoint_ends_no_sweep(stage: Stage) -> None:
    stage.begin(wait_s=10.0)
    stage.driver.wait(100.0)
    stage.world.moods.extend(["good", "refused", "good", "refused"])
    stage.driver.wait(600.0)
    assert stage.driver.executor is not None
    assert stage.driver.executor.state("train:a") == "running"
    stage.driver.wait(3600.0)
    assert stage.codes() == [0]


def test_the_ceiling_of_the_sweep_brings_everything_home_before_it_is_crossed(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = Stage(service, tmp_path, {"train:a": 36000.0, "train:b": 36000.0})
    stage.settle(ceiling_usd=4.0)
    stage.begin("train:a", "train:b")
    stage.driver.wait(36000.0)
    assert stage.driver.spent_out
    assert "raise the ceiling" in stage.driver.texts[-1]
    assert not stage.server.live()
    assert 2.0 < stage.server.spent_usd("usim-") <= 4.0 - 2 * 0.8 * 0.5
    assert min(stage.world.saved_s.values()) > 3000


def test_the_ceiling_of_a_run_ends_that_run_alone(service: LoopbackVast, tmp_path: Path) -> None:
    stage = Stage(service, tmp_path, {"train:a": 36000.0, "train:b": 3600.0})
    stage.settle(run_ceiling_usd=2.5)
    stage.begin("train:a", "train:b")
    stage.driver.wait(3600.0)
    stage.driver.wait(7200.0)
    assert stage.codes("train:a") == [CEILING]
    assert stage.codes("train:b") == [0]
    assert "ceiling of $2.50" in stage.driver.job("train:a").log.read_text()


def test_what_cannot_be_afforded_is_not_asked_for(stage: Stage) -> None:
    stage.settle(ceiling_usd=0.5)
    stage.begin()
    assert stage.driver.spent_out
    assert not stage.server.creates


def test_launches_within_an_hour_and_losses_are_capped(stage: Stage) -> None:
    stage.settle(launches_per_hour=2, losses_per_run=1)
    for expected in ([-255], [-255, -255]):
        machine = stage.begin() if not stage.codes() else None
        if machine is None:
            stage.driver.submit("train:a")
            stage.driver.wait(120.0)
            (machine,) = stage.server.live("usim-")
        del stage.server.machines[machine.id]
        stage.driver.wait(600.0)
        assert stage.codes() == expected
    assert stage.driver.executor is not None
    stage.driver.submit("train:a")
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, -255, -255]
    assert "lost 2 instances at work in this sitting, 1 are" in stage.driver.ends["train:a"][-1].reason
    stage.driver.submit("train:b")
    stage.driver.wait(600.0)
    assert len(stage.server.creates) == 2, "a third within the hour waits"


def test_a_driver_that_sleeps_uses_up_no_losses(stage: Stage) -> None:
    """The instance ended itself, as it should; the next submission goes on from what it saved."""
    stage.settle(losses_per_run=0)
    machine = stage.begin()
    assert machine is not None
    stage.clock.sleep(3000.0)
    stage.driver.wait(600.0)
    assert stage.world.counts["stopped themselves"] == 1
    assert stage.codes() == [-255]
    stage.driver.submit("train:a")
    stage.driver.wait(7200.0)
    assert stage.codes() == [-255, 0]
    assert stage.world.worked_s["train:a"] <= 3600.0 + 60.0
