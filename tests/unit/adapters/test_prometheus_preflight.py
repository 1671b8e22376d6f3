"""What is found out of a provider before traffic moves, and how often it is asked."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_breaker import FAILURES, LONGEST_PAUSE
from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.adapters.prometheus_preflight import AGAIN
from canaryrollout.adapters.prometheus_provider import CustomQueries
from canaryrollout.domain.evidence import OwnQuery, Preflight, PreflightRequest
from tests.meshstory import Mesh, Server
from tests.prometheusstub import result

pytestmark = pytest.mark.looptime

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PROVIDER = Provider("default", "http://prometheus.example", lag=2 * SECOND, scrape_interval=SECOND)
HOST = "reviews.shop.svc.cluster.local"
REQUEST = PreflightRequest("default", "shop", HOST, "v1", T0)


@dataclass
class World:
    server: Server
    source: PrometheusSource
    wakes: int = 0

    def _woken(self) -> None:
        self.wakes += 1

    def ask(self, seconds: float, asked: PreflightRequest = REQUEST) -> Preflight | None:
        return self.source.preflight(asked, T0 + seconds * SECOND, self._woken)

    async def answer(self, seconds: float, asked: PreflightRequest = REQUEST) -> Preflight:
        """Ask, and once more when everything that this started is done."""
        self.ask(seconds, asked)
        await asyncio.sleep(0.9)
        found = self.ask(seconds, asked)
        assert found is not None
        return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    server = Server(PROVIDER)
    source = PrometheusSource({"default": PROVIDER}, CollectorRegistry(), lambda provider, metrics: server)
    yield World(server, source)
    await source.close()


async def test_a_good_answer_is_asked_for_once(world: World) -> None:
    assert world.ask(0) is None
    found = await world.answer(0)
    assert found == Preflight(REQUEST, host_series=True, versions=("v1", "v2"))
    assert world.wakes == 1
    for second in range(1, 60):
        assert world.ask(second) == found
    await asyncio.sleep(10)
    assert len(world.server.asked) == 1


async def test_asking_while_it_is_found_out_asks_nothing_more(world: World) -> None:
    for _ in range(5):
        assert world.ask(0) is None
    await asyncio.sleep(1)
    assert len(world.server.asked) == 1


async def test_a_host_without_series_is_asked_about_again_every_few_seconds(world: World) -> None:
    world.server.reply = Mesh(unknown=frozenset({HOST}))
    found = await world.answer(0)
    assert (found.host_series, found.versions, found.error) == (False, (), "")
    for second in range(20):
        await world.answer(second)
    assert len(world.server.asked) == 20 // (AGAIN // SECOND)
    world.server.reply = Mesh()
    found = await world.answer(25)
    assert found.host_series
    assert world.wakes == 2, "the same answer again wakes nobody"


async def test_a_clock_that_is_set_back_delays_no_question(world: World) -> None:
    world.server.reply = Mesh(unknown=frozenset({HOST}))
    await world.answer(600)
    world.server.reply = Mesh()
    assert (await world.answer(10)).host_series


async def test_versions_that_do_not_match_are_named(world: World) -> None:
    asked = replace(REQUEST, stable="1.0")
    assert (await world.answer(0, asked)).versions == ("v1", "v2")
    await world.answer(6, asked)
    assert len(world.server.asked) == 2


async def test_threshold_has_to_be_a_bucket_edge(world: World) -> None:
    asked = replace(REQUEST, slow_above=timedelta(milliseconds=300))
    found = await world.answer(0, asked)
    assert found.edge_problem == "analysis.latency.threshold 300ms is no bucket edge; the nearest: 250ms or 500ms"
    assert (await world.answer(0, replace(REQUEST, slow_above=timedelta(milliseconds=250)))).edge_problem == ""


@pytest.mark.parametrize("edges", [("250", "500", "+Inf"), ("250.0", "500.0", "+Inf")])
async def test_edges_are_numbers_however_they_are_spelled(world: World, edges: tuple[str, ...]) -> None:
    world.server.reply = Mesh(edges=edges)
    assert (await world.answer(0, replace(REQUEST, slow_above=timedelta(milliseconds=500)))).edge_problem == ""


async def test_a_host_without_a_histogram_yet_has_no_edge_problem(world: World) -> None:
    world.server.reply = Mesh(edges=())
    found = await world.answer(0, replace(REQUEST, slow_above=timedelta(milliseconds=300)))
    assert (found.host_series, found.edge_problem) == (True, "")


async def test_failure_says_since_when_and_is_tried_again(world: World) -> None:
    world.server.trouble = lambda query: QueryFailed("Refused", "refuses the operator's credentials (401)")
    found = await world.answer(0)
    assert found.error == "refuses the operator's credentials (401)"
    assert found.error_since is not None
    since = found.error_since
    assert T0 <= since < T0 + SECOND
    found = await world.answer(6)
    assert found.error_since == since
    assert world.wakes == 1
    world.server.trouble = lambda query: None
    found = await world.answer(12)
    assert (found.error, found.error_since, found.host_series) == ("", None, True)


async def test_a_provider_that_is_away_is_not_asked_for_each_rollout(world: World) -> None:
    world.server.trouble = lambda query: QueryFailed("Unreachable", "cannot ask it: Connection refused")
    for n in range(20):
        found = await world.answer(n, replace(REQUEST, host=f"{n}.{HOST}"))
        assert found.error == "cannot ask it: Connection refused"
        assert found.error_since is not None
    asked = world.server.queries()
    assert sum(query != "vector(1)" for query in asked) == FAILURES
    world.server.trouble = lambda query: None
    await world.answer(20)
    await asyncio.sleep(LONGEST_PAUSE)
    assert (await world.answer(40)).error == "", "it is found out whether it is back, although no block is due"


async def test_an_answer_that_breaks_the_reader_is_an_error_and_tried_again(world: World) -> None:
    world.server.reply = lambda asked: result("vector", [{"metric": "none", "value": [0, "1"]}])
    assert "the operator could not read the answer" in (await world.answer(0)).error
    world.server.reply = Mesh()
    assert (await world.answer(6)).error == ""


async def test_warnings_are_passed_on(world: World) -> None:
    world.server.reply = Mesh(envelope={"warnings": ["store b is away"]})
    assert (await world.answer(0)).warnings == ("store b is away",)
    world.server.reply = Mesh()
    assert (await world.answer(6)).warnings == ()


async def test_unknown_providers_and_namespaces_are_refused_without_asking(world: World) -> None:
    found = world.ask(0, replace(REQUEST, provider="nowhere"))
    assert found is not None
    assert found.refused == "analysis.provider nowhere is not defined here; defined are: default"
    world.source.reconfigure({"default": replace(PROVIDER, namespaces=("pay", "team-*"))})
    found = world.ask(0)
    assert found is not None
    assert found.refused == "analysis.provider default may not be used in namespace shop; allowed are: pay, team-*"
    assert world.server.asked == []
    world.source.reconfigure({"default": PROVIDER})
    assert (await world.answer(1)).refused == ""


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (result("scalar", [0, "1"]), ""),
        (result("vector", [{"metric": {}, "value": [0, "1"]}]), ""),
        (result("vector", []), ""),
        (result("vector", [{"metric": {}, "value": [0, "NaN"]}]), ""),
        (result("vector", [{"metric": {}, "value": [0, "1"]}] * 2), "the query gives 2 series; make it one"),
        (result("string", [0, "x"]), "the query gives a string; make it one number"),
        (result("matrix", []), "the query gives a matrix; make it one number"),
    ],
)
async def test_users_queries_have_to_give_one_number(world: World, reply: Any, problem: str) -> None:
    world.server.reply = Mesh(own=lambda asked: reply)
    found = await world.answer(0, replace(REQUEST, queries=(OwnQuery("load", 'load{v="$canary"}'),)))
    assert 'load{v="v1"}' in world.server.queries(), "stable stands in for a canary without series"
    assert (f"analysis.metrics[load].query: {problem}" in found.refused) if problem else not found.refused


async def test_users_queries_that_do_not_parse_are_refused_in_the_servers_words(world: World) -> None:
    def trouble(query: str) -> QueryFailed | None:
        return QueryFailed("BadQuery", "parse error: unclosed left parenthesis") if query == "sum(" else None

    world.server.trouble = trouble
    found = await world.answer(0, replace(REQUEST, queries=(OwnQuery("ok", "up", "sum("),)))
    assert found.refused == "analysis.metrics[ok].baselineQuery: parse error: unclosed left parenthesis"
    assert found.host_series


async def test_users_queries_that_are_not_answered_are_an_error(world: World) -> None:
    def trouble(query: str) -> QueryFailed | None:
        return QueryFailed("Timeout", "no answer within 11 s") if query == "up" else None

    world.server.trouble = trouble
    found = await world.answer(0, replace(REQUEST, queries=(OwnQuery("ok", "up"),)))
    assert (found.refused, found.error) == ("", "analysis.metrics[ok].query: no answer within 11 s")


async def test_users_queries_that_are_not_allowed_are_refused_without_asking(world: World) -> None:
    provider = replace(PROVIDER, custom_queries=CustomQueries.FORBIDDEN)
    server = Server(provider)
    source = PrometheusSource({"default": provider}, CollectorRegistry(), lambda provider, metrics: server)
    found = await World(server, source).answer(0, replace(REQUEST, queries=(OwnQuery("load", "up"),)))
    assert found.refused.startswith("analysis.metrics[load].query (up) is not asked: the administrator")
    assert "up" not in server.queries()
    await source.close()


async def test_checks_nobody_asks_about_are_forgotten(world: World) -> None:
    await world.answer(0)
    world.ask(900, replace(REQUEST, host="other"))
    assert REQUEST not in world.source._checks
