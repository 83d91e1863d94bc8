"""Between here and an instance: the shell over ssh, files both ways, foreign results, the dead-man timer."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.executors.contract import until
from tests.executors.loopback_instances import HurriedClock, LoopbackInstances
from tests.executors.loopback_vast import LoopbackVast, Machine
from tests.executors.vast_faults import KEY
from tests.sweep.records import evaluation, run_record
from universal_simulator.errors import UserError
from universal_simulator.executors import instance_agent
from universal_simulator.executors.code_archive import CodeArchive
from universal_simulator.executors.dead_man import onstart_script
from universal_simulator.executors.job_files import (
    check_results,
    install,
    own_files,
    read_errand,
    words_there,
)
from universal_simulator.executors.remote_workplace import Outfit, RemoteWorkplace
from universal_simulator.executors.rental_phase import DESERTED
from universal_simulator.executors.sending import send
from universal_simulator.executors.ssh_transport import SSHTransport
from universal_simulator.executors.transport import (
    DamagedCopy,
    InstanceRefused,
    InstanceUnreachable,
    RemoteFolder,
    WrongResult,
    ask,
)
from universal_simulator.identity import code_version
from universal_simulator.run_record import RunFolder, RunRecord, write_json
from universal_simulator.sweep.executor import Job

# --- ssh ---

FAKE_SSH = """#!/bin/sh
echo "$@" >> "$0.args"
echo "Welcome! Have fun."
for last; do :; done
case "$last" in *LOSE*) exit 255;; esac
exec sh -c "$last"
"""


@pytest.fixture
def ssh(tmp_path: Path) -> SSHTransport:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    key = tmp_path / "id"
    key.write_text("PRIVATE-KEY-TEXT")
    return SSHTransport("host", 22, known_hosts=tmp_path / "k n" / "hosts", key=key, program=str(program))


def test_the_shell_over_ssh_skips_greetings_and_tells_refusal_from_silence(
    ssh: SSHTransport, tmp_path: Path
) -> None:
    assert ask(ssh, "printf 'a\\nb'", timeout_s=10) == b"a\nb"
    (tmp_path / "in").write_bytes(bytes(range(256)))
    with open(tmp_path / "in", "rb") as given:
        given.seek(200)
        assert ask(ssh, "cat", given=given, timeout_s=10) == bytes(range(200, 256))
    with pytest.raises(InstanceRefused, match="exit code 3: it's so"):
        ask(ssh, 'echo "it\'s so" >&2; exit 3', timeout_s=10)
    with pytest.raises(InstanceUnreachable):
        ask(ssh, "LOSE", timeout_s=10)
    with pytest.raises(InstanceUnreachable, match="no answer within"):
        ask(ssh, "exec sleep 5", timeout_s=0.3)
    nobody = SSHTransport("host", 22, known_hosts=tmp_path / "h", program=str(tmp_path / "absent"))
    with pytest.raises(InstanceUnreachable, match="could not be started"):
        ask(nobody, "true", timeout_s=1)
    assert "PRIVATE-KEY-TEXT" not in (tmp_path / "ssh.args").read_text()


def test_ssh_itself_understands_the_options_and_is_left_nothing(tmp_path: Path) -> None:
    transport = SSHTransport("host", 2222, known_hosts=tmp_path / "hosts", key=tmp_path / "id")
    answer = subprocess.run(
        ["ssh", "-G", *transport.options(), "host"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    told = dict(line.split(" ", 1) for line in answer.stdout.splitlines() if " " in line)
    wanted = {
        "user": "root",
        "port": "2222",
        "batchmode": "yes",
        "stricthostkeychecking": "accept-new",
        "passwordauthentication": "no",
        "forwardagent": "no",
        "identitiesonly": "yes",
        "userknownhostsfile": str(tmp_path / "hosts"),
        "permitlocalcommand": "no",
    }
    assert {name: told.get(name) for name in wanted} == wanted


# --- files ---

Answer = TypeVar("Answer")


@pytest.fixture
def service() -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, HurriedClock(1.0)) as server:
        yield server


@pytest.fixture
def machine(service: LoopbackVast) -> Machine:
    service.reset(HurriedClock(1.0))
    service.load_s = 0.0
    return service.rent("usim-s-r-0-00000001")


@pytest.fixture
def instances(service: LoopbackVast, machine: Machine, tmp_path: Path) -> Iterator[LoopbackInstances]:
    instances = LoopbackInstances(service, tmp_path / "disks")
    yield instances
    instances.end_all()


@pytest.fixture
def folder(instances: LoopbackInstances, machine: Machine) -> RemoteFolder:
    return RemoteFolder(instances.transport(machine.id), "usim")


def through(way: Generator[int, None, Answer]) -> Answer:
    """A transfer to its end."""
    while True:
        try:
            next(way)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def test_files_arrive_as_they_left_or_not_at_all(
    folder: RemoteFolder, instances: LoopbackInstances, machine: Machine, tmp_path: Path
) -> None:
    disk = instances.disk(machine.id) / "usim"
    folder.put(b"x" * 70_000, "a/it's one.bin")
    assert (disk / "a" / "it's one.bin").read_bytes() == b"x" * 70_000
    (tmp_path / "one").write_text("1")
    folder.put(Path(instance_agent.__file__).read_bytes(), "agent.py")
    assert (
        through(send(folder, {"b/one": tmp_path / "one", "b/it's two": tmp_path / "one"}, scratch=tmp_path))
        == 2
    )
    assert sorted(p.name for p in (disk / "b").rglob("*") if p.is_file()) == ["it's two", "one"]
    with pytest.raises(DamagedCopy, match="no path inside"):
        through(send(folder, {"../out": tmp_path / "one"}, scratch=tmp_path))
    assert folder.tail("b/one", 5) == "1"
    assert folder.tail("absent", 5) == ""
    instances.cut.add(machine.id)
    with pytest.raises(InstanceUnreachable):
        folder.put(b"", "z")


def packed(files: dict[str, bytes], manifest: object = None, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        if link is not None:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
        if manifest is not None:
            text = json.dumps(manifest).encode()
            entry = tarfile.TarInfo("MANIFEST.json")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return buffer.getvalue()


A = {"a": hashlib.sha256(b"1").hexdigest()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed({"a": b"1"}), "without its list"),
        (packed({"a": b"2"}, A), "does not match"),
        (packed({}, A), "does not match"),
        (packed({"a": b"1", "b": b""}, A), "does not match"),
        (packed({"a": b"1"}, A, link="/etc/passwd"), "no plain file"),
        (packed({"../a": b"1"}, A), "no path inside"),
        (packed({"/tmp/a": b"1"}, A), "no path inside"),
        (packed({"a": b"1"}, A)[:700], "could not be unpacked"),
        (b"no tar", "could not be unpacked"),
        (packed({"a": b"1" * 200_000}, A), "more than"),
    ],
)
def test_a_copy_that_is_not_what_it_says_is_not_kept(
    folder: RemoteFolder, tmp_path: Path, content: bytes, message: str
) -> None:
    folder.put(content, "out.tar")
    with pytest.raises(DamagedCopy, match=message):
        through(folder.get("cat out.tar", tmp_path / "staging", max_bytes=100_000))
    assert not (tmp_path / "a").exists()
    folder.put(packed({"a": b"1"}, A), "out.tar")
    assert through(folder.get("cat out.tar", tmp_path / "staging", max_bytes=100_000)) == A


# --- foreign results ---

RUN = "c-s0-0123456789"


def record(
    run_id: str = RUN, nrmse: float = 0.1, code: str | None = None, suite: str = "small_eval"
) -> RunRecord:
    made = run_record(run_id, "c", 0, {suite: evaluation(run_id, nrmse, suite=suite)})
    assert made.training is not None
    result = made.training.result.model_copy(update={"code_version": code or code_version()})
    return made.model_copy(update={"training": made.training.model_copy(update={"result": result})})


def arrived(staging: Path, made: RunRecord | None, *others: str) -> dict[str, str]:
    if made is not None:
        write_json(RunFolder(staging, RUN).summary, made)
    for name in others:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_text("x")
    return {p.relative_to(staging).as_posix(): "" for p in staging.rglob("*") if p.is_file()}


def training(folder: Path) -> Job:
    words = ("run", "c", "--folder", str(folder), "--run-id", RUN, "seed=0")
    return Job(f"train:{RUN}", words, folder / "run.log", folder)


@pytest.mark.parametrize(
    ("made", "others", "message"),
    [
        (record(code="other"), (), "other code"),
        (record("another"), (), "is of another"),
        (record(suite="full_eval"), (), "says otherwise"),
        (record().model_copy(update={"status": "failed"}), (), "says otherwise"),
        (None, (), "left no run behind"),
        (None, (f"artifacts/runs/{RUN}/model.safetensors",), "left no record"),
        (record(), ("artifacts/runs/other/summary.json",), "files of another run"),
        (record(), ("reports/eval_other.json",), "files of another run"),
        (record(), ("reports/leaderboard.csv",), "no result of it"),
        (record(), ("journal.jsonl",), "no result of it"),
        (record(), (f"artifacts/runs/{RUN}/.hidden",), "no run leaves"),
        (record(nrmse=0.2), (), "came back changed"),
    ],
)
def test_a_worker_that_lies_is_not_believed(
    tmp_path: Path, made: RunRecord | None, others: tuple[str, ...], message: str
) -> None:
    home, staging = tmp_path / "home", tmp_path / "staging"
    write_json(RunFolder(home, RUN).summary, record())
    with pytest.raises(WrongResult, match=message):
        check_results(read_errand(training(home)), staging, arrived(staging, made, *others), finished=True)


def test_results_of_the_job_itself_come_home(tmp_path: Path) -> None:
    home, staging = tmp_path / "home", tmp_path / "staging"
    errand = read_errand(training(home))
    page = f"reports/eval_{RUN}.html"
    names = arrived(staging, record(), f"artifacts/runs/{RUN}/checkpoints/a.pt", page, "references/p.json")
    check_results(errand, staging, names, finished=True)
    install(errand, staging, names)
    assert RunFolder(home, RUN).summary.exists()
    assert (home / page).read_text() == "x"
    assert not staging.exists()
    (home / "artifacts" / "runs" / RUN / "run.log").write_text("mine")
    assert f"artifacts/runs/{RUN}/run.log" not in own_files(errand)
    (tmp_path / "my.yaml").write_text("a: 1")
    job = Job("x", ("run", str(tmp_path / "my.yaml"), "--folder", f"{home}/sub"), home / "l", home)
    words, inputs = words_there(read_errand(job), "sweep")
    assert words == ("run", "inputs/1/my.yaml", "--folder", "sweep/sub")
    assert inputs == {"inputs/1/my.yaml": tmp_path / "my.yaml"}


# --- the instance by itself ---


def workplace(
    instances: LoopbackInstances, machine: Machine, home: Path, *words: str, silence_s: float = 60.0
) -> RemoteWorkplace:
    job = Job("job", words, home / "job.log", home)
    content = gzip.compress(packed({}))
    archive = CodeArchive(content, "h", hashlib.sha256(content).hexdigest(), ())
    outfit = Outfit(
        archive,
        command=(sys.executable, "-c"),
        silence_s=silence_s,
        service=instances.server.url,
    )
    return RemoteWorkplace(
        instances.transport(machine.id), read_errand(job), outfit, mirror=home / "mirror.log"
    )


def begin(place: RemoteWorkplace) -> None:
    through(place.bring())
    place.start()


def test_an_instance_that_hears_nothing_ends_its_work_and_stops_itself_with_its_own_key(
    instances: LoopbackInstances, machine: Machine, tmp_path: Path
) -> None:
    place = workplace(
        instances,
        machine,
        tmp_path,
        "import time; print('at work', flush=True); time.sleep(60)",
        silence_s=1.5,
    )
    begin(place)
    begin(place)
    for _ in range(4):
        time.sleep(0.6)
        assert place.look().ending is None, "it hears the driver"
    until(lambda: machine.id in instances.server.self_stopped, "it stops itself", timeout_s=20)
    assert machine.cur_state == "stopped"
    with pytest.raises(InstanceUnreachable):
        place.look()
    exit_file = instances.disk(machine.id) / "usim" / "job" / "exit.json"
    assert json.loads(exit_file.read_text())["code"] == DESERTED
    everything = b"".join(p.read_bytes() for p in instances.disk(machine.id).rglob("*") if p.is_file())
    assert KEY.encode() not in everything
    assert instances.server.instance_key(machine.id).encode() not in everything
    assert (tmp_path / "job.log").read_text() == "at work\n"


def test_a_watch_that_died_alone_is_followed_by_one_and_the_work_is_not_doubled(
    instances: LoopbackInstances, machine: Machine, tmp_path: Path
) -> None:
    script = "import os,time; open('pids','a').write(f'{os.getpid()} '); time.sleep(60)"
    place = workplace(instances, machine, tmp_path, script)
    begin(place)
    pids = instances.disk(machine.id) / "usim" / "pids"
    until(lambda: pids.exists() and pids.read_text() != "", "a first process")
    os.kill(int((pids.parent / "job" / "watch").read_text()), 9)
    until(lambda: not place.look().watched, "the watch is dead")
    place.start()
    until(lambda: len(pids.read_text().split()) == 2, "a second process")
    first = int(pids.read_text().split()[0])
    until(
        lambda: (
            not Path(f"/proc/{first}/cmdline").exists() or not Path(f"/proc/{first}/cmdline").read_bytes()
        ),
        "the first is gone",
    )
    place.halt()
    ending = place.look().ending
    assert ending is not None
    assert ending.exit_code == -15


def test_logs_are_foreign_text(instances: LoopbackInstances, machine: Machine, tmp_path: Path) -> None:
    place = workplace(instances, machine, tmp_path, "print('\\x1b[2Jü'); print('x' * 600000)")
    begin(place)
    until(lambda: place.look().ending is not None, "its end")
    text = (tmp_path / "job.log").read_text()
    assert text.startswith("?[2Jü\n")
    assert len(text) == 600_000 + 7


def test_an_instance_that_nobody_ever_reached_stops_itself(
    instances: LoopbackInstances, machine: Machine, tmp_path: Path
) -> None:
    script = onstart_script(instances.server.url, 1.0)
    assert len(script) < 4000
    with pytest.raises(UserError, match="quote"):
        onstart_script("https://it's", 1.0)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CONTAINER_ID": str(machine.id),
        "CONTAINER_API_KEY": instances.server.instance_key(machine.id),
    }
    process = subprocess.Popen(["sh", "-c", script + "wait"], env=environment, start_new_session=True)
    try:
        alive = tmp_path / "usim" / "job" / "alive"
        alive.parent.mkdir(parents=True)
        for _ in range(5):
            alive.touch()
            time.sleep(0.5)
        assert not instances.server.self_stopped, "it was heard"
        until(lambda: machine.id in instances.server.self_stopped, "it stops itself", timeout_s=20)
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_a_copy_taken_while_the_job_writes_is_whole_and_what_was_sent_as_context_stays_there(
    instances: LoopbackInstances, machine: Machine, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    write_json(RunFolder(home, "peer").summary, record("peer"))
    script = (
        "import os,time; os.makedirs('sweep/artifacts/runs/new', exist_ok=True);\n"
        "f=open('sweep/artifacts/runs/new/metrics_x.jsonl','w')\n"
        "while True: f.write('x'*1000); f.flush()"
    )
    place = workplace(instances, machine, home, script)
    begin(place)
    grown = instances.disk(machine.id) / "usim" / "sweep" / "artifacts" / "runs" / "new" / "metrics_x.jsonl"
    until(grown.exists, "it writes")
    assert through(place.fetch(finished=False)) == 1
    assert (home / "artifacts" / "runs" / "new" / "metrics_x.jsonl").exists()
    place.halt()
    instances.cut.add(machine.id)
    with pytest.raises(InstanceUnreachable):
        place.halt()
