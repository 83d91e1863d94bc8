"""Ray's job API over HTTP: submit, look, stop, read; the package `ray` is not imported.

The API is the cluster's dashboard (port 8265). It runs whatever it is told, so a cluster that
others can reach needs Ray's token authentication; the token goes into a header, never into a
command. Ray's own words: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/

Silence is not an answer: a refused connection, a timeout, a server error or a page that is not
Ray's raise `UnreachableError`; only Ray's own "does not exist" means that a job is not there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from universal_simulator.errors import ExecutorError, UnreachableError, UserError

#: where the dashboard of a head on this machine listens
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0
#: a young head takes a job only when its agent has come up, and answers only then
SUBMIT_TIMEOUT_S = 90.0
#: Ray gives up on a job that found no room for RAY_JOB_START_TIMEOUT_SECONDS (its default: 900)
START_TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"


class JobInfo(BaseModel):
    """What Ray says of one submission; times in milliseconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    driver_exit_code: int | None = None
    error_type: str | None = None
    message: str | None = None
    start_time: int | None = None
    end_time: int | None = None

    @property
    def terminal(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def job_api_address(environment: Mapping[str, str] = os.environ) -> str:
    """RAY_API_SERVER_ADDRESS as Ray's own tools read it, else the head of this machine."""
    return environment.get("RAY_API_SERVER_ADDRESS", "").strip() or DEFAULT_ADDRESS


class RayJobs:
    """A client of one cluster. Raises UnreachableError where it does not answer as Ray does."""

    def __init__(self, address: str, token: SecretStr | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UserError(
                f"Ray's job API is at http://HOST:8265 (the dashboard), got {address!r}; "
                "`local` starts a cluster of its own"
            )
        self.address = address.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._timeout_s = timeout_s
        self._client = httpx.Client(base_url=self.address, headers=headers, trust_env=not local)

    def close(self) -> None:
        self._client.close()

    def version(self) -> str:
        """Ray's version, as the cluster says it."""
        answer = _json(self._ask("GET", "/api/version"))
        if not isinstance(answer, dict) or not isinstance(answer.get("ray_version"), str):
            raise UnreachableError(f"{self.address} answers, but not as Ray does")
        return str(answer["ray_version"])

    def submit(self, submission: str, request: Mapping[str, Any]) -> None:
        """Idempotent: a submission that is there already is left as it is."""
        content = {**request, "submission_id": submission}
        reply = self._ask("POST", "/api/jobs/", content, timeout_s=SUBMIT_TIMEOUT_S)
        if reply.status_code == 200 or self.info(submission) is not None:
            return
        words = reply.text.strip().splitlines()
        why = words[-1] if words else f"status {reply.status_code}"
        if reply.status_code == 400:
            raise ExecutorError(f"Ray refused {submission}: {why[:500]}")
        raise UnreachableError(f"Ray took no job just now: {why[:500]}")

    def info(self, submission: str) -> JobInfo | None:
        """None: the cluster answers and says that it knows no such submission."""
        reply = self._ask("GET", f"/api/jobs/{quote(submission)}")
        if reply.status_code == 404 and "does not exist" in reply.text:
            return None
        try:
            return JobInfo.model_validate(_json(reply))
        except ValidationError as error:
            raise UnreachableError(f"{self.address} answers, but not as Ray does: {error}") from error

    def stop(self, submission: str) -> None:
        """Ask Ray to end it: SIGTERM, then SIGKILL; returns before it is gone."""
        self._ask("POST", f"/api/jobs/{quote(submission)}/stop")

    def resource_names(self) -> frozenset[str]:
        """What the nodes now alive lend: CPU, GPU, memory, and the names given to their classes."""
        found: set[str] = set()
        try:
            listed = _json(self._ask("GET", "/api/v0/nodes?detail=1&limit=10000"))["data"]["result"]["result"]
            for node in listed:
                found.update(node["resources_total"] if node["state"] == "ALIVE" else ())
        except (TypeError, KeyError) as error:
            raise UnreachableError(f"{self.address} answers, but not as Ray does") from error
        return frozenset(found)

    def _ask(
        self, method: str, path: str, content: Any = None, *, timeout_s: float | None = None
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s or self._timeout_s, connect=self._timeout_s)
        try:
            reply = self._client.request(method, path, json=content, timeout=timeout)
        except httpx.HTTPError as error:
            raise UnreachableError(f"{self.address} does not answer: {type(error).__name__}") from error
        if reply.status_code in (401, 403):
            raise UnreachableError(
                f"{self.address} wants another token: set RAY_AUTH_TOKEN or write it into ~/.ray/auth_token"
            )
        return reply


def _json(reply: httpx.Response) -> Any:
    try:
        return reply.json() if reply.status_code == 200 else None
    except ValueError:
        return None
