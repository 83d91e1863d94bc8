"""Client and reaper through any order of what a sweep does and a service gets wrong, by a state machine."""

from __future__ import annotations

import logging
import traceback

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.executors.loopback_vast import Clock, LoopbackVast, Machine, offer
from tests.executors.vast_faults import FOREIGN, KEY, KeyWatch, faults
from tests.executors.vast_world import World
from universal_simulator.executors.reaper import Journalled, new_label, parse_label, reap
from universal_simulator.executors.vast_replies import (
    CloudError,
    CreateOutcome,
    Refused,
)

# --- everything at once ---

PROJECT, SWEEP = "usim", "s1"


class Sweep(RuleBasedStateMachine):
    """A driver as it should be (intent, create, look for the label, adopt; reap at start and end)
    against everything the service can do to it."""

    service: LoopbackVast
    journal: dict[str, Journalled]

    @initialize()
    def begin(self) -> None:
        self.service.reset(Clock())
        self.world = World(self.service)
        self.client, self.server, self.clock = self.world.client, self.service, self.service.clock
        self.journal = {}
        self.foreign: dict[int, str | None] = {}
        self.texts: list[str] = []
        self.attempts = 0
        self.crashed = False
        self.watch = KeyWatch()
        logging.getLogger().addHandler(self.watch)

    def can_launch(self) -> bool:
        return not self.crashed and len(self.wanted()) < 4

    def has_running(self) -> bool:
        return not self.crashed and any(entry.instance_id for entry in self.wanted())

    def wanted(self) -> list[Journalled]:
        return [entry for entry in self.journal.values() if entry.wanted]

    def note(self, label: str, instance_id: int | None = None, *, wanted: bool = True) -> None:
        self.journal[label] = Journalled(label, instance_id, wanted)

    def told(self, error: CloudError) -> None:
        self.texts.append("".join(traceback.format_exception(error)))

    def mine(self) -> list[Machine]:
        return [m for m in self.server.machines.values() if m.id not in self.foreign]

    def plan(self, **moods: list[str]) -> None:
        for endpoint, planned in moods.items():
            for mood in planned:
                # three looks see through two consistent lies, not through three
                if mood != "blank" or self.server.planned("list", "blank") < 2:
                    self.server.plan(endpoint, mood)

    def ask(self, bid: float | None) -> tuple[str, CreateOutcome]:
        self.attempts += 1
        busy = {runs_of(entry.label) for entry in self.wanted()}
        run = next(name for name in ("a", "b-1", "c", "d") if name not in busy)
        label = str(new_label(PROJECT, SWEEP, run, self.attempts))
        self.note(label)
        outcome = self.world.create(label, bid_usd_per_hour=bid)
        self.texts.append(repr(outcome))
        return label, outcome

    def end(self, label: str, instance_id: int) -> None:
        try:
            self.client.destroy_and_verify(instance_id, deadline_s=120)
        except CloudError as error:
            self.told(error)
            return
        self.note(label, instance_id, wanted=False)
        assert instance_id not in self.server.machines, "verified, yet alive"

    @precondition(can_launch)
    @rule(bid=st.sampled_from([None, None, 0.5, 0.35]), create=faults("create"), listing=faults("list"))
    def launch(self, bid: float | None, create: list[str], listing: list[str]) -> None:
        self.plan(create=create[:1], list=listing)
        began = self.clock.now
        label, outcome = self.ask(bid)
        if isinstance(outcome, Refused):
            self.note(label, wanted=False)
            assert not self.server.live(label), "refused, yet made"
            return
        try:
            found = self.client.find_label(label)
        except CloudError as error:
            self.told(error)  # the intent stays: the next start settles it
            return
        if not found:
            self.note(label, wanted=False)
            assert all(m.began > began for m in self.server.live(label)), "not found, yet there"
        elif found[0].outbid:
            self.end(label, found[0].id)
        else:
            self.note(label, found[0].id)

    @precondition(can_launch)
    @rule(create=faults("create"))
    def launch_and_die(self, create: list[str]) -> None:
        self.plan(create=create[:1])
        self.ask(None)
        self.crashed = True

    @rule(listing=faults("list"), destroy=faults("destroy"))
    def start(self, listing: list[str], destroy: list[str]) -> None:
        """A driver starts: nothing of ours is left that the journal does not want."""
        self.plan(list=listing, destroy=destroy)
        began = self.clock.now
        try:
            verdict = reap(self.client, self.journal.values(), project=PROJECT, sweep=SWEEP)
        except CloudError as error:
            self.told(error)
            return
        self.crashed = False
        for instance in verdict.adopt:
            assert instance.label is not None
            self.note(instance.label, instance.id)
        for entry in self.wanted():
            if entry.instance_id is None:
                self.note(entry.label, wanted=False)
        wanted = {entry.instance_id for entry in self.wanted()}
        orphans = {machine.id for machine in self.mine() if machine.began <= began} - wanted
        assert not orphans, "an orphan outlived the reaper"

    @precondition(has_running)
    @rule(data=st.data(), listing=faults("list"), destroy=faults("destroy"))
    def finish(self, data: st.DataObject, listing: list[str], destroy: list[str]) -> None:
        self.plan(list=listing, destroy=destroy)
        entry = data.draw(st.sampled_from([e for e in self.wanted() if e.instance_id]))
        assert entry.instance_id is not None
        self.end(entry.label, entry.instance_id)

    @precondition(has_running)
    @rule(data=st.data(), one=faults("one"))
    def look_at(self, data: st.DataObject, one: list[str]) -> None:
        self.plan(one=one)
        entry = data.draw(st.sampled_from([e for e in self.wanted() if e.instance_id]))
        assert entry.instance_id is not None
        try:
            instance = self.client.get(entry.instance_id)
        except CloudError as error:
            self.told(error)
            return
        assert (instance is None) == (entry.instance_id not in self.server.machines)
        assert instance is None or instance.label == entry.label

    @rule(seconds=st.sampled_from([1, 30, 3600]))
    def time_passes(self, seconds: int) -> None:
        self.clock.sleep(seconds)
        self.server.settle()

    @rule(
        what=st.sampled_from(["outbid", "dies", "stuck", "frozen", "dearer", "cheaper"]),
        which=st.integers(0, 5),
    )
    def weather(self, what: str, which: int) -> None:
        self.server.offers = [offer(1, min_bid=0.4 if what == "dearer" else 0.3)]
        machines = list(self.server.machines.values())
        if machines:
            machine = machines[which % len(machines)]
            if what == "outbid":
                self.server.outbid(machine)
            elif what == "dies":
                self.server.host_dies(machine)
            elif what == "stuck":
                machine.stuck = True
            elif what == "frozen":
                machine.frozen = True

    @rule(label=st.sampled_from(FOREIGN), many=st.sampled_from([1, 1, 1, 24]))
    def others_rent(self, label: str | None, many: int) -> None:
        if len(self.foreign) < 30:
            for _ in range(many):
                self.foreign[self.server.rent(label).id] = label

    @invariant()
    def no_create_is_sent_or_made_twice(self) -> None:
        assert all(count == 1 for count in self.server.creates.values())
        labels = [machine.label for machine in self.mine()]
        assert len(labels) == len(set(labels))
        runs = [runs_of(entry.label) for entry in self.wanted()]
        assert len(runs) == len(set(runs))

    @invariant()
    def others_are_never_touched(self) -> None:
        now = {i: m.label for i, m in self.server.machines.items() if i in self.foreign}
        assert now == self.foreign

    @invariant()
    def the_key_stays_secret(self) -> None:
        assert not any(KEY in text for text in self.texts)
        assert not self.watch.caught
        assert not self.server.leaks

    def teardown(self) -> None:
        logging.getLogger().removeHandler(self.watch)
        self.server.calm()
        self.clock.sleep(120)
        self.server.settle()
        ended = [Journalled(e.label, e.instance_id, wanted=False) for e in self.journal.values()]
        reap(self.client, ended, project=PROJECT, sweep=SWEEP)
        self.client.close()
        assert not self.mine(), "an instance outlived the sweep"
        self.others_are_never_touched()
        spent = sum(m.gpu_usd + m.disk_usd for m in self.server.buried)
        self.clock.sleep(3600)
        self.server.settle()
        assert sum(m.gpu_usd + m.disk_usd for m in self.server.buried) == spent, "billing goes on"


def runs_of(label: str) -> str:
    parsed = parse_label(label)
    assert parsed is not None
    return parsed.run


def test_a_sweep_survives_whatever_the_service_does(
    service: LoopbackVast, caplog: pytest.LogCaptureFixture
) -> None:
    Sweep.service = service
    caplog.set_level(logging.INFO, logger="httpx")
    bounds = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(Sweep, settings=bounds)  # type: ignore[no-untyped-call]
