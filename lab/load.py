"""A load generator that keeps account of every single request.

Whether a rollout loses requests, and whether a weight of 30 really means 30 %, can only be told from the client's side
and request by request: which version answered which request, and when was that request *sent*. So this generator keeps
one small record per request, paces them by the clock instead of by the answers (open loop: a slow version does not slow
the load down, which would make it look better than it is), and repeats nothing.

It is bounded in rate, time and connections, and refuses to send to anything but this machine's loopback addresses and
the lab's own Pods.

    python -m lab.load http://127.0.0.1:8080/ --host reviews.example --rate 100 --seconds 30

From synchronous code, in a thread of its own::

    with BackgroundLoad("http://127.0.0.1:8080/", host_header="reviews.example", rate=100) as load:
        ...
        load.wait_settled(until=load.now(), timeout_seconds=10)
        print(load.report().table())
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from lab.connection import Answer, LostRequestError, Pool
from lab.loadreport import Record, Report

VERSION_HEADER: Final = "x-app-version"
FLAGS_HEADER: Final = "x-envoy-response-flags"
"""Set it by ``headers.response.set: {x-envoy-response-flags: "%RESPONSE_FLAGS%"}`` on a route to see Envoy's flags."""

MAX_RATE: Final = 1000.0
MAX_SECONDS: Final = 3600.0
MAX_CONNECTIONS: Final = 1000
ALLOWED_NETWORKS: Final = tuple(ipaddress.ip_network(net) for net in ("127.0.0.0/8", "::1/128", "10.77.0.0/24"))
"""Loopback, and the Pod network of the lab's real node."""

_CATCH_UP_SECONDS: Final = 0.5


class LoadGenerator:
    """Sends GET requests at a constant rate and records what became of each.

    Args:
        url: ``http://ADDRESS:PORT/path``; the address must be loopback (``localhost`` is) or a lab Pod's.
        host_header: What the ``Host`` header says; the URL's own address by default.
        rate: Requests a second.
        max_seconds: After so long it stops by itself, whoever forgot it.
        max_connections: Most connections at a time. Where all are busy, requests are not sent late but skipped, and
            the report counts them.
        timeout_seconds: How long a single request may take.

    Raises:
        ValueError: The address is not the lab's, or a bound is exceeded.
    """

    def __init__(
        self,
        url: str,
        host_header: str | None = None,
        rate: float = 50.0,
        *,
        max_seconds: float = 600.0,
        max_connections: int = 200,
        timeout_seconds: float = 10.0,
    ) -> None:
        address = check_address(url)
        for name, value, most in (
            ("rate", rate, MAX_RATE),
            ("max_seconds", max_seconds, MAX_SECONDS),
            ("max_connections", max_connections, MAX_CONNECTIONS),
        ):
            if not 0 < value <= most:
                raise ValueError(f"{name} is {value:g}; it must be above 0 and at most {most:g}")
        self.url = url
        self.rate = rate
        self.records: list[Record] = []
        self.skipped = 0
        self.crowded_out = 0
        self._max_seconds = max_seconds
        self._timeout_seconds = timeout_seconds
        # The wall clock is read once: records must not jump when it is set.
        self._epoch = time.time() - time.monotonic()
        self._host = "127.0.0.1" if address.hostname == "localhost" else str(address.hostname)
        self._port = address.port or 80
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host_header or address.netloc}\r\nUser-Agent: lab-load\r\n\r\n"
        self._max_connections = max_connections
        self._in_flight: dict[asyncio.Task[None], float] = {}
        self._pacer: asyncio.Task[None] | None = None

    def now(self) -> float:
        """The present time on the clock of the records: seconds since the epoch."""
        return self._epoch + time.monotonic()

    @property
    def running(self) -> bool:
        """Whether requests are being sent."""
        return self._pacer is not None and not self._pacer.done()

    async def start(self) -> None:
        """Begin to send."""
        if self._pacer is not None:
            raise RuntimeError("a load generator starts once; make a new one")
        self._pool = Pool(self._host, self._port, self._max_connections, frozenset({VERSION_HEADER, FLAGS_HEADER}))
        self._pacer = asyncio.create_task(self._pace(), name="load")

    async def stop(self) -> None:
        """Send no more, wait for the answers still due, and close the connections."""
        if self._pacer is None:
            return
        self._pacer.cancel()
        await asyncio.gather(self._pacer, *self._in_flight, return_exceptions=True)
        self._pool.close()

    async def run(self) -> Report:
        """Send for ``max_seconds``, wait for the answers, and report."""
        await self.start()
        await self.wait_sent()
        await self.stop()
        return self.report()

    async def wait_sent(self) -> None:
        """Wait until ``max_seconds`` are over, and with them the sending."""
        if self._pacer is not None:
            await asyncio.wait([self._pacer])

    def settled(self, until: float) -> bool:
        """Whether every request due before ``until`` (seconds since the epoch) has its record."""
        return all(sent >= until for sent in tuple(self._in_flight.values()))

    def report(self, since: float = 0.0, until: float = float("inf")) -> Report:
        """Sum up the records of requests sent in ``[since, until)``, in seconds since the epoch."""
        return Report.of([r for r in tuple(self.records) if since <= r.sent < until], skipped=self.skipped)

    async def _pace(self) -> None:
        """Start every request at its time; after a stall of the machine, at most half a second is caught up."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        number, last = 0, round(self._max_seconds * self.rate)
        while number < last:
            late = loop.time() - (begin + number / self.rate)
            if late < 0:
                await asyncio.sleep(-late)
                continue
            if late > _CATCH_UP_SECONDS:
                missed = min(int(late * self.rate), last - number)
                self.skipped += missed
                number += missed
                continue
            self._send()
            number += 1

    def _send(self) -> None:
        if len(self._in_flight) >= self._max_connections:
            self.skipped += 1
            self.crowded_out += 1
            return
        task = asyncio.create_task(self._one_request())
        self._in_flight[task] = self.now()
        task.add_done_callback(self._in_flight.pop)

    async def _one_request(self) -> None:
        sent = self.now()
        try:
            connection = await self._pool.acquire(self._timeout_seconds)
            sent = self.now()  # a new connection took its time
            try:
                answer = await connection.request(self._request.encode("latin-1"), self._timeout_seconds)
            finally:
                self._pool.release(connection)
        except LostRequestError as error:
            self.records.append(Record(sent, self.now(), None, 0, str(error), ""))
            return
        self.records.append(self._record(sent, answer))

    def _record(self, sent: float, answer: Answer) -> Record:
        version = answer.headers.get(VERSION_HEADER)
        flags = answer.headers.get(FLAGS_HEADER, "")
        reason = "" if version is not None else " ".join(answer.text.split())
        return Record(sent, self.now(), version, answer.status, reason, "" if flags == "-" else flags)


def check_address(url: str) -> SplitResult:
    """Split a URL, and refuse it unless it leads to this machine or to a lab Pod.

    Raises:
        ValueError: Names the address and what is allowed.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} must be http://ADDRESS:PORT/path")
    if parts.hostname == "localhost":
        return parts
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        address = None
    if address is None or not any(address in network for network in ALLOWED_NETWORKS):
        allowed = ", ".join(map(str, ALLOWED_NETWORKS))
        raise ValueError(f"{parts.hostname} is not the lab's: load goes to localhost or an address in {allowed} only")
    return parts


class BackgroundLoad:
    """A ``LoadGenerator`` in a thread with its own event loop, for synchronous callers.

    The arguments are those of ``LoadGenerator``. Leaving the ``with`` block stops it, and its records stay readable.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._generator = LoadGenerator(*args, **kwargs)  # type: ignore[arg-type]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._generator.start(), self._loop).result(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def records(self) -> list[Record]:
        """Every finished request, in the order of the answers. Being appended to; copy before counting twice."""
        return self._generator.records

    @property
    def skipped(self) -> int:
        """Requests that were due and not sent, because all connections were busy or the machine stood still."""
        return self._generator.skipped

    @property
    def crowded_out(self) -> int:
        """Those of them that were not sent because all connections were busy: answers took too long."""
        return self._generator.crowded_out

    def now(self) -> float:
        """The present time on the clock of the records: seconds since the epoch."""
        return self._generator.now()

    def report(self, since: float = 0.0, until: float = float("inf")) -> Report:
        """Sum up the requests sent in ``[since, until)``."""
        return self._generator.report(since, until)

    def settled(self, until: float) -> bool:
        """Whether every request due before ``until`` has its record."""
        return self._generator.settled(until)

    def wait_settled(self, until: float, timeout_seconds: float = 15.0) -> None:
        """Wait until every request due before ``until`` has its record.

        Raises:
            TimeoutError: Some have none after ``timeout_seconds``.
        """
        deadline = time.monotonic() + timeout_seconds
        while not (self.now() >= until and self.settled(until)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"requests sent before {until:.3f} are still without answer")
            time.sleep(0.005)

    def stop(self) -> None:
        """Send no more, wait for the answers still due, and end the thread. Twice does no harm."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._generator.stop(), self._loop).result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m lab.load``: 0 when every request got an answer from a version, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.load",
        description="Send GET requests at a constant rate and report per version. Nothing is ever repeated.",
        epilog="Requests that reached no version (no X-App-Version in the answer, or no answer) are counted apart, "
        "and make the exit status 1.",
    )
    parser.add_argument("url", help="http://ADDRESS:PORT/path, on loopback or a lab Pod")
    parser.add_argument("--host", help="Host header, where the route asks for one")
    parser.add_argument("--rate", type=float, default=50, help="requests a second, at most 1000 (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="how long, at most 3600 (%(default)s)")
    parser.add_argument("--connections", type=int, default=200, help="most connections at a time (%(default)s)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments)
    try:
        generator = LoadGenerator(
            options.url,
            options.host,
            options.rate,
            max_seconds=options.seconds,
            max_connections=options.connections,
        )
    except ValueError as error:
        parser.error(str(error))
    report = asyncio.run(generator.run())
    print(json.dumps(report.as_dict(), indent=2) if options.output == "json" else report.table())
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
