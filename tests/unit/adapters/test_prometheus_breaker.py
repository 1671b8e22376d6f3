"""A provider that is away: how it is noticed, what it is still asked, what rollouts say, and how they catch up."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_backend import PATIENCE
from canaryrollout.adapters.prometheus_breaker import FAILURES, LONGEST_PATIENCE, LONGEST_PAUSE, Breaker
from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, OwnQuery
from tests.meshstory import Server, is_counting, is_harmless
from tests.prometheusstub import Asked

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INTERVAL = 10 * SECOND
LAG = 2 * SECOND
AWAY = QueryFailed("Unreachable", "cannot ask http://prometheus.example: Connection refused")


def busy(seconds: float) -> QueryFailed:
    """A server that says when it may be asked again."""
    said = "http://prometheus.example answers 429: too many requests"
    return QueryFailed("ServerError", said, retry_after=seconds)


def request(n: int = 0, provider: str = "default") -> EvidenceRequest:
    host = f"service-{n}.shop.svc.cluster.local"
    return EvidenceRequest(provider, "shop", host, "v1", "v2", "version", T0, INTERVAL)


# --- the rule -----------------------------------------------------------------------------------------------------


def test_it_opens_after_several_failures_in_a_row() -> None:
    breaker = Breaker()
    for n in range(FAILURES):
        assert not breaker.is_open
        breaker.failed(AWAY, T0 + n * SECOND)
    assert (breaker.is_open, breaker.since, breaker.reason) == (True, T0, str(AWAY))
    breaker.succeeded()
    assert (breaker.is_open, breaker.since) == (False, None)


def test_an_answer_between_failures_keeps_it_closed() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(AWAY, T0)
        breaker.succeeded()
    assert not breaker.is_open


@pytest.mark.parametrize("outcome", ["BadQuery", "Refused", "BadAnswer"])
def test_a_server_that_says_no_is_there(outcome: str) -> None:
    breaker = Breaker()
    for _ in range(2 * FAILURES):
        breaker.failed(QueryFailed(outcome, "no"), T0)
    assert not breaker.is_open
    assert breaker.since is None


def test_pauses_double_up_to_a_bound() -> None:
    breaker = Breaker()
    pauses = []
    for _ in range(FAILURES + 6):
        breaker.failed(AWAY, T0)
        pauses.append(breaker.pause)
    assert pauses[FAILURES - 1 :] == [1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_a_servers_wish_is_respected_at_once_and_within_reason() -> None:
    breaker = Breaker()
    breaker.failed(busy(40), T0)
    assert (breaker.is_open, breaker.pause) == (True, 40)
    breaker.failed(busy(86_400), T0)
    assert breaker.pause == LONGEST_PATIENCE
    breaker.failed(busy(0), T0)
    assert breaker.pause == 1


def test_its_words_do_not_change_with_each_try() -> None:
    breaker = Breaker()
    for n in range(FAILURES):
        breaker.failed(QueryFailed("Timeout", f"no answer, try {n}"), T0)
    words = breaker.reason
    breaker.failed(QueryFailed("Timeout", "no answer, try 99"), T0)
    assert breaker.reason == words
    breaker.failed(AWAY, T0)
    assert breaker.reason == str(AWAY)


# --- the provider at work -----------------------------------------------------------------------------------------


@dataclass
class Watcher:
    """Looks at rollouts as the engine does: when a block is due, and when it is woken."""

    source: PrometheusSource
    requests: list[EvidenceRequest]
    seen: dict[EvidenceRequest, Evidence] = field(default_factory=dict)
    wakes: int = 0

    def now(self) -> datetime:
        return T0 + asyncio.get_running_loop().time() * SECOND  # which begins at nought

    def look(self) -> None:
        for asked in self.requests:
            evidence = self.source.latest(asked, self.now(), self._woken)
            if evidence is not None:
                self.seen[asked] = evidence

    def _woken(self) -> None:
        self.wakes += 1
        self.look()

    async def watch(self, seconds: float) -> None:
        """Look every second for some seconds of the loop's time."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            self.look()
            await asyncio.sleep(1)


@dataclass
class World:
    server: Server
    source: PrometheusSource
    registry: CollectorRegistry
    watcher: Watcher

    def up(self) -> float | None:
        return self.registry.get_sample_value("canaryrollout_provider_up", {"provider": "default"})

    def asked_since(self, index: int) -> list[tuple[float, Asked]]:
        return self.server.asked[index:]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    provider = Provider("default", "http://prometheus.example", lag=LAG, scrape_interval=SECOND)
    server, registry = Server(provider), CollectorRegistry()
    source = PrometheusSource({"default": provider}, registry, lambda provider, metrics: server)
    yield World(server, source, registry, Watcher(source, [request(n) for n in range(3)]))
    await source.close()


pytestmark = pytest.mark.looptime


async def test_while_it_is_away_it_is_asked_one_harmless_thing_now_and_then(world: World) -> None:
    await world.watcher.watch(25)
    assert world.up() == 1
    world.server.trouble = lambda query: AWAY
    await world.watcher.watch(70)
    assert world.up() == 0
    before = len(world.server.asked)
    await world.watcher.watch(60)
    probes = world.asked_since(before)
    assert {asked.form["query"] for _, asked in probes} == {"vector(1)"}
    pauses = [later - earlier for (earlier, _), (later, _) in pairwise(probes)]
    assert pauses == pytest.approx([LONGEST_PAUSE] * len(pauses), abs=0.1)
    assert len(probes) == 4


async def test_every_rollout_says_since_when(world: World) -> None:
    await world.watcher.watch(25)
    blocks = {asked: evidence.blocks for asked, evidence in world.watcher.seen.items()}
    world.server.trouble = lambda query: AWAY
    away_from = world.watcher.now()
    await world.watcher.watch(60)
    late = request(9)
    world.watcher.requests.append(late)  # begins while the provider is away
    await world.watcher.watch(20)
    for asked in world.watcher.requests:
        evidence = world.watcher.seen[asked]
        assert evidence.error == str(AWAY)
        assert evidence.error_since is not None
        assert away_from <= evidence.error_since <= away_from + INTERVAL + 2 * SECOND
        assert evidence.blocks == blocks.get(asked, ())
    wakes = world.watcher.wakes
    await world.watcher.watch(60)
    assert world.watcher.wakes == wakes, "nothing new wakes nobody"


async def test_when_it_is_back_everything_due_is_fetched_by_range_queries(world: World) -> None:
    await world.watcher.watch(25)
    world.server.trouble = lambda query: AWAY
    await world.watcher.watch(200)
    before = len(world.server.asked)
    world.server.trouble = lambda query: None
    back = asyncio.get_running_loop().time()
    while any(evidence.error for evidence in world.watcher.seen.values()):
        await world.watcher.watch(1)
        assert asyncio.get_running_loop().time() - back < LONGEST_PAUSE + 1
    counting = [asked for _, asked in world.asked_since(before) if is_counting(asked.form["query"])]
    assert [asked.path for asked in counting] == ["/api/v1/query_range"]
    assert world.up() == 1
    for evidence in world.watcher.seen.values():
        assert (evidence.error, evidence.error_since) == ("", None)
        assert [block.start for block in evidence.blocks[1:]] == [block.end for block in evidence.blocks[:-1]]
        assert world.watcher.now() - evidence.until <= LAG + INTERVAL + SECOND


async def test_a_server_that_hangs_is_noticed_and_no_batch_is_taken_apart_for_it(world: World) -> None:
    await world.watcher.watch(25)
    world.server.takes = 1_000.0
    before = len(world.server.asked)
    await world.watcher.watch(1)
    for asked in world.watcher.requests:
        assert world.watcher.seen[asked].error == ""
    world.server.trouble = lambda query: QueryFailed("Timeout", "no answer within 11 s")
    world.server.takes = 11.0
    await world.watcher.watch(60)
    queries = [asked.form["query"] for _, asked in world.asked_since(before)]
    assert sum(is_counting(query) for query in queries) <= FAILURES
    assert {evidence.error for evidence in world.watcher.seen.values()} == {"no answer within 11 s"}


async def test_one_query_that_times_out_is_not_the_provider(world: World) -> None:
    """The provider answers a harmless query meanwhile, so only the host that is too much is in trouble."""
    heavy = "service-1"

    def trouble(query: str) -> QueryFailed | None:
        return QueryFailed("Timeout", "too slow") if heavy in query else None

    world.server.trouble = trouble
    await world.watcher.watch(120)
    assert world.up() == 1
    seen = world.watcher.seen
    assert seen[request(1)].error == "too slow"
    for n in (0, 2):
        assert seen[request(n)].error == ""
        assert len(seen[request(n)].blocks) == 11


async def test_a_server_that_asks_for_patience_is_left_alone_that_long(world: World) -> None:
    await world.watcher.watch(25)
    world.server.trouble = lambda query: busy(40)
    await world.watcher.watch(10)
    before = len(world.server.asked)
    await world.watcher.watch(30)
    assert len(world.server.asked) == before
    assert world.up() == 0
    world.server.trouble = lambda query: None
    await world.watcher.watch(15)
    assert {evidence.error for evidence in world.watcher.seen.values()} == {""}


async def test_a_provider_that_nobody_needs_is_not_asked_whether_it_is_back(world: World) -> None:
    world.server.trouble = lambda query: AWAY
    await world.watcher.watch(60)
    await asyncio.sleep(120)  # nobody looks
    before = len(world.server.asked)
    await asyncio.sleep(600)
    assert len(world.server.asked) == before
    world.server.trouble = lambda query: None
    await world.watcher.watch(LONGEST_PAUSE + 5)
    assert all(evidence.error == "" for evidence in world.watcher.seen.values())


async def test_users_own_queries_do_not_open_it_and_are_not_sent_while_it_is_open(world: World) -> None:
    own = replace(request(0), queries=(OwnQuery("latency", "heavy", ""),))
    world.watcher.requests = [own]
    world.server.trouble = lambda query: QueryFailed("Timeout", "too slow") if query == "heavy" else None
    await world.watcher.watch(120)
    assert world.up() == 1
    readings = world.watcher.seen[own].metrics["latency"]
    assert readings[-1].value.reason == "ProviderError"
    world.server.trouble = lambda query: AWAY
    await world.watcher.watch(60)
    before = len(world.server.asked)
    await world.watcher.watch(60)
    assert all(is_harmless(asked.form["query"]) for _, asked in world.asked_since(before))


async def test_a_provider_that_hangs_delays_nobody_elses_rollouts() -> None:
    """Two providers, one of which never answers; the other's rollouts do not notice."""
    servers = {
        name: Server(Provider(name, f"http://{name}.example", lag=LAG, scrape_interval=SECOND))
        for name in ("well", "ill")
    }
    servers["ill"].takes = 10_000.0
    registry = CollectorRegistry()
    providers = {name: server.provider for name, server in servers.items()}
    source = PrometheusSource(providers, registry, lambda provider, metrics: servers[provider.name])
    watcher = Watcher(source, [request(n, "well") for n in range(5)] + [request(n, "ill") for n in range(5)])
    await watcher.watch(62)
    for n in range(5):
        evidence = watcher.seen[request(n, "well")]
        assert watcher.now() - evidence.until <= LAG + INTERVAL + SECOND
        assert evidence.error == ""
    await source.close()


def test_patience_with_a_harmless_query_is_less_than_with_others() -> None:
    assert timedelta(seconds=PATIENCE) < Provider("p", "u").timeout
