"""What the Vast.ai service answers, validated: hostile until it is one of these.

Unknown fields are ignored, known ones must have their type. What only decorates (a message, a
utilisation) becomes None where it cannot be read; what money hangs on (ids, labels, states, counts,
prices) makes the whole reply unreadable instead, and an unreadable reply is *unknown*, never *none*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from universal_simulator.errors import ExecutorError

#: of a foreign text, as much as a person reads
MAX_TEXT = 500
MAX_ENTRIES = 10_000
_T = TypeVar("_T")


class CloudError(ExecutorError):
    """The service refused, or a request could not be made: what, where, how to mend it.

    `code` is the service's own word for it (such as `no_such_instance`), where it gave one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        self.status = status
        self.code = code
        super().__init__(message)


class UnknownOutcome(CloudError):
    """Nobody can say whether it happened, or what there is: nothing may be concluded from it."""

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, status=status)


def printable(text: str) -> str:
    """`text` without control characters (a terminal obeys them), lines kept."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def brief(text: str) -> str:
    """One printable line of at most MAX_TEXT characters."""
    line = printable(" ".join(text[: 4 * MAX_TEXT].split()))
    return line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + "..."


def faults(error: ValidationError) -> str:
    """The first of them, without the values: those are foreign."""
    items = error.errors(include_url=False, include_context=False, include_input=False)[:3]
    return brief("; ".join(f"{'.'.join(map(str, item['loc'])) or 'reply'}: {item['msg']}" for item in items))


def _or_none(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


#: decoration: None where it cannot be read
Lenient = Annotated[_T | None, WrapValidator(_or_none)]
Id = Annotated[int, Field(gt=0, lt=2**63)]
Status = Annotated[str, Field(max_length=64), AfterValidator(printable)]
#: reaches an ssh command line, where a leading dash would be an option
Host = Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]*$")]


class Reply(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class Offer(Reply):
    """A machine for rent; prices in USD per hour."""

    id: Id
    gpu_name: Annotated[str, AfterValidator(brief)]
    #: MB of 1/1000 GB, as the query counts them
    gpu_ram: Annotated[float, Field(gt=0)]
    dph_total: Annotated[float, Field(gt=0)]
    dph_base: Lenient[float] = None
    min_bid: Lenient[Annotated[float, Field(gt=0)]] = None
    reliability2: Annotated[float, Field(ge=0, le=1)]
    inet_down: Lenient[float] = None
    disk_space: Annotated[float, Field(ge=0)]
    cuda_max_good: Lenient[float] = None
    num_gpus: Lenient[int] = None

    def price_usd_per_hour(self, *, spot: bool = False) -> float:
        """What it costs, or for spot the least bid; infinite where it takes no bids."""
        if not spot:
            return self.dph_total
        return math.inf if self.min_bid is None else self.min_bid


@dataclass(frozen=True)
class Criteria:
    """What a run needs; prices in USD per hour. `spot` asks for interruptible machines."""

    gpu_ram_gb: float = 40.0
    reliability_above: float = 0.95
    disk_gb: float = 64.0
    spot: bool = False
    price_usd_per_hour_at_most: float = math.inf
    limit: int = 20

    def query(self) -> dict[str, Any]:
        return {
            "verified": {"eq": True},
            "rentable": {"eq": True},
            "gpu_ram": {"gte": self.gpu_ram_gb * 1000},
            "reliability": {"gt": self.reliability_above},
            "num_gpus": {"eq": 1},
            "disk_space": {"gte": self.disk_gb},
            "order": [["dph_total", "asc"]],
            "type": "bid" if self.spot else "on-demand",
            "limit": self.limit,
            "allocated_storage": self.disk_gb,
        }

    def admit(self, offer: Offer) -> bool:
        """Whether the service kept to the query."""
        return (
            offer.gpu_ram >= self.gpu_ram_gb * 1000
            and offer.reliability2 > self.reliability_above
            and offer.disk_space >= self.disk_gb
            and offer.num_gpus in (None, 1)
            and math.isfinite(price := offer.price_usd_per_hour(spot=self.spot))
            and price <= self.price_usd_per_hour_at_most
        )


class Instance(Reply):
    """A rented machine, as the service sees it at this moment."""

    id: Id
    label: str | None = None
    actual_status: Status | None = None
    intended_status: Status | None = None
    cur_state: Status | None = None
    next_state: Status | None = None
    status_msg: Lenient[Annotated[str, AfterValidator(brief)]] = None
    ssh_host: Lenient[Host] = None
    ssh_port: Lenient[Annotated[int, Field(gt=0, lt=65536)]] = None
    start_date: Lenient[float] = None
    dph_total: Lenient[Annotated[float, Field(ge=0)]] = None
    gpu_util: Lenient[float] = None

    @property
    def outbid(self) -> bool:
        """A spot instance that lost its machine, or never got it: only its disk is billed."""
        return {self.cur_state, self.intended_status, self.next_state} == {"stopped"}

    @property
    def silent(self) -> bool:
        """No heartbeat from the host. Unreachable is not failed: confirm before relaunching."""
        return self.actual_status in ("unknown", "offline")

    @property
    def at_rest(self) -> bool:
        """Asked to stand still, and not seen to run: its GPU bills no more, nothing works there."""
        return self.intended_status == "stopped" and not self.bills_gpu

    @property
    def bills_gpu(self) -> bool:
        return self.actual_status in ("running", "frozen")


class Search(Reply):
    """Offers stay raw here: one that cannot be read does not spoil the others."""

    offers: Annotated[list[Any], Field(max_length=MAX_ENTRIES)]


class Creation(Reply):
    success: bool | None = None
    new_contract: Id | None = None


class Page(Reply):
    """One page of the list: `instances_found` on it, `total_instances` over all pages."""

    success: Literal[True]
    instances: Annotated[list[Instance], Field(max_length=MAX_ENTRIES)]
    total_instances: Annotated[int, Field(ge=0)]
    instances_found: Annotated[int, Field(ge=0)] | None = None
    next_token: Annotated[str, Field(max_length=4096)] | None = None


class One(Reply):
    #: required, so that an empty reply is not read as "no such instance"
    instances: Instance | None


class LogAddress(Reply):
    result_url: Annotated[str, Field(max_length=8192)]


class Done(Reply):
    success: Literal[True]


class Complaint(Reply):
    """The service's error shape; any part may be missing, `success: true` is none."""

    success: Literal[False] | None = None
    error: Lenient[str] = None
    msg: Lenient[str] = None
    message: Lenient[str] = None

    @property
    def text(self) -> str:
        return brief(": ".join(part for part in (self.error, self.msg or self.message) if part))


@dataclass(frozen=True)
class Created:
    """The service says it made instance `instance_id`. Adopt it once a listing shows its label."""

    instance_id: int


@dataclass(frozen=True)
class Refused:
    """The service said no, and nothing was made: another offer may be tried."""

    reason: str
    status: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Unknown:
    """An instance may or may not exist, now or in a moment: look for its label before going on."""

    reason: str


CreateOutcome = Created | Refused | Unknown
