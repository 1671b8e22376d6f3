"""Stories for a Prometheus that is told exactly what it scraped when, and evidence from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, after
from tests.remotewrite import Recorded

SCRAPE = timedelta(seconds=5)
INTERVAL = timedelta(seconds=10)
T0 = after(datetime.now(UTC) - timedelta(minutes=10), INTERVAL)
"""A point of the grid on which blocks end."""
Story = Mapping[int, float]
"""Value of a counter by time in seconds after T0."""


def series(host: str, version: str, story: Story, **labels: str) -> tuple[dict[str, str], list[tuple[datetime, float]]]:
    identity = {
        "__name__": "istio_requests_total",
        "reporter": "source",
        "destination_service": host,
        "destination_version": version,
        "response_code": "200",
        "response_flags": "-",
        "instance": "gateway-1",
    }
    samples = [(T0 + timedelta(seconds=at), value) for at, value in sorted(story.items())]
    return identity | labels, samples


def steady(first: int, last: int, start: float = 0.0, per_scrape: float = 0.0) -> Story:
    step = int(SCRAPE.total_seconds())
    return {at: start + i * per_scrape for i, at in enumerate(range(first, last + 1, step))}


def request_for(host: str, **fields: Any) -> EvidenceRequest:
    base = EvidenceRequest(
        provider="recorded",
        namespace="shop",
        host=host,
        stable="v1",
        canary="v2",
        version_label="version",
        start=T0,
        interval=INTERVAL,
    )
    return replace(base, **fields)


async def ask(server: Recorded, request: EvidenceRequest, until: int, *, scrape: timedelta = SCRAPE) -> Evidence:
    """Return the evidence up to ``until`` seconds after T0."""
    provider = Provider("recorded", server.url, scrape_interval=scrape, lag=timedelta(seconds=5))
    source = PrometheusSource({"recorded": provider}, CollectorRegistry())
    now = T0 + timedelta(seconds=until) + provider.lag
    woken = asyncio.Event()
    try:
        while True:
            evidence = source.latest(request, now, woken.set)
            blocks = len(request.ends(request.start, T0 + timedelta(seconds=until)))
            if evidence is not None and (evidence.error or len(evidence.blocks) == blocks):
                await asyncio.sleep(0)
                return evidence
            await asyncio.wait_for(woken.wait(), 20)
            woken.clear()
    finally:
        await source.close()


def histogram(
    host: str, version: str, counts: Story, within: Story, le: Sequence[str]
) -> list[tuple[dict[str, str], list[tuple[datetime, float]]]]:
    """A histogram whose bucket ``le[0]`` holds ``within``, and every wider one everything."""
    name = "istio_request_duration_milliseconds"
    rows = [series(host, version, counts, __name__=f"{name}_count")]
    for i, edge in enumerate((*le, "+Inf")):
        rows.append(series(host, version, counts if i else within, __name__=f"{name}_bucket", le=edge))
    return rows


STABLE = steady(-60, 60, 1000.0, 5.0)
