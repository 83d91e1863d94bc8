"""A thin client of the Vast.ai REST service that never takes silence for an answer.

Creating an instance is not idempotent: it is sent once, and whatever is not a clear yes or no comes
back as `Unknown`. A listing is complete, or it is `UnknownOutcome`; "there are none" is concluded only
from several complete ones. Everything else may be repeated, and is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import httpx
from pydantic import SecretStr, ValidationError

from universal_simulator.errors import UserError
from universal_simulator.executors import vast_replies as replies
from universal_simulator.executors.vast_connection import DEFAULT_URL, Answer, Connection, checked_url
from universal_simulator.executors.vast_replies import (
    CloudError,
    Created,
    CreateOutcome,
    Criteria,
    Instance,
    Offer,
    Refused,
    Unknown,
    UnknownOutcome,
    printable,
)

PAGE_LENGTH = 25
MAX_PAGES = 400
#: complete listings in a row before absence is believed, and the pause between them
LOOKS, LOOK_PAUSE_S = 3, 5.0
#: a lost instance is found again by its label
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


class VastClient:
    """One account's instances at `base_url`. Every request ends within `request_timeout_s` or so, every
    call that reads or repeats within `patience_s`; `clock` (monotonic), `wall` and `sleep` in seconds."""

    def __init__(
        self,
        base_url: str,
        key: SecretStr,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        wall: Callable[[], float] = time.time,
        request_timeout_s: float = 30.0,
        patience_s: float = 120.0,
    ) -> None:
        #: where an instance finds the service too
        self.base_url = base_url
        self._connection = Connection(
            base_url,
            key,
            transport=transport,
            clock=clock,
            sleep=sleep,
            wall=wall,
            request_timeout_s=request_timeout_s,
            patience_s=patience_s,
        )

    def __enter__(self) -> VastClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def pause(self, seconds: float) -> None:
        self._connection.sleep(seconds)

    def clock(self) -> float:
        """Monotonic seconds, for deadlines."""
        return self._connection.clock()

    def service_now(self) -> float:
        """Seconds since 1970 by the clock that bills."""
        return self._connection.service_clock.now()

    def search(self, criteria: Criteria) -> tuple[Offer, ...]:
        """Offers that meet `criteria`, the cheapest first. The service has a daily quota of searches."""
        reply = self._connection.ask(replies.Search, "POST", "/api/v0/bundles/", body=criteria.query())
        offers, faults = [], []
        for raw in reply.offers:
            try:
                offers.append(Offer.model_validate(raw))
            except ValidationError as error:
                faults.append(replies.faults(error))
        if faults and not offers:
            raise UnknownOutcome(
                f"search: none of {len(faults)} offers can be read ({faults[0]}); the service has changed "
                "its format, upgrade universal-simulator"
            )
        admitted = {offer.id: offer for offer in offers if criteria.admit(offer)}.values()
        return tuple(sorted(admitted, key=lambda o: (o.price_usd_per_hour(spot=criteria.spot), o.id)))

    def create(
        self,
        offer: Offer,
        label: str,
        *,
        image: str,
        onstart: str,
        env: Mapping[str, str],
        disk_gb: float,
        bid_usd_per_hour: float | None = None,
        runtype: str = "ssh_direc ssh_proxy",
    ) -> CreateOutcome:
        """Rent `offer`, sent once. `Refused` is said only where nothing can have been made.

        A bid the service turns down may leave a stopped instance all the same, which bills its disk:
        so a failed spot create is `Unknown` too.
        """
        if not LABEL.fullmatch(label):
            raise CloudError(f"{label!r} is no label to find an instance by; letters, digits and ._- only")
        bid = bid_usd_per_hour
        body = {
            "client_id": "me",
            "image": image,
            "env": dict(env),
            "disk": disk_gb,
            "label": label,
            "onstart": onstart,
            "runtype": runtype,
            "price": bid,
        }
        self._check_body(body, label)
        if bid is not None and not offer.price_usd_per_hour(spot=True) <= bid:
            return Refused(f"offer {offer.id}: a bid of {bid} is below its minimum {offer.min_bid}; not sent")
        try:
            answer = self._connection.exchange("PUT", f"/api/v0/asks/{offer.id}/", body=body)
        except UnknownOutcome as error:
            return Unknown(str(error))
        return _judge_creation(answer, spot=bid is not None)

    def _check_body(self, body: Mapping[str, Any], label: str) -> None:
        try:
            text = json.dumps(body, allow_nan=False, ensure_ascii=False)
            text.encode()
        except (ValueError, TypeError):
            raise CloudError(f"{label}: the request is not plain text and finite numbers; not sent") from None
        if self._connection.reveals_key(text):
            raise CloudError(f"{label}: the account's key is in the image, env or onstart script; not sent")

    def list_instances(self, label_prefix: str = "") -> tuple[Instance, ...]:
        """Every instance whose label begins with `label_prefix`, from a complete listing.

        Raises UnknownOutcome for one that is malformed, inconsistent or short of its own count: an
        empty answer means that the service has clearly said so. It can still lag behind.
        """
        return self._list(label_prefix, self._connection.clock() + self._connection.patience_s)

    def find_label(self, label: str, *, looks: int = LOOKS) -> tuple[Instance, ...]:
        """Instances of exactly this label: as soon as one is seen, none only after `looks` listings.

        One may still appear later; then it is an orphan for the reaper. So never reuse a label.
        """
        for look in range(looks):
            if look:
                self.pause(LOOK_PAUSE_S)
            if found := tuple(i for i in self.list_instances(label) if i.label == label):
                return found
        return ()

    def get(self, instance_id: int) -> Instance | None:
        """One instance; None where the service says it knows none, which a listing has to confirm."""
        try:
            reply = self._connection.ask(
                replies.One, "GET", f"/api/v0/instances/{instance_id:d}/", params={"owner": "me"}
            )
        except CloudError as error:
            if error.code == "no_such_instance":
                return None
            raise
        if reply.instances is not None and reply.instances.id != instance_id:
            raise UnknownOutcome(f"instance {instance_id}: the service answered with {reply.instances.id}")
        return reply.instances

    def logs(self, instance_id: int, *, tail: int = 50) -> str:
        """The last lines the instance wrote: foreign text, made printable."""
        until = self._connection.clock() + self._connection.patience_s
        path = f"/api/v0/instances/request_logs/{instance_id:d}/"
        reply = self._connection.ask(replies.LogAddress, "PUT", path, body={"tail": str(tail)}, until=until)
        try:
            url = checked_url(reply.result_url, loopback=self._connection.loopback)
        except UserError:
            raise CloudError(f"instance {instance_id}: its log is at no https address; not fetched") from None

        def fetch() -> str:
            answer = self._connection.exchange("GET", str(url), signed=False)
            if answer.status != 200:
                raise UnknownOutcome(f"the log of instance {instance_id} is not there ({answer.status})")
            return printable(answer.content.decode(errors="replace"))

        return self._connection.patiently(fetch, until=until)

    def destroy(self, instance_id: int) -> None:
        """Ask for its end; one that is not there is as good. Accepted is not yet gone."""
        self._destroy(instance_id, self._connection.clock() + self._connection.patience_s)

    def destroy_and_verify(self, *instance_ids: int, deadline_s: float, looks: int = LOOKS) -> None:
        """Destroy until `looks` complete listings in a row show none of them.

        Raises UnknownOutcome, naming those that may still bill, when `deadline_s` seconds did not do.
        """
        until = self._connection.clock() + deadline_s
        unseen = dict.fromkeys(instance_ids, 0)
        standing = set(instance_ids)
        trouble = "still listed"
        while unseen:
            for instance_id in sorted(standing):
                try:
                    # not for long, so that one that cannot be destroyed does not keep the others
                    self._destroy(instance_id, min(until, self._connection.clock() + LOOK_PAUSE_S))
                except CloudError as error:
                    trouble = str(error)
            try:
                listed = {instance.id for instance in self._list("", until)}
            except CloudError as error:
                trouble = str(error)
            else:
                standing = listed & unseen.keys()
                unseen = {i: 0 if i in listed else n + 1 for i, n in unseen.items()}
            if min(unseen.values()) >= looks:
                return
            if self._connection.clock() + LOOK_PAUSE_S > until:
                names = ", ".join(str(i) for i, n in unseen.items() if n < looks)
                raise UnknownOutcome(
                    f"not verified gone within {deadline_s:.0f} s, may still bill: {names}. Run `usim cloud "
                    f"reap` again, or destroy them at {DEFAULT_URL}/instances/ by hand. Last: {trouble}"
                )
            self.pause(LOOK_PAUSE_S)

    def stop(self, instance_id: int) -> None:
        """End the GPU's billing; the disk's goes on."""
        self._change(instance_id, {"state": "stopped"})

    def start(self, instance_id: int) -> None:
        self._change(instance_id, {"state": "running"})

    def label(self, instance_id: int, label: str) -> None:
        self._change(instance_id, {"label": label})

    def _change(self, instance_id: int, body: Mapping[str, str]) -> None:
        self._connection.ask(replies.Done, "PUT", f"/api/v0/instances/{instance_id:d}/", body=body)

    def _destroy(self, instance_id: int, until: float) -> None:
        try:
            self._connection.ask(replies.Done, "DELETE", f"/api/v0/instances/{instance_id:d}/", until=until)
        except CloudError as error:
            if error.code != "no_such_instance":
                raise

    def _list(self, label_prefix: str, until: float) -> tuple[Instance, ...]:
        found = self._connection.patiently(lambda: self._complete_listing(until), until=until)
        return tuple(i for i in found if (i.label or "").startswith(label_prefix))

    def _complete_listing(self, until: float) -> tuple[Instance, ...]:
        found: dict[int, Instance] = {}
        tokens: list[str] = []
        announced = 0
        while len(tokens) < MAX_PAGES:
            params: dict[str, str | int] = {"limit": PAGE_LENGTH}
            if tokens:
                params["after_token"] = tokens[-1]
            page = self._connection.ask(replies.Page, "GET", "/api/v1/instances/", params=params, until=until)
            found |= {instance.id: instance for instance in page.instances}
            announced = max(announced, page.total_instances)
            if len(page.instances) < (page.instances_found or 0):
                break
            if not page.next_token:
                if len(found) < announced:
                    break
                return tuple(found.values())
            if page.next_token in tokens:
                raise UnknownOutcome("the list of instances goes round in circles")
            tokens.append(page.next_token)
        raise UnknownOutcome(f"the list of instances is incomplete: {len(found)} of {announced} arrived")


def _judge_creation(answer: Answer, *, spot: bool) -> CreateOutcome:
    if answer.status == 429:
        return Refused(answer.said(), answer.status, answer.retry_after_s)
    try:
        creation = replies.Creation.model_validate_json(answer.content)
    except ValidationError:
        return Unknown(answer.said())
    if answer.good and creation.success and creation.new_contract is not None:
        return Created(creation.new_contract)
    refused = answer.decided and answer.complaint() is not None and creation.new_contract is None
    return Refused(answer.said(), answer.status) if refused and not spot else Unknown(answer.said())
