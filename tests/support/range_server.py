"""A real HTTP server that answers ranges of objects in memory, and misbehaves on request."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass
class Answer:
    """What is about to be sent; a fault changes it."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    cut: int | None = None  # the connection is closed after so many bytes of the body
    raw: bytes | None = None  # sent instead of everything else; then the connection is closed
    before_body: Callable[[], object] = lambda: None
    endless: bool = False  # the body is sent again and again


Fault = Callable[[Answer], object]


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    path: str
    query: str
    headers: Message  # names in any case

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(match.group(1)), int(match.group(2))) if match else None


@dataclass
class RangeServer:
    """The objects, the next faults (one a request; then there are none), what was asked."""

    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: deque[Fault | None] = field(default_factory=deque)
    every: Fault | None = None  # applied to every answer
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0  # of bodies
    ranges: bool = True  # whether ranges are understood
    conditions: bool = True  # whether If-Match and If-Unmodified-Since are
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        """The URL of an object."""
        return f"{self.address}{path}"

    @property
    def asked(self) -> list[tuple[int, int] | None]:
        """The ranges of all requests."""
        return [request.range for request in self.requests]


@cache
def etag_of(data: bytes) -> str:
    """The tag of an object."""
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


class _Handler(BaseHTTPRequestHandler):
    """Answers for `server.state`."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    disable_nagle_algorithm = True  # headers and body are two writes

    def setup(self) -> None:
        super().setup()
        state = self._state()
        with state.lock:
            state.connections += 1

    def do_GET(self) -> None:
        state = self._state()
        target = re.sub(r"^https?://[^/]*", "", self.path)  # a proxy is told the whole URL
        path, _, query = target.partition("?")
        request = Request(path, query, self.headers)
        with state.lock:
            state.requests.append(request)
            fault = state.faults.popleft() if state.faults else None
        answer = self._answer(state, request)
        for change in (state.every, fault):
            if change is not None:
                change(answer)
        with suppress(OSError):  # the client may have enough
            self._send(state, answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def _answer(self, state: RangeServer, request: Request) -> Answer:
        data = state.objects.get(request.path)
        if data is None:
            return Answer(404, {}, b"not here")
        headers = {"ETag": etag_of(data), "Last-Modified": MODIFIED}
        stale = (
            request.headers.get("If-Match", headers["ETag"]) != headers["ETag"]
            or request.headers.get("If-Unmodified-Since", MODIFIED) != MODIFIED
        )
        if stale and state.conditions:
            return Answer(412, headers)
        if request.range is None or not state.ranges:
            return Answer(200, headers, data)
        first, last = request.range
        if first >= len(data):
            return Answer(416, headers | {"Content-Range": f"bytes */{len(data)}"})
        body = data[first : last + 1]
        content = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
        return Answer(206, headers | {"Content-Range": content}, body)

    def _send(self, state: RangeServer, answer: Answer) -> None:
        if answer.raw is not None:
            self.wfile.write(answer.raw)
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        for name, value in headers.items():
            if value:  # a fault leaves a header out by making it empty
                self.send_header(name, value)
        self.end_headers()
        answer.before_body()
        pieces: Iterable[bytes] = [answer.body[: answer.cut]]
        for piece in cycle(pieces) if answer.endless else pieces:
            self.wfile.write(piece)
            with state.lock:
                state.sent_bytes += len(piece)
        if answer.cut is not None or "chunked" in headers.get("Transfer-Encoding", ""):
            self.close_connection = True

    def _state(self) -> RangeServer:
        assert isinstance(self.server, _Server)
        return self.server.state


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: RangeServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests."""


@contextmanager
def range_server(
    objects: dict[str, bytes] | None = None, *, tls: ssl.SSLContext | None = None
) -> Iterator[RangeServer]:
    """Serves until the block ends."""
    state = RangeServer(objects=dict(objects or {}))
    with _Server(state) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        state.address = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def unused_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def answers(status: int, **headers: str) -> Fault:
    """A fault: another status, with these headers (underscores for dashes) and no body."""

    def change(answer: Answer) -> None:
        answer.status = status
        answer.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer.body = b""

    return change


def with_headers(**headers: str) -> Fault:
    """A fault: other headers; an empty one is left out."""

    def change(answer: Answer) -> None:
        answer.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    return change


def cut_after(count: int) -> Fault:
    """A fault: the connection closes after so many bytes of the body."""

    def change(answer: Answer) -> None:
        answer.cut = count

    return change


def hang_up(answer: Answer) -> None:
    """A fault: the connection closes without an answer."""
    answer.raw = b""
