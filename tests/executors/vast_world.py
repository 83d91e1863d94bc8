"""One client before one loopback service, on one clock."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from pydantic import SecretStr

from tests.executors.loopback_vast import LoopbackVast, offer
from tests.executors.vast_faults import KEY
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import (
    CloudError,
    CreateOutcome,
    Offer,
)

LABEL = "usim-s1-run-0-00000001"
OFFER = Offer.model_validate(offer(1))


class World:
    """One server, one client, one clock; what the client tells is kept and searched for the key."""

    def __init__(self, server: LoopbackVast) -> None:
        self.server, self.clock = server, server.clock
        self.client = VastClient(
            server.url,
            SecretStr(KEY),
            clock=self.clock,
            sleep=self.clock.sleep,
            request_timeout_s=5.0,
            patience_s=60.0,
        )

    def create(self, label: str = LABEL, **options: Any) -> CreateOutcome:
        defaults: dict[str, Any] = {"image": "i", "onstart": "true", "env": {"A": "1"}, "disk_gb": 64.0}
        return self.client.create(OFFER, label, **defaults | options)

    def listed(self) -> list[int]:
        return [instance.id for instance in self.client.list_instances()]


def raised(kind: type[CloudError], call: Any, *arguments: Any, **named: Any) -> str:
    """The whole text of the exception, chain included, which never holds the key."""
    with pytest.raises(kind) as caught:
        call(*arguments, **named)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in text
    return str(caught.value)
