"""A Prometheus that knows a scripted mesh: it answers the operator's queries for every host they name.

`Mesh` turns one query into one answer, whoever carries it: the HTTP stub, or `Server`, which needs no network and
takes as much of the loop's time as a test wants it to.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from canaryrollout.adapters.prometheus_client import Answer, Provider, QueryFailed
from canaryrollout.adapters.prometheus_counts import milliseconds_of
from tests.prometheusstub import Asked, Reply, result

EDGES = ("100.0", "250.0", "500.0", "1000.0", "+Inf")
_HOSTS = re.compile(r'destination_service(=~|=)"([^"]*)"')
_KIND = re.compile(r'"kind"')

Counter = Callable[[str, float], float]
"""Requests of a version of a host in the block that ends then."""


def is_range(asked: Asked) -> bool:
    return asked.path.endswith("query_range")


def times(asked: Asked) -> list[float]:
    """The times a query was asked for, seconds since the epoch."""
    if not is_range(asked):
        return [float(asked.form["time"])]
    start, end, step = (float(asked.form[name]) for name in ("start", "end", "step"))
    return [start + k * step for k in range(round((end - start) / step) + 1)]


def hosts_of(query: str) -> list[str]:
    """The hosts that a query names."""
    found = _HOSTS.search(query)
    if found is None:
        return []
    if found[1] == "=":
        return [found[2]]
    return [host.replace("\\\\.", ".") for host in found[2].split("|")]


def is_counting(query: str) -> bool:
    return _KIND.search(query) is not None


def is_timing(query: str) -> bool:
    return is_counting(query) and "duration" in query


def is_harmless(query: str) -> bool:
    return query == "vector(1)"


@dataclass
class Mesh:
    """Ninety requests of v1 and ten of v2 in each block of each host, none failed, two of eight timed ones slow.

    Attributes:
        canary: Requests of v2, where it is not ten.
        edges: Bucket edges of the histogram.
        envelope: What an answer has beside its data.
        unknown: Hosts that Prometheus knows nothing of.
        own: Answers to other queries.
    """

    canary: Counter = lambda host, end: 10.0
    edges: Sequence[str] = EDGES
    envelope: dict[str, Any] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    own: Callable[[Asked], Reply] = lambda asked: result("vector", [])

    def __call__(self, asked: Asked) -> Reply:
        query = asked.form["query"]
        hosts = [host for host in hosts_of(query) if host not in self.unknown]
        if is_harmless(query):
            return result("vector", [{"metric": {}, "value": [times(asked)[0], "1"]}])
        if query.startswith("count by (le)"):
            return self._rows(asked, [({"le": edge}, 1.0) for edge in self.edges if hosts])
        if query.startswith("count by (destination_version)"):
            versions = ("v1", "v2", "unknown") if hosts else ()
            return self._rows(asked, [({"destination_version": version}, 3.0) for version in versions])
        if is_timing(query):
            return self._rows(asked, [row for host in hosts for row in self._timed(host, query)])
        if is_counting(query):
            return self._rows(asked, [row for host in hosts for row in self._counted(host)])
        return self.own(asked)

    def _counted(self, host: str) -> Iterable[tuple[dict[str, str], float | Counter]]:
        code = {"destination_service": host, "response_code": "200", "kind": "known"}
        yield {**code, "destination_version": "v1"}, 90.0
        yield {**code, "destination_version": "v2"}, self.canary
        yield {"destination_service": host, "kind": "start"}, 1.0

    def _timed(self, host: str, query: str) -> Iterable[tuple[dict[str, str], float | Counter]]:
        row = {"destination_service": host, "destination_version": "v2", "kind": "known"}
        yield row, 8.0
        asked_for = re.search(r'le=~"([^"]*)"', query)
        spelled = asked_for[1].replace("\\\\.", ".").split("|") if asked_for else []
        for edge in set(self.edges) & set(spelled):
            yield {**row, "le": edge}, 6.0
        yield {"destination_service": host, "kind": "start"}, 1.0

    def _rows(self, asked: Asked, rows: Iterable[tuple[dict[str, str], float | Counter]]) -> Reply:
        series: list[dict[str, Any]] = []
        for metric, value in rows:
            host = metric.get("destination_service", "")
            points = [[end, str(value(host, end) if callable(value) else value)] for end in times(asked)]
            series.append({"metric": metric, **({"values": points} if is_range(asked) else {"value": points[0]})})
        return result("matrix" if is_range(asked) else "vector", series, **self.envelope)


@dataclass
class Server:
    """Asks a scripted Prometheus without a network.

    Attributes:
        provider: What the administrator says about it.
        reply: What it answers.
        trouble: What keeps it from answering a query, if anything does.
        takes: How many seconds of the loop's time an answer takes.
        asked: What it was asked, with the loop's time.
        closed: Whether it was closed.
    """

    provider: Provider
    reply: Callable[[Asked], Reply] = field(default_factory=Mesh)
    trouble: Callable[[str], QueryFailed | None] = lambda query: None
    takes: float = 0.01
    asked: list[tuple[float, Asked]] = field(default_factory=list)
    closed: bool = False

    async def at(self, query: str, time: datetime) -> Answer:
        return await self._answer("/api/v1/query", query, time=_seconds(time))

    async def over(self, query: str, first: datetime, last: datetime, step: timedelta) -> Answer:
        width = str(step.total_seconds())
        return await self._answer("/api/v1/query_range", query, start=_seconds(first), end=_seconds(last), step=width)

    async def close(self) -> None:
        self.closed = True

    def queries(self) -> list[str]:
        return [asked.form["query"] for _, asked in self.asked]

    async def _answer(self, path: str, query: str, **form: str) -> Answer:
        asked = Asked("POST", path, {"query": query, **form}, {})
        self.asked.append((asyncio.get_running_loop().time(), asked))
        trouble = self.trouble(query)
        await asyncio.sleep(self.takes)
        if trouble is not None:
            raise trouble
        body = self.reply(asked).body
        return Answer(body["data"]["resultType"], body["data"]["result"], tuple(body.get("warnings", ())))


def _seconds(time: datetime) -> str:
    return f"{milliseconds_of(time) / 1000:.3f}"
