"""Whole sweeps on rented instances: the real driver and queue, simulated work, the clock of the service."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.executors.loopback_vast import LoopbackVast
from tests.executors.simulated_cloud import Killed, SimulatedWorkplace, SteppedClock, World
from tests.executors.simulated_driver import Driver
from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.test_job_queue import planned, quiet, trainings
from universal_simulator.errors import BudgetError
from universal_simulator.executors.cloud_ledger import FILE, Lease, Ledger
from universal_simulator.executors.course import Way
from universal_simulator.executors.transport import DamagedCopy
from universal_simulator.executors.vast_replies import Instance
from universal_simulator.executors.workplace import Glance, Workplace
from universal_simulator.sweep.driver import resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.heartbeat import Heartbeat
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.plan import Budget, Ceiling, Machine
from universal_simulator.sweep.state import SweepState
from universal_simulator.sweep.work_clock import WorkClock


class RecordingWorkplace(SimulatedWorkplace):
    """Its log grows with the work, and what comes home of a finished job is its record."""

    world: RecordingWorld

    def look(self) -> Glance:
        glance = super().look()
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.job.log, "a", encoding="utf-8") as log:
            log.write(f"{glance.pulse} s\n")
        return glance

    def fetch(self, *, finished: bool) -> Way:
        files = yield from super().fetch(finished=finished)
        if finished and self.world.server.clock() < self.world.damaged_until:
            raise DamagedCopy("the copy is damaged")
        if finished:
            FakeExecutor().work(self.job)
        return files


class RecordingWorld(World):
    """Every job takes half a minute, where nothing else is said."""

    def __init__(self, server: LoopbackVast, needs_s: dict[str, float] | None = None) -> None:
        super().__init__(server, defaultdict(lambda: 30.0, needs_s or {}))

    #: from when to when this machine has no network
    outage: tuple[float, float] = (0.0, 0.0)
    gone = False
    #: results that come home before arrive damaged
    damaged_until = 0.0

    def tick(self) -> None:
        super().tick()
        gone = self.outage[0] <= self.server.clock() < self.outage[1]
        if gone != self.gone:
            self.gone = gone
            self.cut = set(self.server.machines) if gone else set()
            self.server.calm()
            for endpoint in ("list", "one", "destroy", "change", "search") if gone else ():
                self.server.plan(endpoint, *["503"] * 5000)

    def workplace(self, job: Job, lease: Lease, instance: Instance) -> Workplace:
        return RecordingWorkplace(self, job, instance.id)


class Stage:
    """A sweep's folder, the service, and drivers one after the other."""

    def __init__(self, server: LoopbackVast, folder: Path, world: RecordingWorld | None = None) -> None:
        self.clock = SteppedClock()
        server.reset(self.clock)
        self.server, self.folder = server, folder
        self.world = world or RecordingWorld(server)
        self.world.server.on_end = self.world.machine_ends
        self.clock.world = self.world
        self.driver = Driver(self.world, folder, ceiling_usd=50.0)


def test_a_driver_killed_while_it_closes_leaves_the_last_instances_to_the_next(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """Every end is journalled, so the next driver has nothing to submit and nothing to attach to."""
    stage = Stage(service, tmp_path)

    def progress(share: float, what: str) -> None:
        if "opening the test split" in what:
            service.plan("destroy", *["ignored"] * 5000)

    def die() -> None:
        raise Killed

    executor = stage.driver.process(FakeExecutor())
    executor.cancel_all = die  # type: ignore[method-assign] # of its process nothing runs after this
    with pytest.raises(Killed):
        run_sweep("smoke", tmp_path, executor=executor, progress=progress)
    assert not SweepState(tmp_path).open_attempts()
    left = service.live("usim-")
    assert left, "destroys of the last instances were ignored"
    assert all(lease.end is not None for lease in Ledger(tmp_path / FILE).live())
    service.calm()
    state = resume_sweep(tmp_path, executor=stage.driver.process(FakeExecutor()))
    assert state.finished
    assert not service.live("usim-")
    assert not Ledger(tmp_path / FILE).live()
    assert not stage.world.breaches
    assert not stage.world.destroyed
    assert all(count == 1 for count in service.creates.values())


def test_a_finished_sweep_that_is_resumed_brings_home_what_was_kept(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """`docs/cloud.md` promises it, and no job is left that would ask for it."""
    stage = Stage(service, tmp_path)
    run_sweep("smoke", tmp_path, executor=stage.driver.process(FakeExecutor()))
    stage.world.needs_s["train:late"] = 3600.0
    executor = stage.driver.executor = stage.driver.process()
    stage.driver.submit("train:late")
    stage.driver.wait(1000.0)
    (machine,) = service.live("usim-")
    stage.world.cuts(machine)
    stage.driver.cancel("train:late")
    executor.cancel_all()
    assert [lease.instance_id for lease in Ledger(tmp_path / FILE).all_kept()] == [machine.id]
    before = stage.world.saved_s["train:late"]
    stage.world.cuts(machine)
    # a copy home of a quarter of an hour
    stage.world.harvest["train:late"] = int(900 * stage.world.down_bytes_per_s)
    state = resume_sweep(tmp_path, executor=stage.driver.process(FakeExecutor()))
    assert stage.world.saved_s["train:late"] > before
    # the rent of bringing it home is journalled too, for whichever executor goes on
    billed = state.journal.of("billed")[-1].data["usd"]
    assert billed == pytest.approx(Ledger(tmp_path / FILE).spent_usd(stage.clock()), abs=0.02)
    assert not service.live("usim-")
    assert not stage.world.destroyed


def test_a_kept_instance_that_stays_dumb_delays_the_end_of_a_sweep_and_not_for_ever(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = Stage(service, tmp_path)
    executor = stage.driver.executor = stage.driver.process()
    stage.world.needs_s["train:late"] = 3600.0
    stage.driver.submit("train:late")
    stage.driver.wait(1000.0)
    (machine,) = service.live("usim-")
    stage.world.cuts(machine)
    stage.driver.cancel("train:late")
    executor.cancel_all()
    again = stage.driver.process()
    again.open(tmp_path)
    begun = stage.clock()
    while again.bring_home(60.0):
        pass
    settings = stage.driver.settings
    assert settings.startup_s < stage.clock() - begun < settings.startup_s + settings.results_patience_s + 120
    assert machine.cur_state == "stopped"
    assert [lease.instance_id for lease in Ledger(tmp_path / FILE).all_kept()] == [machine.id]


def test_at_the_executor_s_own_ceiling_every_end_is_journalled_with_its_dollars(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """It ends everything by itself; the driver, stopped by that, still pays for what ran."""
    state = planned(tmp_path, max_hours=1000.0)
    jobs = trainings(state)[:2]
    stage = Stage(service, tmp_path, RecordingWorld(service, {job.job_id: 36000.0 for job in jobs}))
    stage.driver.settings = stage.driver.settings.model_copy(update={"ceiling_usd": 2.0})
    executor = stage.driver.process()
    executor.slots = 2
    with pytest.raises(BudgetError, match=r"the ceiling of \$2.00 would be crossed") as caught:
        JobQueue(state, executor).run(jobs, quiet)
    assert not getattr(caught.value, "__notes__", [])
    ends = {event.data["job"]: event.data for event in state.journal.of("job_ended")}
    assert ends.keys() == {job.job_id for job in jobs}
    assert all(end["interrupted"] and end["seconds"] > 300 for end in ends.values())
    known = Ledger(tmp_path / FILE).spent_usd(stage.clock())
    assert sum(end["usd"] for end in ends.values()) == pytest.approx(known, abs=1e-3)
    assert known > 0.2
    assert not state.open_attempts()
    assert not service.live("usim-")
    # and only once
    assert [executor.cancel(job.job_id) for job in jobs] == [None, None]
    assert executor.wait(1.0) == []


@pytest.mark.parametrize("instance_waits", [True, False])
def test_a_network_that_is_gone_for_an_hour_ends_no_sweep_and_is_no_stall(
    service: LoopbackVast, tmp_path: Path, instance_waits: bool
) -> None:
    """Also where the instance stopped itself meanwhile: it is woken, and the job goes on from its checkpoint."""
    state = planned(tmp_path, max_hours=1000.0, stall_timeout_s=1800.0)
    jobs = trainings(state)[:2]
    world = RecordingWorld(service, {job.job_id: 9000.0 for job in jobs})
    stage = Stage(service, tmp_path, world)
    world.silence_s = 1e6 if instance_waits else 1800.0
    begun = stage.clock()
    world.outage = (begun + 1800.0, begun + 1800.0 + 3600.0)
    executor = stage.driver.process()
    seen = set()

    def look() -> None:
        if world.outage[0] + 120 < stage.clock() < world.outage[1]:
            seen.update(executor.state(job.job_id) for job in jobs)

    heartbeat = Heartbeat(executor, 1800.0, clock=stage.clock)
    queue = JobQueue(state, executor, heartbeat=heartbeat, clock=WorkClock(stage.clock), check=look)
    queue.run(jobs, quiet)
    executor.cancel_all()
    assert all(state.done(job.job_id) for job in jobs)
    assert seen == {"unknown"}
    assert not state.journal.of("job_stalled")
    lost = [event.data["lost"] for event in state.journal.of("job_ended")]
    assert lost == ([False, False] if instance_waits else [True, True, False, False])
    assert max(world.worked_s.values()) <= 9000.0 + (0 if instance_waits else 60.0)
    assert not service.live("usim-")
    assert not world.breaches


def test_an_overspending_job_that_nobody_answers_for_is_ended_when_somebody_does(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """One of two is over the ceiling of its run while the network is gone: the sweep goes on."""
    ceilings = Budget(run=Ceiling(hours=1.0))
    state = planned(tmp_path, max_hours=1000.0, budget=ceilings)
    long, short = trainings(state)[:2]
    world = RecordingWorld(service, {long.job_id: 36000.0, short.job_id: 3000.0})
    stage = Stage(service, tmp_path, world)
    world.silence_s = 1e6
    world.outage = (stage.clock() + 3500.0, stage.clock() + 7200.0)
    executor = stage.driver.process()
    clock = WorkClock(stage.clock)
    heartbeat = Heartbeat(executor, 1e6, clock=stage.clock)
    JobQueue(state, executor, heartbeat=heartbeat, clock=clock).run([long, short], quiet)
    assert state.done(short.job_id)
    assert state.failed_for_good(long.job_id)
    assert "its ceiling in the plan" in state.last_words(long.job_id)
    assert state.attempts(long.job_id) == 1
    executor.cancel_all()
    # asked to end where nobody heard it, its patience passed: it is kept with what it holds
    kept = [lease.instance_id for lease in Ledger(tmp_path / FILE).all_kept()]
    assert [(machine.id, machine.cur_state) for machine in service.live("usim-")] == [(kept[0], "stopped")]


def test_one_unlucky_job_is_given_up_and_the_others_finish(service: LoopbackVast, tmp_path: Path) -> None:
    """Its instances vanish again and again; typed again, on better ones, it goes on."""
    state = planned(tmp_path, max_hours=1000.0)
    unlucky, other = trainings(state)[:2]
    stage = Stage(service, tmp_path, RecordingWorld(service, {unlucky.job_id: 1800.0, other.job_id: 1800.0}))
    stage.driver.settings = stage.driver.settings.model_copy(update={"losses_per_run": 2})

    def host_dies() -> None:
        for machine in service.live("usim-"):
            disk = stage.world.disks.get(machine.id)
            if disk is not None and disk.job == unlucky.job_id:
                del service.machines[machine.id]

    executor = stage.driver.process()
    JobQueue(state, executor, check=host_dies, clock=WorkClock(stage.clock)).run([unlucky, other], quiet)
    executor.cancel_all()
    assert state.done(other.job_id)
    assert stage.world.worked_s[other.job_id] == 1800.0
    assert state.failed(unlucky.job_id)
    assert not state.failed_for_good(unlucky.job_id)
    assert "has lost 3 instances at work in this sitting, 2 are" in state.last_words(unlucky.job_id)
    assert len(Ledger(tmp_path / FILE).of_job(unlucky.job_id)) == 3
    again = stage.driver.process()
    JobQueue(SweepState(tmp_path), again).run([unlucky, other], quiet)
    again.cancel_all()
    assert SweepState(tmp_path).done(unlucky.job_id)
    assert not service.live("usim-")


@pytest.mark.parametrize("at_work", [True, False])
def test_the_executor_s_ceiling_of_a_run_is_told_as_a_ceiling_and_locks_nothing(
    service: LoopbackVast, tmp_path: Path, at_work: bool
) -> None:
    """Reached at work, or before anything is rented; either way the run is refused as by the plan's own."""
    state = planned(tmp_path, max_hours=1000.0)
    dear, cheap = trainings(state)[:2]
    stage = Stage(service, tmp_path, RecordingWorld(service, {dear.job_id: 36000.0, cheap.job_id: 60.0}))
    limit = 1.5 if at_work else 0.1
    stage.driver.settings = stage.driver.settings.model_copy(update={"run_ceiling_usd": limit})
    executor = stage.driver.process()
    JobQueue(state, executor, clock=WorkClock(stage.clock)).run([dear, cheap], quiet)
    executor.cancel_all()
    state = SweepState(tmp_path)
    assert state.failed_for_good(dear.job_id)
    assert f"of ${limit:.2f} (run_ceiling_usd of --cloud)" in (state.refused_by_ceiling(dear.job_id) or "")
    assert state.done(cheap.job_id) == at_work
    assert state.refused_by_ceilings() == [dear.job_id] + [cheap.job_id] * (not at_work)
    assert bool(service.creates) == at_work


@pytest.mark.parametrize("slow", [False, True])
def test_results_on_their_way_home_are_no_stall(service: LoopbackVast, tmp_path: Path, slow: bool) -> None:
    """Nothing of the job grows any more: its copies arrive damaged for 50 minutes, or one good copy takes 40."""
    state = planned(tmp_path, max_hours=1000.0, stall_timeout_s=1800.0)
    job = trainings(state)[0]
    world = RecordingWorld(service, {job.job_id: 600.0})
    stage = Stage(service, tmp_path, world)
    if slow:
        world.harvest[job.job_id] = int(2400 * world.down_bytes_per_s)
    else:
        world.damaged_until = stage.clock() + 600.0 + 3000.0
    executor = stage.driver.process()
    seen: list[str] = []

    def look() -> None:
        ended = any(disk.ending is not None for disk in world.disks.values())
        if ended and not state.journal.of("job_ended"):
            seen.append(executor.state(job.job_id))

    heartbeat = Heartbeat(executor, 1800.0, clock=stage.clock)
    queue = JobQueue(state, executor, heartbeat=heartbeat, clock=WorkClock(stage.clock), check=look)
    queue.run([job], quiet)
    executor.cancel_all()
    assert not state.journal.of("job_stalled")
    assert "waiting" in seen
    (end,) = state.journal.of("job_ended")
    assert (end.data["exit_code"], end.data["seconds"]) == (0, 600.0)
    assert len(service.creates) == 1
    assert not service.live("usim-")
    assert not world.breaches


def test_the_plan_s_own_dollars_hold_though_what_they_end_is_brought_home_first(
    service: LoopbackVast, tmp_path: Path
) -> None:
    """Two at work, each copy takes four minutes: what that costs was kept back."""
    state = planned(
        tmp_path,
        max_hours=1000.0,
        machines={"small": Machine(price_usd_per_hour=0.8)},
        budget=Budget(sweep=Ceiling(usd=1.5)),
    )
    jobs = trainings(state)[:2]
    world = RecordingWorld(service, {job.job_id: 36000.0 for job in jobs})
    stage = Stage(service, tmp_path, world)
    world.harvest = {job.job_id: int(240 * world.down_bytes_per_s) for job in jobs}
    executor = stage.driver.process()
    with pytest.raises(BudgetError, match=r"used up: 1\.5\d USD of 1\.50"):
        JobQueue(state, executor, clock=WorkClock(stage.clock)).run(jobs, quiet)
    executor.cancel_all()
    assert 1.5 - 2 * 0.8 * executor.ending_s / 3600 - 0.05 < Ledger(tmp_path / FILE).spent_usd(stage.clock())
    assert Ledger(tmp_path / FILE).spent_usd(stage.clock()) <= 1.5
    assert all(saved > 1800.0 for saved in world.saved_s.values()), "nothing was left behind"
    assert not service.live("usim-")
