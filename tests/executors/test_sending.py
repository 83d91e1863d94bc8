"""Large files on their way: resumed, checked, given up when they stand still; one does not wait for another."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.loopback_instances import HurriedClock, LoopbackInstances
from tests.executors.loopback_vast import LoopbackVast, Machine
from tests.executors.test_remote_work import A, packed, through
from tests.executors.vast_faults import KEY
from universal_simulator.executors import instance_agent, sending
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.course import Course, TransferFailed, Way
from universal_simulator.executors.sending import send
from universal_simulator.executors.ssh_transport import SSHTransport
from universal_simulator.executors.transport import (
    DamagedCopy,
    InstanceRefused,
    InstanceUnreachable,
    Patience,
    RemoteFolder,
)


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, HurriedClock(1.0)) as server:
        yield server


class Line:
    """To one machine; `large`: bytes from which a file goes by itself."""

    def __init__(self, service: LoopbackVast, root: Path) -> None:
        service.reset(HurriedClock(1.0))
        service.load_s = 0.0
        self.machine: Machine = service.rent("usim-s-r-0-00000001")
        self.instances = LoopbackInstances(service, root / "disks")
        self.folder = RemoteFolder(self.instances.transport(self.machine.id), "usim", Patience(stuck_s=10.0))
        self.disk = self.instances.disk(self.machine.id) / "usim"
        self.folder.put(Path(instance_agent.__file__).read_bytes(), "agent.py")
        self.scratch = root / "cloud"

    def way(self, **files: Path) -> Way:
        return send(self.folder, {f"data/{name}": path for name, path in files.items()}, scratch=self.scratch)

    def offsets(self) -> list[int]:
        """At which something began to be received."""
        scripts = [script for _, script in self.instances.commands if "agent.py receive" in script]
        return [int(script.split("incoming/")[1].split()[1]) for script in scripts]


@pytest.fixture
def line(service: LoopbackVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(sending, "LARGE", 100_000)
    line = Line(service, tmp_path)
    yield line
    line.instances.end_all()


def slowly(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent there takes a block of 64 KiB every tenth of a second."""
    agent = line.disk / "agent.py"
    text = agent.read_text()
    assert "os.read(0, 1 << 20)" in text
    agent.write_text(text.replace("os.read(0, 1 << 20)", "(time.sleep(0.1), os.read(0, 1 << 16))[1]"))


def test_a_file_that_broke_off_goes_on_from_there_and_the_instance_hears_that_somebody_lives(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(2_000_000))
    slowly(line, monkeypatch)
    course = Course(line.way(big=big))
    alive = line.disk / "job" / "alive"
    while course.moved < 300_000:
        assert course.step() is None
    os.utime(alive, (1.0, 1.0))
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        course.step()
    assert alive.stat().st_mtime > 1.0, "bytes that arrive are a sign of life"
    course.cancel()
    (arriving,) = (p for p in (line.disk / "incoming").iterdir() if p.suffix != ".done")
    there = arriving.stat().st_size
    assert 0 < there < 2_000_000
    line.folder.put(Path(instance_agent.__file__).read_bytes(), "agent.py")
    assert through(line.way(big=big)) == 1
    assert line.offsets()[0] == 0
    assert line.offsets()[1] >= there > 0, "nothing that had arrived was sent again"
    assert (line.disk / "data" / "big").read_bytes() == big.read_bytes()
    # begun again nothing is sent, and nothing of it was copied on this machine
    assert through(line.way(big=big)) == 1
    assert len(line.offsets()) == 2
    assert not line.scratch.exists()


def test_what_is_there_is_not_sent_again_until_it_is_another_file(line: Line, tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    for content in (b"1" * 200_000, b"2" * 300_000, b"1" * 200_000):
        big.write_bytes(content)
        assert through(line.way(big=big)) == 1
        assert (line.disk / "data" / "big").read_bytes() == content
    small.write_bytes(b"small")
    for _ in range(2):
        assert through(line.way(big=big, small=small)) == 2
    assert len(line.offsets()) == 4
    assert (line.disk / "data" / "small").read_bytes() == b"small"
    assert not list(line.scratch.iterdir()), "bundles are gone"


def test_a_writer_thought_dead_changes_nothing_when_it_writes_on(line: Line, tmp_path: Path) -> None:
    """The connection is lost here and not there: its writer and the next one write at the same places."""
    big = tmp_path / "big"
    big.write_bytes(os.urandom(400_000))
    line.folder.run("mkdir -p incoming job")
    for offset in (0, 100_000, 0):
        with open(big, "rb") as given:
            given.seek(offset)
            running = line.folder.transport.begin(
                f"cd usim && python3 agent.py receive job incoming/x {offset}",
                given=given,
                output=open(tmp_path / "out", "w+b"),  # noqa: SIM115
            )
            assert running.ended(10.0)
    assert (line.disk / "incoming" / "x").read_bytes() == big.read_bytes()


def test_what_arrived_otherwise_is_thrown_away_and_sent_anew(line: Line, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"1" * 200_000)
    (line.disk / "incoming").mkdir()
    arriving = line.disk / "incoming" / hashlib.sha256(big.read_bytes()).hexdigest()
    arriving.write_bytes(b"2" * 150_000)
    with pytest.raises(DamagedCopy, match="sent again"):
        through(line.way(big=big))
    assert through(line.way(big=big)) == 1
    assert line.offsets() == [150_000, 0]
    assert (line.disk / "data" / "big").read_bytes() == big.read_bytes()


def test_a_line_that_stands_still_is_given_up_and_holds_nobody_up(tmp_path: Path) -> None:
    """ssh that connects and then moves nothing, in both directions."""
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    shell = SSHTransport("host", 22, known_hosts=tmp_path / "hosts", program=str(program))
    folder = RemoteFolder(shell, "usim", Patience(stuck_s=0.4))
    (tmp_path / "big").write_bytes(b"1" * 5_000_000)
    with open(tmp_path / "out", "w+b") as output:
        running = shell.begin("cat", given=None, output=output)
        child = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()[-1]
        assert os.getsid(int(child)) != os.getsid(0), "Ctrl-C ends no transfer; the driver does"
        running.kill()
    with open(tmp_path / "big", "rb") as given, open(tmp_path / "out", "w+b") as output:
        up = Course(_counted(folder, given, output))
        down = Course(_counted(folder, None, open(tmp_path / "out2", "w+b")))  # noqa: SIM115
        longest = 0.0
        for course in (up, down):
            given_up = ""
            while not given_up:
                begun = time.monotonic()
                try:
                    assert course.step() is None
                except InstanceUnreachable as error:
                    given_up = str(error)
                longest = max(longest, time.monotonic() - begun)
            assert "none for" in given_up
        assert longest < 0.3, "a look at it waits for nothing"


def _counted(folder: RemoteFolder, given: object, output: object) -> Way:
    yield from folder.moving("cat", given=given, output=output, within_s=60.0)  # type: ignore[arg-type]
    return 1


def test_a_copy_home_is_bounded_in_bytes_and_time_by_what_was_told(line: Line, tmp_path: Path) -> None:
    line.folder.put(packed({"a": b"1"}, A), "out.tar")
    staging = tmp_path / "staging"
    with pytest.raises(DamagedCopy, match="were told"):
        through(line.folder.get("cat /dev/zero", staging, max_bytes=50_000))
    # one byte a moment is no standstill, and still too slow for what was told
    line.folder.patience = Patience(command_s=0.5, bytes_per_s=1e5, stuck_s=60.0)
    with pytest.raises(InstanceUnreachable, match="bytes in"):
        through(
            line.folder.get(f": {tmp_path}; while sleep 0.05; do printf x; done", staging, max_bytes=50_000)
        )
    at_work = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(b"printf x" in words and bytes(tmp_path) in words for words in at_work), (
        "nothing goes on here"
    )
    line.folder.patience = Patience()
    assert through(line.folder.get("cat out.tar", staging, max_bytes=50_000)) == A


def test_what_this_machine_lacks_is_the_transfer_s_trouble_and_no_more(line: Line, tmp_path: Path) -> None:
    def fails(error: BaseException) -> Way:
        yield 1
        raise error

    for error in (OSError(28, "No space left on device"), MemoryError()):
        course = Course(fails(error))
        assert course.step() is None
        with pytest.raises(TransferFailed, match=r"No space left|MemoryError"):
            course.step()
    with pytest.raises(TransferFailed, match="No such file"):
        Course(line.way(absent=tmp_path / "absent")).step()


def test_an_instance_without_room_says_so(line: Line, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"1" * 200_000)
    agent = line.disk / "agent.py"
    agent.write_text("import sys; sys.exit('No space left on device')")
    with pytest.raises(InstanceRefused, match="No space left"):
        through(line.way(big=big))
    agent.write_text("")
    with pytest.raises(InstanceRefused, match="took 0 and no more"):
        through(line.way(big=big))


def test_what_cannot_be_sent_in_time_or_finds_no_room_is_told_with_its_arithmetic() -> None:
    settings = CloudSettings(ceiling_usd=1.0)
    settings.refuse_too_heavy("a", 24_700_000_000)
    with pytest.raises(Exception, match=r"90\.0 GB would be sent to each instance, 7200 s at 100 Mbit/s"):
        settings.refuse_too_heavy("a", 90_000_000_000)
    small = settings.model_copy(update={"disk_gb": 32.0})
    with pytest.raises(Exception, match=r"24\.7 GB do not fit .* disk of 32 GB"):
        small.refuse_too_heavy("a", 24_700_000_000)
