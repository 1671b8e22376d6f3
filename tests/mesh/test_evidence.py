"""What the operator counts is what its users' requests met: a real gateway, scraped by a real Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import Verdict
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, total
from canaryrollout.domain.gates import judge
from lab import Lab, probe, service
from lab.istio import GATEWAY
from lab.selfcheck import binomial_interval

pytestmark = pytest.mark.mesh

NAMESPACE = "evidence"
SCRAPE = timedelta(seconds=1)
INTERVAL = timedelta(seconds=2)
Answers = Counter[tuple[str, int]]
"""Requests by version that answered (empty: none did) and status."""


@dataclass
class Service:
    """A service of a test's own, with requests to it."""

    lab: Lab
    app: str

    @property
    def host(self) -> str:
        return f"{self.app}.{NAMESPACE}.svc.cluster.local"

    def route(self, **weights: int) -> None:
        """Split its traffic, and wait until the gateway does so."""
        route = [{"destination": {"host": self.host, "subset": v}, "weight": w} for v, w in weights.items()]
        spec: dict[str, Any] = {"hosts": [self.host], "gateways": [GATEWAY], "http": [{"route": route}]}
        metadata = {"name": self.app, "namespace": NAMESPACE}
        self.lab.apply(
            {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata, "spec": spec}
        )
        self.lab.wait_synced()

    def send(self, count: int) -> Answers:
        """Send requests one after the other."""
        answers: Answers = Counter()
        with probe.session() as client:
            for _ in range(count):
                answer = client.get(self.lab.gateway_url, headers={"Host": self.host}, timeout=5)
                answers[answer.headers.get("X-App-Version", ""), answer.status_code] += 1
        return answers

    def plain(self, query: str) -> float:
        """Return the value of a query that has one."""
        with probe.session() as client:
            answer = client.get(f"{self.lab.prometheus_url}/api/v1/query", params={"query": query}, timeout=5)
        values = [float(found["value"][1]) for found in answer.json()["data"]["result"]]
        return values[0] if values else 0.0


@pytest.fixture
def app(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service whose stable version v1 has answered requests, and whose subsets v1, v2 and v3 exist."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-")
    found = Service(lab, name)
    lab.namespace(NAMESPACE)
    subsets = [{"name": version, "labels": {"version": version}} for version in ("v1", "v2", "v3")]
    spec = {"host": found.host, "subsets": subsets}
    metadata = {"name": name, "namespace": NAMESPACE}
    lab.backend(NAMESPACE, name, "v1")
    lab.apply(
        service(NAMESPACE, name),
        {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata, "spec": spec},
    )
    found.route(v1=100)
    found.send(20)
    counted = f'sum(istio_requests_total{{destination_service="{found.host}"}})'
    deadline = time.monotonic() + 10
    while found.plain(counted) < 20:
        assert time.monotonic() < deadline, "Prometheus does not count the first requests"
        time.sleep(0.1)
    yield found
    lab.detach()
    lab.kubectl("delete", "virtualservice,destinationrule,service", name, "-n", NAMESPACE)
    lab.kubectl("delete", "workloadentry", "-n", NAMESPACE, "--all")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
async def source(lab: Lab) -> AsyncIterator[PrometheusSource]:
    provider = Provider("lab", lab.prometheus_url, scrape_interval=SCRAPE, lag=timedelta(seconds=2))
    source = PrometheusSource({"lab": provider}, CollectorRegistry())
    yield source
    await source.close()


async def evidence_of(source: PrometheusSource, request: EvidenceRequest, until: datetime) -> Evidence:
    """Return the evidence once it reaches ``until``, or an error."""
    return await evidence_when(source, request, lambda evidence: bool(evidence.error) or evidence.until >= until)


async def evidence_when(
    source: PrometheusSource, request: EvidenceRequest, holds: Callable[[Evidence], bool]
) -> Evidence:
    """Ask as the engine does, and look again now and then, until something holds."""
    woken = asyncio.Event()
    async with asyncio.timeout(30):
        while True:
            evidence = source.latest(request, now(), woken.set)
            if evidence is not None and holds(evidence):
                return evidence
            try:
                await asyncio.wait_for(woken.wait(), 0.2)
            except TimeoutError:
                continue
            woken.clear()


def request_since(app: Service, start: datetime) -> EvidenceRequest:
    start = start.replace(microsecond=start.microsecond // 1000 * 1000)
    return EvidenceRequest("lab", NAMESPACE, app.host, "v1", "v2", "version", start, INTERVAL)


async def test_first_failures_of_a_fresh_canary(app: Service, source: PrometheusSource) -> None:
    """Its series did not exist, its first fifty requests fail at once, and then it has no more traffic."""
    app.lab.backend(NAMESPACE, app.app, "v2", error_rate=1.0)
    app.route(v2=100)
    start = now()
    assert app.send(50) == {("v2", 500): 50}
    sent = now()
    app.route(v1=100)
    evidence = await evidence_of(source, request_since(app, start), sent + 2 * SCRAPE)

    counted = total(tuple(block.canary for block in evidence.blocks))
    assert (counted.requests, counted.errors) == (50, 50)
    assert evidence.error == ""
    judged = judge(Analysis(), evidence, weight=10, finished=(), baseline=None)
    assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")
    naive = app.plain(
        f'sum(increase(istio_requests_total{{destination_service="{app.host}",destination_version="v2"}}[1m]))'
    )
    # How wrong it is depends on how many were there at the first scrape; one that saw none of them is in the tests of
    # what is counted.
    print(f"50 of 50 requests failed; counted {counted.errors}; increase() says {naive:.1f}; sent in {sent - start}")


async def test_counts_are_those_of_the_client(app: Service, source: PrometheusSource) -> None:
    """Split traffic with some failures, over many blocks: every request is in exactly one of them."""
    app.lab.backend(NAMESPACE, app.app, "v2", error_rate=0.3)
    app.route(v1=70, v2=30)
    start = now()
    request = request_since(app, start)
    answers: Answers = Counter()
    while now() < start + 4 * INTERVAL:
        answers += await asyncio.to_thread(app.send, 25)
        source.latest(request, now(), lambda: None)
        await asyncio.sleep(0.1)
    evidence = await evidence_of(source, request, now() + 2 * SCRAPE)

    canary, stable = (total(tuple(getattr(block, side) for block in evidence.blocks)) for side in ("canary", "stable"))
    assert canary.requests == answers["v2", 200] + answers["v2", 500]
    assert canary.errors == answers["v2", 500]
    assert (stable.requests, stable.errors) == (answers["v1", 200], 0)
    assert len([block for block in evidence.blocks if block.canary.requests]) >= 3
    low, high = binomial_interval(canary.requests + stable.requests, 0.3)
    print(f"{canary.requests} of {canary.requests + stable.requests} requests at 30 %; {low} to {high} are expected")
    assert low <= canary.requests <= high

    again = PrometheusSource(source._providers, CollectorRegistry())
    restarted = await evidence_of(again, request, evidence.until)
    await again.close()
    assert restarted.blocks[: len(evidence.blocks)] == evidence.blocks


async def test_slow_requests_are_timed_by_the_histogram(app: Service, source: PrometheusSource) -> None:
    """Half of the canary's requests take 300 ms; counters and histogram are flushed at different moments."""
    canary = app.lab.backend(NAMESPACE, app.app, "v2", latency_ms=300)
    app.route(v2=100)
    slow = 0
    start = now()
    with probe.session() as client:
        for number in range(20):
            if number == 10:
                canary.set_mode()
            asked = time.perf_counter()
            assert client.get(app.lab.gateway_url, headers={"Host": app.host}, timeout=5).status_code == 200
            slow += time.perf_counter() - asked > 0.25
    request = replace(request_since(app, start), slow_above=timedelta(milliseconds=250))
    evidence = await evidence_of(source, request, now() + 2 * SCRAPE)

    counted = total(tuple(block.canary for block in evidence.blocks))
    assert (counted.requests, counted.timed) == (20, 20)
    print(f"10 requests were delayed, {counted.slow} counted as slow, {slow} were so for the client")
    assert 10 <= counted.slow <= slow, "a stall between client and proxy is not the canary's"
    assert all(block.canary.slow <= block.canary.timed for block in evidence.blocks)
    analysis = Analysis.model_validate(
        {"mode": "Threshold", "minRequests": 20, "latency": {"threshold": "250ms", "maxSlow": "5%"}}
    )
    judged = judge(analysis, evidence, weight=10, finished=(), baseline=None)
    assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")


async def test_threshold_that_is_no_bucket_edge(app: Service, source: PrometheusSource) -> None:
    app.lab.backend(NAMESPACE, app.app, "v2")
    app.route(v2=100)
    start = now()
    app.send(5)
    request = replace(request_since(app, start), slow_above=timedelta(milliseconds=300))
    evidence = await evidence_of(source, request, now() + 2 * SCRAPE)
    assert evidence.error == "analysis.latency.threshold 300ms is no bucket edge; the nearest: 250ms or 500ms"


async def test_canary_without_endpoints(app: Service, source: PrometheusSource) -> None:
    """Requests to a subset that nobody serves carry no version, and count against the canary."""
    app.route(v3=100)
    start = now()
    assert app.send(25) == {("", 503): 25}
    request = replace(request_since(app, start), canary="v3")
    evidence = await evidence_of(source, request, now() + 2 * SCRAPE)
    assert sum(block.unreached for block in evidence.blocks) == 25
    assert not any(block.canary_seen for block in evidence.blocks)
    judged = judge(Analysis(), evidence, weight=10, finished=(), baseline=None)
    assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")


async def test_canary_that_crashed(app: Service, source: PrometheusSource) -> None:
    """Connections to an endpoint that is gone fail with the endpoint's version."""
    backend = app.lab.backend(NAMESPACE, app.app, "v2")
    app.route(v2=100)
    app.send(5)
    backend.crash()
    start = now()
    assert app.send(25) == {("", 503): 25}
    evidence = await evidence_of(source, request_since(app, start), now() + 2 * SCRAPE)
    counted = total(tuple(block.canary for block in evidence.blocks))
    unreached = sum(block.unreached for block in evidence.blocks)
    assert counted.errors + unreached == 25


async def test_prometheus_that_is_away_and_back(app: Service, source: PrometheusSource) -> None:
    """An outage is an error with a time, keeps what was counted, and is caught up with afterwards."""
    app.lab.backend(NAMESPACE, app.app, "v2")
    app.route(v1=50, v2=50)
    start = now()
    request = request_since(app, start)
    app.send(40)
    before = await evidence_of(source, request, start + INTERVAL)
    app.lab.stop("prometheus")
    try:
        evidence = await evidence_when(source, request, lambda evidence: bool(evidence.error))
        assert evidence.blocks[: len(before.blocks)] == before.blocks
        assert evidence.error_since is not None
        assert "Connection refused" in evidence.error
        judged = judge(Analysis.model_validate({"minRequests": 1}), evidence, weight=50, finished=(), baseline=None)
        assert (judged.verdict, judged.reason) == (Verdict.ERROR, "ProviderError")
    finally:
        app.lab.start("prometheus")
    app.send(40)
    evidence = await evidence_when(source, request, lambda evidence: answered(evidence) >= 80)  # scrapes resume late
    assert evidence.error == ""
    assert answered(evidence) == 80


def answered(evidence: Evidence) -> int:
    return sum(block.canary.requests + block.stable.requests for block in evidence.blocks)


def test_istio_names_are_those_the_queries_ask_for(app: Service) -> None:
    """The lab relabels as Istio labels; a typo on either side would look like missing data."""
    with probe.session() as client:
        params = {"match[]": f'istio_requests_total{{destination_service="{app.host}"}}'}
        answer: requests.Response = client.get(f"{app.lab.prometheus_url}/api/v1/series", params=params, timeout=5)
    labels = answer.json()["data"][0]
    assert (labels["reporter"], labels["destination_version"]) == ("source", "v1")
    assert {"response_code", "response_flags"} <= labels.keys()
