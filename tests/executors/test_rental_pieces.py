"""The pieces of a rental: witnesses of silence, the clock that bills, the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from universal_simulator.errors import BudgetError, ExecutorError
from universal_simulator.executors.cloud_ledger import FILE, Ledger
from universal_simulator.executors.rental_phase import Phase, phase_of
from universal_simulator.executors.service_clock import ServiceClock
from universal_simulator.executors.silence import Silence
from universal_simulator.sweep.executor import JobEnd

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
