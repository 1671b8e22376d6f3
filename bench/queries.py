"""What the evidence of many rollouts costs a real Prometheus: ``python -m bench.queries``.

Two hundred hosts, each with two versions on three pods, three response codes and a latency histogram of twelve edges.
All rollouts have two gates and one interval; half of them have another latency threshold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.domain.evidence import EvidenceRequest
from tests.mesh.recorded import INTERVAL, T0, histogram, request_for, series
from tests.remotewrite import Recorded, Series, recorded_prometheus

HOSTS: Final = 200
PODS: Final = 3
EDGES: Final = (
    "1.0",
    "5.0",
    "10.0",
    "25.0",
    "50.0",
    "100.0",
    "250.0",
    "500.0",
    "1000.0",
    "2500.0",
    "5000.0",
    "10000.0",
)
TICKS: Final = 6


def host(n: int) -> str:
    """Name of a host."""
    return f"service-{n:03}.shop.svc.cluster.local"


def traffic(n: int) -> Iterator[Series]:
    """What was scraped of one host, every 15 seconds for ten minutes."""
    story = {at: float(700 + at) for at in range(-600, 61, 15)}
    for version in ("v1", "v2"):
        for pod in range(PODS):
            labels = {"instance": f"pod-{pod}"}
            for code in ("200", "404", "503"):
                yield series(host(n), version, story, response_code=code, **labels)
            for identity, samples in histogram(host(n), version, story, story, EDGES):
                yield identity | labels, samples


async def tick(source: PrometheusSource, requests: list[EvidenceRequest], number: int, lag: timedelta) -> float:
    """Look at all rollouts when a block is due, and again whenever news comes; return the seconds until all have it."""
    now, woken, started = T0 + number * INTERVAL + lag, asyncio.Event(), time.perf_counter()
    waiting = set(requests)
    while waiting:
        woken.clear()
        for request in tuple(waiting):
            evidence = source.latest(request, now, woken.set)
            if evidence is not None and evidence.until >= T0 + number * INTERVAL:
                waiting.discard(request)
        if waiting:
            await woken.wait()
    return time.perf_counter() - started


async def measure(server: Recorded) -> None:
    """Ask interval by interval, and print what each cost."""
    lag, registry = timedelta(seconds=5), CollectorRegistry()
    provider = Provider("bench", server.url, scrape_interval=timedelta(seconds=15), lag=lag)
    source = PrometheusSource({"bench": provider}, registry)
    slow = (timedelta(milliseconds=250), timedelta(milliseconds=500))
    requests = [request_for(host(n), provider="bench", slow_above=slow[n % 2]) for n in range(HOSTS)]
    queries, busy = 0.0, 0.0
    table = Table("block", "queries", "news after, s", "queries took, s")
    for number in range(1, TICKS + 1):
        seconds = await tick(source, requests, number, lag)
        asked = _sample(registry, "canaryrollout_prometheus_queries_total", outcome="Success")
        took = _sample(registry, "canaryrollout_prometheus_query_duration_seconds_sum")
        table.add_row(str(number), f"{asked - queries:g}", f"{seconds:.2f}", f"{took - busy:.2f}")
        queries, busy = asked, took
    await source.close()
    Console().print(table)


def _sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, {"provider": "bench", **labels}) or 0.0


def main() -> None:
    """Fill a Prometheus, and ask it."""
    with recorded_prometheus() as server:
        count = 0
        for n in range(HOSTS):
            found = list(traffic(n))
            server.write(found)
            count += len(found)
        Console().print(f"{HOSTS} rollouts, {count:,} series")
        asyncio.run(measure(server))


if __name__ == "__main__":
    main()
