"""Rented work as a model: instances of the loopback service on which jobs make progress as its clock runs.

A `World` knows what nobody else does: what every instance really computed, whether two ever worked on one
job, what lay on a disk when it was destroyed. Breaches are kept, and a test asserts that there are none.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from tests.executors.loopback_vast import Clock, LoopbackVast, Machine
from universal_simulator.executors.cloud_ledger import Lease
from universal_simulator.executors.course import Way
from universal_simulator.executors.rental_phase import DESERTED
from universal_simulator.executors.transport import (
    DamagedCopy,
    InstanceRefused,
    InstanceUnreachable,
    WrongResult,
)
from universal_simulator.executors.vast_replies import Instance
from universal_simulator.executors.workplace import Ending, Glance, Workplace
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.journal import Event, Journal

PREFIX = "usim-"
#: seconds between two checkpoints of a job
CHECKPOINT_S = 60.0
STRIDE_S = 60.0


class Killed(BaseException):
    """The driver was ended by SIGKILL: nothing of it runs after this, no handler and no clean-up."""


class SteppedClock(Clock):
    """Passes in strides, so that what is due in the world happens in time."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + STRIDE_S)
            if self.world is not None:
                self.world.tick()


@dataclass
class Disk:
    """Of one instance. `progress_s`: seconds of work done, of which `saved_s` are in a checkpoint."""

    job: str
    began_s: float
    progress_s: float
    settled: float
    saved_s: float = 0.0
    heard: float = 0.0
    ending: Ending | None = None
    fetched: bool = False
    up: bool = True
    #: the longest that it heard nothing while its host was up
    gap_s: float = 0.0


@dataclass
class World:
    """`needs_s`: seconds of work of each job; `fails`: jobs that end with exit code 3 half-way."""

    server: LoopbackVast
    needs_s: dict[str, float]
    fails: frozenset[str] = frozenset()
    silence_s: float = 1800.0
    disks: dict[int, Disk] = field(default_factory=dict)
    saved_s: dict[str, float] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)
    moods: deque[str] = field(default_factory=deque)
    cut: set[int] = field(default_factory=set)
    #: bytes that each job is sent, and that come home of it; bytes per second of this machine's uplink, shared by
    #: those that are sent to, and of each instance's way home
    cargo: dict[str, int] = field(default_factory=dict)
    harvest: dict[str, int] = field(default_factory=dict)
    up_bytes_per_s: float = 100e6 / 8
    down_bytes_per_s: float = 100e6 / 8
    #: instances whose line carries a thousandth of that
    trickling: set[int] = field(default_factory=set)
    sending: Counter[int] = field(default_factory=Counter)
    #: instance -> bytes that have arrived there, and when it was last told that a driver lives
    arrived: dict[int, float] = field(default_factory=dict)
    met: dict[int, float] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    worked_s: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    #: appends to the ledger until the driver is killed: before the line, in it ("torn"), or after it
    kill_in: int | None = None
    kill_where: str = "before"
    #: whose result came home and was never written down, as the driver died just then: until its end is written
    #: it may be begun again; where the host dies too, another instance sees that nothing is left to do
    unwritten: set[str] = field(default_factory=set)
    #: instances destroyed with something on them that was nowhere else -> what
    destroyed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server.on_end = self.machine_ends

    # --- what happens by itself ---

    def tick(self) -> None:
        now = self.server.clock()
        for machine in list(self.server.machines.values()):
            disk = self.disks.get(machine.id)
            self.settle(machine)
            heard = max(
                disk.heard if disk else 0.0,
                self.met.get(machine.id, 0.0),
                machine.loading_since or machine.began,
            )
            if self.running(machine) and now - heard > self.silence_s:
                self.counts["stopped themselves"] += 1
                if disk is not None and disk.ending is None:
                    disk.ending = Ending(DESERTED, disk.progress_s)
                self.server.settle()
                machine.cur_state = machine.intended_status = machine.next_state = "stopped"
                self.machine_ends(machine, False)

    def running(self, machine: Machine) -> bool:
        return machine.status(self.server.clock()) == "running"

    def settle(self, machine: Machine) -> None:
        """Work goes on while the machine runs."""
        disk, now = self.disks.get(machine.id), self.server.clock()
        if disk is None:
            return
        if disk.up and disk.ending is None and self.running(machine):
            need = self.needs_s[disk.job] * (0.5 if disk.job in self.fails else 1.0)
            step = min(now - disk.settled, need - disk.progress_s)
            disk.progress_s += step
            self.worked_s[disk.job] += step
            disk.saved_s = max(disk.saved_s, disk.progress_s - disk.progress_s % CHECKPOINT_S)
            if disk.progress_s >= need:
                disk.ending = Ending(3 if disk.job in self.fails else 0, disk.progress_s - disk.began_s)
        disk.settled = now

    def machine_ends(self, machine: Machine, for_good: bool) -> None:
        disk = self.disks.get(machine.id)
        if disk is None:
            return
        disk.up = False
        if for_good:
            # whether it answered or not: nobody but the ceiling or the user may destroy what has not come home
            if disk.job not in self.results and self.holds_something(disk):
                what = "result" if disk.ending is not None else "unfinished work"
                self.destroyed[machine.id] = f"{what} of {disk.job}"
            del self.disks[machine.id]

    def holds_something(self, disk: Disk) -> bool:
        """A result that was not fetched, or a checkpoint newer than the copy at home."""
        finished = disk.ending is not None and disk.ending.exit_code == 0 and not disk.fetched
        return finished or disk.saved_s > self.saved_s.get(disk.job, 0.0)

    def breach(self, text: str) -> None:
        self.breaches.append(text)

    def cuts(self, machine: Machine) -> None:
        self.cut.symmetric_difference_update({machine.id})

    # --- what a driver can do ---

    def workplace(self, job: Job, lease: Lease, instance: Instance) -> Workplace:
        return SimulatedWorkplace(self, job, instance.id)

    def journal(self, path: Path) -> Journal:
        return KillingJournal(path, self)


class SimulatedWorkplace(Workplace):
    def __init__(self, world: World, job: Job, instance_id: int) -> None:
        self.world, self.job, self.instance_id = world, job, instance_id

    def _reach(self) -> Machine:
        """The machine, unless it does not answer; some moods come after what was asked was done."""
        world = self.world
        machine = world.server.machines.get(self.instance_id)
        world.counts["asked of instances"] += 1
        mood = world.moods[0] if world.moods else "good"
        if mood == "before":
            world.moods.popleft()
            world.counts["instance: before"] += 1
        if machine is None or not world.running(machine) or self.instance_id in world.cut or mood == "before":
            raise InstanceUnreachable(f"instance {self.instance_id} does not answer")
        world.settle(machine)
        return machine

    def _after(self) -> None:
        mood = self.world.moods.popleft() if self.world.moods else "good"
        if mood == "good":
            return
        self.world.counts[f"instance: {mood}"] += 1
        if mood == "refused":
            raise InstanceRefused("no space left on device")
        if mood == "damaged":
            raise DamagedCopy("the copy is damaged")
        if mood == "lies":
            raise WrongResult("the record that came back is of other code")
        raise InstanceUnreachable(f"instance {self.instance_id} was lost in the middle")

    def bring(self) -> Way:
        world, number = self.world, self.instance_id
        self._reach()
        if number in world.disks:
            self._after()
            return 0
        world.sending[number] += 1
        try:
            yield from self._move(world.cargo.get(self.job.job_id, 0), up=True)
        finally:
            world.sending[number] -= 1
        self._after()
        return 1

    def _move(self, size: int, *, up: bool) -> Way:
        """On the world's clock. One that is stuck moves nothing, until somebody gives it up after two minutes."""
        world, number, clock = self.world, self.instance_id, self.world.server.clock
        stuck = bool(world.moods) and world.moods[0] == "stuck"
        if stuck:
            world.moods.popleft()
            world.counts["instance: stuck"] += 1
        there = world.arrived.get(number, 0.0) if up else 0.0
        last = begun = clock()
        while there < size or stuck:
            self._reach()
            if stuck and clock() - begun > 120.0:
                raise InstanceUnreachable(f"instance {number}: nothing moved for 120 s")
            sharing = sum(count > 0 for count in world.sending.values())
            speed = world.up_bytes_per_s / max(1, sharing) if up else world.down_bytes_per_s
            speed *= 0.001 if number in world.trickling else 0.0 if stuck else 1.0
            there, last = there + speed * (clock() - last), clock()
            if speed:
                world.met[number] = clock()
            if up:
                world.arrived[number] = there
            if there < size or stuck:
                yield int(there)
        return 1

    def start(self) -> None:
        machine = self._reach()
        world, name, now = self.world, self.job.job_id, self.world.server.clock()
        disk = world.disks.get(self.instance_id)
        self.begun = True
        if disk is None:
            if name in world.results and name not in world.unwritten:
                world.breach(f"{name} was started again after its result had come home")
            others = [
                i
                for i, other in world.disks.items()
                if other.job == name
                and other.ending is None
                and i in world.server.machines
                and world.running(world.server.machines[i])
            ]
            if others:
                world.breach(f"{name} was started on {machine.id} while {others} work on it")
            saved = world.saved_s.get(name, 0.0)
            world.disks[self.instance_id] = Disk(name, saved, saved, now, saved_s=saved, heard=now)
            world.counts["starts"] += 1
        elif not disk.up and disk.ending is None:
            disk.progress_s, disk.settled, disk.up = disk.saved_s, now, True
        else:
            disk.up, disk.settled = True, now
        world.disks[self.instance_id].heard = now
        self._after()

    def _disk(self) -> Disk:
        if self.instance_id not in self.world.disks:
            raise InstanceRefused("no job was ever brought there")
        return self.world.disks[self.instance_id]

    def look(self) -> Glance:
        self._reach()
        disk, now = self._disk(), self.world.server.clock()
        disk.gap_s, disk.heard = max(disk.gap_s, now - disk.heard), now
        self._after()
        return Glance(disk.ending, f"{disk.progress_s}", watched=disk.up)

    def fetch(self, *, finished: bool) -> Way:
        self._reach()
        disk = self._disk()
        yield from self._move(self.world.harvest.get(disk.job, 0), up=False)
        self._reach()
        self._after()
        name = disk.job
        self.world.saved_s[name] = max(self.world.saved_s.get(name, 0.0), disk.saved_s)
        if disk.ending is not None and (finished or disk.ending.exit_code != 0):
            # a copy made while nobody knew that it had ended is a checkpoint, no result
            disk.fetched = True
            if disk.ending.exit_code == 0:
                self.world.results[name] = self.world.results.get(name, 0) + 1
        return 1

    def halt(self) -> None:
        self._reach()
        disk = self.world.disks.get(self.instance_id)
        if disk is not None and disk.ending is None:
            disk.ending = Ending(-15, disk.progress_s - disk.began_s)
        self._after()


class KillingJournal(Journal):
    """Kills its driver at the append that the world chose."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self.world = world

    def job_of(self, label: object) -> str:
        return next(
            str(e.data["job"]) for e in self.events if e.kind == "intended" and e.data["label"] == label
        )

    def append(self, kind: str, **data: object) -> Event:
        world = self.world
        world.counts["ledger appends"] += 1
        if world.kill_in is not None:
            world.kill_in -= 1
        success = kind == "ended" and data["exit_code"] == 0
        ended = self.job_of(data["label"]) if success else ""
        if world.kill_in != 0:
            world.unwritten.discard(ended)
            return super().append(kind, **data)
        world.kill_in = None
        if ended in world.results and world.kill_where != "after":
            world.unwritten.add(ended)
        if world.kill_where == "after":
            super().append(kind, **data)
        elif world.kill_where == "torn":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(b'{"at":"2026-11-25T09:00:00Z","data":{"now":1')
        raise Killed(kind)
