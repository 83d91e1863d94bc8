"""A workplace on an instance that a transport reaches: the pinned code, the agent, the job.

./code.tar.gz  ./code/      the archive, checked by its SHA-256 before it is unpacked
./agent.py                  `instance_agent`, beside the code so that it needs nothing installed
./sweep/  ./inputs/         the job's files (`job_files`)
./job/                      the agent's own: spec, log, exit code, lock
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from universal_simulator.credentials import masked
from universal_simulator.errors import ExecutorError
from universal_simulator.executors import instance_agent
from universal_simulator.executors.code_archive import CodeArchive
from universal_simulator.executors.course import Way
from universal_simulator.executors.job_files import (
    RESULTS,
    Errand,
    cargo,
    check_results,
    context_files,
    install,
    words_there,
)
from universal_simulator.executors.sending import send
from universal_simulator.executors.transport import (
    InstanceRefused,
    Patience,
    RemoteFolder,
    Transport,
    WrongResult,
)
from universal_simulator.executors.workplace import Ending, Glance, Workplace
from universal_simulator.identity import code_version
from universal_simulator.run_record import write_atomically

USIM = ("-m", "universal_simulator.cli")
MAX_RESULT_BYTES = 8 << 30
#: what a job may write between the look that tells its size and the copy
SLACK_BYTES = 512 << 20
_CONTROL = bytes(b if b >= 32 or b in b"\n\t\r" else ord("?") for b in range(256)).replace(b"\x7f", b"?")


class _Exit(BaseModel):
    model_config = ConfigDict(strict=True)
    code: int
    seconds: float = Field(ge=0, allow_inf_nan=False)
    step: str = Field("", max_length=40)


class _Look(BaseModel):
    """What the agent answers; foreign until it is this."""

    model_config = ConfigDict(strict=True)
    exit: _Exit | None
    alive: bool
    pulse: str = Field(max_length=128)
    size: int = Field(ge=0)
    #: bytes of what would be packed
    weight: int = Field(ge=0)
    log: str


@dataclass(frozen=True)
class Outfit:
    """The same for every job of a sweep. `python` runs the pinned code once `setup` is done.

    sweep: the sweep's folder there; the same absolute path as here where both share a disk. service:
    where an instance asks to be stopped when the driver is silent. data: identities by name, which
    data made there must have; those not named are sent from here.
    """

    archive: CodeArchive
    setup: Sequence[Sequence[str]] = ()
    python: str = "python3"
    command: Sequence[str] | None = None
    sweep: str = "sweep"
    silence_s: float = 3600.0
    service: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)


class RemoteWorkplace(Workplace):
    """`mirror` keeps how far the log was read, beside the ledger, so that no line is read twice."""

    def __init__(self, transport: Transport, errand: Errand, outfit: Outfit, *, mirror: Path) -> None:
        self.errand, self.outfit, self.mirror = errand, outfit, mirror
        self.root = RemoteFolder(transport, "usim", outfit.patience)
        self.staging = mirror.with_suffix(".incoming")

    def bring(self) -> Way:
        """`job/brought` is the last to arrive; where the spec is, all of it was there before."""
        self.root.run("mkdir -p job sweep && touch job/alive")
        self.root.put(Path(instance_agent.__file__).read_bytes(), "agent.py")
        if self._there() == "spec":
            return 0
        self.root.run("rm -f job/brought")
        archive, scratch = self.outfit.archive, self.mirror.parent
        code = scratch / f"{archive.file_hash}.tar.gz"
        if not code.exists():
            write_atomically(code, archive.content)
        files = {"code.tar.gz": code} | words_there(self.errand, self.outfit.sweep)[1]
        if self.outfit.sweep == "sweep":
            sent = cargo(self.errand, made=self.outfit.data)
            files |= {f"sweep/{name}": path for name, path in sent.items()}
        number = yield from send(self.root, files, scratch=scratch)
        self.root.run(
            f"echo '{archive.file_hash}  code.tar.gz' | sha256sum -c - >/dev/null && rm -rf code && "
            "mkdir code && tar -xzf code.tar.gz -C code && touch job/brought"
        )
        return number

    def start(self) -> None:
        there = self._there()
        if there == "nothing":
            raise InstanceRefused(f"{self.errand.job.job_id}: what it needs was not brought there whole")
        self.begun = True
        if there == "brought":
            words, _ = words_there(self.errand, self.outfit.sweep)
            try:
                self.root.put(json.dumps(self._spec(words)).encode(), "job/spec.json")
            except InstanceRefused:
                # it did not arrive, so no watch has anything to begin
                self.begun = False
                raise
        self._watch()

    def _there(self) -> str:
        """The spec is the last file to arrive; with it there, the watch may only have died."""
        answer = self.root.run(
            "if [ -f job/spec.json ]; then echo spec; elif [ -f job/brought ]; then echo brought; "
            "else echo nothing; fi"
        )
        return answer.decode(errors="replace").strip()

    def _watch(self) -> None:
        """A second watch finds the lock taken and leaves."""
        self.root.run(
            "touch job/alive; nohup setsid python3 agent.py watch job >>job/watch.log 2>&1 </dev/null &"
        )

    def _spec(self, words: Sequence[str]) -> dict[str, object]:
        outfit, sweep = self.outfit, self.outfit.sweep
        python = [outfit.python]
        check = "import sys; from universal_simulator.identity import code_version; sys.exit(code_version() != sys.argv[1])"
        steps = [{"name": "setup", "words": list(item)} for item in outfit.setup]
        if outfit.command is None:
            steps.append({"name": "code", "words": [*python, "-c", check, code_version()]})
        for name, identity in outfit.data.items():
            made = [*python, *USIM, "data", "generate", name, "--folder", sweep, "--expect", identity]
            steps.append({"name": "data", "words": made})
        command = [*python, *USIM] if outfit.command is None else list(outfit.command)
        steps.append({"name": "job", "words": [*command, *words]})
        return {
            "steps": steps,
            "environment": {"PYTHONPATH": "code/src", "PYTHONUNBUFFERED": "1", **outfit.environment},
            "silence_s": outfit.silence_s,
            "service": outfit.service,
            "folder": sweep,
            "results": [f"{sweep}/{name}" for name in RESULTS],
            "context": sorted(context_files(self.errand)),
        }

    def look(self) -> Glance:
        offset = self._heard_to()
        while True:
            seen = self._ask(offset)
            self._keep(base64.b64decode(seen.log)[: instance_agent.MAX_LOG_BYTES])
            offset = self._heard_to()
            if offset >= seen.size or not seen.log:
                break
        ending = seen.exit and Ending(seen.exit.code, seen.exit.seconds, seen.exit.step)
        return Glance(ending or None, seen.pulse, seen.alive)

    def _heard_to(self) -> int:
        return self.mirror.stat().st_size if self.mirror.exists() else 0

    def _ask(self, offset: int) -> _Look:
        answer = self.root.run(f"python3 agent.py look job {offset:d}")
        try:
            return _Look.model_validate_json(answer)
        except ValidationError as error:
            raise InstanceRefused(
                f"{self.errand.job.job_id}: the agent's answer makes no sense: {error.error_count()} faults"
            ) from None

    def _keep(self, log: bytes) -> None:
        """As told into the mirror; without control characters and secrets into the job's own log."""
        if not log:
            self.mirror.parent.mkdir(parents=True, exist_ok=True)
            self.mirror.touch()
            return
        for path, data in ((self.errand.job.log, masked(log.translate(_CONTROL))), (self.mirror, log)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(data)

    def fetch(self, *, finished: bool) -> Way:
        weight = self._ask(self._heard_to()).weight
        if weight > MAX_RESULT_BYTES:
            raise WrongResult(f"{self.errand.job.job_id}: its results weigh {weight >> 20} MiB; not taken")
        # files that grow while they are packed, and the tar's own headers
        limit = weight + weight // 4 + SLACK_BYTES
        script = "python3 agent.py pack job"
        arrived = yield from self.root.get(script, self.staging, max_bytes=limit)
        check_results(self.errand, self.staging, arrived, finished=finished)
        install(self.errand, self.staging, arrived)
        return len(arrived)

    def halt(self) -> None:
        try:
            self.root.run("if [ -f job/spec.json ]; then python3 agent.py halt job; fi")
        except InstanceRefused as error:
            raise ExecutorError(f"{self.errand.job.job_id}: its processes did not end: {error}") from None
