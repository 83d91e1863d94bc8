"""What runs on a rented instance beside the job: starts it, watches it, answers for it.

A file of its own, with the standard library alone, because it works before anything is installed there:

    instance_agent.py watch JOB           run the steps of JOB/spec.json, once, whoever asks how often
    instance_agent.py look JOB OFFSET     one line of JSON: exit, pulse, and the log from OFFSET on
    instance_agent.py halt JOB            end the work, and say so when its processes are gone
    instance_agent.py pack JOB            the results as a tar, its last entry the hashes of all others
    instance_agent.py receive JOB FILE N  standard input into FILE from byte N on

Every look, and every block that moves either way, also tells the watch that the driver lives. When none came for `silence_s` seconds (counted by
the monotonic clock, so that no set clock matters) the watch ends the work and asks the service to stop
this instance, with the instance's own key if it was given one: its GPU bills no more, its disk stays.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

#: of the log, in one look
MAX_LOG_BYTES = 256 << 10
TICK_S = 0.2
GRACE_S = 10.0
#: exit code for work that was ended because the driver was silent
DESERTED = -254


def watch(job: Path) -> None:
    """Run the steps one after the other until one fails; JOB/exit.json says how it ended."""
    lock = open(job / "lock", "a")  # noqa: SIM115 (held as long as this process lives)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    _write(job / "watch", str(os.getpid()))
    _end_leftover(job)
    spec = json.loads((job / "spec.json").read_text())
    ear = _Ear(job / "alive", spec["silence_s"])
    if not (job / "exit.json").exists():
        started = time.monotonic()
        code, step = 0, ""
        for item in spec["steps"]:
            step = item["name"]
            code = _run_step(job, item, spec["environment"], ear)
            if code != 0:
                break
        seconds = round(time.monotonic() - started, 3)
        _write(job / "exit.json", json.dumps({"code": code, "step": step, "seconds": seconds}))
    while not ear.deserted() and (job / "spec.json").exists():
        time.sleep(TICK_S)
    if ear.deserted():
        stop_this_instance(spec.get("service"), os.environ)


class _Ear:
    """Whether the driver was heard of within `silence_s` seconds."""

    def __init__(self, path: Path, silence_s: float) -> None:
        self.path, self.silence_s = path, silence_s
        self.mark, self.heard = 0, time.monotonic()

    def deserted(self) -> bool:
        try:
            mark = self.path.stat().st_mtime_ns
        except OSError:
            mark = 0
        if mark != self.mark:
            self.mark, self.heard = mark, time.monotonic()
        return time.monotonic() - self.heard > self.silence_s


def _run_step(job: Path, item: dict[str, Any], environment: dict[str, str], ear: _Ear) -> int:
    with open(job / "log", "ab") as log:
        try:
            process = subprocess.Popen(
                item["words"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=job.parent,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{item['words'][0]} could not be started: {error}\n".encode())
            return 127
    _write(job / "child", f"{process.pid} {_born(process.pid)}")
    while process.poll() is None:
        if (job / "halt").exists():
            _end_group(process)
            return process.returncode or -signal.SIGTERM
        if ear.deserted():
            _end_group(process)
            return DESERTED
        time.sleep(TICK_S)
    _signal_group(process.pid, signal.SIGKILL)
    return process.returncode


def _born(pid: int) -> str:
    """When the process of this number began, in ticks since this machine did; "" where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + "/" + Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _end_leftover(job: Path) -> None:
    """What an earlier watch left running when it died alone: two may not write into one run folder."""
    if (job / "child").exists():
        pid, _, born = (job / "child").read_text().partition(" ")
        if born and _born(int(pid)) == born:
            _signal_group(int(pid), signal.SIGKILL)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def look(job: Path, offset: int) -> dict[str, Any]:
    """`pulse` changes whenever a log, a metric file or a checkpoint grows; `alive`: the watch is there."""
    _hear(job)
    log, size = b"", 0
    if (job / "log").exists():
        with open(job / "log", "rb") as file:
            size = file.seek(0, 2)
            file.seek(min(offset, size))
            log = file.read(MAX_LOG_BYTES)
    spec = json.loads((job / "spec.json").read_text())
    root = job.parent / spec["folder"]
    beats = [(job / "log", size)]
    for name in spec["results"]:
        folder = job.parent / name
        beats += [(p, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()]
    exit_file = job / "exit.json"
    return {
        "exit": json.loads(exit_file.read_text()) if exit_file.exists() else None,
        "alive": _watched(job),
        "pulse": hashlib.sha256(repr(beats).encode()).hexdigest(),
        "size": size,
        "weight": sum(_size(root / name) for name in _packed(job, spec)),
        "log": base64.b64encode(log).decode(),
    }


def _hear(job: Path) -> None:
    (job / "alive").touch()
    os.utime(job / "alive")


def receive(job: Path, path: Path, offset: int) -> None:
    """Each block at its own place: one who writes the same file from elsewhere writes the same there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    heard = 0.0
    with open(descriptor, "wb") as file:
        while block := os.read(0, 1 << 20):
            done = 0
            while done < len(block):
                done += os.pwrite(file.fileno(), block[done:], offset + done)
            offset += len(block)
            if time.monotonic() - heard > 1.0:
                heard = time.monotonic()
                _hear(job)


def _watched(job: Path) -> bool:
    with open(job / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def halt(job: Path) -> bool:
    """True when the work has ended; the watch stays, so that results can still be fetched."""
    (job / "halt").touch()
    deadline = time.monotonic() + 2 * GRACE_S
    while time.monotonic() < deadline:
        if (job / "exit.json").exists():
            return True
        if not _watched(job):
            # the watch died and left its child: end that, for the record too
            _end_leftover(job)
            _write(job / "exit.json", json.dumps({"code": -signal.SIGKILL, "step": "", "seconds": 0.0}))
            return True
        time.sleep(TICK_S / 2)
    return False


def pack(job: Path, out: io.BufferedIOBase | Any) -> None:
    """Each file is read once, so its hash is of what was sent, also while the job goes on writing.
    Checkpoints go first: a log that is newer than its checkpoint is cut when the run goes on."""
    spec = json.loads((job / "spec.json").read_text())
    root, sums = job.parent / spec["folder"], {}
    names = _packed(job, spec)
    with tarfile.open(fileobj=out, mode="w|") as archive:
        for name in sorted(names, key=lambda name: ("/checkpoints/" not in name, name)):
            try:
                file = open(root / name, "rb")  # noqa: SIM115 (closed below)
            except FileNotFoundError:
                continue
            with file:
                hashed = _Hashed(file, job)
                _add(archive, name, hashed, os.fstat(file.fileno()).st_size)
            sums[name] = hashed.digest.hexdigest()
        manifest = json.dumps(sums).encode()
        _add(archive, "MANIFEST.json", io.BytesIO(manifest), len(manifest))


def _packed(job: Path, spec: dict[str, Any]) -> list[str]:
    """The results, by their paths in the sweep's folder."""
    root, left_out = job.parent / spec["folder"], set(spec["context"])
    names = sorted(
        path.relative_to(root).as_posix()
        for name in spec["results"]
        for path in (job.parent / name).rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    )
    return [name for name in names if name not in left_out and not name.endswith((".partial", ".log"))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _Hashed:
    """What is read of a file, and its hash. Somebody takes it, so somebody lives."""

    def __init__(self, file: Any, job: Path) -> None:
        self.file, self.digest, self.job, self.heard = file, hashlib.sha256(), job, 0.0

    def read(self, size: int) -> bytes:
        if time.monotonic() - self.heard > 1.0:
            self.heard = time.monotonic()
            _hear(self.job)
        block: bytes = self.file.read(size)
        self.digest.update(block)
        return block


def _add(archive: tarfile.TarFile, name: str, file: Any, size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    archive.addfile(entry, file)


def stop_this_instance(service: str | None, environment: Any) -> bool:
    """Ask the service to stop the instance this runs on, by its own key; False where it has none."""
    values = {**_first_process_environment(), **environment}
    number, key = values.get("CONTAINER_ID", ""), values.get("CONTAINER_API_KEY", "")
    if not service or not number.isdigit() or not key:
        return False
    import urllib.request

    request = urllib.request.Request(
        f"{service.rstrip('/')}/api/v0/instances/{number}/",
        data=b'{"state": "stopped"}',
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        method="PUT",
    )
    for attempt in range(5):
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return bool(reply.status == 200)
        except OSError:
            time.sleep(2.0**attempt)
    return False


def _first_process_environment() -> dict[str, str]:
    """Of the container itself, which shells opened over ssh do not inherit."""
    try:
        raw = Path("/proc/1/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(
        item.split("=", 1) for item in raw.split("\0") if item.startswith("CONTAINER_") and "=" in item
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def main(verb: str, folder: str, *words: str) -> None:
    job = Path(folder).absolute()
    if verb == "watch":
        watch(job)
    elif verb == "look":
        print(json.dumps(look(job, int(words[0]))))
    elif verb == "halt":
        sys.exit(0 if halt(job) else 1)
    elif verb == "pack":
        pack(job, sys.stdout.buffer)
    elif verb == "receive":
        receive(job, Path(words[0]), int(words[1]))
    else:
        sys.exit(f"no verb {verb!r}; verbs: watch, look, halt, pack, receive")


if __name__ == "__main__":
    main(*sys.argv[1:])
