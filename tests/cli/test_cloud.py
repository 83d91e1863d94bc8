"""usim cloud and --executor vast against the loopback service: what is told, and that no key is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.executors.contract import ends_of
from tests.executors.loopback_instances import HurriedClock
from tests.executors.loopback_vast import LoopbackVast, offer
from tests.executors.vast_faults import KEY
from tests.sweep.test_job_queue import planned
from universal_simulator.cli import app
from universal_simulator.errors import UserError
from universal_simulator.executors.cloud_ledger import FILE, Ledger
from universal_simulator.executors.renting import renting_settings, vast_executor
from universal_simulator.sweep.executor import Job, JobEnd


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, HurriedClock(1.0)) as server:
        monkeypatch.setenv("VAST_URL", server.url)
        monkeypatch.setenv("VAST_API_KEY", KEY)
        # complete looks five seconds apart would make the test wait
        monkeypatch.setattr("universal_simulator.executors.reaper.LOOK_PAUSE_S", 0.0)
        monkeypatch.setattr("universal_simulator.executors.vast_client.LOOK_PAUSE_S", 0.0)
        yield server


def usim(*words: str) -> Result:
    answer = CliRunner().invoke(app, list(words))
    assert KEY not in answer.output
    assert KEY not in repr(answer.exception)
    return answer


def rented(folder: Path, server: LoopbackVast, job: str) -> tuple[Ledger, int]:
    """A lease as a driver that died would leave it."""
    ledger = Ledger(folder / FILE)
    now = server.clock()
    ledger.open("usim", "s", now)
    lease = ledger.intend(
        job,
        ("run",),
        log=folder / "log",
        machine_class="small",
        offer_id=1,
        usd_per_hour=0.8,
        now=now,
        disk_usd_per_hour=0.1,
    )
    machine = server.rent(lease.label)
    ledger.rented(lease.label, machine.id, now)
    return ledger, machine.id


def test_search_tells_offers_and_rents_nothing(service: LoopbackVast) -> None:
    service.offers = [offer(1), offer(2, dph_total=0.5, gpu_ram=81920), offer(3, dph_total=9.0)]
    answer = usim("cloud", "search", "--machine", "large", "--json")
    assert answer.exit_code == 0, answer.output
    assert [(row["id"], row["usd_per_hour"]) for row in json.loads(answer.output)] == [(2, 0.5)]
    assert "A100" in usim("cloud", "search").output
    service.offers = []
    assert "no offer meets" in usim("cloud", "search", "--spot").output
    assert isinstance(usim("cloud", "search", "--machine", "huge").exception, UserError)
    assert not service.machines


def test_status_and_reap_know_their_own(service: LoopbackVast, tmp_path: Path) -> None:
    assert isinstance(usim("cloud", "status", str(tmp_path)).exception, UserError)
    ledger, wanted = rented(tmp_path, service, "train:a")
    stray = service.rent(f"usim-{ledger.sweep}-train.b-0-00000001")
    other = service.rent("usim-othersweep-train.b-0-00000001")
    told = json.loads(usim("cloud", "status", str(tmp_path), "--json").output)
    assert {row["id"]: row["job"] for row in told["instances"]} == {wanted: "train:a", stray.id: None}
    assert str(other.id) in usim("cloud", "status").output
    told = json.loads(usim("cloud", "reap", str(tmp_path), "--json").output)
    assert (told["destroyed"], told["left"]) == ([stray.id], [{"id": wanted, "job": "train:a"}])
    assert "still rented" in usim("cloud", "reap", str(tmp_path)).output
    told = json.loads(usim("cloud", "reap", str(tmp_path), "--all", "--json").output)
    assert (told["destroyed"], told["left"]) == ([wanted], [])
    assert list(service.machines) == [other.id]
    assert not Ledger(tmp_path / FILE).live()


def test_the_status_of_a_sweep_tells_what_is_rented_kept_and_spent(
    service: LoopbackVast, tmp_path: Path
) -> None:
    state = planned(tmp_path)
    asked = ("sweep", "status", str(tmp_path))
    assert json.loads(usim(*asked, "--json").output)["cloud"] is None
    ledger, number = rented(tmp_path, service, "train:a")
    requests = len(service.requests)
    told = json.loads(usim(*asked, "--json").output)["cloud"]
    assert [(lease["id"], lease["job"]) for lease in told["rented"]] == [(number, "train:a")]
    assert told["spent_usd"] > 0
    assert f"rented: {number} for train:a, $" in usim(*asked).output
    (lease,) = ledger.live()
    ledger.kept(lease.label, JobEnd("train:a", -255, 9.0, lost=True), ledger.latest, reason="a bad line")
    answer = usim(*asked).output
    assert f"instance {number} is stopped and KEPT for train:a: a bad line" in answer
    assert "rented: " not in answer
    assert "spent on rented machines" in answer
    assert all(run.run_id in answer for run in state.runs)
    assert len(service.requests) == requests, "nobody is asked"


def test_what_is_kept_is_told_with_its_price_and_its_end_and_destroyed_only_on_demand(
    service: LoopbackVast, tmp_path: Path
) -> None:
    ledger, number = rented(tmp_path, service, "train:a")
    (lease,) = ledger.live()
    ledger.kept(lease.label, JobEnd("train:a", -255, 9.0, lost=True), service.clock(), reason="a bad line")
    service.machines[number].cur_state = service.machines[number].intended_status = "stopped"
    for command in ("status", "reap"):
        answer = usim("cloud", command, str(tmp_path))
        assert f"instance {number} is stopped and KEPT for train:a: a bad line" in answer.output
        assert (
            f"$0.1000 an hour until it is destroyed. To fetch it: usim sweep resume {tmp_path}"
            in answer.output
        )
        assert f"usim cloud reap {tmp_path} --all" in answer.output
        told = json.loads(usim("cloud", command, str(tmp_path), "--json").output)
        assert len(told["kept"]) == 1
    assert list(service.machines) == [number]
    told = json.loads(usim("cloud", "reap", str(tmp_path), "--all", "--json").output)
    assert (told["destroyed"], told["kept"], service.machines) == ([number], [], {})


def test_an_estimate_on_rented_machines_needs_a_folder_that_stays(service: LoopbackVast) -> None:
    """In a temporary one the ledger of what is rented would end with the command."""
    answer = usim("sweep", "estimate", "smoke", "--executor", "vast", "--ceiling-usd", "5")
    assert isinstance(answer.exception, UserError)
    assert answer.exception.exit_code == 2
    assert "--folder" in str(answer.exception)
    assert not service.requests


def test_nothing_is_rented_without_a_ceiling_or_with_a_slip_in_the_settings(
    service: LoopbackVast, tmp_path: Path
) -> None:
    answer = usim("sweep", "run", "smoke", "--folder", str(tmp_path / "s"), "--executor", "vast")
    assert "nothing is rented without a ceiling" in str(answer.exception)
    file = tmp_path / "cloud.yaml"
    file.write_text("ceiling_usd: 5\nspott: true\n")
    with pytest.raises(UserError, match="spott"):
        renting_settings(file, None)
    file.write_text("ceiling_usd: 5\nspot: true\n")
    assert renting_settings(file, 7.0).ceiling_usd == 7.0
    with pytest.raises(UserError):
        renting_settings(file, float("nan"))
    assert not service.requests


def test_the_executor_of_the_command_line_makes_data_here_and_needs_a_key_that_exists(
    service: LoopbackVast, tmp_path: Path
) -> None:
    executor = vast_executor(renting_settings(None, 5.0), os.environ, slots=2)
    executor.submit(Job("data", ("version",), tmp_path / "log", tmp_path))
    (end,) = ends_of(executor).values()
    assert (end.job_id, end.exit_code) == ("data", 0)
    assert not executor.attach("train:a", tmp_path)
    executor.cancel_all()
    assert not service.requests, "nothing was asked of the service"
    file = tmp_path / "cloud.yaml"
    file.write_text("ceiling_usd: 5\nssh_key: absent\n")
    with pytest.raises(UserError, match="ssh_key: absent does not exist"):
        vast_executor(renting_settings(file, None), os.environ, slots=2)
