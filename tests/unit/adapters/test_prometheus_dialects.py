"""Prometheus 2 and 3, Thanos and Mimir say the same things in different words; see fixtures/README.md."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, OwnQuery, Preflight, PreflightRequest
from tests.meshstory import hosts_of, is_counting, is_harmless, is_range, is_timing
from tests.prometheusstub import Asked, Reply, Stub, prometheus_stub

FIXTURES = Path(__file__).parent / "fixtures"
DIALECTS = sorted(path.stem for path in FIXTURES.glob("*.json"))
T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOST = "reviews.shop.svc.cluster.local"
REQUEST = EvidenceRequest(
    "default", "shop", HOST, "v1", "v2", "version", T0, 10 * SECOND, slow_above=timedelta(milliseconds=500)
)


@dataclass
class Dialect:
    """Plays a server's answers back; ``instead`` names other ones for some questions."""

    answers: dict[str, Any]
    instead: Callable[[Asked], str | None] = field(default=lambda asked: None)

    def __call__(self, asked: Asked) -> Reply:
        found = self.answers[self.instead(asked) or self._question(asked)]
        body = found["body"]
        return Reply(found["status"], body.encode() if isinstance(body, str) else body, found.get("headers", {}))

    def _question(self, asked: Asked) -> str:
        query = asked.form["query"]
        if is_harmless(query):
            return "harmless"
        if is_counting(query):
            return ("durations" if is_timing(query) else "requests") + (" over time" if is_range(asked) else "")
        if query.startswith("count by (le)"):
            return "edges"
        return "versions" if query.startswith("count by (destination_version)") else "no PromQL"


def dialect(name: str) -> Dialect:
    return Dialect(json.loads((FIXTURES / f"{name}.json").read_text()))


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        yield server


@pytest.fixture
def provider(stub: Stub) -> Provider:
    return Provider("default", stub.url, lag=2 * SECOND, scrape_interval=5 * SECOND)


@pytest.fixture
async def source(provider: Provider) -> AsyncIterator[PrometheusSource]:
    source = PrometheusSource({"default": provider}, CollectorRegistry())
    yield source
    await source.close()


async def evidence(
    source: PrometheusSource, seconds: float, request: EvidenceRequest = REQUEST, until: int = 1
) -> Evidence:
    """Ask until there are so many blocks, or an error."""
    woken = asyncio.Event()
    async with asyncio.timeout(5):
        while True:
            found = source.latest(request, T0 + seconds * SECOND, woken.set)
            if found is not None and (found.error or len(found.blocks) >= until):
                return found
            await woken.wait()
            woken.clear()


async def preflight(source: PrometheusSource, request: PreflightRequest) -> Preflight:
    woken = asyncio.Event()
    assert source.preflight(request, T0, woken.set) is None
    await asyncio.wait_for(woken.wait(), 5)
    found = source.preflight(request, T0, woken.set)
    assert found is not None
    return found


CANARY = (Counts(requests=27, errors=5, timed=20, slow=4), Counts(requests=26, errors=4, timed=20, slow=4))
STABLE = Counts(requests=10, timed=10)


@pytest.mark.parametrize("name", DIALECTS)
async def test_all_lead_to_the_same_counts(name: str, stub: Stub, source: PrometheusSource) -> None:
    stub.reply = dialect(name)
    found = await evidence(source, 12)
    assert (found.error, found.warnings) == ("", ())
    assert (found.blocks[0].canary, found.blocks[0].stable, found.blocks[0].unreached) == (CANARY[0], STABLE, 6)
    assert found.notes == ("a counter of version v2 was reset: requests since the scrape before it are not counted",)


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_range_leads_to_the_same_counts(name: str, stub: Stub, source: PrometheusSource) -> None:
    stub.reply = dialect(name)
    found = await evidence(source, 22, until=2)
    assert tuple(block.canary for block in found.blocks) == CANARY
    assert [block.unreached for block in found.blocks] == [6, 0]


@pytest.mark.parametrize("name", DIALECTS)
async def test_preflight_sees_versions_and_edges(name: str, stub: Stub, source: PrometheusSource) -> None:
    stub.reply = dialect(name)
    request = PreflightRequest("default", "shop", HOST, "v1", T0, slow_above=timedelta(milliseconds=500))
    good = await preflight(source, request)
    assert good == Preflight(request, host_series=True, versions=("v1", "v2"))
    off = await preflight(source, replace(request, slow_above=timedelta(milliseconds=300)))
    assert off.edge_problem == "analysis.latency.threshold 300ms is no bucket edge; the nearest: 250ms or 500ms"
    wrong = await preflight(source, replace(request, queries=(OwnQuery("mine", "sum("),)))
    assert wrong.refused.startswith("analysis.metrics[mine].query: Prometheus cannot run the query: ")
    assert "unclosed left parenthesis" in wrong.refused


async def test_thanos_in_part_is_a_warning_until_it_answers_in_whole(stub: Stub, source: PrometheusSource) -> None:
    whole = dialect("thanos")
    partial = {"requests": "requests in part", "durations": "durations in part"}
    stub.reply = replace(whole, instead=lambda asked: partial.get(whole._question(asked)))
    found = await evidence(source, 12)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("receive series from Addr: 10.96.192.138:10901")
    assert not found.blocks[0].stable_seen, "what the store that is away held is missing"
    stub.reply = whole
    found = await evidence(source, 23, until=2)
    assert found.warnings == ()
    assert tuple(block.canary for block in found.blocks) == CANARY
    assert found.blocks[0].stable == STABLE


async def test_thanos_that_must_not_answer_in_part_is_an_error_and_no_outage(
    stub: Stub, source: PrometheusSource
) -> None:
    stub.reply = replace(
        dialect("thanos"), instead=lambda asked: "aborted" if is_counting(asked.form["query"]) else None
    )
    found = await evidence(source, 12)
    assert found.error.startswith("Prometheus cannot run the query: expanding series: proxy Series()")
    assert found.blocks == ()


async def test_thanos_is_asked_with_its_parameters(stub: Stub, provider: Provider) -> None:
    stub.reply = dialect("thanos")
    parameters = {"dedup": "true", "partial_response": "true", "max_source_resolution": "0"}
    source = PrometheusSource({"default": replace(provider, query_parameters=parameters)}, CollectorRegistry())
    await evidence(source, 22, until=2)
    await source.close()
    assert stub.asked
    for asked in stub.asked:
        assert asked.form.items() >= parameters.items()


async def test_mimir_needs_its_tenant(stub: Stub, provider: Provider) -> None:
    stub.reply = replace(
        dialect("mimir"), instead=lambda asked: None if asked.headers.get("X-Scope-OrgID") == "shop" else "no tenant"
    )
    without = PrometheusSource({"default": provider}, CollectorRegistry())
    assert (await evidence(without, 12)).error.startswith(f"{stub.url} refuses the operator's credentials (401")
    assert len(stub.asked) <= 2, "a refusal is not searched for the one who caused it"
    await without.close()
    tenant = replace(provider, headers={"X-Scope-OrgID": "shop"})
    source = PrometheusSource({"default": tenant}, CollectorRegistry())
    assert (await evidence(source, 12)).blocks[0].canary == CANARY[0]
    await source.close()


async def test_mimirs_limit_on_a_batch_is_met_by_smaller_ones(stub: Stub, source: PrometheusSource) -> None:
    limited = dialect("mimir")
    stub.reply = replace(
        limited, instead=lambda asked: "too many chunks" if len(hosts_of(asked.form["query"])) > 2 else None
    )
    hosts = [HOST, *(f"other-{n}.shop.svc.cluster.local" for n in range(5))]
    found = await asyncio.gather(*(evidence(source, 12, replace(REQUEST, host=host)) for host in hosts))
    assert [one.error for one in found] == [""] * 6
    assert found[0].blocks[0].canary == CANARY[0]


async def test_mimirs_limit_on_one_host_is_its_own(stub: Stub, source: PrometheusSource) -> None:
    stub.reply = replace(
        dialect("mimir"), instead=lambda asked: "too many chunks" if "huge" in asked.form["query"] else None
    )
    hosts = [HOST, "huge.shop.svc.cluster.local", "other.shop.svc.cluster.local"]
    found = await asyncio.gather(*(evidence(source, 12, replace(REQUEST, host=host)) for host in hosts))
    assert [bool(one.error) for one in found] == [False, True, False]
    assert "err-mimir-max-chunks-per-query" in found[1].error


async def test_mimir_that_is_too_busy_is_left_alone(stub: Stub, source: PrometheusSource) -> None:
    stub.reply = replace(dialect("mimir"), instead=lambda asked: "too many requests")
    hosts = [f"other-{n}.shop.svc.cluster.local" for n in range(8)]
    found = await asyncio.gather(*(evidence(source, 12, replace(REQUEST, host=host)) for host in hosts))
    assert {one.error for one in found} == {f"{stub.url} answers 429: too many outstanding requests"}
    assert sum(is_counting(asked.form["query"]) for asked in stub.asked) <= 2, "not taken apart"
