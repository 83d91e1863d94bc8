"""A loopback service with a client in front of it, or with a whole simulated driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors.loopback_vast import Clock, LoopbackVast
from tests.executors.simulated_cloud import SteppedClock
from tests.executors.simulated_stage import Stage
from tests.executors.vast_faults import KEY
from tests.executors.vast_world import World


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackVast]:
    """On a clock that only sleepers advance; what uses it sets it back first."""
    with LoopbackVast(KEY, SteppedClock()) as server:
        yield server


@pytest.fixture
def world(service: LoopbackVast, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    service.reset(Clock())
    caplog.set_level(logging.DEBUG)
    world = World(service)
    yield world
    world.client.close()
    assert KEY not in caplog.text
    assert not service.leaks


@pytest.fixture
def stage(service: LoopbackVast, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(service, tmp_path)
    yield stage
    assert not stage.world.breaches
    told = "\n".join(stage.driver.texts)
    assert all(f"instance {i} was DESTROYED by the ceiling" in told for i in stage.world.destroyed)
