"""The driver of rented jobs is killed at every append to the ledger: nothing is paid for twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.executors.loopback_vast import LoopbackVast
from tests.executors.simulated_cloud import SteppedClock, World
from tests.executors.simulated_driver import Driver

WHERE = ("before", "torn", "after")
JOBS = {"train:a": 1200.0, "train:b": 2400.0, "full:a": 300.0}


@dataclass
class Outcome:
    world: World
    driver: Driver
    kills: int


def drive(
    service: LoopbackVast,
    folder: Path,
    jobs: dict[str, float],
    *,
    kill_at: int | None = None,
    where: str = "",
    told: bool = False,
) -> Outcome:
    """All jobs to their end; killed once at append `kill_at`, the next driver comes five minutes later.

    told: it is killed when the last end was told instead; the service did not destroy what it said it did.
    """
    clock = SteppedClock()
    service.reset(clock)
    world = World(service, jobs)
    clock.world = world
    driver = Driver(world, folder, ceiling_usd=50.0)
    world.kill_in, world.kill_where = kill_at, where
    if told:
        service.plan("destroy", *["ignored"] * 500)
    kills = 0
    driver.start()
    for name in jobs:
        if driver.executor is not None:
            driver.submit(name)
    for _ in range(200):
        if driver.executor is None:
            kills += 1
            clock.sleep(300)
            driver.start()
            for name in jobs:
                if name not in driver.at_work and not driver.finished(name):
                    driver.submit(name)
        elif driver.at_work:
            driver.wait(600.0)
        elif told and kills == 0:
            assert service.live("usim-")
            driver.executor = None
            service.calm()
        else:
            # what is still rented, and nobody waits for, is the closing driver's
            driver.close()
            if driver.executor is not None:
                break
    return Outcome(world, driver, kills)


def check(outcome: Outcome, service: LoopbackVast, jobs: dict[str, float]) -> None:
    world = outcome.world
    assert not world.breaches
    assert {name: ends[-1].exit_code for name, ends in outcome.driver.ends.items()} == dict.fromkeys(jobs, 0)
    assert all(len(ends) == 1 for ends in outcome.driver.ends.values()), "an end was told twice"
    assert world.results.keys() == jobs.keys(), "a result did not come home"
    assert dict(world.worked_s) == jobs, "work was done twice"
    assert not service.live("usim-")
    assert all(count == 1 for count in service.creates.values())


def appends_of(service: LoopbackVast, folder: Path, jobs: dict[str, float]) -> int:
    whole = drive(service, folder, jobs)
    check(whole, service, jobs)
    assert whole.world.counts["starts"] == len(jobs)
    return whole.world.counts["ledger appends"]


def kill_everywhere(service: LoopbackVast, folder: Path, jobs: dict[str, float]) -> int:
    """Number of kill points; at each the sweep ends in the results of the uninterrupted one."""
    appends = appends_of(service, folder / "whole", jobs)
    for where in WHERE:
        for kill_at in range(1, appends + 1):
            outcome = drive(service, folder / f"{where}{kill_at}", jobs, kill_at=kill_at, where=where)
            assert outcome.kills == 1 or kill_at > appends - len(jobs), (where, kill_at)
            check(outcome, service, jobs)
    return appends * len(WHERE)


def test_killed_at_every_append_one_job_is_paid_once(service: LoopbackVast, tmp_path: Path) -> None:
    assert kill_everywhere(service, tmp_path, {"train:a": 1200.0}) == 21


def test_killed_when_the_last_end_was_told_no_instance_is_forgotten(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """The next driver has nothing to submit and nothing to attach to."""
    jobs = {"train:a": 1200.0, "train:b": 1200.0}
    outcome = drive(service, tmp_path, jobs, told=True)
    assert outcome.kills == 1
    check(outcome, service, jobs)


@pytest.mark.slow
def test_killed_at_every_append_no_job_is_paid_twice(service: LoopbackVast, tmp_path: Path) -> None:
    points = kill_everywhere(service, tmp_path, JOBS)
    print(f"{points} kill points, all ending in the results of the uninterrupted sweep, no second repeated")
    assert points == 57
