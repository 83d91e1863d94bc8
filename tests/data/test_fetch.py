"""Downloads from a loopback server that breaks off, lies, stalls and changes its mind."""

from __future__ import annotations

import hashlib
import re
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from universal_simulator.data import fetch as module
from universal_simulator.data.fetch import Published, catalogue, fetch, published
from universal_simulator.errors import DataError, UserError

CONTENT = bytes(range(256)) * 4000
ENTRY = Published(file="sample.hdf5", id=1, md5=hashlib.md5(CONTENT).hexdigest())


@dataclass
class Server:
    """What it does to the n-th request: a word per request, the last one for all further."""

    moods: list[str] = field(default_factory=lambda: ["good"])
    content: bytes = CONTENT
    etag: str = '"1"'
    requests: list[str | None] = field(default_factory=list)
    sent: int = 0
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            mood = state.moods[min(len(state.requests), len(state.moods) - 1)]
            asked = self.headers.get("Range")
            state.requests.append(asked)
            if mood.isdigit():
                self.send_response(int(mood))
                self.end_headers()
                return
            body, start = state.content, 0
            changed = self.headers.get("If-Range") not in (None, state.etag)
            if asked and mood != "no ranges" and not changed:
                start = int(re.findall(r"\d+", asked)[0])
            if mood == "wrong part":
                start += 7
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if mood != "no size":
                self.send_header("Content-Length", str(1 << 60 if mood == "huge" else len(body) - start))
            self.send_header("ETag", state.etag)
            self.end_headers()
            part = body[start:]
            if mood == "lie":
                part = bytes(len(part))
            if mood in ("break off", "stall"):
                part = part[: len(part) // 2]
            if mood == "hang":
                part = b""
            if mood == "trickle":
                for byte in part[:80]:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
                return
            self.wfile.write(part)
            state.sent += len(part)
            if mood in ("stall", "hang"):
                self.wfile.flush()
                time.sleep(0.8)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is what some of these tests are about."""

    httpd = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/file"
    yield state
    httpd.shutdown()
    httpd.server_close()


def got(server: Server, folder: Path, *more: str) -> bytes:
    return fetch(ENTRY, [server.url, *more], folder, timeout_s=0.5, pause_s=0.0).read_bytes()


@pytest.mark.parametrize(
    "moods",
    [
        ["good"],
        ["break off", "good"],
        ["break off", "break off", "break off", "good"],
        ["500", "503", "good"],
        ["break off", "no ranges"],
        ["break off", "wrong part", "good"],
        ["stall", "good"],
    ],
)
def test_the_file_arrives_whole_and_bytes_are_not_sent_twice(
    server: Server, tmp_path: Path, moods: list[str]
) -> None:
    server.moods = moods
    assert got(server, tmp_path) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [ENTRY.file]
    if set(moods) <= {"good", "break off", "500", "503", "stall"}:
        assert server.sent == len(CONTENT)
    count = len(server.requests)
    assert got(server, tmp_path) == CONTENT
    assert len(server.requests) == count, "a verified file is not asked for again"


def test_a_process_that_died_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(_: str, done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        fetch(ENTRY, [server.url], tmp_path, progress=kill)
    assert not (tmp_path / ENTRY.file).exists()
    kept = (tmp_path / f"{ENTRY.file}.partial").stat().st_size
    assert kept > 0
    assert got(server, tmp_path) == CONTENT
    if kept < len(CONTENT):
        assert server.requests[-1] == f"bytes={kept}-"


def test_a_file_that_changed_meanwhile_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    server.moods, server.content, server.etag = ["break off"], bytes(len(CONTENT)), '"0"'
    with pytest.raises(DataError):
        got(server, tmp_path)
    server.moods, server.content, server.etag = ["good"], CONTENT, '"1"'
    server.requests.clear()
    assert got(server, tmp_path) == CONTENT


def test_a_liar_is_thrown_away_and_the_next_mirror_is_asked(server: Server, tmp_path: Path) -> None:
    server.moods = ["lie", "good"]
    assert got(server, tmp_path, server.url + "/mirror") == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("mood", "words"),
    [("lie", "MD5"), ("404", "404"), ("no size", "how large"), ("hang", "Timeout")],
)
def test_what_never_works_is_told_and_leaves_no_file(
    server: Server, tmp_path: Path, mood: str, words: str
) -> None:
    server.moods = [mood]
    with pytest.raises(DataError, match=words):
        got(server, tmp_path)
    assert not (tmp_path / ENTRY.file).exists()


def test_a_server_that_trickles_is_left_for_the_next(server: Server, tmp_path: Path) -> None:
    server.moods = ["trickle", "good"]
    started = time.monotonic()
    assert got(server, tmp_path, server.url + "/mirror") == CONTENT
    assert time.monotonic() - started < 3.0
    assert len(server.requests) == 2


def test_a_server_that_lies_about_the_size_is_left_for_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announced: more than any disk holds."""
    server.moods = ["huge", "good"]
    assert got(server, tmp_path, server.url + "/mirror") == CONTENT


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    def again(_: str, done: int, total: int) -> None:
        with pytest.raises(UserError, match="another process"):
            fetch(ENTRY, [server.url], tmp_path)

    assert fetch(ENTRY, [server.url], tmp_path, progress=again).read_bytes() == CONTENT


def test_a_full_disk_keeps_what_arrived(server: Server, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            got(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = (tmp_path / f"{ENTRY.file}.partial").stat().st_size
    assert 0 < kept <= 300_000
    assert got(server, tmp_path) == CONTENT
    assert server.requests[-1] == f"bytes={kept}-"


def test_too_small_a_disk_is_told_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 60)
    with pytest.raises(DataError, match="GiB free"):
        got(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".{ENTRY.file}.lock"]


def test_catalogue_names_each_file_once() -> None:
    known = catalogue()
    assert len({entry.md5 for entry in known.files.values()}) == len(known.files) == 20
    entry, address = published("burgers_nu0.01")
    assert address.endswith("/281363")
    assert entry.file == "1D_Burgers_Sols_Nu0.01.hdf5"
    with pytest.raises(UserError, match=r"burgers_nu0\.001"):
        published("burgers_nu0.03")
