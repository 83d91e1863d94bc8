"""Ray's job API on this machine without Ray: real processes, and every way a cluster can fall silent.

What it answers was read off a real head (2.60): statuses, exit codes, "does not exist", a stop that
leaves a pending job pending, a second POST of one name refused.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Submission:
    request: Mapping[str, Any]
    status: str = "PENDING"
    exit_code: int | None = None
    error_type: str | None = None
    message: str | None = None
    started: int = field(default_factory=lambda: int(time.time() * 1000))
    ended: int | None = None
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False

    def finish(self, status: str, **about: Any) -> None:
        self.status, self.ended = status, int(time.time() * 1000)
        for name, value in about.items():
            setattr(self, name, value)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def told(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "driver_exit_code": self.exit_code,
            "error_type": self.error_type,
            "message": self.message,
            "start_time": self.started,
            "end_time": self.ended,
            "unknown_field_of_a_later_version": {},
        }


class LoopbackRay:
    """`fault`: None, "silent" (no reply), "error" (500), "foreign" (another server's 404), "token" (401),
    "lost reply" (the next POST is carried out, its reply is not sent)."""

    def __init__(self, *, gpus: int = 2) -> None:
        self.gpus = gpus
        self.fault: str | None = None
        self.marks: dict[str, float] = {"CPU": 2.0}
        self.submissions: dict[str, Submission] = {}
        self.headers: list[str | None] = []
        self._all: list[Submission] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        for submission in self._all:
            submission.kill()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def find(self, job_id: str) -> Submission:
        """The last submission of a job."""
        return [s for s in self.submissions.values() if s.request["metadata"]["usim_job"] == job_id][-1]

    def submit(self, request: Mapping[str, Any]) -> bool:
        if request["submission_id"] in self.submissions:
            return False
        submission = Submission(request)
        self.submissions[request["submission_id"]] = submission
        self._all.append(submission)
        if request["entrypoint_num_gpus"] <= self.gpus:
            self.begin(submission)
        return True

    def begin(self, submission: Submission) -> None:
        submission.process = subprocess.Popen(
            submission.request["entrypoint"],
            shell=True,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        submission.status = "RUNNING"
        threading.Thread(target=self._watch, args=(submission,), daemon=True).start()

    def lose_supervisor(self, submission: Submission) -> None:
        submission.finish(
            "FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message="Job supervisor actor died"
        )
        submission.kill()

    def forget(self) -> None:
        """A new head in the old one's place; processes of the old one go on."""
        self.submissions = {}

    def stop(self, submission: Submission) -> None:
        submission.stopped = True
        submission.kill(signal.SIGTERM)

    def _watch(self, submission: Submission) -> None:
        assert submission.process is not None
        code = submission.process.wait()
        if submission.status != "RUNNING":
            return
        if submission.stopped:
            submission.finish("STOPPED")
        else:
            words = f"Job entrypoint command failed with exit code {code}" if code else None
            submission.finish("FAILED" if code else "SUCCEEDED", exit_code=code, message=words)


def _handler(ray: LoopbackRay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._faulty():
                return
            if self.path == "/api/version":
                self._reply(200, json.dumps({"version": "4", "ray_version": "2.60.0"}))
            elif self.path.startswith("/api/v0/nodes"):
                node = {"state": "ALIVE", "resources_total": ray.marks}
                self._reply(200, json.dumps({"data": {"result": {"result": [node]}}}))
            elif (name := self.path.removeprefix("/api/jobs/")) in ray.submissions:
                self._reply(200, json.dumps(ray.submissions[name].told()))
            else:
                self._reply(404, f"Job {name} does not exist")

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self._faulty():
                return
            if self.path == "/api/jobs/":
                accepted = ray.submit(json.loads(content))
                if ray.fault == "lost reply":
                    ray.fault = None
                    self.close_connection = True
                    return
                self._reply(200 if accepted else 500, "{}" if accepted else "ValueError: already exists")
                return
            ray.stop(ray.submissions[self.path.removeprefix("/api/jobs/").removesuffix("/stop")])
            self._reply(200, '{"stopped": true}')

        def _faulty(self) -> bool:
            ray.headers.append(self.headers.get("Authorization"))
            answers = {"error": (500, "oops"), "foreign": (404, "<html>"), "token": (401, "Unauthorized")}
            if ray.fault == "silent":
                self.close_connection = True
                return True
            if ray.fault in answers:
                self._reply(*answers[ray.fault])
                return True
            return False

        def _reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler
