"""What a rented job goes through, one trouble at a time, on simulated work; and the pieces by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.executors.loopback_vast import LoopbackVast, Machine, offer
from tests.executors.simulated_cloud import SteppedClock, World
from tests.executors.test_vast_client import ENDPOINT_MOODS, KEY
from tests.executors.test_vast_sweep import Driver
from universal_simulator.errors import BudgetError, ExecutorError, UserError
from universal_simulator.executors.cloud_ledger import CEILING, FILE, Ledger
from universal_simulator.executors.rental_phase import Phase, phase_of
from universal_simulator.executors.service_clock import ServiceClock
from universal_simulator.executors.silence import Silence
from universal_simulator.sweep.executor import Job, JobEnd, Resources


class Stage:
    """One world, one driver, one job of an hour called train:a."""

    def __init__(self, service: LoopbackVast, folder: Path, needs: dict[str, float] | None = None) -> None:
        self.clock = SteppedClock()
        service.reset(self.clock)
        self.server = service
        self.world = World(service, needs or {"train:a": 3600.0})
        self.clock.world = self.world
        self.folder = folder
        self.driver = Driver(self.world, folder, ceiling_usd=50.0)

    def settle(self, **changed: Any) -> None:
        self.driver.settings = self.driver.settings.model_copy(update=changed)

    def begin(self, *names: str, wait_s: float = 120.0) -> Machine | None:
        self.driver.start()
        for name in names or ("train:a",):
            self.driver.submit(name)
        self.driver.wait(wait_s)
        mine = self.server.live("usim-")
        return mine[0] if mine else None

    def codes(self, name: str = "train:a") -> list[int]:
        return [end.exit_code for end in self.driver.ends.get(name, [])]

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / FILE)


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, SteppedClock()) as server:
        yield server


@pytest.fixture
def stage(service: LoopbackVast, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(service, tmp_path)
    yield stage
    assert not stage.world.breaches
    told = "\n".join(stage.driver.texts)
    assert all(f"instance {i} was DESTROYED by the ceiling" in told for i in stage.world.destroyed)


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


def test_results_that_come_back_damaged_are_asked_for_again(stage: Stage) -> None:
    machine = stage.begin(wait_s=3500.0)
    assert machine is not None
    stage.clock.sleep(600)
    stage.world.moods.extend(["good", "damaged", "good", "refused"])
    stage.driver.wait(300.0)
    assert stage.codes() == [0]
    assert not stage.server.live()


def test_results_that_are_not_the_job_s_are_asked_for_once_and_their_instance_is_kept(stage: Stage) -> None:
    """A lie arrives intact however often it is asked for, and every hour of asking is rent."""
    machine = stage.begin(wait_s=3500.0)
    assert machine is not None
    stage.clock.sleep(600)
    stage.world.moods.extend(["good", "lies"])
    stage.driver.wait(120.0)
    assert (stage.codes(), machine.cur_state) == ([-255], "stopped")
    (lease,) = stage.ledger.all_kept()
    assert "not believed: the record that came back is of other code" in lease.reason
    # submitted again it is asked once more, and where it lies again the job is done elsewhere
    stage.world.moods.extend(["good", "lies"])
    stage.driver.submit("train:a")
    stage.driver.wait(300.0)
    assert len(stage.server.creates) == 2
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, 0]
    assert not stage.server.live()


def test_a_job_cancelled_just_after_its_end_brings_its_result_home_on_a_bad_line(stage: Stage) -> None:
    stage.begin(wait_s=10.0)
    stage.driver.wait(3500.0)
    stage.clock.sleep(300)
    stage.world.moods.extend(["before", "after", "good", "damaged"])
    stage.driver.cancel("train:a")
    assert stage.codes() == [0]
    assert "train:a" in stage.world.results
    assert not stage.server.live()


def cut_off(stage: Stage, machine: Machine, *, now: bool) -> None:
    """The line to one instance; everything else is well."""
    if now != (machine.id in stage.world.cut):
        stage.world.cuts(machine)


@pytest.mark.parametrize("finished", [True, False])
def test_a_job_cancelled_on_a_line_that_stays_bad_leaves_its_results_on_a_stopped_disk(
    stage: Stage, finished: bool
) -> None:
    """Not 20 seconds of it, and not the whole patience, destroy what is nowhere else."""
    machine = stage.begin(wait_s=3500.0 if finished else 1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.clock.sleep(300)
    asked = stage.clock()
    stage.driver.cancel("train:a")
    patience_s = stage.driver.settings.cancel_patience_s
    assert patience_s < stage.clock() - asked < patience_s + 60
    assert stage.codes() == [-15]
    assert (machine.cur_state, list(stage.server.machines)) == ("stopped", [machine.id])
    (lease,) = stage.ledger.all_kept()
    assert "is stopped and KEPT for train:a: cancelled" in stage.driver.job("train:a").log.read_text()
    # its GPU bills no more, its disk does, and the ledger says so
    billed, known = stage.server.spent_usd("usim-"), lease.spent_usd(stage.clock())
    stage.clock.sleep(10 * 3600)
    assert stage.server.spent_usd("usim-") - billed == pytest.approx(10 * 64 * 0.0002)
    assert lease.spent_usd(stage.clock()) - known == pytest.approx(10 * 0.1)
    # submitted again it is asked first, and nothing is worked or paid for a second time
    cut_off(stage, machine, now=False)
    stage.driver.submit("train:a")
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert stage.world.worked_s["train:a"] <= 3600.0 + 60.0
    assert len(stage.server.creates) == 1
    assert not stage.server.live()


def test_results_that_arrive_damaged_for_hours_are_kept_and_fetched_by_the_next_driver(stage: Stage) -> None:
    stage.begin(wait_s=3500.0)
    (machine,) = stage.server.live("usim-")
    stage.world.moods.extend(["good", *["damaged"] * 2000])
    stage.driver.wait(900.0)
    assert (stage.codes(), machine.cur_state) == ([], "running"), "minutes of it are no reason to give up"
    stage.driver.wait(2 * 3600.0)
    assert (stage.codes(), machine.cur_state) == ([-255], "stopped")
    assert "train:a" not in stage.world.results
    told = [text for text in stage.driver.texts if "KEPT" in text]
    assert f"usim cloud reap {stage.folder} --all" in told[-1]
    # the driver dies and is typed again; its journal says that the job was lost
    stage.driver.executor = None
    stage.world.moods.clear()
    stage.clock.sleep(86400)
    stage.driver.start()
    stage.driver.submit("train:a")
    stage.driver.wait(900.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, 0]
    assert stage.world.worked_s["train:a"] == 3600.0
    assert not stage.server.live()
    # two submissions to the driver, neither hours nor dollars of which are told twice
    lost, done = stage.driver.ends["train:a"]
    assert lost.submission != done.submission
    assert lost.seconds > 3600.0
    assert done.seconds == 0.0
    assert lost.usd is not None
    assert done.usd is not None
    assert done.usd < 0.2
    assert lost.usd + done.usd <= stage.ledger.spent_usd(stage.clock())


def test_what_was_kept_is_brought_home_though_nobody_submits_its_job_again(
    service: LoopbackVast, tmp_path: Path
) -> None:
    stage = Stage(service, tmp_path, {"train:a": 3600.0, "train:b": 3600.0})
    machine = stage.begin(wait_s=1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.driver.cancel("train:a")
    before = stage.world.saved_s["train:a"]
    stage.driver.executor = None
    cut_off(stage, machine, now=False)
    stage.driver.start()
    stage.driver.submit("train:b")
    stage.driver.wait(300.0)
    assert stage.world.saved_s["train:a"] > before
    assert stage.codes("train:a") == [-15], "its end was told once"
    assert [m.label for m in stage.server.live("usim-") if "train.a" in str(m.label)] == []


def test_a_job_submitted_after_a_recall_brought_its_result_home_ends_with_it_and_rents_nothing(
    stage: Stage,
) -> None:
    machine = stage.begin(wait_s=3500.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.clock.sleep(300)
    stage.driver.cancel("train:a")
    stage.driver.executor = None
    cut_off(stage, machine, now=False)
    stage.driver.start()
    assert stage.driver.executor is not None
    while stage.driver.executor.bring_home(60.0):
        pass
    assert "train:a" in stage.world.results
    # and the driver that fetched it dies before it is asked for it
    stage.driver.executor = None
    stage.driver.start()
    stage.driver.submit("train:a")
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert len(stage.server.creates) == 1
    first, second = stage.driver.ends["train:a"]
    assert first.submission != second.submission
    assert (first.usd, second.usd) != (None, None)
    assert (first.usd or 0.0) + (second.usd or 0.0) <= stage.ledger.spent_usd(stage.clock())
    assert second.seconds < 60.0
    assert not stage.server.live()


def test_a_driver_killed_when_it_woke_what_is_older_than_its_last_lease_is_followed_by_one_that_goes_on_there(
    stage: Stage,
) -> None:
    """The last lease went away at its start, so the one that was kept before was asked again."""
    machine = stage.begin(wait_s=1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.driver.cancel("train:a")
    cut_off(stage, machine, now=False)
    stage.driver.executor = None
    ledger, job = stage.ledger, stage.driver.job("train:a")
    words: dict[str, Any] = {"log": job.log, "machine_class": "small", "offer_id": 2, "usd_per_hour": 0.8}
    later = ledger.intend("train:a", job.arguments, **words, now=stage.clock())
    ledger.gone(later.label, stage.clock(), reason="refused")
    ledger.woken(ledger.all_kept()[0].label, stage.clock())
    stage.driver.at_work.add("train:a")
    stage.driver.start()
    assert stage.driver.executor is not None
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-15, 0]
    assert len(stage.server.creates) == 1
    assert not stage.server.live()


def test_a_kept_instance_that_does_not_come_back_is_left_for_another_and_goes_when_the_result_is_home(
    stage: Stage,
) -> None:
    dead = stage.begin(wait_s=1000.0)
    assert dead is not None
    stage.server.host_dies(dead)
    stage.driver.wait(2000.0)
    assert stage.codes() == [-255]
    stage.driver.submit("train:a")
    stage.driver.wait(1200.0)
    assert dead in stage.server.live("usim-")
    assert len(stage.server.live("usim-")) == 2
    stage.driver.wait(4000.0)
    stage.driver.wait(60.0)
    assert stage.codes() == [-255, 0]
    assert not stage.server.live()


def test_a_job_cancelled_before_its_instance_was_woken_is_told_no_cost_of_the_earlier_attempt(
    stage: Stage,
) -> None:
    machine = stage.begin(wait_s=1000.0)
    assert machine is not None
    cut_off(stage, machine, now=True)
    stage.driver.cancel("train:a")
    executor = stage.driver.executor
    assert executor is not None
    executor.slots = 0
    stage.driver.submit("train:a")
    assert executor.state("train:a") == "waiting"
    assert executor.use("train:a").usd == 0.0
    stage.driver.cancel("train:a")
    first, second = stage.driver.ends["train:a"]
    assert first.usd is not None
    assert first.usd > 0.2
    assert (second.usd, second.seconds, second.submission) == (0.0, 0.0, "")
    assert len(stage.ledger.all_kept()) == 1


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


# --- the pieces ---


def test_two_witnesses_agree_or_the_silence_lasts() -> None:
    silence = Silence(100.0)
    for now in range(0, 5000, 50):
        silence.unheard(float(now), None)
    assert silence.verdict is None, "nobody answers: this machine's own network"
    for now in (0.0, 60.0):
        silence.unheard(now, "ill")
    assert silence.verdict is None
    silence.unheard(120.0, "ill")
    assert "not running" in str(silence.verdict)
    silence.heard()
    assert silence.verdict is None
    for now in range(0, 1200, 100):
        assert silence.verdict is None
        silence.unheard(float(now), "well")
    assert "although the service calls it running" in str(silence.verdict)
    silence.heard()
    for now in (0.0, 1.0, 2.0):
        silence.unheard(now, "absent")
    assert "knew no such instance" in str(silence.verdict)


def test_the_clock_that_bills_is_the_service_s() -> None:
    mono, wall = [100.0], [5e9]
    clock = ServiceClock(lambda: mono[0], lambda: wall[0])
    assert clock.now() == 5e9
    clock.hear("Thu, 01 Jan 1970 01:00:00 GMT")
    mono[0] += 10
    assert clock.now() == 3610
    clock.hear("Thu, 01 Jan 1970 00:00:00 GMT")
    clock.hear("no date")
    clock.hear(None)
    assert clock.now() == 3610, "never back"
    clock.hear("Thu, 01 Jan 1970 05:00:00 GMT")
    assert clock.now() == 3610, "one answer alone is not believed"
    mono[0] += 5
    clock.hear("Thu, 01 Jan 1970 05:00:05 GMT")
    assert clock.now() == 5 * 3600 + 5


def test_a_ledger_is_what_it_was_when_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / FILE
    ledger = Ledger(path)
    ledger.open("usim", "my sweep!", 1000.0)
    lease = ledger.intend(
        "train:a/b",
        ("run",),
        log=tmp_path / "l",
        machine_class="small",
        offer_id=1,
        usd_per_hour=1.0,
        now=1000.0,
    )
    ledger.rented(lease.label, 7, 900.0)
    assert ledger.latest == 1000.0, "a clock set back writes nothing earlier"
    again = Ledger(path)
    assert (again.leases, again.sweep, again.latest) == (ledger.leases, ledger.sweep, 1000.0)
    assert again.spent_usd(4600.0) == pytest.approx(1.0)
    again.gone(lease.label, 2800.0, reason="done")
    again.stray(lease.label, 8, 0.25, 2900.0)
    again.stray(lease.label, 8, 0.5, 3000.0)
    assert Ledger(path).spent_usd(99999.0) == pytest.approx(1.0)
    assert Ledger(path).spent_usd(99999.0, "train:a/b") == pytest.approx(0.5)


def test_what_a_lease_costs_while_it_is_kept_and_woken_is_what_it_costs_when_it_is_read_again(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / FILE)
    ledger.open("usim", "s", 0.0)
    words: dict[str, Any] = {
        "log": tmp_path / "l",
        "machine_class": "small",
        "offer_id": 1,
        "usd_per_hour": 1.0,
    }
    told = ledger.intend("a", (), **words, disk_usd_per_hour=0.1, now=0.0).label
    untold = ledger.intend("b", (), **words, now=0.0).label
    lost = JobEnd("a", -255, 5.0, lost=True)
    for label in (told, untold):
        ledger.rented(label, 1, 0.0)
        ledger.kept(label, lost, 3600.0, reason="bad line")
    assert ledger.leases[told].spent_usd(2 * 3600.0) == pytest.approx(1.1)
    assert ledger.leases[untold].spent_usd(2 * 3600.0) == pytest.approx(2.0), "no price of a disk was told"
    assert phase_of(ledger.leases[told]) is Phase.DONE, "not closed: that would destroy it"
    ledger.woken(told, 2 * 3600.0)
    again = Ledger(tmp_path / FILE)
    assert again.leases == ledger.leases
    assert (again.leases[told].kept, again.leases[told].end) == (False, None)
    assert again.leases[told].spent_usd(3 * 3600.0) == pytest.approx(2.1)
    assert again.gone(told, 3 * 3600.0, reason="done").cost_usd == pytest.approx(2.1)
    assert [lease.label for lease in again.all_kept()] == [untold]


def test_errors_of_money_are_no_executor_errors() -> None:
    assert not issubclass(BudgetError, ExecutorError)
