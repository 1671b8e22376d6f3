"""An HTTP server that answers like Prometheus, or like a broken one, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.loopback import QuietHandler, serving


@dataclass(frozen=True)
class Asked:
    """One request: its path with query, its form, and its headers."""

    method: str
    path: str
    form: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What to answer: a status, a body (JSON unless bytes) and headers."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def result(kind: str, content: Any, **envelope: Any) -> Reply:
    """A successful answer."""
    return Reply(body={"status": "success", "data": {"resultType": kind, "result": content}, **envelope})


def failure(status: int, kind: str, error: str) -> Reply:
    """An answer that names an error, as Prometheus does."""
    return Reply(status, {"status": "error", "errorType": kind, "error": error})


@dataclass
class Stub:
    """The server; set ``reply`` to what it shall answer."""

    url: str = ""
    reply: Callable[[Asked], Reply] = lambda _: result("vector", [])
    asked: list[Asked] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    """While cleared (it is set at first), requests are taken and not answered."""
    taken: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, asked: Asked) -> Reply:
        with self.lock:
            self.asked.append(asked)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        self.taken.release()
        self.hold.wait(10)
        with self.lock:
            self.busy -= 1
        return self.reply(asked)


@contextmanager
def prometheus_stub() -> Iterator[Stub]:
    """Run a stub on a free loopback port."""
    stub = Stub()
    stub.hold.set()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            form = {key: values[0] for key, values in parse_qs(self.body().decode()).items()}
            reply = stub.answer(Asked(self.command, urlsplit(self.path).path, form, dict(self.headers)))
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with contextlib.suppress(ConnectionError):  # who asked may have given up
                (self.send_response_only if "Date" in reply.headers else self.send_response)(reply.status)
                for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

    with serving(Handler) as server:
        stub.url = server.url
        try:
            yield stub
        finally:
            stub.hold.set()
