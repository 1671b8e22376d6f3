"""Counts from a real Prometheus, for samples that lie exactly where each rule needs them.

Every story is a list of scrapes; every expectation is what a person would count by hand.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_client import Metrics, PrometheusClient
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import (
    Evidence,
    OwnQuery,
)
from tests.mesh.recorded import INTERVAL, SCRAPE, STABLE, T0, ask, histogram, request_for, series, steady
from tests.remotewrite import STALE, Recorded, recorded_prometheus

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


def requests_of(evidence: Evidence) -> list[tuple[int, int]]:
    return [(block.canary.requests, block.canary.errors) for block in evidence.blocks]


async def test_first_requests_of_a_fresh_canary_are_counted(recorded: Recorded, host: str) -> None:
    """Its first fifty requests fail between two scrapes: ``increase()`` sees nothing of it."""
    recorded.write([series(host, "v1", STABLE), series(host, "v2", steady(15, 60, 50.0), response_code="500")])
    evidence = await ask(recorded, request_for(host), 60)
    assert requests_of(evidence) == [(0, 0), (50, 50), (0, 0), (0, 0), (0, 0), (0, 0)]
    assert [block.canary_seen for block in evidence.blocks] == [False, True, True, True, True, True]
    assert [block.stable.requests for block in evidence.blocks] == [10] * 6

    query = f'sum(increase(istio_requests_total{{destination_service="{host}",destination_version="v2"}}[60s]))'
    client = PrometheusClient(Provider("recorded", recorded.url), Metrics(CollectorRegistry()))
    naive = await client.at(query, T0 + timedelta(seconds=60))
    await client.close()
    assert [value for _, value in (found["value"] for found in naive.result)] == ["0"]


async def test_new_response_code_of_a_known_version_is_counted(recorded: Recorded, host: str) -> None:
    recorded.write(
        [
            series(host, "v1", STABLE),
            series(host, "v2", steady(-60, 60, 100.0, 10.0)),
            series(host, "v2", steady(35, 60, 7.0), response_code="503"),
        ]
    )
    evidence = await ask(recorded, request_for(host), 60)
    assert requests_of(evidence) == [(20, 0), (20, 0), (20, 0), (27, 7), (20, 0), (20, 0)]


async def test_nothing_is_known_before_prometheus_first_scraped_the_host(recorded: Recorded, host: str) -> None:
    """A host that appears with thousands of requests has had them some time, not in this block."""
    recorded.write(
        [
            series(host, "v1", steady(15, 60, 90_000.0, 5.0)),
            series(host, "v2", steady(15, 60, 3_000.0, 1.0), response_code="500"),
        ]
    )
    evidence = await ask(recorded, request_for(host), 60)
    assert requests_of(evidence) == [(0, 0), (0, 0), (2, 2), (2, 2), (2, 2), (2, 2)]
    assert evidence.notes == (
        "Prometheus had nothing on the host before: requests until its first scrape are not counted",
    )


async def test_reset_counts_what_was_before_and_what_came_after(recorded: Recorded, host: str) -> None:
    """100, 110, then a restart of the proxy, 40, 50: ten before it and fifty after it."""
    story = {-5: 90.0, 0: 100.0, 5: 110.0, 10: 50.0, 15: 50.0, 20: 50.0}
    recorded.write([series(host, "v1", STABLE), series(host, "v2", story, response_code="500")])
    evidence = await ask(recorded, request_for(host), 20)
    assert requests_of(evidence) == [(60, 60), (0, 0)]
    assert evidence.notes == ("a counter of version v2 was reset: requests since the scrape before it are not counted",)
    assert evidence.warnings == ()


async def test_reset_at_the_edge_of_a_block_is_not_negative(recorded: Recorded, host: str) -> None:
    """The first value of the block is already one after the reset."""
    story = {-5: 900.0, 0: 1000.0, 5: 30.0, 10: 30.0}
    recorded.write([series(host, "v1", STABLE), series(host, "v2", story)])
    assert requests_of(await ask(recorded, request_for(host), 10)) == [(30, 0)]


async def test_failed_scrape_loses_nothing_and_makes_nothing_new(recorded: Recorded, host: str) -> None:
    """One proxy's scrape fails at a block's edge; Prometheus marks its series stale, and then they are back."""
    wide = timedelta(seconds=5)
    story = {-5: 5000.0, 0: 5000.0, 5: 5010.0, 10: STALE, 15: STALE, 20: STALE, 25: 5040.0, 30: 5040.0}
    recorded.write(
        [
            series(host, "v1", steady(-60, 30, 10.0, 5.0), instance="gateway-2"),
            series(host, "v2", story, response_code="500"),
        ]
    )
    evidence = await ask(recorded, request_for(host), 30, scrape=wide)
    counted = requests_of(evidence)
    assert sum(count for count, _ in counted) == 40
    assert counted[2] == (30, 30)


async def test_failed_scrapes_at_any_time_neither_lose_nor_invent_requests(recorded: Recorded, host: str) -> None:
    """Two proxies, each of whose scrapes fails now and then: the blocks add up to what was answered."""
    chance = random.Random(20260101)
    expected: dict[str, float] = {}
    for n in range(25):
        name = f"{n}.{host}"
        expected[name] = 0.0
        stories = [series(name, "v1", STABLE)]
        for proxy in ("gateway-1", "gateway-2"):
            value, story = float(chance.randrange(100_000)), {}
            for at in range(-60, 61, 5):
                before, value = value, value + chance.randrange(40)
                scraped = at in {-60, 0, 60} or chance.random() < 0.6
                story[at] = value if scraped else STALE
                expected[name] += value - before if at > 0 else 0
            stories.append(series(name, "v2", story, instance=proxy))
        recorded.write(stories)
    for name, requests in expected.items():
        evidence = await ask(recorded, request_for(name), 60)
        assert sum(count for count, _ in requests_of(evidence)) == requests, name


async def test_provider_that_stopped_scraping_has_no_data(recorded: Recorded, host: str) -> None:
    """Samples that end look like a canary without requests to a plain query, whose values linger for minutes."""
    recorded.write([series(host, "v1", steady(-60, 20, 10.0, 5.0)), series(host, "v2", steady(-60, 20, 10.0, 1.0))])
    evidence = await ask(recorded, request_for(host), 60)
    assert [block.canary_seen for block in evidence.blocks] == [True, True, True, False, False, False]
    assert requests_of(evidence)[:3] == [(2, 0), (2, 0), (0, 0)]


async def test_fetched_at_once_or_one_by_one_makes_no_difference(recorded: Recorded, host: str) -> None:
    """A restarted operator asks for many blocks at once; the counts are the same, and add up to the whole."""
    story = {at: float((at + 60) ** 2 // 7) for at in range(-60, 121, 5)}
    recorded.write([series(host, "v1", steady(-60, 120, 0.0, 3.0)), series(host, "v2", story)])
    start = T0 + timedelta(milliseconds=250)
    at_once = await ask(recorded, request_for(host, start=start), 115)
    provider = Provider("recorded", recorded.url, scrape_interval=SCRAPE, lag=timedelta(seconds=5))
    source = PrometheusSource({"recorded": provider}, CollectorRegistry())
    request = request_for(host, start=start)
    woken = asyncio.Event()
    for k in range(1, len(at_once.blocks) + 1):
        source.latest(request, T0 + k * INTERVAL + provider.lag, woken.set)
        await asyncio.wait_for(woken.wait(), 10)
        woken.clear()
    one_by_one = source.latest(request, T0 + len(at_once.blocks) * INTERVAL + provider.lag, woken.set)
    await source.close()
    assert one_by_one is not None
    assert one_by_one.blocks == at_once.blocks
    assert len(at_once.blocks) == 11
    assert at_once.blocks[0].start == start
    assert sum(count for count, _ in requests_of(at_once)) == story[110] - story[0]


@pytest.mark.parametrize("le", [("500", "1000"), ("500.0", "1000.0")], ids=["prometheus-2", "prometheus-3"])
async def test_slow_requests_whatever_way_the_edge_is_spelled(recorded: Recorded, host: str, le: Sequence[str]) -> None:
    recorded.write(
        [
            series(host, "v1", STABLE),
            series(host, "v2", steady(-60, 60, 0.0, 10.0)),
            *histogram(host, "v1", steady(-60, 60, 0.0, 5.0), steady(-60, 60, 0.0, 5.0), le),
            *histogram(host, "v2", steady(-60, 60, 0.0, 10.0), steady(-60, 60, 0.0, 7.0), le),
        ]
    )
    evidence = await ask(recorded, request_for(host, slow_above=timedelta(milliseconds=500)), 20)
    assert evidence.error == ""
    assert [block.canary for block in evidence.blocks] == [Counts(requests=20, timed=20, slow=6)] * 2
    assert [block.stable for block in evidence.blocks] == [Counts(requests=10, timed=10, slow=0)] * 2


async def test_histogram_that_lags_is_not_compared_with_the_counter(recorded: Recorded, host: str) -> None:
    """Envoy flushes histograms after counters: a hundred requests counted, none timed yet, so none is slow."""
    edges = ("500.0",)
    recorded.write(
        [
            series(host, "v1", STABLE),
            series(host, "v2", steady(5, 20, 100.0)),
            *histogram(host, "v1", steady(-60, 20, 0.0, 5.0), steady(-60, 20, 0.0, 5.0), edges),
            *histogram(host, "v2", steady(15, 20, 100.0), steady(15, 20, 99.0), edges),
        ]
    )
    evidence = await ask(recorded, request_for(host, slow_above=timedelta(milliseconds=500)), 20)
    assert [block.canary for block in evidence.blocks] == [Counts(requests=100), Counts(timed=100, slow=1)]


async def test_threshold_between_edges_is_named_with_its_neighbours(recorded: Recorded, host: str) -> None:
    recorded.write(
        [
            series(host, "v1", STABLE),
            *histogram(host, "v1", STABLE, STABLE, ("0.5", "250.0", "500.0", "1000.0")),
        ]
    )
    evidence = await ask(recorded, request_for(host, slow_above=timedelta(milliseconds=300)), 20)
    assert evidence.error == "analysis.latency.threshold 300ms is no bucket edge; the nearest: 250ms or 500ms"
    assert [block.stable.requests for block in evidence.blocks] == [10, 10]


async def test_requests_that_reached_no_version(recorded: Recorded, host: str) -> None:
    recorded.write(
        [
            series(host, "v1", STABLE),
            series(host, "unknown", steady(5, 60, 9.0), response_code="503", response_flags="UH"),
            series(host, "unknown", steady(15, 60, 4.0), response_code="503", response_flags="UF,URX"),
            series(host, "unknown", steady(-60, 60, 0.0, 2.0), response_code="404", response_flags="NR"),
            series(host, "v2", steady(-60, 60, 0.0, 2.0), response_code="503", response_flags="UF"),
        ]
    )
    evidence = await ask(recorded, request_for(host), 20)
    assert [block.unreached for block in evidence.blocks] == [9, 4]
    assert requests_of(evidence) == [(4, 4), (4, 4)]


async def test_other_reporters_hosts_and_versions_do_not_count(recorded: Recorded, host: str) -> None:
    other = steady(-60, 60, 0.0, 99.0)
    recorded.write(
        [
            series(host, "v1", STABLE),
            series(host, "v2", steady(-60, 60, 0.0, 1.0)),
            series(host, "v2", other, reporter="destination"),
            series(host, "v22", other),
            series(f"x{host}", "v2", other),
        ]
    )
    assert requests_of(await ask(recorded, request_for(host), 20)) == [(2, 0), (2, 0)]


async def test_versions_that_look_like_regular_expressions(recorded: Recorded, host: str) -> None:
    recorded.write(
        [
            series(host, "1.4.1", STABLE),
            series(host, "1.4.2", steady(-60, 60, 0.0, 1.0)),
            series(host, "1x4x2", steady(-60, 60, 0.0, 50.0)),
        ]
    )
    evidence = await ask(recorded, request_for(host, stable="1.4.1", canary="1.4.2"), 20)
    assert requests_of(evidence) == [(2, 0), (2, 0)]


async def test_own_query_sees_its_variables(recorded: Recorded, host: str) -> None:
    recorded.write([series(host, "v1", STABLE), series(host, "v2", steady(-60, 60, 0.0, 3.0))])
    text = 'sum(rate(istio_requests_total{destination_service="$host",destination_version="$canary"}[$interval]))'
    queries = (
        OwnQuery("rate", text, text.replace("$canary", "$stable")),
        OwnQuery("both", 'istio_requests_total{destination_service="$host"}'),
        OwnQuery("syntax", "sum("),
        OwnQuery("text", '"five"'),
    )
    request = request_for(host, queries=queries)
    provider = Provider("recorded", recorded.url, scrape_interval=SCRAPE, lag=timedelta(seconds=5))
    source = PrometheusSource({"recorded": provider}, CollectorRegistry())
    woken = asyncio.Event()
    now = T0 + timedelta(seconds=20) + provider.lag
    while (evidence := source.latest(request, now, woken.set)) is None or len(evidence.metrics) < len(queries):
        await asyncio.wait_for(woken.wait(), 10)
        woken.clear()
    await source.close()
    assert [reading.at for reading in evidence.metrics["rate"]] == [T0 + INTERVAL, T0 + 2 * INTERVAL]
    for reading in evidence.metrics["rate"]:
        assert reading.value.value is not None
        assert float(reading.value.value) == pytest.approx(0.6)
        assert reading.baseline is not None
        assert reading.baseline.value is not None
        assert float(reading.baseline.value) == pytest.approx(1.0)
    both, syntax, string = (evidence.metrics[name][-1].value for name in ("both", "syntax", "text"))
    assert both.problem == "the query gives 2 series; make it one, for example with sum()"
    assert syntax.reason == string.reason == "BadQuery"
    assert "unclosed left parenthesis" in syntax.problem
    assert string.problem == "the query gives a string; make it one number"
