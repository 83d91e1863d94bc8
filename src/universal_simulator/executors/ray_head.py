"""A Ray head of our own on this machine: started when needed, gone with its driver.

`ray start --head --block` below a guard that ends all of Ray's processes with it and with us.
It listens with token authentication on; the token lives in a file that only the user can read.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic import SecretStr

from universal_simulator.credentials import without_secrets
from universal_simulator.errors import ExecutorError, UnreachableError
from universal_simulator.executors.child_process import end_child, reap_if_ended
from universal_simulator.executors.ray_jobs import RayJobs

#: Ray's own object store, which our jobs do not use; its least is 75 MiB
OBJECT_STORE_BYTES = 100_000_000


class RayHead:
    """One head, from its start to its end; after its end a new one is made.

    Raises ExecutorError where `ray` is not installed or the head does not come up.
    """

    def __init__(self, *, cpus: int, gpus: int = 0, start_timeout_s: float = 120.0) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ExecutorError("Ray is not installed: pip install 'universal-simulator[ray]'")
        # Ray's sockets lie below and their whole path must stay under 108 characters
        self.folder = Path(tempfile.mkdtemp(prefix="usim-ray-", dir="/tmp"))
        self.token = SecretStr(secrets.token_urlsafe(32))
        self._token_file = self.folder / "token"
        with open(os.open(self._token_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(self.token.get_secret_value())
        dashboard, client = _free_ports(2)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.jobs = RayJobs(self.address, self.token)
        self._log = open(self.folder / "head.log", "ab")  # noqa: SIM115 (closed with the head)
        try:
            self._process = self._start(cpus, gpus, dashboard, client)
            self._await(start_timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return reap_if_ended(self._process) is None

    @property
    def pid(self) -> int:
        """Of the guard, which leads the session of all of Ray's own processes."""
        return self._process.pid

    def close(self) -> None:
        """End it and all of its processes, at once: there is nothing in them to save; idempotent."""
        if hasattr(self, "_process"):
            end_child(self._process, grace_s=0.0)
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._log.close()
        self.jobs.close()
        for _ in range(10):  # a worker just starting makes its folders anew until it notices
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.2)
            if not self.folder.exists():
                break

    def _start(self, cpus: int, gpus: int, dashboard: int, client: int) -> subprocess.Popen[bytes]:
        options = {
            "port": 0,
            "node-ip-address": "127.0.0.1",
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": 0,
            "ray-client-server-port": client,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": cpus,
            "num-gpus": gpus,
            "object-store-memory": OBJECT_STORE_BYTES,
            "temp-dir": self.folder / "t",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        guard = [sys.executable, "-m", "universal_simulator.executors.group_guard", str(self.folder)]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        return subprocess.Popen(
            [*guard, *ray, "--disable-usage-stats", *words],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=without_secrets(os.environ)
            | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token_file)},
            start_new_session=True,
        )

    def _await(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if not self.alive or time.monotonic() > deadline:
                words = (self.folder / "head.log").read_text(errors="replace").splitlines()[-8:]
                raise ExecutorError("a local Ray head did not come up:\n" + "\n".join(words))
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return bool(self.jobs.version())
        except UnreachableError:
            return False


def _free_ports(number: int) -> list[int]:
    """Ports nobody listens on now; a rare race with another program ends in the head's own error."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()
