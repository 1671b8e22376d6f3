"""Readings of users' own queries: at which times, what each kind of answer means, and whom they may not disturb."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.adapters.prometheus_own import MAX_READINGS
from canaryrollout.adapters.prometheus_provider import CustomQueries
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, MetricReading, OwnQuery
from tests.meshstory import Mesh, Server, is_counting, is_range, times
from tests.prometheusstub import Asked, Reply, result

pytestmark = pytest.mark.looptime

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INTERVAL = 10 * SECOND
LAG = 2 * SECOND
PROVIDER = Provider("default", "http://prometheus.example", lag=LAG, scrape_interval=SECOND)
HOST = "reviews.shop.svc.cluster.local"


def request(*queries: OwnQuery, **fields: Any) -> EvidenceRequest:
    asked = EvidenceRequest("default", "shop", HOST, "v1", "v2", "version", T0, INTERVAL, queries=queries, weight=30)
    return replace(asked, **fields)


def number(value: Callable[[float], str]) -> Callable[[Asked], Reply]:
    """Answers with one number that depends on the time."""

    def reply(asked: Asked) -> Reply:
        points = [[at, value(at - T0.timestamp())] for at in times(asked)]
        if is_range(asked):
            return result("matrix", [{"metric": {}, "values": points}])
        return result("vector", [{"metric": {}, "value": points[0]}])

    return reply


@dataclass
class World:
    server: Server
    source: PrometheusSource

    def answer(self, own: Callable[[Asked], Reply]) -> None:
        self.server.reply = Mesh(own=own)

    async def look(self, asked: EvidenceRequest, seconds: float) -> Evidence:
        """Look once, and again when everything that this started is done."""
        now = T0 + seconds * SECOND
        self.source.latest(asked, now, lambda: None)
        await asyncio.sleep(0.9)
        evidence = self.source.latest(asked, now, lambda: None)
        assert evidence is not None
        return evidence

    def own(self) -> list[Asked]:
        return [asked for _, asked in self.server.asked if not is_counting(asked.form["query"])]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    server = Server(PROVIDER)
    source = PrometheusSource({"default": PROVIDER}, CollectorRegistry(), lambda provider, metrics: server)
    yield World(server, source)
    await source.close()


def values(readings: tuple[MetricReading, ...]) -> list[Fraction | None]:
    return [reading.value.value for reading in readings]


def ends(*numbers: int) -> list[datetime]:
    return [T0 + n * INTERVAL for n in numbers]


async def test_readings_of_times_that_lie_in_the_future_are_taken_again(world: World) -> None:
    asked = request(OwnQuery("failures", "failures"))
    world.answer(number(lambda second: "9"))
    before = (await world.look(asked, 62)).metrics["failures"]
    assert before[-1].at == T0 + 60 * SECOND
    world.answer(number(lambda second: "1"))
    after = (await world.look(asked, 35)).metrics["failures"]
    assert after[-1].at == T0 + 30 * SECOND
    again = (await world.look(asked, 42)).metrics["failures"]
    assert [(r.at - T0, r.value.value) for r in again[-2:]] == [(30 * SECOND, Fraction(9)), (40 * SECOND, Fraction(1))]


async def test_readings_are_taken_at_the_ends_of_blocks(world: World) -> None:
    world.answer(number(str))
    asked = request(OwnQuery("load", 'load{version="$canary"} * $weight'), start=T0 + 3 * SECOND)
    await world.look(asked, 12)
    evidence = await world.look(asked, 22)
    readings = evidence.metrics["load"]
    assert [reading.at for reading in readings] == ends(1, 2)
    assert values(readings) == [10, 20]
    assert all(reading.baseline is None for reading in readings)
    assert {one.form["query"] for one in world.own()} == {'load{version="v2"} * 30'}
    assert len(world.own()) == 2


async def test_baseline_is_read_at_the_same_time(world: World) -> None:
    world.answer(lambda asked: number(lambda at: "1" if "v1" in asked.form["query"] else "2")(asked))
    asked = request(OwnQuery("load", 'load{v="$canary"}', 'load{v="$stable"}'))
    reading = (await world.look(asked, 12)).metrics["load"][0]
    assert reading.baseline is not None
    assert [reading.value.value, reading.baseline.value] == [Fraction(2), Fraction(1)]
    assert reading.value.at == reading.baseline.at == reading.at == T0 + INTERVAL


async def test_asking_twice_at_once_asks_once(world: World) -> None:
    world.answer(number(str))
    asked = request(OwnQuery("load", "load"))
    for _ in range(3):
        world.source.latest(asked, T0 + 12 * SECOND, lambda: None)
    assert len((await world.look(asked, 12)).metrics["load"]) == 1
    assert len(world.own()) == 1


async def test_after_a_restart_the_same_readings_come_by_one_range_query(world: World) -> None:
    """Whether failures are counted before or after a restart, they are the same ones."""
    world.answer(number(lambda at: "NaN" if at == 30 else str(at / 7)))
    asked = request(OwnQuery("load", "load"))
    for k in range(1, 8):
        one_by_one = await world.look(asked, k * 10 + 2)
    before = len(world.own())
    server = Server(PROVIDER, world.server.reply)
    again = PrometheusSource({"default": PROVIDER}, CollectorRegistry(), lambda provider, metrics: server)
    restarted = await World(server, again).look(asked, 72)
    assert restarted.metrics == one_by_one.metrics
    assert before == 7
    assert [is_range(one) for one in World(server, again).own()] == [True]
    assert restarted.metrics["load"][2].value.reason == "NotANumber"
    await again.close()


async def test_the_newest_readings_are_kept(world: World) -> None:
    world.answer(number(str))
    asked = request(OwnQuery("load", "load"))
    evidence = await world.look(asked, (MAX_READINGS + 50) * 10 + 2)
    readings = evidence.metrics["load"]
    assert [readings[0].at, readings[-1].at] == ends(51, MAX_READINGS + 50)
    evidence = await world.look(asked, (MAX_READINGS + 51) * 10 + 2)
    assert len(evidence.metrics["load"]) == MAX_READINGS


@pytest.mark.parametrize(
    ("instant", "over", "reason"),
    [
        (result("scalar", [0, "1.5"]), result("matrix", [{"metric": {}, "values": [[10, "1.5"]]}]), ""),
        (result("vector", []), result("matrix", []), "NoData"),
        (
            result("vector", [{"metric": {"a": x}, "value": [0, "1"]} for x in "bc"]),
            result("matrix", [{"metric": {"a": x}, "values": [[10, "1"]]} for x in "bc"]),
            "BadQuery",
        ),
        (
            result("vector", [{"metric": {}, "value": [0, "NaN"]}]),
            result("matrix", [{"metric": {}, "values": [[10, "NaN"]]}]),
            "NotANumber",
        ),
        (
            result("vector", [{"metric": {}, "histogram": [0, {"count": "1"}]}]),
            result("matrix", [{"metric": {}, "histograms": [[10, {"count": "1"}]]}]),
            "BadQuery",
        ),
    ],
    ids=["number", "nothing", "several", "nan", "histogram"],
)
async def test_an_answer_means_the_same_alone_and_in_a_range(
    world: World, instant: Reply, over: Reply, reason: str
) -> None:
    def shifted(asked: Asked) -> Reply:
        if not is_range(asked):
            return instant
        series = [
            {name: [[T0.timestamp() + at, x] for at, x in points] if name != "metric" else points}
            | {"metric": one["metric"]}
            for one in over.body["data"]["result"]
            for name, points in one.items()
            if name != "metric"
        ]
        return result("matrix", series)

    world.answer(shifted)
    alone = (await world.look(request(OwnQuery("x", "x")), 12)).metrics["x"][0]
    assert alone.value.reason == reason
    ranged = (await world.look(request(OwnQuery("x", "x"), weight=31), 22)).metrics["x"]
    assert len(ranged) == 2
    assert (ranged[0].value.value, ranged[0].value.reason) == (alone.value.value, reason)
    assert ranged[1].value.reason == "NoData"


@pytest.mark.parametrize("kind", ["string", "matrix"])
async def test_a_type_that_no_range_can_have_is_told_as_alone(world: World, kind: str) -> None:
    """Prometheus refuses a range query of a string; what is wrong is said in the words for one time."""

    def trouble(query: str) -> QueryFailed | None:
        asked = world.server.asked[-1][1]
        refuses = query == "x" and is_range(asked)
        return QueryFailed("BadQuery", "invalid expression type") if refuses else None

    world.server.trouble = trouble
    world.answer(lambda asked: result(kind, [0, "5"] if kind == "string" else [{"metric": {}, "values": []}]))
    readings = (await world.look(request(OwnQuery("x", "x")), 52)).metrics["x"]
    assert [reading.at for reading in readings] == ends(1, 2, 3, 4, 5)
    assert {reading.value.problem for reading in readings} == {f"the query gives a {kind}; make it one number"}
    assert [reading.value.at for reading in readings] == ends(1, 2, 3, 4, 5)


async def test_a_range_that_is_too_much_is_asked_for_in_parts(world: World) -> None:
    def trouble(query: str) -> QueryFailed | None:
        much = query == "load" and len(times(world.server.asked[-1][1])) > 20
        return QueryFailed("BadQuery", "too many samples") if much else None

    world.server.trouble = trouble
    world.answer(number(str))
    readings = (await world.look(request(OwnQuery("load", "load")), 1002)).metrics["load"]
    assert values(readings) == [n * 10 for n in range(1, 101)]
    assert len(world.own()) < 25


async def test_readings_that_did_not_come_are_asked_for_again(world: World) -> None:
    def trouble(query: str) -> QueryFailed | None:
        return QueryFailed("ServerError", "disk full") if query == "load" else None

    world.answer(number(str))
    asked = request(OwnQuery("load", "load"))
    await world.look(asked, 12)
    world.server.trouble = trouble
    evidence = await world.look(asked, 22)
    assert [reading.value.reason for reading in evidence.metrics["load"]] == ["", "ProviderError"]
    assert evidence.metrics["load"][1].value.problem == "disk full"
    assert evidence.error == ""
    await world.look(asked, 32)
    world.server.trouble = lambda query: None
    evidence = await world.look(asked, 42)
    assert values(evidence.metrics["load"]) == [10, 20, 30, 40]


async def test_readings_with_a_warning_are_asked_for_again(world: World) -> None:
    partial = result("scalar", [0, "1"], warnings=["store b is away"])
    world.answer(lambda asked: partial)
    asked = request(OwnQuery("load", "load"))
    evidence = await world.look(asked, 12)
    assert values(evidence.metrics["load"]) == [1]
    assert evidence.warnings == ("load: store b is away",)
    world.answer(number(str))
    evidence = await world.look(asked, 22)
    assert values(evidence.metrics["load"]) == [10, 20]
    assert evidence.warnings == ()


async def test_an_answer_of_no_known_shape_is_the_providers_mistake(world: World) -> None:
    world.answer(lambda asked: result("vector", [{"metric": {}, "value": 7}]))
    evidence = await world.look(request(OwnQuery("load", "load")), 12)
    assert evidence.metrics["load"][0].value.reason == "ProviderError"
    assert len(evidence.blocks) == 1


async def test_a_slow_own_query_delays_no_block() -> None:
    server = SlowServer(PROVIDER)
    source = PrometheusSource({"default": PROVIDER}, CollectorRegistry(), lambda provider, metrics: server)
    asked = [request(OwnQuery("slow", "slow"), host=f"h{n}.shop.svc.cluster.local") for n in range(20)]
    for k in (1, 2, 3):
        for one in asked:
            source.latest(one, T0 + (k * 10 + 2) * SECOND, lambda: None)
        await asyncio.sleep(1)
        for one in asked:
            evidence = source.latest(one, T0 + (k * 10 + 2) * SECOND, lambda: None)
            assert evidence is not None
            assert len(evidence.blocks) == k
            assert evidence.metrics == {}
    assert server.queries().count("slow") == PROVIDER.concurrency // 2, "half of the places at most"
    await source.close()


async def test_slow_own_queries_of_a_namespace_delay_those_of_another_by_one_each_at_most() -> None:
    server = SlowServer(PROVIDER, slow=8)
    source = PrometheusSource({"default": PROVIDER}, CollectorRegistry(), lambda provider, metrics: server)
    for n in range(50):
        crowd = request(OwnQuery("slow", "slow"), host=f"h{n}.busy.svc.cluster.local", namespace="busy")
        source.latest(crowd, T0 + 12 * SECOND, lambda: None)
    await asyncio.sleep(1)
    source.latest(request(OwnQuery("load", "load")), T0 + 12 * SECOND, lambda: None)
    await asyncio.sleep(9)
    assert server.queries().count("load") == 1
    await source.close()


@dataclass
class SlowServer(Server):
    """Takes long for queries called slow."""

    slow: float = 1_000

    async def _answer(self, path: str, query: str, **form: str) -> Any:
        self.takes = self.slow if query == "slow" else 0.01
        return await super()._answer(path, query, **form)


@pytest.mark.parametrize(
    ("policy", "query", "sent", "problem"),
    [
        (CustomQueries.FORBIDDEN, "load", None, "the administrator lets this provider answer the built-in gates only"),
        (CustomQueries.NAMESPACE_ENFORCED, "load", 'load{ns="shop"}', ""),
        (CustomQueries.NAMESPACE_ENFORCED, 'load{ns="pay"}', None, 'it selects ns="pay"'),
        (CustomQueries.ALLOWED, 'load{ns="pay"}', 'load{ns="pay"}', ""),
    ],
)
async def test_what_the_administrator_allows_is_sent(
    policy: CustomQueries, query: str, sent: str | None, problem: str
) -> None:
    provider = replace(PROVIDER, custom_queries=policy, namespace_label="ns")
    server = Server(provider, Mesh(own=number(str)))
    source = PrometheusSource({"default": provider}, CollectorRegistry(), lambda provider, metrics: server)
    world = World(server, source)
    reading = (await world.look(request(OwnQuery("load", query)), 12)).metrics["load"][0]
    assert [asked.form["query"] for asked in world.own()] == ([sent] if sent else [])
    assert reading.value.reason == ("BadQuery" if problem else "")
    assert problem in reading.value.problem
    if problem:
        assert "analysis.metrics[load].query" in reading.value.problem
    await source.close()
