"""Many rollouts counted together by a real Prometheus, and what it says before traffic moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_provider import CustomQueries
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, OwnQuery, Preflight, PreflightRequest
from tests.mesh.recorded import SCRAPE, STABLE, T0, ask, histogram, request_for, series, steady
from tests.remotewrite import Recorded, recorded_prometheus

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    with recorded_prometheus() as server:
        yield server


def host_of(test: pytest.FixtureRequest) -> str:
    return f"{test.node.name.replace('_', '-').replace('[', '-').replace(']', '')}.shop.svc.cluster.local".lower()


@pytest.fixture
def host(request: pytest.FixtureRequest) -> str:
    """A host of the test's own: all tests share one Prometheus."""
    return host_of(request)


async def test_counted_with_others_or_alone_makes_no_difference(recorded: Recorded, host: str) -> None:
    """Eighty rollouts, each with traffic, versions, resets and a threshold of its own, in one query and in many."""
    chance = random.Random(20260202)
    edges = ("250.0", "500.0", "1000.0")
    requests = []
    for n in range(80):
        name, stable, canary = f"s{n}.{host}", f"1.{n % 3}", f"1.{n % 3 + 1}"
        counts = {at: 10.0 + 3 * chance.randrange(9) * (at + 60) for at in range(-60, 61, 5)}
        if n % 7 == 0:
            counts = {at: max(value - counts[20], 0) if at > 20 else value for at, value in counts.items()}  # a restart
        within = {at: value * 0.75 for at, value in counts.items()}
        recorded.write(
            [
                series(name, stable, STABLE),
                series(name, canary, counts, response_code=("200", "503")[n % 2]),
                series(name, "unknown", steady(15, 60, float(n)), response_code="503", response_flags="UH"),
                *histogram(name, canary, counts, within, edges[n % 3 :]),
            ]
        )
        slow = timedelta(milliseconds=float(edges[n % 3]))
        requests.append(request_for(name, stable=stable, canary=canary, slow_above=slow if n % 5 else None))
    together = await ask_all(recorded, requests, 60)
    for request in requests:
        alone = await ask(recorded, request, 60)
        assert together[request].blocks == alone.blocks
        assert sum(block.canary.requests for block in alone.blocks) >= 0
    assert sum(block.canary.slow for evidence in together.values() for block in evidence.blocks) > 1_000


async def ask_all(
    server: Recorded, requests: Sequence[EvidenceRequest], until: int
) -> Mapping[EvidenceRequest, Evidence]:
    """Return the evidence of rollouts that are counted together; few queries do."""
    provider = Provider("recorded", server.url, scrape_interval=SCRAPE, lag=timedelta(seconds=5))
    registry = CollectorRegistry()
    source = PrometheusSource({"recorded": provider}, registry)
    now, woken = T0 + timedelta(seconds=until) + provider.lag, asyncio.Event()
    found: dict[EvidenceRequest, Evidence] = {}
    async with asyncio.timeout(60):
        while len(found) < len(requests):
            woken.clear()
            for request in requests:
                evidence = source.latest(request, now, woken.set)
                if evidence is not None and evidence.blocks:
                    found[request] = evidence
            if len(found) < len(requests):
                await woken.wait()
    await source.close()
    asked = registry.get_sample_value(
        "canaryrollout_prometheus_queries_total", {"provider": "recorded", "outcome": "Success"}
    )
    assert asked is not None
    assert asked <= 4
    return found


async def preflight(server: Recorded, request: PreflightRequest, **provider: Any) -> Preflight:
    source = PrometheusSource({"recorded": Provider("recorded", server.url, **provider)}, CollectorRegistry())
    woken = asyncio.Event()
    assert source.preflight(request, T0 + timedelta(seconds=60), woken.set) is None
    await asyncio.wait_for(woken.wait(), 20)
    found = source.preflight(request, T0 + timedelta(seconds=60), woken.set)
    await source.close()
    assert found is not None
    return found


async def test_preflight_finds_versions_edges_and_mistakes_in_queries(recorded: Recorded, host: str) -> None:
    recorded.write(
        [
            series(host, "v1", STABLE),
            series(host, "v9", STABLE),
            series(host, "unknown", STABLE, response_code="503", response_flags="UH"),
            *histogram(host, "v1", STABLE, STABLE, ("250.0", "500.0", "1000.0")),
        ]
    )
    base = PreflightRequest("recorded", "shop", host, "v1", T0)
    good = await preflight(
        recorded, replace(base, slow_above=timedelta(seconds=1), queries=(OwnQuery("n", "vector(1)"),))
    )
    assert good == Preflight(good.request, host_series=True, versions=("v1", "v9"))
    off = await preflight(recorded, replace(base, slow_above=timedelta(milliseconds=800)))
    assert off.edge_problem == "analysis.latency.threshold 800ms is no bucket edge; the nearest: 500ms or 1s"
    nothing = await preflight(recorded, replace(base, host=f"other.{host}", slow_above=timedelta(milliseconds=800)))
    assert (nothing.host_series, nothing.versions, nothing.edge_problem, nothing.error) == (False, (), "", "")
    for text, words in {"sum(": "unclosed left parenthesis", "up[5m]": "the query gives a matrix"}.items():
        wrong = await preflight(recorded, replace(base, queries=(OwnQuery("mine", text),)))
        assert wrong.refused.startswith("analysis.metrics[mine].query: ")
        assert words in wrong.refused
    confined = replace(base, queries=(OwnQuery("mine", 'count(istio_requests_total{destination_service="$host"})'),))
    policy = {"custom_queries": CustomQueries.NAMESPACE_ENFORCED, "namespace_label": "destination_workload_namespace"}
    assert (await preflight(recorded, confined, **policy)).refused == ""
