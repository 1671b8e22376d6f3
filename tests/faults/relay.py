"""What stands between an operator and the real Prometheus, and breaks its answers on demand.

Everything passes unchanged until a test says otherwise. What no Prometheus can be talked into (half an answer, NaN in
a count, silence) is made here from what the real one answers; so a fault is the only thing that is not real.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final
from urllib.parse import parse_qs

import requests

from lab.ports import LOOPBACK, Reservation
from tests.loopback import LoopbackServer, QuietHandler

FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"
LONGEST_HANG_SECONDS: Final = 60.0

Series = list[dict[str, Any]]


class Way(Enum):
    """How a query fares."""

    REFUSED = auto()
    HANGS = auto()
    CUT = auto()
    ANSWERED = auto()
    ALTERED = auto()


@dataclass(frozen=True)
class Fault:
    """What is done to queries.

    Attributes:
        way: How they fare.
        status: For `Way.ANSWERED`: HTTP status.
        body: Likewise, the body.
        headers: Likewise, headers.
        alter: For `Way.ALTERED`: changes the envelope of an answer.
        concerns: Which queries; all unless said otherwise.
    """

    way: Way
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    alter: Callable[[dict[str, Any]], None] = lambda _: None
    concerns: Callable[[str], bool] = lambda _: True


@dataclass(frozen=True)
class Asked:
    """A query that came: when it did and was answered (seconds since the epoch), and whether as Prometheus would."""

    at: float
    answered: float
    query: str
    sound: bool


class Relay:
    """The way to one Prometheus.

    Args:
        upstream: Base URL of the Prometheus.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._ports = Reservation()
        self._port = self._ports.take()
        self._server: LoopbackServer | None = None
        self._fault: Fault | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._listen()

    @property
    def url(self) -> str:
        """Base URL for the operator."""
        return f"http://{LOOPBACK}:{self._port}"

    def fail(self, fault: Fault) -> float:
        """Let a fault begin; return when that was."""
        self._fault = fault
        if fault.way is Way.REFUSED:
            self._close()
        return time.time()

    def heal(self) -> float:
        """Let everything pass again, but what hangs already; return when that was."""
        self._fault = None
        if self._server is None:
            self._listen()
        return time.time()

    def asked(self, since: float = 0.0) -> list[Asked]:
        """Queries that came since a time (seconds since the epoch) and had an answer."""
        with self._lock:
            return [asked for asked in self._asked if asked.at >= since]

    def end(self) -> None:
        """Answer nobody any more."""
        self._ended.set()
        self._close()
        self._ports.close()

    def _listen(self) -> None:
        self._server = LoopbackServer(self._handler(), self._port)
        self._server.begin()

    def _close(self) -> None:
        if self._server is not None:
            self._server.end()
            self._server = None

    def _ask(self, path: str, body: bytes) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Content-Type": FORM}
            return session.post(f"{self._upstream}{path}", data=body, headers=headers, timeout=10)

    def _note(self, asked: Asked) -> None:
        with self._lock:
            self._asked.append(asked)

    def _handler(self) -> type[QuietHandler]:
        relay = self

        class Handler(QuietHandler):
            """One connection for each query (HTTP/1.0), so that a closed port is met by the very next one."""

            def do_POST(self) -> None:
                at = time.time()
                body = self.body()
                query = parse_qs(body.decode()).get("query", [""])[0]
                fault = relay._fault
                if fault is not None and not fault.concerns(query):
                    fault = None
                with contextlib.suppress(ConnectionError):  # who asked may have given up
                    self._answer(body, fault)
                    relay._note(Asked(at, time.time(), query, fault is None))

            def _answer(self, body: bytes, fault: Fault | None) -> None:
                if fault is not None and fault.way is Way.HANGS:
                    relay._ended.wait(LONGEST_HANG_SECONDS)
                    raise ConnectionError
                if fault is not None and fault.way is Way.ANSWERED:
                    self._send(fault.status, fault.body, fault.headers)
                    return
                found = relay._ask(self.path, body)
                content = found.content
                if fault is not None and fault.way is Way.ALTERED:
                    envelope = found.json()
                    fault.alter(envelope)
                    content = json.dumps(envelope).encode()
                cut = fault is not None and fault.way is Way.CUT
                self._send(found.status_code, content, {"Content-Type": JSON}, cut=cut)

            def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)

        return Handler


@contextmanager
def relay(upstream: str) -> Iterator[Relay]:
    """Run a relay to a Prometheus."""
    made = Relay(upstream)
    try:
        yield made
    finally:
        made.end()


# --- what can be altered ----------------------------------------------------------------------------------------------


def valued(text: str) -> Callable[[Any], None]:
    """Put a text in place of every value."""

    def alter(envelope: Any) -> None:
        data = envelope["data"]
        if data["resultType"] == "scalar":
            data["result"][1] = text
            return
        for series in data["result"]:
            for sample in series.get("values", [series.get("value")]):
                sample[1] = text

    return alter


def without_failures(envelope: Any) -> None:
    """Put NaN in place of the requests that failed, for every version."""
    found: Series = envelope["data"]["result"]
    counted = [one for one in found if one["metric"].get("response_code") == "200"]
    lost = [{**one, "metric": {**one["metric"], "response_code": "500"}} for one in counted]
    envelope["data"]["result"] = [one for one in found if one["metric"].get("response_code") != "500"]
    valued("NaN")(broken := json.loads(json.dumps({"data": {**envelope["data"], "result": lost}})))
    envelope["data"]["result"] += broken["data"]["result"]


def emptied(envelope: Any) -> None:
    """Leave all series out."""
    if envelope["data"]["resultType"] != "scalar":
        envelope["data"]["result"] = []


def doubled(envelope: Any) -> None:
    """Add to each series another one, of a Pod more."""
    series: Series = envelope["data"]["result"]
    series += [{**one, "metric": {**one["metric"], "pod": "another"}} for one in series]


def warned(text: str) -> Callable[[Any], None]:
    """Add a warning."""

    def alter(envelope: Any) -> None:
        envelope.setdefault("warnings", []).append(text)

    return alter
