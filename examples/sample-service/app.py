"""A small web service that says which version it is, and that can be told to misbehave.

A progressive delivery is only as good as the failures it has been tried on. This service exists to be one
version among several behind a mesh: it answers every path, names its version in the ``X-App-Version`` header,
exposes ``/healthz`` and Prometheus ``/metrics``, and takes its failure mode at run time, so that a rollout can be
watched while a "bad release" fails some of its requests, becomes slow, turns unhealthy, or crashes.

It is one file on the standard library alone, on purpose: copy it, run it with any Python from 3.11 on, and put it
into an image without installing anything. That is also why ``/metrics`` is written by hand here.

    python app.py --version v1 --port 8080
    curl -i localhost:8080/
    curl -X POST localhost:8080/admin/mode -d '{"errorRate": 0.05, "latencyMs": 300, "latencyRate": 0.1}'
    curl -X POST localhost:8080/admin/mode -d '{}'          # healthy again

An injected error is always status 500, so that it can be told apart from a 503 that a mesh makes up by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

MAX_BODY_BYTES: Final = 1 << 20
JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
METRICS_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper edges of the latency histogram, in seconds."""


# --- Failure mode -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailureMode:
    """How the service misbehaves. The default is a healthy service.

    Attributes:
        errorRate: Share of requests, 0 to 1, that is answered with status 500.
        latencyMs: Milliseconds by which a slow request is delayed.
        latencyRate: Share of requests, 0 to 1, that is slow.
        unhealthy: Whether ``/healthz`` answers 503 (requests are still served).
        crash: Exit with status 1 once this mode has been accepted.
        crashAfterRequests: Exit with status 1, without an answer, on the first request after so many answers;
            counted since the mode was set. Below 0: never.
    """

    # The names are those of the JSON document, so that the two cannot drift apart.
    errorRate: float = 0.0  # noqa: N815
    latencyMs: float = 0.0  # noqa: N815
    latencyRate: float = 1.0  # noqa: N815
    unhealthy: bool = False
    crash: bool = False
    crashAfterRequests: int = -1  # noqa: N815

    @classmethod
    def from_json(cls, text: str | bytes) -> FailureMode:
        """Read a whole mode; what the document leaves out is healthy.

        Raises:
            ValueError: Names the field, the value found, and what would be right.
        """
        try:
            document = json.loads(text or b"{}")
        except ValueError as error:
            raise ValueError(f"the failure mode is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ValueError('the failure mode must be a JSON object such as {"errorRate": 0.05}')  # noqa: TRY004
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "errorRate": (_is_share, "a number from 0 to 1"),
            "latencyMs": (lambda v: _is_number(v) and 0 <= v <= 60_000, "a number from 0 to 60000"),
            "latencyRate": (_is_share, "a number from 0 to 1"),
            "unhealthy": (lambda v: isinstance(v, bool), "true or false"),
            "crash": (lambda v: isinstance(v, bool), "true or false"),
            "crashAfterRequests": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
        }
        for name, value in document.items():
            if name not in rules:
                raise ValueError(f"unknown field {name!r}; known are {', '.join(rules)}")
            accepts, wanted = rules[name]
            if not accepts(value):
                raise ValueError(f"{name} is {json.dumps(value)}; it must be {wanted}")
        return cls(**document)

    def to_json(self) -> str:
        """The whole mode as a JSON object, in the form that ``from_json`` reads."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


# --- Metrics ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Metrics:
    """Counts and durations of the answered requests, probes and admin calls left out."""

    version: str
    by_code: Counter[int] = field(default_factory=Counter)
    by_bucket: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    seconds: float = 0.0
    in_flight: int = 0

    def observe(self, code: int, seconds: float) -> None:
        """Count one answer with its status code and the time that it took."""
        self.by_code[code] += 1
        self.by_bucket[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.seconds += seconds

    def render(self) -> str:
        """The metrics in Prometheus' text format 0.0.4."""
        version = _label(self.version)
        lines = ["# HELP app_requests_total Requests answered.", "# TYPE app_requests_total counter"]
        lines += [
            f'app_requests_total{{version="{version}",code="{code}"}} {count}'
            for code, count in sorted(self.by_code.items())
        ]
        lines += [
            "# HELP app_request_duration_seconds Time from the request's last byte to the answer.",
            "# TYPE app_request_duration_seconds histogram",
        ]
        total = 0
        for edge, count in zip((*LATENCY_BUCKETS, "+Inf"), self.by_bucket, strict=True):
            total += count
            lines.append(f'app_request_duration_seconds_bucket{{version="{version}",le="{edge}"}} {total}')
        lines += [
            f'app_request_duration_seconds_sum{{version="{version}"}} {self.seconds:.6f}',
            f'app_request_duration_seconds_count{{version="{version}"}} {total}',
            "# HELP app_requests_in_flight Requests being worked on.",
            "# TYPE app_requests_in_flight gauge",
            f'app_requests_in_flight{{version="{version}"}} {self.in_flight}',
        ]
        return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# --- HTTP -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, as far as this service cares."""

    method: str
    path: str
    body: bytes = b""
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer."""

    status: int
    body: str
    content_type: str = TEXT

    def encode(self, *, version: str, close: bool, with_body: bool) -> bytes:
        """The answer as one piece of bytes: two writes would meet Nagle's algorithm and delayed ACKs (40 ms)."""
        body = self.body.encode()
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            f"X-App-Version: {version}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"{'Connection: close' if close else 'Connection: keep-alive'}\r\n\r\n"
        )
        return head.encode("latin-1") + (body if with_body else b"")


class BadRequestError(Exception):
    """The bytes received are no request that this service understands."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read the next request of a connection.

    Returns:
        The request, or None when the peer has closed the connection in between two requests.

    Raises:
        BadRequestError: With the status to answer before closing.
        asyncio.IncompleteReadError: The peer went away in the middle of a request.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    except asyncio.LimitOverrunError:
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large\n") from None
    first, *fields = head[:-4].decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError(HTTPStatus.BAD_REQUEST, f"not an HTTP/1 request line: {first!r}\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
    if "transfer-encoding" in headers:
        raise BadRequestError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length instead of a Transfer-Encoding\n")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        raise BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Content-Length must be at most {MAX_BODY_BYTES}\n")
    body = await reader.readexactly(int(length)) if length != "0" else b""
    connection = headers.get("connection", "").lower()
    keep_alive = connection == "keep-alive" if words[2] == "HTTP/1.0" else connection != "close"
    return Request(words[0], words[1].partition("?")[0], body, keep_alive)


# --- The service ------------------------------------------------------------------------------------------------


class Service:
    """Answers requests, according to the failure mode that is set.

    Args:
        version: What ``X-App-Version`` says.
        mode: The failure mode to begin with.
        chance: Source of the numbers in [0, 1) that decide whom an error or a delay meets.
        crash: Ends the process at once; it does not return.
    """

    def __init__(
        self,
        version: str,
        mode: FailureMode | None = None,
        *,
        chance: Callable[[], float] = random.random,
        crash: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self.version = version
        self.draining = False
        self.metrics = Metrics(version)
        self._chance = chance
        self._crash = crash
        self.set_mode(mode or FailureMode())

    def set_mode(self, mode: FailureMode) -> None:
        """Replace the failure mode; it holds for requests that begin from now on."""
        self.mode = mode
        self._answers_to_crash = mode.crashAfterRequests

    def after_answer(self) -> None:
        """To be called when an answer has been handed to the network: a requested crash happens here."""
        if self.mode.crash:
            self._crash()

    async def answer(self, request: Request) -> Response:
        """Answer one request; any path that is not one of the service's own gets a greeting."""
        if request.path == "/healthz":
            return self._health()
        if request.path == "/metrics":
            return Response(200, self.metrics.render(), METRICS_FORMAT)
        if request.path == "/admin/mode":
            return self._admin(request)
        self._count_down_to_crash()
        begin = time.perf_counter()
        self.metrics.in_flight += 1
        try:
            response = await self._work(request)
        finally:
            self.metrics.in_flight -= 1
        self.metrics.observe(response.status, time.perf_counter() - begin)
        return response

    def _health(self) -> Response:
        if self.mode.unhealthy:
            return Response(503, "unhealthy, as told\n")
        if self.draining:
            return Response(503, "shutting down\n")
        return Response(200, "ok\n")

    def _admin(self, request: Request) -> Response:
        if request.method not in ("GET", "POST"):
            return Response(405, "GET shows the failure mode, POST sets it\n")
        if request.method == "POST":
            try:
                self.set_mode(FailureMode.from_json(request.body))
            except ValueError as error:
                return Response(400, f"{error}\n")
        return Response(200, self.mode.to_json() + "\n", JSON)

    def _count_down_to_crash(self) -> None:
        if self._answers_to_crash == 0:
            self._crash()
        elif self._answers_to_crash > 0:
            self._answers_to_crash -= 1

    async def _work(self, request: Request) -> Response:
        mode = self.mode
        if mode.latencyMs and self._chance() < mode.latencyRate:
            await asyncio.sleep(mode.latencyMs / 1000)
        if self._chance() < mode.errorRate:
            return Response(500, f"{self.version} failed on {request.path}, as told\n")
        return Response(200, f"{self.version} greets {request.path}\n")


class Server:
    """Carries a ``Service`` over HTTP/1.1 with connections that stay open.

    Shutting down loses nothing: while it drains, the server goes on accepting, says ``Connection: close`` with every
    answer and fails its readiness probe, so that load balancers turn away by themselves; then it stops accepting,
    finishes what is in flight, and closes.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._idle: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one where 0 was asked for.

        Raises:
            OSError: The address is taken or not this machine's.
        """
        self._server = await asyncio.start_server(self._converse, host, port, backlog=1024)
        address = self._server.sockets[0].getsockname()
        return int(address[1])

    async def stop(self, *, drain_seconds: float = 0.0, finish_seconds: float = 10.0) -> None:
        """Drain, stop accepting, and give what is in flight up to ``finish_seconds`` to end."""
        self.service.draining = True
        if drain_seconds > 0:
            await asyncio.sleep(drain_seconds)
        self._server.close()
        for task in self._idle:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy, timeout=finish_seconds)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, request by request (asyncio sets TCP_NODELAY on it)."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine always runs in one
        self._idle.add(task)
        try:
            while (request := await read_request(reader)) is not None:
                self._idle.discard(task)
                self._busy.add(task)
                response = await self.service.answer(request)
                if not await self._send(writer, request, response):
                    return
                self._busy.discard(task)
                self._idle.add(task)
        except BadRequestError as error:
            refusal = Response(error.status, str(error))
            writer.write(refusal.encode(version=self.service.version, close=True, with_body=True))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the peer is gone, or this server ends: there is nobody to tell
        finally:
            self._idle.discard(task)
            self._busy.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _send(self, writer: asyncio.StreamWriter, request: Request, response: Response) -> bool:
        """Send an answer; returns whether the connection stays open."""
        close = self.service.draining or not request.keep_alive
        data = response.encode(version=self.service.version, close=close, with_body=request.method != "HEAD")
        writer.write(data)
        await writer.drain()
        self.service.after_answer()
        return not close


# --- Command line -----------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """Settings from flags, and from the environment where there is no flag."""
    parser = argparse.ArgumentParser(description="A sample service that names its version and fails on demand.")
    parser.add_argument(
        "--version",
        default=environ.get("VERSION", "v1"),
        help="what X-App-Version says (env VERSION; now: %(default)s)",
    )
    parser.add_argument("--host", default=environ.get("HOST", "127.0.0.1"), help="address to listen on (env HOST)")
    parser.add_argument(
        "--port",
        type=int,
        default=environ.get("PORT", "8080"),
        help="port to listen on, 0 for a free one (env PORT; now: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        type=_mode,
        default=environ.get("FAILURE_MODE", "{}"),
        metavar="JSON",
        help="""failure mode to begin with, such as '{"errorRate": 0.05}' (env FAILURE_MODE)""",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=environ.get("DRAIN_SECONDS", "0"),
        help="how long to go on serving after SIGTERM, so that load balancers notice (env DRAIN_SECONDS)",
    )
    return parser.parse_args(arguments)


def _mode(text: str) -> FailureMode:
    try:
        return FailureMode.from_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def serve(settings: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT, then shut down without losing a request."""
    server = Server(Service(settings.version, settings.mode))
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    port = await server.start(settings.host, settings.port)
    print(f"{settings.version} listens on {settings.host}:{port}", flush=True)
    await stop.wait()
    await server.stop(drain_seconds=settings.drain_seconds)


def main() -> None:
    """Entry point of ``python app.py``."""
    settings = parse_arguments(sys.argv[1:], os.environ)
    try:
        asyncio.run(serve(settings))
    except OSError as error:
        sys.exit(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")


if __name__ == "__main__":
    main()
