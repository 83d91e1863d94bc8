"""A sweep on rented instances as a state machine, against everything that the service, the hosts, the
network and the clocks can do to it. What must hold whatever happens:

    no instance outlives the sweep, but for those stopped, in the ledger and told of with what they hold
    spend <= ceiling, and never above what the ledger says
    no run is paid twice; every end is told once
    no result is lost: nothing that is not at home is destroyed, unless the ceiling says so and it is told;
    what was kept comes home when the sweep is driven on
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from tests.executors.loopback_vast import InProcess, LoopbackVast, Machine, offer
from tests.executors.simulated_cloud import Killed, SteppedClock, World
from tests.executors.test_vast_client import ENDPOINT_MOODS, FOREIGN, KEY, KeyWatch
from universal_simulator.errors import BudgetError, ExecutorError, UnreachableError
from universal_simulator.executors.cloud_ledger import CEILING, FILE, Lease, Ledger
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.rental_phase import DESERTED
from universal_simulator.executors.vast_ai import VastExecutor
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.sweep.executor import Executor, Job, JobEnd

JOBS = {"train:a": 1200.0, "train:b": 3600.0, "train:c": 600.0, "train:bad": 900.0}
#: bytes that some of them are sent, and that come home of them: 6 minutes and 4 on a good line
CARGO = {"train:b": 4_500_000_000, "train:c": 300_000_000}
HARVEST = {"train:b": 3_000_000_000, "train:a": 200_000_000}
#: what happened, over all examples of a profile
TALLY: Counter[str] = Counter()


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, SteppedClock()) as server:
        yield server


class Driver:
    """One driver process of the sweep in `folder`; what it journals outlives it, it does not."""

    def __init__(self, world: World, folder: Path, ceiling_usd: float, *, spot: bool = False) -> None:
        self.world, self.folder, self.server = world, folder, world.server
        self.settings = CloudSettings(
            ceiling_usd=ceiling_usd,
            spot=spot,
            silence_s=world.silence_s,
            checkpoint_s=300.0,
            heartbeat_s=1200.0,
            losses_per_run=50,
            startups_per_start=6,
            launches_per_hour=40,
        )
        #: the driver's own journal: intended and not told; and the ends that were told
        self.at_work: set[str] = set()
        self.ends: dict[str, list[JobEnd]] = {}
        self.asleep_s = 0.0
        #: it slept, and has not been told the time since
        self.drowsy = False
        self.wall_off_s = 0.0
        self.executor: VastExecutor | None = None
        self.spent_out = False
        self.texts: list[str] = []

    def job(self, name: str) -> Job:
        log = self.folder / "logs" / f"{name.replace(':', '-')}.log"
        return Job(name, ("run", name), log, folder=self.folder)

    def start(self) -> None:
        """A new process: nothing in memory; what there is is looked at, then jobs of the old one are attached
        to or submitted again. One that dies before it has seen all of it is typed again."""
        self.executor = self.process()
        if not self._guarded(self._open):
            return
        for name in sorted(self.at_work):
            found = self._guarded(lambda name=name: self._attach(name))
            if not found or self.executor is None:
                return

    def process(self, local: Executor | None = None) -> VastExecutor:
        """Of a driver that has not asked anybody yet."""
        self.server.dated = True
        clock = self.server.clock
        client = VastClient(
            self.server.url,
            SecretStr(KEY),
            transport=InProcess(self.server),
            clock=lambda: clock() - self.asleep_s,
            sleep=clock.sleep,
            wall=lambda: clock() + self.wall_off_s,
            request_timeout_s=5.0,
            patience_s=60.0,
        )
        return VastExecutor(
            client,
            self.settings,
            slots=3,
            workplace_of=self.world.workplace,
            bytes_of=lambda job: self.world.cargo.get(job.job_id, 0),
            local=local,
            journal_of=self.world.journal,
            tell=self.texts.append,
        )

    def close(self) -> None:
        """A driver's last act, however its sitting ended."""

        def closing() -> bool:
            assert self.executor is not None
            try:
                self.executor.cancel_all()
            except ExecutorError as error:
                self.texts.append(str(error))
            return True

        self._guarded(closing)

    def _open(self) -> bool:
        assert self.executor is not None
        try:
            self.executor.open(self.folder)
        except UnreachableError as error:
            # nobody can say: the driver ends here and is typed again later
            self.texts.append(str(error))
            self.executor = None
        return self.executor is not None

    def _attach(self, name: str) -> bool:
        assert self.executor is not None
        try:
            if not self.executor.attach(name, self.folder):
                self.executor.submit(self.job(name))
        except UnreachableError as error:
            # nobody can say: the driver ends here and is typed again later
            self.texts.append(str(error))
            self.executor = None
            return False
        return True

    def submit(self, name: str) -> None:
        self.at_work.add(name)
        self._guarded(lambda: self._submit(name))

    def _submit(self, name: str) -> bool:
        assert self.executor is not None
        try:
            self.executor.submit(self.job(name))
        except UnreachableError as error:
            self.texts.append(str(error))
        except BudgetError:
            raise
        except ExecutorError as error:
            raise AssertionError(f"{name} was refused: {error}") from error
        else:
            return True
        self.at_work.discard(name)
        return False

    def wait(self, seconds: float) -> None:
        def waiting() -> bool:
            assert self.executor is not None
            self.drowsy = self.drowsy and seconds < 600.0
            for end in self.executor.wait(seconds):
                self.told(end)
            return True

        self._guarded(waiting)

    def cancel(self, name: str) -> None:
        def cancelling() -> bool:
            assert self.executor is not None
            try:
                end = self.executor.cancel(name)
            except UnreachableError as error:
                self.texts.append(str(error))
                return False
            if end is not None:
                self.told(end)
            return True

        self._guarded(cancelling)

    def told(self, end: JobEnd) -> None:
        name = end.job_id
        if name not in self.at_work:
            self.world.breach(f"{name} ended a second time: {end}")
        self.at_work.discard(name)
        self.ends.setdefault(name, []).append(end)
        if end.exit_code == 0 and name not in self.world.results:
            self.world.breach(f"{name} was told to have succeeded, its result is not here")
        if end.exit_code == DESERTED:
            self.world.breach(f"{name} was told to have ended by a signal that there is not")
        TALLY[f"ends told: {'lost' if end.lost else end.exit_code}"] += 1

    def finished(self, name: str) -> bool:
        return any(end.exit_code in (0, 3, CEILING) for end in self.ends.get(name, ()))

    def _guarded(self, act: object) -> bool:
        """Do it; a kill leaves nothing of the driver, a spent budget ends the sweep."""
        assert callable(act)
        try:
            return bool(act())
        except Killed:
            TALLY[f"driver killed: {self.world.kill_where} an append"] += 1
            self.executor = None
        except BudgetError as error:
            self.texts.append(str(error))
            self.spent_out = True
            TALLY["sweeps ended by their ceiling"] += 1
        return False


class RentedSweep(RuleBasedStateMachine):
    service: LoopbackVast
    folders: Path

    @initialize(
        ceiling=st.sampled_from([0.5, 2.5, 4.0, 50.0, 50.0]),
        spot=st.sampled_from([False, False, True]),
        first=st.lists(st.sampled_from(sorted(JOBS)), min_size=1, unique=True),
    )
    def begin(self, ceiling: float, spot: bool, first: list[str]) -> None:
        clock = SteppedClock()
        self.service.reset(clock)
        self.server, self.clock = self.service, clock
        self.world = World(self.service, JOBS, fails=frozenset({"train:bad"}), cargo=CARGO, harvest=HARVEST)
        clock.world = self.world
        folder = Path(tempfile.mkdtemp(dir=self.folders))
        self.driver = Driver(self.world, folder, ceiling, spot=spot)
        self.driver.start()
        self.foreign: dict[int, str | None] = {}
        self.watch = KeyWatch()
        logging.getLogger().addHandler(self.watch)
        TALLY["examples"] += 1
        for name in first:
            if self.drives():
                self.driver.submit(name)

    def mine(self) -> list[Machine]:
        return [m for m in self.server.machines.values() if m.id not in self.foreign]

    def drives(self) -> bool:
        return self.driver.executor is not None and not self.driver.spent_out

    def is_dead(self) -> bool:
        return self.driver.executor is None and not self.driver.spent_out

    def misbehave(self, data: st.DataObject) -> None:
        """What the next requests of some kinds meet; at most three in a row, and two consistent lies."""
        kinds = st.lists(st.sampled_from(sorted(ENDPOINT_MOODS)), max_size=2, unique=True)
        for endpoint in data.draw(kinds):
            moods = ENDPOINT_MOODS[endpoint]
            for mood in data.draw(
                st.lists(st.sampled_from([*moods, "good"]), min_size=1, max_size=3), label=endpoint
            ):
                if mood != "blank" or self.server.planned("list", "blank") < 1:
                    self.server.plan(endpoint, mood)
        for mood in data.draw(
            st.lists(
                st.sampled_from(["good", "before", "after", "damaged", "refused", "stuck", "lies"]),
                max_size=3,
            )
        ):
            if len(self.world.moods) < 6:
                self.world.moods.append(mood)

    @precondition(drives)
    @rule(name=st.sampled_from(sorted(JOBS)), data=st.data())
    def submit(self, name: str, data: st.DataObject) -> None:
        if name in self.driver.at_work or self.driver.finished(name):
            return
        self.misbehave(data)
        self.driver.submit(name)

    @precondition(drives)
    @rule(seconds=st.sampled_from([1.0, 60.0, 600.0, 1800.0]), data=st.data())
    def wait(self, seconds: float, data: st.DataObject) -> None:
        self.misbehave(data)
        self.driver.wait(seconds)

    @precondition(drives)
    @rule(seconds=st.sampled_from([600.0, 3600.0]))
    def wait_in_peace(self, seconds: float) -> None:
        self.driver.wait(60.0)
        if self.drives():
            self.driver.wait(seconds)
        if not self.server.planned_at_all():
            self.the_ledger_knows_of_all_that_was_billed()

    @precondition(drives)
    @rule(name=st.sampled_from(sorted(JOBS)), data=st.data())
    def cancel(self, name: str, data: st.DataObject) -> None:
        if name in self.driver.at_work:
            self.misbehave(data)
            self.driver.cancel(name)

    @precondition(drives)
    @rule(appends=st.integers(1, 12), where=st.sampled_from(["before", "torn", "after"]))
    def kill_soon(self, appends: int, where: str) -> None:
        self.world.kill_in, self.world.kill_where = appends, where

    @precondition(is_dead)
    @rule(gone_s=st.sampled_from([1.0, 300.0, 7200.0]), wall=st.sampled_from([-86400.0, 0.0, 86400.0]))
    def drive_again(self, gone_s: float, wall: float) -> None:
        self.clock.sleep(gone_s)
        self.driver.wall_off_s = wall
        TALLY["clock: set"] += wall != 0.0
        self.world.kill_in = None
        self.driver.start()

    @precondition(drives)
    @rule(seconds=st.sampled_from([120.0, 3600.0]))
    def the_laptop_sleeps(self, seconds: float) -> None:
        """Its monotonic clock stands still meanwhile; then only dated answers can tell how long."""
        self.server.dated = True
        TALLY["clock: the laptop slept"] += 1
        self.clock.sleep(seconds)
        self.driver.asleep_s += seconds
        self.driver.drowsy = True

    @rule(
        what=st.sampled_from(
            ["outbid", "dies", "stuck", "frozen", "cut", "cut", "trickle", "no offers", "offers", "undated"]
        ),
        which=st.integers(0, 5),
    )
    def weather(self, what: str, which: int) -> None:
        machines = self.mine()
        if what in ("no offers", "offers"):
            some = [offer(1), offer(2, dph_total=0.9), offer(3, dph_total=0.95), offer(4, dph_total=1.0)]
            self.server.offers = [] if what == "no offers" else some
        elif what == "undated":
            self.server.dated = self.driver.drowsy
        elif machines:
            machine = machines[which % len(machines)]
            TALLY[f"weather: {what}"] += 1
            if what == "outbid":
                self.server.outbid(machine)
            elif what == "dies":
                self.server.host_dies(machine)
            elif what == "stuck":
                machine.stuck = not machine.stuck
            elif what == "frozen":
                machine.frozen = not machine.frozen
            elif what == "trickle":
                self.world.trickling ^= {machine.id}
            else:
                self.world.cuts(machine)

    @rule(label=st.sampled_from(FOREIGN))
    def others_rent(self, label: str | None) -> None:
        if len(self.foreign) < 20:
            self.foreign[self.server.rent(label).id] = label

    @invariant()
    def nothing_was_breached(self) -> None:
        assert not self.world.breaches, self.world.breaches

    @invariant()
    def the_bill_is_below_the_ceiling(self) -> None:
        bill = self.bill()
        assert bill <= self.driver.settings.ceiling_usd, f"${bill:.3f} were billed"

    def the_ledger_knows_of_all_that_was_billed(self) -> None:
        """But for instances that were made late and have not been found yet."""
        if self.driver.executor is None or not self.driver.executor._tenants:
            return
        bill, known = self.bill(), self.driver.executor.spent_usd()
        late = sum(m.gpu_usd + m.disk_usd for m in self.mine() if not self.known_to_the_ledger(m.label or ""))
        assert bill - late <= known + 0.02, f"${bill:.4f} were billed, the ledger knows of ${known:.4f}"

    def known_to_the_ledger(self, label: str) -> bool:
        assert self.driver.executor is not None
        leases = [t.ledger.leases.get(label) for t in self.driver.executor._tenants.values()]
        return any(lease is not None and lease.live for lease in leases)

    def bill(self) -> float:
        self.server.settle()
        everything = [*self.server.machines.values(), *self.server.buried]
        return sum(m.gpu_usd + m.disk_usd for m in everything if m.id not in self.foreign)

    @invariant()
    def no_create_was_sent_twice_and_others_are_untouched(self) -> None:
        assert all(count == 1 for count in self.server.creates.values())
        now = {i: m.label for i, m in self.server.machines.items() if i in self.foreign}
        assert now == self.foreign

    @invariant()
    def the_key_stays_secret(self) -> None:
        assert not any(KEY in text for text in self.driver.texts)
        assert not self.watch.caught
        assert not self.server.leaks

    @invariant()
    def nothing_was_destroyed_that_is_nowhere_else(self) -> None:
        """But by the ceiling, which says so."""
        for number, what in self.world.destroyed.items():
            told = any(
                f"instance {number} was DESTROYED by the ceiling" in text for text in self.driver.texts
            )
            assert told, f"{what} was destroyed with instance {number}, and nobody said why"

    def teardown(self) -> None:
        logging.getLogger().removeHandler(self.watch)
        if not hasattr(self, "driver"):
            return
        self.good_times()
        self.end_the_sweep()
        self.whatever_is_left_is_kept_and_told()
        if self.kept() and not self.driver.spent_out:
            self.drive_on_until_it_is_home()
        self.nothing_was_breached()
        self.nothing_was_destroyed_that_is_nowhere_else()
        self.the_bill_is_below_the_ceiling()
        ledger = self.driver.folder / FILE
        assert not ledger.exists() or KEY not in ledger.read_text()
        TALLY.update(self.server.faults)
        TALLY.update(self.world.counts)
        TALLY["faults of the service"] += self.server.faults.total()
        TALLY["results at home"] += len(self.world.results)
        TALLY["requests"] += len(self.server.requests)

    def good_times(self) -> None:
        self.server.calm()
        self.server.offers = [
            offer(1),
            offer(2, dph_total=0.9),
            offer(3, dph_total=0.95),
            offer(4, dph_total=1.0),
        ]
        self.world.moods.clear()
        self.world.kill_in = None
        self.world.cut.clear()
        self.world.trickling.clear()
        self.server.dated = True
        for machine in self.mine():
            machine.stuck = machine.frozen = False
        self.clock.sleep(120)

    def end_the_sweep(self) -> None:
        if self.driver.executor is None:
            self.driver.start()
        if self.driver.executor is not None:
            self.driver.executor.cancel_all()

    def kept(self) -> list[Lease]:
        return Ledger(self.driver.folder / FILE).all_kept()

    def whatever_is_left_is_kept_and_told(self) -> None:
        """The one exception to "no instance outlives the sweep"."""
        kept = {lease.instance_id: lease for lease in self.kept()}
        TALLY["instances kept at the end"] += len(kept)
        assert self.mine() == [m for m in self.mine() if m.id in kept], "an instance outlived the sweep"
        for machine in self.mine():
            assert machine.cur_state == "stopped"
            words = f"instance {machine.id} is stopped and KEPT for {kept[machine.id].job_id}"
            assert any(words in text for text in self.driver.texts), "nobody was told"
        self.the_ledger_knows_of_all_that_was_billed()

    def drive_on_until_it_is_home(self) -> None:
        """The same command again, in good times."""
        self.driver.executor = None
        self.driver.at_work.clear()
        self.driver.start()
        for name in sorted({lease.job_id for lease in self.kept()}):
            if self.drives() and not self.driver.finished(name):
                self.driver.submit(name)
        TALLY["sweeps driven on for what was kept"] += 1
        for _ in range(30):
            if not self.drives() or not (self.driver.at_work or self.kept()):
                break
            self.driver.wait(3600.0)
            self.driver.wait(60.0)
            for name in sorted({lease.job_id for lease in self.kept()} - self.driver.at_work):
                # its host is dead: what was told lost is run again elsewhere, as a driver would
                if self.drives() and not self.driver.finished(name):
                    self.driver.submit(name)
        if self.driver.executor is not None:
            self.driver.executor.cancel_all()
        if self.driver.spent_out:
            return
        dead = {machine.id for machine in self.mine() if machine.silent_since is not None}
        assert not {machine.id for machine in self.mine()} - dead, "what was kept did not come home"
        TALLY["sweeps whose kept results all came home"] += not dead


def run_profile(service: LoopbackVast, folders: Path, *, examples: int, steps: int) -> None:
    """The same examples each time, so that what they meet can be asserted."""
    RentedSweep.service, RentedSweep.folders = service, folders
    TALLY.clear()
    bounds = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        database=None,
        derandomize=True,
        # a sweep is long: shrinking one takes longer than reading it
        phases=[Stage.generate],
    )
    run_state_machine_as_test(RentedSweep, settings=bounds)  # type: ignore[no-untyped-call]
    print("\n" + "\n".join(f"{count:8} {what}" for what, count in sorted(TALLY.items())))


def never_happened(*parts: str) -> set[str]:
    """Which of these kinds of event, told by how they begin, never occurred."""
    return {part for part in parts if not any(name.startswith(part) and n for name, n in TALLY.items())}


#: what every profile must meet, or its invariants were not tested
OCCURRED = (
    *(f"{endpoint}: " for endpoint in ENDPOINT_MOODS),
    *(f"instance: {mood}" for mood in ("before", "after", "damaged", "refused", "stuck", "lies")),
    *(f"weather: {what}" for what in ("outbid", "dies", "stuck", "frozen", "cut", "trickle")),
    *("driver killed: ", "clock: set", "clock: the laptop slept", "stopped themselves"),
    *("ends told: 0", "ends told: 3", "ends told: -15", "ends told: lost"),
    *(
        "instances kept at the end",
        "sweeps whose kept results all came home",
        "sweeps ended by their ceiling",
    ),
)


def test_a_rented_sweep_survives(service: LoopbackVast, tmp_path: Path) -> None:
    run_profile(service, tmp_path, examples=100, steps=40)
    assert not never_happened(*OCCURRED)


@pytest.mark.slow
def test_a_rented_sweep_survives_at_length(service: LoopbackVast, tmp_path: Path) -> None:
    """With kills at every place; each single kind of fault has its turn in `test_vast_lifecycle`."""
    run_profile(service, tmp_path, examples=400, steps=40)
    killed = [f"driver killed: {where} an append" for where in ("before", "torn", "after")]
    assert not never_happened(*OCCURRED, *killed)
