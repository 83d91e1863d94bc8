"""Rented instances behind the executor contract: real commands in folders that stand for machines."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.executors.contract import ERRAND, USIM, ExecutorContract, Make, ends_of
from tests.executors.loopback_instances import HurriedClock, LoopbackInstances
from tests.executors.loopback_vast import LoopbackVast
from tests.executors.vast_faults import KEY
from universal_simulator.configuration import load_config
from universal_simulator.executors.cloud_ledger import Lease
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.code_archive import CodeArchive, pack_code
from universal_simulator.executors.job_files import read_errand
from universal_simulator.executors.remote_workplace import Outfit, RemoteWorkplace
from universal_simulator.executors.vast_ai import VastExecutor
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import Instance
from universal_simulator.executors.workplace import Workplace
from universal_simulator.experiment import ensure_dataset
from universal_simulator.identity import run_identity
from universal_simulator.run_record import RunFolder, RunRecord, read_document
from universal_simulator.sweep.executor import Executor, Job
from universal_simulator.sweep.journal import Journal

#: seconds of the service in one of ours
HURRY = 60.0


class Cloud:
    """A loopback service, its instances, and executors that rent there."""

    def __init__(self, server: LoopbackVast, root: Path, *, hurry: float = HURRY) -> None:
        self.server, self.root = server, root
        server.reset(HurriedClock(hurry))
        server.load_s = 0.0
        self.instances = LoopbackInstances(server, root)
        self.archive: CodeArchive | None = None

    def client(self) -> VastClient:
        clock = self.server.clock
        return VastClient(self.server.url, SecretStr(KEY), clock=clock, sleep=clock.sleep, patience_s=60.0)

    def settings(self, **changed: Any) -> CloudSettings:
        values: dict[str, Any] = {
            "ceiling_usd": 100.0,
            "python": sys.executable,
            "setup": (),
            "poll_s": 6.0,
            "unreachable_s": 30.0,
            "checkpoint_s": 30.0,
            "launches_per_hour": 100,
        }
        return CloudSettings(**values | changed)

    def executor(
        self,
        slots: int = 1,
        *,
        command: tuple[str, ...] | None = None,
        shared_disk: bool = False,
        settings: CloudSettings | None = None,
        **outfit: Any,
    ) -> VastExecutor:
        settings = settings or self.settings()
        self.archive = self.archive or pack_code()
        archive = self.archive

        def workplace(job: Job, lease: Lease, instance: Instance) -> Workplace:
            errand = read_errand(job)
            dress = Outfit(
                archive,
                setup=settings.setup,
                python=settings.python,
                command=command,
                sweep=str(errand.folder) if shared_disk else "sweep",
                silence_s=settings.silence_s,
                service=self.server.url,
                **outfit,
            )
            mirror = errand.folder / "cloud" / f"{lease.label}.log"
            return RemoteWorkplace(self.instances.transport(instance.id), errand, dress, mirror=mirror)

        return VastExecutor(self.client(), settings, slots=slots, workplace_of=workplace)


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, HurriedClock(HURRY)) as server:
        yield server


@pytest.fixture
def cloud(service: LoopbackVast, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    cloud = Cloud(service, tmp_path_factory.mktemp("disks"))
    yield cloud
    cloud.instances.end_all()


class TestVastAi(ExecutorContract):
    outlives_driver = True
    tells_loss = True

    @pytest.fixture
    def make(self, cloud: Cloud) -> Make:
        self.cloud = cloud

        def factory(slots: int = 1, *, command: tuple[str, ...] = ERRAND) -> Executor:
            # errands write where the test looks; `usim` really goes there and comes back
            real = command == USIM
            return cloud.executor(slots, command=None if real else command, shared_disk=not real)

        return factory

    def take_worker_away(self, executor: Executor, job_id: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        for machine in list(self.cloud.server.machines.values()):
            self.cloud.server.machines.pop(machine.id)
            self.cloud.instances.end(machine, True)


@pytest.mark.slow
def test_a_real_run_is_trained_evaluated_and_opened_on_three_instances(cloud: Cloud, tmp_path: Path) -> None:
    """Data from here, then made there; the record comes home each time with one answer more."""
    identity = ensure_dataset("burgers_smoke", tmp_path / "data" / "burgers_smoke.hdf5").identity
    loaded = load_config("rerun_txxoc8a8", ["seed=0"], profile="smoke")
    run_id = run_identity(loaded.config.name, config_hash=loaded.hash, data_identity=identity, seed=0)
    files = RunFolder(tmp_path, run_id)
    Journal(tmp_path / "journal.jsonl").append("test_opened", runs=[run_id], opening="one")
    folder = ("--folder", str(tmp_path), "--profile", "smoke")
    steps: dict[str, tuple[str, ...]] = {
        "train": ("run", "rerun_txxoc8a8", *folder, "--run-id", run_id, "seed=0"),
        "full": ("evaluate", str(files.path), "--suite", "full"),
        "test": ("evaluate", str(files.path), "--suite", "test", "--opening", "one"),
    }
    for what, words in steps.items():
        made = {"data": {"burgers_smoke": identity}} if what == "full" else {}
        executor = cloud.executor(1, **made)
        log = tmp_path / f"{what}.log"
        executor.submit(Job(f"{what}:{run_id}", words, log, tmp_path))
        (end,) = ends_of(executor, timeout_s=400).values()
        assert end.exit_code == 0, log.read_text()
        executor.cancel_all()
    record = read_document(files.summary, RunRecord)
    assert sorted(record.evaluations) == ["full_eval", "small_eval", "test"]
    assert (tmp_path / "reports" / f"eval_{run_id}.html").exists()
    assert not cloud.server.live()
    assert len(cloud.server.creates) == 3
