"""What leaves for a rented machine: code archive, onstart, scripts, files on its disk. No secret is in it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.contract import ends_of, errand
from tests.executors.loopback_instances import HurriedClock
from tests.executors.loopback_vast import LoopbackVast, Machine
from tests.executors.test_vast_ai import HURRY, Cloud
from tests.executors.vast_faults import KEY
from tests.test_credentials import plant
from universal_simulator.errors import UserError
from universal_simulator.executors.code_archive import pack_code
from universal_simulator.source_tree import checkout_root, collect


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The account's key is in the environment, as a user's would be."""
    found = plant(tmp_path / "home", monkeypatch)
    monkeypatch.setenv("VAST_API_KEY", KEY)
    return [*found, KEY]


@pytest.fixture
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with LoopbackVast(KEY, HurriedClock(HURRY)) as server:
        cloud = Cloud(server, tmp_path_factory.mktemp("disks"))
        yield cloud
        cloud.instances.end_all()


def test_no_secret_reaches_a_rented_machine(planted: list[str], cloud: Cloud, tmp_path: Path) -> None:
    disks: dict[str, bytes] = {}

    def keep_and_end(machine: Machine, for_good: bool) -> None:
        for path in cloud.instances.disk(machine.id).rglob("*"):
            if path.is_file():
                disks[str(path)] = path.read_bytes()
        cloud.instances.end(machine, for_good)

    cloud.server.on_end = keep_and_end
    folder = tmp_path / "sweep"
    executor = cloud.executor(command=("sh", "-c", "env; tr '\\0' ' ' < /proc/$PPID/cmdline"))
    job = errand(folder, "train:x", "say")
    executor.submit(job)
    (end,) = ends_of(executor).values()
    assert end.exit_code == 0
    executor.cancel_all()
    assert cloud.archive is not None
    left = {
        "onstart, image and environment": repr(cloud.server.bodies).encode(),
        "scripts run there": repr(cloud.instances.commands).encode(),
        "code archive": gzip.decompress(cloud.archive.content),
        **disks,
        **{str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()},
    }
    assert b"CONTAINER_ID" in job.log.read_bytes(), "the job told its whole environment"
    assert len(disks) > 5
    assert b"onstart" in left["onstart, image and environment"]
    for secret in planted:
        assert [name for name, content in left.items() if secret.encode() in content] == [], secret
    assert cloud.server.leaks == []


def test_code_that_holds_a_secret_does_not_leave(planted: list[str], tmp_path: Path) -> None:
    """One left in a config, as happens."""
    for name, content in collect(checkout_root()).items():
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_bytes(content)
    (tmp_path / "code" / "configs" / "mine.yaml").write_text(f"# key: {planted[0]}\n")
    with pytest.raises(UserError, match=r"configs/mine\.yaml holds a secret") as refusal:
        pack_code(tmp_path / "code", working_folder=tmp_path / "code")
    assert planted[0] not in str(refusal.value)
