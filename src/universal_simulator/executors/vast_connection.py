"""Requests to the Vast.ai service: bounded in time and size, repeated only where that is harmless.

The key travels in a header to the service's own address alone, and is masked in all that comes back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from universal_simulator.credentials import MASK, checked_key
from universal_simulator.errors import UserError
from universal_simulator.executors.service_clock import ServiceClock
from universal_simulator.executors.vast_replies import (
    CloudError,
    Complaint,
    Done,
    UnknownOutcome,
    brief,
    faults,
)

DEFAULT_URL = "https://console.vast.ai"
MAX_REPLY_BYTES = 4 << 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_Model = TypeVar("_Model", bound=BaseModel)
_T = TypeVar("_T")


def checked_url(text: str, *, loopback: bool) -> httpx.URL:
    """https, or with `loopback` http to this very machine: no key or log travels in the clear."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise UserError("the address is no URL; VAST_URL must look like https://host") from None
    local = loopback and url.scheme == "http" and url.host in _LOOPBACK
    if not local and not (url.scheme == "https" and url.host):
        raise UserError(f"{url.scheme}://{url.host} is not an https address; mend VAST_URL")
    if url.userinfo:
        raise UserError(f"the address of {url.host} must not hold a user or password; mend VAST_URL")
    return url


class _Bearer(httpx.Auth):
    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request


@dataclass(frozen=True)
class Answer:
    """A whole answer to one request, whatever it says."""

    where: str
    status: int
    content: bytes
    retry_after_s: float | None

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def decided(self) -> bool:
        """Whether the service itself has said yes or no."""
        return self.good or (400 <= self.status < 500 and self.status not in (408, 425, 429))

    def complaint(self) -> Complaint | None:
        """The error it reports, where it is one in the service's own shape."""
        try:
            complaint = Complaint.model_validate_json(self.content)
        except ValidationError:
            return None
        told = complaint.success is False or (not self.good and bool(complaint.text))
        return complaint if told else None

    def said(self) -> str:
        complaint = self.complaint()
        text = complaint.text if complaint else brief(self.content[:4000].decode(errors="replace"))
        return f"{self.where}: answer {self.status}, {text or 'without a word'}"

    def read(self, model: type[_Model]) -> _Model:
        """As `model`; UnknownOutcome unless it is that, or a clear refusal (CloudError)."""
        complaint = self.complaint()
        if not self.decided:
            raise UnknownOutcome(self.said(), status=self.status, retry_after_s=self.retry_after_s)
        if not self.good or (complaint is not None and model is Done):
            hint = "; check the key and what it permits" if self.status in (401, 403) else ""
            code = complaint.error if complaint else None
            raise CloudError(self.said() + hint, status=self.status, code=code)
        try:
            return model.model_validate_json(self.content)
        except ValidationError as error:
            fault = faults(error)
        raise UnknownOutcome(f"{self.said()} (unreadable: {fault})", status=self.status)


class Connection:
    """`clock` and `sleep` are in seconds; one request lasts at most about `request_timeout_s`."""

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
        self._key = checked_key(key.get_secret_value(), "the key")
        url = checked_url(base_url, loopback=True)
        self.loopback = url.host in _LOOPBACK
        self.clock, self.sleep, self.patience_s = clock, sleep, patience_s
        self.service_clock = ServiceClock(clock, wall)
        self._request_timeout_s = request_timeout_s
        self._http = httpx.Client(
            base_url=url,
            headers={"Accept-Encoding": "identity"},
            timeout=request_timeout_s,
            transport=transport,
            trust_env=not self.loopback,
            follow_redirects=False,
        )

    def close(self) -> None:
        self._http.close()

    def reveals_key(self, text: str) -> bool:
        return self._key.get_secret_value() in text

    def ask(
        self,
        model: type[_Model],
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        until: float | None = None,
    ) -> _Model:
        """An idempotent request, repeated until `until` while its outcome is unknown."""
        return self.patiently(
            lambda: self.exchange(method, path, params=params, body=body).read(model), until=until
        )

    def patiently(self, attempt: Callable[[], _T], *, until: float | None = None) -> _T:
        """`attempt`, again after growing pauses while it raises UnknownOutcome and time remains."""
        until = self.clock() + self.patience_s if until is None else until
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return attempt()
            except UnknownOutcome as error:
                unknown = error
            wait_s = max(pause_s, unknown.retry_after_s or 0.0)
            if self.clock() + wait_s > until:
                raise unknown
            self.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        signed: bool = True,
    ) -> Answer:
        """One request, sent once; UnknownOutcome where no whole answer came back."""
        where = f"{method} {path.partition('?')[0]}"
        secret = self._key.get_secret_value()
        until = self.clock() + self._request_timeout_s
        content, trouble = bytearray(), ""
        auth = _Bearer(self._key) if signed else None
        try:
            with self._http.stream(method, path, params=params, json=body, auth=auth) as reply:
                for block in reply.iter_bytes():
                    content += block
                    if len(content) > MAX_REPLY_BYTES or self.clock() > until:
                        trouble = f"more than {MAX_REPLY_BYTES} bytes or {self._request_timeout_s:g} s"
                        break
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            trouble = brief(f"{type(error).__name__}: {error}".replace(secret, MASK))
        if trouble:
            raise UnknownOutcome(f"{where}: no whole answer ({trouble}), so its outcome is unknown")
        if signed:
            self.service_clock.hear(reply.headers.get("Date"))
        after = reply.headers.get("Retry-After", "")
        return Answer(
            where,
            reply.status_code,
            bytes(content).replace(secret.encode(), MASK.encode()),
            float(after) if re.fullmatch(r"[0-9]{1,9}", after) else None,
        )
