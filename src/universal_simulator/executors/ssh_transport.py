"""The shell of an instance over the system's own `ssh`, with nothing left to its configuration.

Keys are paths, agents and passwords are not used or forwarded. The host's key is not known before the
instance exists: it is taken at first contact, kept in the sweep's folder, and any other is refused.
"""

from __future__ import annotations

import secrets
import shlex
import signal
from pathlib import Path
from typing import IO

from universal_simulator.executors.shell_process import Running, ShellProcess
from universal_simulator.executors.transport import InstanceRefused, InstanceUnreachable, Transport

#: of ssh itself: it could not connect, or lost the connection
_SSH_FAILED = 255


class SSHTransport(Transport):
    """`known_hosts` is this instance's own file; `key` a private key's path, None for ssh's defaults."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        known_hosts: Path,
        key: Path | None = None,
        user: str = "root",
        program: str = "ssh",
    ) -> None:
        self.host, self.port, self.user = host, port, user
        self.known_hosts, self.key, self.program = known_hosts, key, program

    def options(self) -> list[str]:
        """As words of the command line."""
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": f'"{self.known_hosts.absolute()}"',
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "ControlPath": "none",
            "ConnectTimeout": "20",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
        }
        words = ["-F", "none", "-T", "-p", str(self.port), "-l", self.user]
        for name, value in settings.items():
            words += ["-o", f"{name}={value}"]
        if self.key is not None:
            words += ["-o", "IdentitiesOnly=yes", "-i", str(self.key)]
        return words

    def begin(self, script: str, *, given: IO[bytes] | None, output: IO[bytes]) -> Running:
        """A login shell there may greet first: what counts comes after a word that it cannot know."""
        word = secrets.token_hex(8)
        remote = "exec sh -c " + shlex.quote(f"echo {word}\n{script}")
        command = [self.program, *self.options(), "--", self.host, remote]
        self.known_hosts.parent.mkdir(parents=True, exist_ok=True)

        def judge(code: int, said: str) -> None:
            if code in (_SSH_FAILED, -signal.SIGKILL) or not _skip_greeting(output, word.encode()):
                raise InstanceUnreachable(f"{self.host}: {said or 'the connection was lost'}")
            if code != 0:
                raise InstanceRefused(f"{self.host}: exit code {code}: {said or 'without a word'}")

        try:
            return ShellProcess(command, judge, given=given, output=output)
        except OSError as error:
            raise InstanceUnreachable(f"{self.program} could not be started: {error.strerror}") from None


def _skip_greeting(out: IO[bytes], word: bytes) -> bool:
    """Put `out` behind the line `word`; False where there is none."""
    out.seek(0)
    for _ in range(1000):
        line = out.readline(1 << 16)
        if line.rstrip(b"\r\n") == word:
            return True
        if not line:
            break
    return False
