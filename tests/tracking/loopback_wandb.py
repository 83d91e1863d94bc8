"""A server on this machine that speaks as much of W&B as a mirror needs, and remembers what it was told.

Written after the requests that the real client sends; the real service was never reached from tests.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Run:
    project: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False


@dataclass
class Service:
    url: str = ""
    runs: dict[str, Run] = field(default_factory=dict)
    #: digest -> artifact's name; the same content is one version
    artifacts: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    #: hang up without an answer once this many lines of history have arrived
    hang_up_after: int | None = None

    def graphql(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(self, f"_{operation}", None)
        return {"data": answer(values) if answer else {}}

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    def _RunResumeStatus(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(values["name"])
        bucket = None
        if run is not None:
            bucket = {
                "id": values["name"],
                "name": values["name"],
                "displayName": values["name"],
                "summaryMetrics": json.dumps(run.summary),
                "config": json.dumps(run.config),
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "logLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": "[]",
                "tags": run.tags,
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": self._project(values["project"]) | {"bucket": bucket}}

    def _UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:
        inserted = values["name"] not in self.runs
        run = self.runs.setdefault(values["name"], Run())
        run.project = values.get("project") or run.project
        run.group = values.get("groupName") or run.group
        run.tags = values.get("tags") or run.tags
        if values.get("config"):
            run.config = json.loads(values["config"])
        bucket = {
            "id": values["name"],
            "name": values["name"],
            "displayName": values["name"],
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": self._project(run.project),
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _ArtifactType(self, values: dict[str, Any]) -> dict[str, Any]:
        known = values["name"].partition(":")[0] in self.artifacts.values()
        return {"project": {"artifact": {"artifactType": {"name": "run-record"}} if known else None}}

    def _CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": n, "uploadUrl": f"{self.url}/put/{values['run']}/{n}"} for n in values["files"]]
        return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        name = (values.get("input") or values).get("artifactCollectionName", "")
        digest = (values.get("input") or values).get("digest", "")
        known = digest in self.artifacts
        self.artifacts[digest] = name
        artifact = {"id": digest, "state": "COMMITTED" if known else "PENDING"}
        return {
            "createArtifact": {
                "artifact": artifact | {"artifactSequence": {"id": "s", "latestArtifact": None}}
            }
        }

    def _CreateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": None, "uploadHeaders": []}
        manifest = {"id": "m", "file": file | {"uploadUrl": f"{self.url}/put/-/manifest"}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _UpdateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "f", "name": "m", "displayName": "m", "uploadHeaders": []}
        manifest = {"id": "m", "file": file | {"uploadUrl": f"{self.url}/put/-/manifest"}}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        edges = [
            {
                "node": {
                    "id": "f",
                    "name": item["name"],
                    "displayName": item["name"],
                    "uploadUrl": f"{self.url}/put/-/{item['name']}",
                    "uploadHeaders": [],
                    "storagePath": item["name"],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": item["artifactID"]},
                }
            }
            for item in (values.get("input") or values).get("artifactFiles", [])
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}

    def _project(self, name: str) -> dict[str, Any]:
        return {"id": name, "name": name, "entity": {"id": "e", "name": "me"}}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.runs[run_id]
        files = body.get("files", {})
        if "wandb-history.jsonl" in files:
            offset, lines = files["wandb-history.jsonl"]["offset"], files["wandb-history.jsonl"]["content"]
            run.history[offset : offset + len(lines)] = [json.loads(line) for line in lines]
        if "wandb-summary.json" in files:
            run.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        run.complete = bool(body.get("complete", run.complete))


@contextmanager
def serving() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            what = f"{self.command} {self.path}"
            if self.path == "/graphql":
                asked = json.loads(body)
                what = asked.get("operationName") or asked["query"].split("(")[0].split("{")[0].split()[-1]
                answer = service.graphql(what, asked.get("variables") or {})
            elif self.path.endswith("/file_stream"):
                service.stream(self.path.split("/")[-2], json.loads(body))
                rows = sum(len(run.history) for run in service.runs.values())
                if service.hang_up_after is not None and rows >= service.hang_up_after:
                    self.close_connection = True
                    return
            elif self.path.startswith("/put/"):
                run_id, _, name = self.path.removeprefix("/put/").partition("/")
                service.runs.setdefault(run_id, Run()).files[name] = body
            service.requests.append(what)
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = _answer

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed is what some of these tests are about."""

    httpd = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    service.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield service
    finally:
        httpd.shutdown()
        httpd.server_close()
