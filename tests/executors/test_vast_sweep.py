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

from tests.executors.loopback_vast import LoopbackVast, Machine, offer
from tests.executors.simulated_cloud import SteppedClock, World
from tests.executors.simulated_driver import TALLY, Driver
from tests.executors.vast_faults import ENDPOINT_MOODS, FOREIGN, KEY, KeyWatch
from universal_simulator.executors.cloud_ledger import FILE, Lease, Ledger

JOBS = {"train:a": 1200.0, "train:b": 3600.0, "train:c": 600.0, "train:bad": 900.0}
#: bytes that some of them are sent, and that come home of them: 6 minutes and 4 on a good line
CARGO = {"train:b": 4_500_000_000, "train:c": 300_000_000}
HARVEST = {"train:b": 3_000_000_000, "train:a": 200_000_000}


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
def test_a_rented_sweep_survives_at_length(
    service: LoopbackVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With kills at every place, and drivers that do something else before they attach.

    Each single kind of fault has its turn in `test_vast_lifecycle`.
    """
    monkeypatch.setattr(Driver, "tarries", True)
    run_profile(service, tmp_path, examples=400, steps=40)
    killed = [f"driver killed: {where} an append" for where in ("before", "torn", "after")]
    assert not never_happened(*OCCURRED, *killed)
