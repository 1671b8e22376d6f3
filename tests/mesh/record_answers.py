"""Records what a real Prometheus answers to the operator's queries: ``python -m tests.mesh.record_answers``.

The story has one of everything that a query can meet: two versions, errors by code and by gRPC status, a client that
went away, requests that reached no version, a reset, a new series, and a histogram.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import requests

from canaryrollout.adapters.prometheus_provider import Provider
from canaryrollout.adapters.prometheus_queries import durations_query, edges_query, requests_query, versions_query
from canaryrollout.domain.evidence import EvidenceRequest
from tests.mesh.recorded import STABLE, T0, histogram, series, steady
from tests.remotewrite import Recorded, recorded_prometheus

WHERE: Final = Path(__file__).parents[1] / "unit" / "adapters" / "fixtures" / "prometheus-3.json"
TOLD_AT: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The time that stands for the story's beginning in what is kept."""
REQUEST: Final = EvidenceRequest(
    "recorded",
    "shop",
    "reviews.shop.svc.cluster.local",
    "v1",
    "v2",
    "version",
    T0,
    timedelta(seconds=10),
    slow_above=timedelta(milliseconds=500),
)


def tell(server: Recorded) -> None:
    """Have the story scraped."""
    host = REQUEST.host
    server.write(
        [
            series(host, "v1", STABLE),
            series(host, "v1", steady(-60, 60, 3.0), response_code="500"),
            series(host, "v2", steady(-60, 60, 0.0, 10.0)),
            series(host, "v2", {-5: 70.0, 0: 70.0, 5: 73.0, 10: 2.0, 15: 2.0, 20: 2.0}, response_code="503"),
            series(host, "v2", steady(15, 60, 4.0), grpc_response_status="14"),
            series(host, "v2", steady(-60, 60, 5.0, 1.0), response_code="0", response_flags="DC"),
            series(host, "unknown", steady(5, 60, 6.0), response_code="503", response_flags="UH"),
            *histogram(host, "v1", STABLE, STABLE, ("250.0", "500.0", "1000.0")),
            *histogram(host, "v2", steady(-60, 60, 0.0, 10.0), steady(-60, 60, 0.0, 8.0), ("500.0", "1000.0")),
        ]
    )


def questions() -> Mapping[str, tuple[str, Mapping[str, str]]]:
    """What to ask: path and form by name."""
    provider = Provider("recorded", "", scrape_interval=timedelta(seconds=5))
    counts = requests_query([REQUEST], REQUEST.interval, provider.labels, provider.scrape_interval)
    timing = durations_query([REQUEST], REQUEST.interval, provider.labels, provider.scrape_interval)
    first, last = (T0 + k * REQUEST.interval for k in (1, 2))
    instant = {"time": str(first.timestamp())}
    over = {"start": str(first.timestamp()), "end": str(last.timestamp()), "step": "10"}
    return {
        "requests": ("query", {"query": counts, **instant}),
        "durations": ("query", {"query": timing, **instant}),
        "requests over time": ("query_range", {"query": counts, **over}),
        "durations over time": ("query_range", {"query": timing, **over}),
        "versions": ("query", {"query": versions_query(REQUEST.host, provider.labels), **instant}),
        "edges": ("query", {"query": edges_query(REQUEST.host, provider.labels), **instant}),
        "harmless": ("query", {"query": "vector(1)", **instant}),
        "no PromQL": ("query", {"query": "sum(", **instant}),
    }


async def record() -> None:
    """Ask a real Prometheus, and keep its answers word by word but for the times."""
    kept: dict[str, Any] = {}
    with recorded_prometheus() as server:
        tell(server)
        for name, (path, form) in questions().items():
            answer = await asyncio.to_thread(requests.post, f"{server.url}/api/v1/{path}", data=form, timeout=10)
            kept[name] = {"status": answer.status_code, "body": _retimed(answer.json())}
    WHERE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _retimed(body: Any) -> Any:
    """Move times from when it was recorded to a time that does not change."""
    shift = TOLD_AT.timestamp() - T0.timestamp()
    for found in (body.get("data") or {}).get("result", ()):
        for point in [found["value"]] if "value" in found else found["values"]:
            point[0] = round(point[0] + shift, 3)
    return body


if __name__ == "__main__":
    asyncio.run(record())
