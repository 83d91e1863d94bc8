"""One simulated world, one driver, one job of an hour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.executors.loopback_vast import LoopbackVast, Machine
from tests.executors.simulated_cloud import SteppedClock, World
from tests.executors.simulated_driver import Driver
from universal_simulator.executors.cloud_ledger import FILE, Ledger


class Stage:
    """One world, one driver, one job of an hour called train:a."""

    def __init__(self, service: LoopbackVast, folder: Path, needs: dict[str, float] | None = None) -> None:
        self.clock = SteppedClock()
        service.reset(self.clock)
        self.server = service
        self.world = World(service, needs or {"train:a": 3600.0})
        self.clock.world = self.world
        self.folder = folder
        self.driver = Driver(self.world, folder, ceiling_usd=50.0)

    def settle(self, **changed: Any) -> None:
        self.driver.settings = self.driver.settings.model_copy(update=changed)

    def begin(self, *names: str, wait_s: float = 120.0) -> Machine | None:
        self.driver.start()
        for name in names or ("train:a",):
            self.driver.submit(name)
        self.driver.wait(wait_s)
        mine = self.server.live("usim-")
        return mine[0] if mine else None

    def codes(self, name: str = "train:a") -> list[int]:
        return [end.exit_code for end in self.driver.ends.get(name, [])]

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / FILE)


def cut_off(stage: Stage, machine: Machine, *, now: bool) -> None:
    """The line to one instance; everything else is well."""
    if now != (machine.id in stage.world.cut):
        stage.world.cuts(machine)
