"""A driver of a simulated cloud: it submits, waits, is killed and begins again, and remembers what it was told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydantic import SecretStr

from tests.executors.loopback_vast import InProcess
from tests.executors.simulated_cloud import Killed, World
from tests.executors.vast_faults import KEY
from universal_simulator.errors import BudgetError, ExecutorError, UnreachableError
from universal_simulator.executors.cloud_ledger import CEILING
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.rental_phase import DESERTED
from universal_simulator.executors.vast_ai import VastExecutor
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.sweep.executor import Executor, Job, JobEnd

#: what happened, over all examples of a profile
TALLY: Counter[str] = Counter()


class Driver:
    """One driver process of the sweep in `folder`; what it journals outlives it, it does not."""

    #: every second one does something else before it attaches
    tarries = False

    def __init__(self, world: World, folder: Path, ceiling_usd: float, *, spot: bool = False) -> None:
        self.world, self.folder, self.server = world, folder, world.server
        self.settings = CloudSettings(
            ceiling_usd=ceiling_usd,
            spot=spot,
            silence_s=world.silence_s,
            checkpoint_s=300.0,
            heartbeat_s=1200.0,
            losses_per_run=50,
            startups_per_start=6,
            launches_per_hour=40,
        )
        #: the driver's own journal: intended and not told; and the ends that were told
        self.at_work: set[str] = set()
        self.ends: dict[str, list[JobEnd]] = {}
        self.asleep_s = 0.0
        #: it slept, and has not been told the time since
        self.drowsy = False
        self.wall_off_s = 0.0
        self.executor: VastExecutor | None = None
        self.spent_out = False
        self.starts = 0
        self.texts: list[str] = []

    def job(self, name: str) -> Job:
        log = self.folder / "logs" / f"{name.replace(':', '-')}.log"
        return Job(name, ("run", name), log, folder=self.folder)

    def start(self) -> None:
        """A new process: nothing in memory; what there is is looked at, then jobs of the old one are attached
        to or submitted again. One that dies before it has seen all of it is typed again. While `tarries`, every
        second one first does something else, for longer than an instance waits for its driver."""
        self.executor = self.process()
        if not self._guarded(self._open):
            return
        self.starts += 1
        until = self.server.clock() + 1.2 * self.world.silence_s
        while self.tarries and self.starts % 2 == 0 and self.server.clock() < until:
            self.server.clock.sleep(30.0)
            self.wait(0.0)
            if self.executor is None or self.spent_out:
                return
        for name in sorted(self.at_work):
            found = self._guarded(lambda name=name: self._attach(name))
            if not found or self.executor is None:
                return

    def process(self, local: Executor | None = None) -> VastExecutor:
        """Of a driver that has not asked anybody yet."""
        self.server.dated = True
        clock = self.server.clock
        client = VastClient(
            self.server.url,
            SecretStr(KEY),
            transport=InProcess(self.server),
            clock=lambda: clock() - self.asleep_s,
            sleep=clock.sleep,
            wall=lambda: clock() + self.wall_off_s,
            request_timeout_s=5.0,
            patience_s=60.0,
        )
        return VastExecutor(
            client,
            self.settings,
            slots=3,
            workplace_of=self.world.workplace,
            bytes_of=lambda job: self.world.cargo.get(job.job_id, 0),
            local=local,
            journal_of=self.world.journal,
            tell=self.texts.append,
        )

    def close(self) -> None:
        """A driver's last act, however its sitting ended."""

        def closing() -> bool:
            assert self.executor is not None
            try:
                self.executor.cancel_all()
            except ExecutorError as error:
                self.texts.append(str(error))
            return True

        self._guarded(closing)

    def _open(self) -> bool:
        assert self.executor is not None
        try:
            self.executor.open(self.folder)
        except UnreachableError as error:
            # nobody can say: the driver ends here and is typed again later
            self.texts.append(str(error))
            self.executor = None
        return self.executor is not None

    def _attach(self, name: str) -> bool:
        assert self.executor is not None
        try:
            if not self.executor.attach(name, self.folder):
                self.executor.submit(self.job(name))
        except UnreachableError as error:
            # nobody can say: the driver ends here and is typed again later
            self.texts.append(str(error))
            self.executor = None
            return False
        return True

    def submit(self, name: str) -> None:
        self.at_work.add(name)
        self._guarded(lambda: self._submit(name))

    def _submit(self, name: str) -> bool:
        assert self.executor is not None
        try:
            self.executor.submit(self.job(name))
        except UnreachableError as error:
            self.texts.append(str(error))
        except BudgetError:
            raise
        except ExecutorError as error:
            raise AssertionError(f"{name} was refused: {error}") from error
        else:
            return True
        self.at_work.discard(name)
        return False

    def wait(self, seconds: float) -> None:
        def waiting() -> bool:
            assert self.executor is not None
            self.drowsy = self.drowsy and seconds < 600.0
            for end in self.executor.wait(seconds):
                self.told(end)
            return True

        self._guarded(waiting)

    def cancel(self, name: str) -> None:
        def cancelling() -> bool:
            assert self.executor is not None
            try:
                end = self.executor.cancel(name)
            except UnreachableError as error:
                self.texts.append(str(error))
                return False
            if end is not None:
                self.told(end)
            return True

        self._guarded(cancelling)

    def told(self, end: JobEnd) -> None:
        name = end.job_id
        if name not in self.at_work:
            self.world.breach(f"{name} ended a second time: {end}")
        self.at_work.discard(name)
        self.ends.setdefault(name, []).append(end)
        if end.exit_code == 0 and name not in self.world.results:
            self.world.breach(f"{name} was told to have succeeded, its result is not here")
        if end.exit_code == DESERTED:
            self.world.breach(f"{name} was told to have ended by a signal that there is not")
        TALLY[f"ends told: {'lost' if end.lost else end.exit_code}"] += 1

    def finished(self, name: str) -> bool:
        return any(end.exit_code in (0, 3, CEILING) for end in self.ends.get(name, ()))

    def _guarded(self, act: object) -> bool:
        """Do it; a kill leaves nothing of the driver, a spent budget ends the sweep."""
        assert callable(act)
        try:
            return bool(act())
        except Killed:
            TALLY[f"driver killed: {self.world.kill_where} an append"] += 1
            self.executor = None
        except BudgetError as error:
            self.texts.append(str(error))
            self.spent_out = True
            TALLY["sweeps ended by their ceiling"] += 1
        return False
