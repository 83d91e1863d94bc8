"""A loopback server that behaves like Vast.ai's REST service, and misbehaves on demand.

It keeps its own clock (`Clock`, advanced by whoever sleeps on it) and a bill: GPU while running or
frozen, disk from creation to destruction. `plan(endpoint, mood, ...)` queues what it does to the next
requests of search, create, list, one, logs, log_text, destroy, change:

    drop          nothing is done, no reply           lose      it is done, no reply
    429, 429 7    plain text (Retry-After: 7)         503       nothing is done, a page in HTML
    done 500      it is done, answer 500              refuse    answer 400 in the service's error shape
    echo          like refuse, quoting the request's key
    empty, garbage, array, cut, huge                  it is done, the reply is spoilt
    create: late (made 40 s later, no reply), liar (answers with another instance's id), no id
    list:   no success, unsuccessful, null, no total, short, blank (a consistent lie), circle, bad entry
    one:    other (answers with another instance)
    destroy: ghost (unseen once, seen once more, then gone), ignored (says yes, does nothing)
    change: ignored
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

LOAD_S = 20.0
LATE_S = 40.0
OFFLINE_AFTER_S = 600.0
DISK_USD_PER_GB_HOUR = 0.0002
SPOILT = {
    "empty": b"",
    "garbage": b'{"success": tru',
    "array": b"[]",
    "cut": b"{",
    #: would be a good reply, were it not for its size
    "huge": b'{"success":true,"instances":[],"total_instances":0,"x":"' + b"x" * (4 << 20) + b'"}',
}


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@dataclass
class Machine:
    """A rented instance, with what it has cost so far."""

    id: int
    label: str | None
    usd_per_hour: float
    disk_gb: float
    began: float
    body: dict[str, Any] = field(default_factory=dict)
    cur_state: str = "running"
    intended_status: str = "running"
    next_state: str = "running"
    loading_since: float | None = None
    stuck: bool = False
    silent_since: float | None = None
    frozen: bool = False
    load_s: float = LOAD_S
    gpu_usd: float = 0.0
    disk_usd: float = 0.0
    billed_to: float = 0.0

    def status(self, now: float) -> str | None:
        if self.silent_since is not None:
            return "offline" if now - self.silent_since > OFFLINE_AFTER_S else "unknown"
        if self.cur_state == "stopped":
            return "exited"
        if self.loading_since is not None and (self.stuck or now - self.loading_since < self.load_s):
            return None if now == self.loading_since else "loading"
        return "frozen" if self.frozen else "running"

    def bill(self, now: float) -> None:
        """Between two calls nothing changes but the end of loading, and the host's silence."""
        start = self.billed_to
        if self.loading_since is not None:
            start = now if self.stuck else max(start, self.loading_since + self.load_s)
        if self.cur_state == "running" and self.silent_since is None:
            self.gpu_usd += self.usd_per_hour * max(0.0, now - start) / 3600
        self.disk_usd += self.disk_gb * DISK_USD_PER_GB_HOUR * (now - self.billed_to) / 3600
        self.billed_to = now

    def row(self, now: float) -> dict[str, Any]:
        return {
            "id": self.id,
            "label": self.label,
            "actual_status": self.status(now),
            "intended_status": self.intended_status,
            "cur_state": self.cur_state,
            "next_state": self.next_state,
            "status_msg": "success, running\x1b[2J",
            "ssh_host": "ssh4.vast.ai",
            "ssh_port": 10600,
            "start_date": self.began,
            "dph_total": self.usd_per_hour + self.disk_gb * DISK_USD_PER_GB_HOUR,
            "gpu_util": None,
            "a_field_of_tomorrow": {"x": [1]},
        }


def offer(offer_id: int, **changed: Any) -> dict[str, Any]:
    return {
        "id": offer_id,
        "gpu_name": "A100 PCIE",
        "gpu_ram": 40960,
        "dph_total": 0.8,
        "dph_base": 0.7,
        "min_bid": 0.3,
        "reliability2": 0.99,
        "inet_down": 900.5,
        "disk_space": 200.0,
        "cuda_max_good": 12.4,
        "num_gpus": 1,
    } | changed


class Lost(Exception):
    """The connection ends without a reply."""


Reply = tuple[int, dict[str, str], bytes]


class LoopbackVast:
    """`with LoopbackVast(key, clock) as server`; `reset()` begins anew under the same address."""

    def __init__(self, key: str, clock: Clock) -> None:
        self.key = key
        self.lock = threading.Lock()
        self.reset(clock)
        server = self

        class Handler(_Handler):
            vast = server

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._httpd.server_port}"

    def __enter__(self) -> LoopbackVast:
        threading.Thread(
            target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()

    def reset(self, clock: Clock) -> None:
        self.clock = clock
        self.load_s = LOAD_S
        #: the service's clock, as its answers date themselves, runs ahead of ours by this
        self.ahead_s = 0.0
        self.dated = True
        #: what is done to the processes of a machine that is destroyed, stopped or dead
        self.on_end: Callable[[Machine, bool], None] = lambda machine, for_good: None
        self.offers = [offer(1)]
        self.machines: dict[int, Machine] = {}
        self.buried: list[Machine] = []
        self.creates: Counter[str] = Counter()
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        #: requests that carried the key where it does not belong
        self.leaks: list[str] = []
        #: instances that asked for their own stop, with the key that is good for nothing else
        self.self_stopped: list[int] = []
        self.faults: Counter[str] = Counter()
        self._next_id = 100
        self._moods: dict[str, deque[str]] = defaultdict(deque)
        self._late: list[tuple[float, Machine]] = []
        self._ghosts: list[tuple[Machine, list[bool]]] = []
        self._shown: list[Machine] = []
        self._log_polls = 0

    def instance_key(self, instance_id: int) -> str:
        return f"instance-key-{instance_id}"

    def date(self) -> dict[str, str]:
        """The header that tells the service's own time, unless it is told to leave it out."""
        return {"Date": formatdate(self.clock() + self.ahead_s, usegmt=True)} if self.dated else {}

    def plan(self, endpoint: str, *moods: str) -> None:
        self._moods[endpoint].extend(moods)

    def planned(self, endpoint: str, mood: str) -> int:
        return self._moods[endpoint].count(mood)

    def planned_at_all(self) -> bool:
        return any(self._moods.values())

    def calm(self) -> None:
        self._moods.clear()

    def rent(self, label: str | None, *, usd_per_hour: float = 0.5, disk_gb: float = 64.0) -> Machine:
        """An instance made behind the client's back."""
        machine = self._machine(label, usd_per_hour, disk_gb, {})
        self.machines[machine.id] = machine
        return machine

    def outbid(self, machine: Machine) -> None:
        self.settle()
        machine.cur_state = machine.intended_status = machine.next_state = "stopped"
        self.on_end(machine, False)

    def host_dies(self, machine: Machine) -> None:
        self.settle()
        machine.silent_since = self.clock()
        self.on_end(machine, False)

    def settle(self) -> None:
        """Bill up to now, and let what was due happen."""
        for due, machine in list(self._late):
            if due <= self.clock():
                self._late.remove((due, machine))
                machine.began = machine.loading_since = machine.billed_to = due
                self.machines[machine.id] = machine
        for machine in self.machines.values():
            machine.bill(self.clock())

    def spent_usd(self, prefix: str = "") -> float:
        self.settle()
        machines = [*self.machines.values(), *self.buried]
        return sum(m.gpu_usd + m.disk_usd for m in machines if (m.label or "").startswith(prefix))

    def live(self, prefix: str = "") -> list[Machine]:
        return [m for m in self.machines.values() if (m.label or "").startswith(prefix)]

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        """One request; raises Lost for a connection that ends without a reply."""
        url = urlsplit(target)
        self.requests.append(f"{method} {target}")
        self.bodies.append(json.loads(body) if body else None)
        self.settle()
        if self.key in target or self.key.encode() in body:
            self.leaks.append(target)
        if match := re.fullmatch(r"/logs/(\d+)", url.path):
            if "authorization" in headers:
                self.leaks.append(target)
            return self._log_text(int(match[1]))
        authorization = headers.get("authorization")
        own = re.fullmatch(r"/api/v0/instances/(\d+)/", url.path)
        if method == "PUT" and own and authorization == f"Bearer {self.instance_key(int(own[1]))}":
            self.self_stopped.append(int(own[1]))
            return _json(*self._change("good", int(own[1]), query={}, body=self.bodies[-1]))
        if authorization != f"Bearer {self.key}":
            return _json(401, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
        for verb, pattern, endpoint in _ROUTES:
            match = re.fullmatch(pattern, url.path)
            if verb == method and match:
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                return self._serve(endpoint, [int(g) for g in match.groups()], query, self.bodies[-1])
        return 404, {"Content-Type": "text/html"}, b"<html>not here</html>"

    def _serve(self, endpoint: str, ids: list[int], query: dict[str, str], body: Any) -> Reply:
        if endpoint == "create":
            self.creates[body["label"]] += 1
        moods = self._moods[endpoint]
        mood = moods.popleft() if moods else "good"
        if mood != "good":
            self.faults[f"{endpoint}: {mood}"] += 1
        if mood == "drop":
            raise Lost
        if mood.startswith("429"):
            after = {"Retry-After": mood[4:]} if mood[4:] else {}
            return 429, {"Content-Type": "text/plain"} | after, b"API requests too frequent: threshold=2.0"
        if mood.isdigit():
            return int(mood), {"Content-Type": "text/html"}, b"<html>upstream trouble</html>"
        if mood in ("refuse", "echo"):
            msg = f"key {self.key} may not do this" if mood == "echo" else "Human-readable description."
            return _json(400, {"success": False, "error": "invalid_args", "msg": msg})
        status, value = getattr(self, f"_{endpoint}")(mood, *ids, query=query, body=body)
        if mood == "lose":
            raise Lost
        if mood == "done 500":
            return _json(500, {"success": False, "error": "server_error"})
        if mood in SPOILT:
            return 200, {"Content-Type": "application/json"}, SPOILT[mood]
        return _json(status, value)

    def _search(self, mood: str, *, query: Any, body: Any) -> tuple[int, Any]:
        return 200, {"offers": self.offers}

    def _create(self, mood: str, offer_id: int, *, query: Any, body: Any) -> tuple[int, Any]:
        found = next((o for o in self.offers if o["id"] == offer_id), None)
        if found is None:
            return 404, {"success": False, "error": "no_such_ask", "msg": f"offer {offer_id} is gone"}
        bid = body["price"]
        # the total has the disk in it, which is billed on its own
        price = bid or max(0.0, found["dph_total"] - body["disk"] * DISK_USD_PER_GB_HOUR)
        machine = self._machine(body["label"], price, body["disk"], body)
        if mood == "late":
            self._late.append((self.clock() + LATE_S, machine))
            raise Lost
        self.machines[machine.id] = machine
        if bid is not None and bid < found["min_bid"]:
            machine.cur_state = machine.intended_status = machine.next_state = "stopped"
            return 400, {"success": False, "error": "bid_too_low", "msg": f"minimum is {found['min_bid']}"}
        others = [m.id for m in self.machines.values() if m is not machine]
        if mood == "no id":
            return 200, {"success": True}
        return 200, {"success": True, "new_contract": others[0] if mood == "liar" and others else machine.id}

    def _list(self, mood: str, *, query: Any, body: Any) -> tuple[int, Any]:
        if "after_token" not in query:
            self._shown = [machine for machine, flags in self._ghosts if flags.pop(0)]
            self._ghosts = [(machine, flags) for machine, flags in self._ghosts if flags]
        everything = {m.id: m for m in [*self.machines.values(), *self._shown]}
        rows = [everything[i].row(self.clock()) for i in sorted(everything)]
        last = int(query.get("after_token", "after:0").removeprefix("after:"))
        limit = int(query["limit"])
        page = [row for row in rows if row["id"] > last][:limit]
        more = bool(page) and page[-1]["id"] != rows[-1]["id"]
        value = {
            "success": True,
            "instances_found": len(page),
            "total_instances": len(rows),
            "next_token": f"after:{page[-1]['id']}" if more else None,
            "instances": page,
        }
        changed: dict[str, dict[str, Any]] = {
            "no success": {"success": None},
            "unsuccessful": {"success": False, "error": "server_error"},
            "null": {"instances": None},
            "no total": {"total_instances": None, "instances_found": None},
            "short": {"instances": page[:-1], "instances_found": max(0, len(page) - 1), "next_token": None}
            if page
            else {"total_instances": 1},
            "blank": {"instances": [], "instances_found": 0, "total_instances": 0, "next_token": None},
            "circle": {"next_token": "after:0"},
            "bad entry": {"instances": [*page, {"id": "7", "label": "x"}], "total_instances": len(rows) + 1},
        }
        value |= changed.get(mood, {})
        return 200, {name: v for name, v in value.items() if v is not None or name == "next_token"}

    def _one(self, mood: str, instance_id: int, *, query: Any, body: Any) -> tuple[int, Any]:
        machine = self.machines.get(instance_id)
        if mood == "other" and machine:
            return 200, {"instances": machine.row(self.clock()) | {"id": instance_id + 1}}
        return 200, {"instances": machine and machine.row(self.clock())}

    def _logs(self, mood: str, instance_id: int, *, query: Any, body: Any) -> tuple[int, Any]:
        self._log_polls = 0
        return 200, {"success": True, "result_url": f"{self.url}/logs/{instance_id}?signature=abc"}

    def _log_text(self, instance_id: int) -> Reply:
        self._log_polls += 1
        if self._log_polls < 3:
            return 404, {}, b""
        return 200, {"Content-Type": "text/plain"}, f"epoch 1\x1b[31m of {instance_id}\n{self.key}\n".encode()

    def _destroy(self, mood: str, instance_id: int, *, query: Any, body: Any) -> tuple[int, Any]:
        if instance_id not in self.machines:
            return 404, {"success": False, "error": "no_such_instance", "msg": "no such instance"}
        if mood != "ignored":
            machine = self.machines.pop(instance_id)
            self.buried.append(machine)
            self.on_end(machine, True)
            if mood == "ghost":
                self._ghosts.append((machine, [False, True]))
        return 200, {"success": True}

    def _change(self, mood: str, instance_id: int, *, query: Any, body: Any) -> tuple[int, Any]:
        machine = self.machines.get(instance_id)
        if machine is None:
            return 404, {"success": False, "error": "no_such_instance", "msg": "no such instance"}
        machine.label = body.get("label", machine.label)
        if "state" in body and mood != "ignored":
            machine.cur_state = machine.intended_status = machine.next_state = body["state"]
            machine.loading_since = self.clock()
            if body["state"] == "stopped":
                self.on_end(machine, False)
        return 200, {"success": True}

    def _machine(self, label: str | None, usd_per_hour: float, disk_gb: float, body: Any) -> Machine:
        self._next_id += 1
        now = self.clock()
        return Machine(
            self._next_id,
            label,
            usd_per_hour,
            disk_gb,
            now,
            body,
            loading_since=now,
            load_s=self.load_s,
            billed_to=now,
        )


_ROUTES = (
    ("POST", r"/api/v0/bundles/", "search"),
    ("PUT", r"/api/v0/asks/(\d+)/", "create"),
    ("GET", r"/api/v1/instances/", "list"),
    ("PUT", r"/api/v0/instances/request_logs/(\d+)/", "logs"),
    ("GET", r"/api/v0/instances/(\d+)/", "one"),
    ("DELETE", r"/api/v0/instances/(\d+)/", "destroy"),
    ("PUT", r"/api/v0/instances/(\d+)/", "change"),
)


def _json(status: int, value: Any) -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


class InProcess(httpx.BaseTransport):
    """The same service without a socket, for thousands of requests a second."""

    def __init__(self, server: LoopbackVast) -> None:
        self.server = server

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        target = request.url.raw_path.decode()
        try:
            status, extra, content = self.server.answer(request.method, target, headers, request.read())
        except Lost:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.") from None
        if content == SPOILT["cut"]:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
        return httpx.Response(status, headers=extra | self.server.date(), content=content)


class _Handler(BaseHTTPRequestHandler):
    vast: LoopbackVast
    protocol_version = "HTTP/1.1"
    #: one packet a reply, or every request waits for a delayed acknowledgement
    wbufsize = 1 << 16

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.vast.date().get("Date", "")

    def log_message(self, *_: object) -> None:
        pass

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            with self.vast.lock:
                status, extra, content = self.vast.answer(self.command, self.path, headers, body)
        except Lost:
            self.close_connection = True
            return
        cut = content == SPOILT["cut"]
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + (10 if cut else 0)))
        self.end_headers()
        try:
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        self.close_connection |= cut

    do_GET = do_PUT = do_POST = do_DELETE = _any
