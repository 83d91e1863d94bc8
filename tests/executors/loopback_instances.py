"""Folders of this machine that stand for rented instances: commands really run there.

Each lives as long as its machine of the loopback service: it answers while the service shows it running
and its network is not cut, its processes end when it stops or its host dies, its disk goes when it is
destroyed. `HurriedClock` makes the service's hours pass in seconds of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import IO

from tests.executors.loopback_vast import Clock, LoopbackVast, Machine
from universal_simulator.executors.shell_process import Running, ShellProcess
from universal_simulator.executors.transport import InstanceRefused, InstanceUnreachable, Transport


class HurriedClock(Clock):
    """`factor` seconds pass in each of ours; sleeping is as short."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.began = factor, time.monotonic()
        self.start = self.now

    def __call__(self) -> float:
        return self.start + (time.monotonic() - self.began) * self.factor

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.factor)


class LoopbackInstances:
    """Disks under `root`, one folder an instance."""

    def __init__(self, server: LoopbackVast, root: Path) -> None:
        self.server, self.root = server, root
        #: instances whose network is cut, though they work on
        self.cut: set[int] = set()
        self.commands: list[tuple[int, str]] = []
        server.on_end = self.end

    def disk(self, instance_id: int) -> Path:
        return self.root / str(instance_id)

    def transport(self, instance_id: int) -> Transport:
        return LoopbackTransport(self, instance_id)

    def answers(self, instance_id: int) -> bool:
        machine = self.server.machines.get(instance_id)
        running = machine is not None and machine.status(self.server.clock()) == "running"
        return running and instance_id not in self.cut

    def end(self, machine: Machine, for_good: bool) -> None:
        job = self.disk(machine.id) / "usim" / "job"
        for name in ("watch", "child"):
            path = job / name
            if path.exists():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(int(path.read_text().split()[0]), signal.SIGKILL)
        if for_good:
            shutil.rmtree(self.disk(machine.id), ignore_errors=True)

    def end_all(self) -> None:
        for machine in self.server.machines.values():
            self.end(machine, True)


class LoopbackTransport(Transport):
    """The shell of one folder, with nothing of this process's environment but a PATH."""

    def __init__(self, instances: LoopbackInstances, instance_id: int) -> None:
        self.instances, self.instance_id = instances, instance_id

    def begin(self, script: str, *, given: IO[bytes] | None, output: IO[bytes]) -> Running:
        if not self.instances.answers(self.instance_id):
            raise InstanceUnreachable(f"instance {self.instance_id} does not answer")
        self.instances.commands.append((self.instance_id, script))
        disk = self.instances.disk(self.instance_id)
        disk.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(disk),
            "OMP_NUM_THREADS": "1",
            "CONTAINER_ID": str(self.instance_id),
            "CONTAINER_API_KEY": self.instances.server.instance_key(self.instance_id),
        }

        def judge(code: int, said: str) -> None:
            if code == -signal.SIGKILL or not self.instances.answers(self.instance_id):
                raise InstanceUnreachable(f"instance {self.instance_id} went away")
            if code != 0:
                raise InstanceRefused(f"exit code {code}: {said}")

        command = ["sh", "-c", script]
        return ShellProcess(command, judge, given=given, output=output, folder=disk, environment=environment)
