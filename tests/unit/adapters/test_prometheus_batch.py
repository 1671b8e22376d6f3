"""Many rollouts on one provider: how few queries they cost, and who suffers when one of them cannot be counted."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_batch import MOST_MEMBERS, MOST_POINTS, REMEMBERED
from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.adapters.prometheus_entry import MAX_BLOCKS
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import Evidence, EvidenceRequest
from tests.meshstory import Mesh, Server, hosts_of, is_counting, is_harmless, times
from tests.prometheusstub import Asked, Reply, Stub, prometheus_stub, result

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INTERVAL = 10 * SECOND
LAG = 2 * SECOND
ROLLOUTS = 200
PROVIDER = Provider("default", "http://prometheus.example", lag=LAG, scrape_interval=SECOND)


def host(n: int) -> str:
    return f"service-{n:03}.shop.svc.cluster.local"


def request(n: int, **fields: object) -> EvidenceRequest:
    """A rollout's question; every one began at another moment."""
    start = T0 - timedelta(milliseconds=37 * (n + 1))
    slow = timedelta(milliseconds=(500, 250)[n % 2])
    asked = EvidenceRequest(
        "default", "shop", host(n), "v1", "v2", "version", start, INTERVAL, slow_above=slow, server_faults=(14,)
    )
    return replace(asked, **fields)  # type: ignore[arg-type]


@dataclass
class Crowd:
    """Many rollouts that are looked at one after the other, as workers do, and again whenever they are woken."""

    source: PrometheusSource
    requests: list[EvidenceRequest]
    evidence: dict[str, Evidence] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    now: datetime = T0

    async def look(self, seconds: float, until: Callable[[Evidence], bool]) -> None:
        """Look at all, and wait until something holds for every one."""
        self.waiting = {asked.host for asked in self.requests}
        self.done.clear()
        self.now = T0 + seconds * SECOND
        for n, asked in enumerate(self.requests):
            self._look(asked, until)
            if n % 20 == 0:
                await asyncio.sleep(0.002)
        async with asyncio.timeout(20):
            await self.done.wait()

    def _look(self, asked: EvidenceRequest, until: Callable[[Evidence], bool]) -> None:
        evidence = self.source.latest(asked, self.now, lambda: self._look(asked, until))
        if evidence is not None:
            self.evidence[asked.host] = evidence
            if until(evidence):
                self.waiting.discard(asked.host)
        if not self.waiting:
            self.done.set()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        yield server


@dataclass
class World:
    """A scripted Prometheus and the source that asks it."""

    server: Server
    source: PrometheusSource

    def counting(self, since: int = 0) -> list[str]:
        return [query for query in self.server.queries()[since:] if is_counting(query)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    server = Server(PROVIDER)
    source = PrometheusSource({"default": PROVIDER}, CollectorRegistry(), lambda provider, metrics: server)
    yield World(server, source)
    await source.close()


def blocks(number: int) -> Callable[[Evidence], bool]:
    return lambda evidence: len(evidence.blocks) >= number


async def test_two_hundred_rollouts_cost_ten_queries_at_most(stub: Stub) -> None:
    """Two gates, two thresholds, one interval; each has counts of its own."""
    stub.reply = Mesh(lambda name, end: float(name.split(".")[0].split("-")[1]))
    provider = replace(PROVIDER, url=stub.url)
    source = PrometheusSource({"default": provider}, CollectorRegistry())
    crowd = Crowd(source, [request(n) for n in range(ROLLOUTS)])
    await crowd.look(12, blocks(2))
    for k in (3, 4, 5):
        before = len(stub.asked)
        await crowd.look(k * 10 - 8, blocks(k))
        assert len(stub.asked) - before <= 10
    for n in range(ROLLOUTS):
        evidence = crowd.evidence[host(n)]
        assert evidence.error == ""
        assert evidence.blocks[-1].end == T0 + 4 * INTERVAL
        assert evidence.blocks[-1].canary == Counts(requests=n, timed=8, slow=2)
        assert evidence.blocks[-1].stable == Counts(requests=90)
    await source.close()


@pytest.mark.looptime
async def test_looks_that_are_spread_out_are_answered_together(world: World) -> None:
    """Two hundred passes take seconds; the first that finds a block due has it counted for all."""
    requests = [request(n) for n in range(ROLLOUTS)]
    crowd = Crowd(world.source, requests)
    await crowd.look(12, blocks(2))
    before = len(world.server.asked)
    for n, asked in enumerate(requests):
        crowd.now = T0 + (22 + n * 0.01) * SECOND
        world.source.latest(asked, crowd.now, lambda: None)
        await asyncio.sleep(0.01)
    assert len(world.server.asked) - before <= 10
    found = [world.source.latest(asked, T0 + 24 * SECOND, lambda: None) for asked in requests]
    assert all(evidence is not None and len(evidence.blocks) == 3 for evidence in found)


@pytest.mark.looptime
async def test_rollouts_that_go_on_to_their_next_step_cost_no_more(world: World) -> None:
    """What the step before asked is of no use any more, but for some time it is still there."""
    crowd = Crowd(world.source, [request(n) for n in range(ROLLOUTS)])
    await crowd.look(12, blocks(2))
    crowd.requests = [request(n, weight=30, start=T0 + 15 * SECOND) for n in range(ROLLOUTS)]
    await crowd.look(22, blocks(1))
    before = len(world.server.asked)
    await crowd.look(32, blocks(2))
    assert len(world.server.asked) - before <= 10


@pytest.mark.looptime
async def test_news_come_within_a_second_of_the_first_look(world: World) -> None:
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    await Crowd(world.source, [request(n) for n in range(ROLLOUTS)]).look(12, blocks(2))
    assert loop.time() - asked_at < 1


@pytest.mark.looptime
async def test_queries_are_bounded_in_hosts_and_in_text(world: World) -> None:
    names = [f"{'a' * 60}-{n:03}.{'b' * 60}.svc.cluster.local" for n in range(ROLLOUTS)]
    requests = [
        request(n, host=name, slow_above=None, stable=f"{'c' * 55}-{n}", canary=f"{'d' * 55}-{n}")
        for n, name in enumerate(names)
    ]
    await Crowd(world.source, requests).look(12, blocks(2))
    queries = world.counting()
    assert {name for query in queries for name in hosts_of(query)} == set(names)
    assert max(len(hosts_of(query)) for query in queries) <= MOST_MEMBERS
    assert max(len(query) for query in queries) < 150_000


@pytest.mark.looptime
async def test_rollouts_of_other_intervals_are_counted_by_queries_of_their_own(world: World) -> None:
    slower = [request(n, interval=30 * SECOND) for n in range(3)]
    faster = [request(n) for n in range(3, 6)]
    await Crowd(world.source, slower + faster).look(62, blocks(2))
    for query in world.counting():
        numbers = {int(name[8:11]) // 3 for name in hosts_of(query)}
        assert len(numbers) == 1, "windows are not mixed"


@pytest.mark.looptime
async def test_after_a_restart_many_rollouts_catch_up_by_few_range_queries(world: World) -> None:
    """Each began at another time; their ranges end together and are asked for at once, in bounded answers."""
    requests = [request(n, start=T0 + n * INTERVAL + 3 * SECOND) for n in range(60)]
    crowd = Crowd(world.source, requests)
    await crowd.look((MAX_BLOCKS - 1) * 10 + 2, lambda e: e.until == T0 + (MAX_BLOCKS - 1) * INTERVAL)
    ranges = [asked for _, asked in world.server.asked if asked.path.endswith("range")]
    assert 0 < len(ranges) <= 2 * 60 // (MOST_POINTS // MAX_BLOCKS)
    assert all(len(times(asked)) * len(hosts_of(asked.form["query"])) <= MOST_POINTS for asked in ranges)
    for asked in requests:
        found = crowd.evidence[asked.host].blocks
        assert found[0].start == asked.start
        assert [block.start for block in found[1:]] == [block.end for block in found[:-1]]


@pytest.mark.looptime
async def test_openings_that_coincide_are_one_query(world: World) -> None:
    """Single blocks on no grid, of equal windows and ends."""
    start = T0 - 3.7 * SECOND
    requests = [request(n, start=start, interval=2 * SECOND, until=start + 2 * SECOND) for n in range(20)]
    await Crowd(world.source, requests).look(12, blocks(1))
    assert len(world.counting()) == 2


# --- one that cannot be counted -----------------------------------------------------------------------------------


def names(query: str, *numbers: int) -> bool:
    return any(host(n) in hosts_of(query) for n in numbers)


def refusing(*numbers: int, outcome: str = "BadQuery") -> Callable[[str], QueryFailed | None]:
    def trouble(query: str) -> QueryFailed | None:
        return QueryFailed(outcome, f"no: {outcome}") if is_counting(query) and names(query, *numbers) else None

    return trouble


def failing(evidence: Evidence) -> bool:
    return bool(evidence.error)


@pytest.mark.looptime
@pytest.mark.parametrize("outcome", ["BadQuery", "Timeout", "ServerError", "BadAnswer"])
async def test_one_bad_member_blinds_nobody(world: World, outcome: str) -> None:
    requests = [request(n, start=T0) for n in range(50)]
    world.server.trouble = refusing(17, outcome=outcome)
    crowd = Crowd(world.source, requests)
    await crowd.look(12, lambda e: bool(e.blocks) or failing(e))
    bad = crowd.evidence.pop(host(17))
    assert (bad.blocks, bad.error) == ((), f"no: {outcome}")
    assert all(len(e.blocks) == 1 and not e.error for e in crowd.evidence.values())
    found_by = len(world.counting())
    assert found_by <= 2 * (1 + 2 + 2 * 6), "two samples, and halving fifty takes six steps"

    before = len(world.server.asked)
    await crowd.look(23, lambda e: len(e.blocks) == 2 or failing(e))
    again = world.counting(before)
    assert len(again) <= 4, "the bad one alone, and the others together"
    assert [len(hosts_of(query)) for query in again if names(query, 17)] == [1, 1]


@pytest.mark.looptime
async def test_a_bad_member_is_tried_with_the_others_again_later(world: World) -> None:
    requests = [request(n, start=T0) for n in range(50)]
    world.server.trouble = refusing(17)
    crowd = Crowd(world.source, requests)
    await crowd.look(12, lambda e: bool(e.blocks) or failing(e))
    world.server.trouble = lambda query: None
    for k in range(2, REMEMBERED + 1):
        await crowd.look(k * 10 + 2, blocks(k))
        assert all(len(hosts_of(query)) in {1, 49} for query in world.counting()[-4:])
    before = len(world.server.asked)
    await crowd.look((REMEMBERED + 1) * 10 + 2, blocks(REMEMBERED + 1))
    assert [len(hosts_of(query)) for query in world.counting(before)] == [50, 50]
    assert len({e.until for e in crowd.evidence.values()}) == 1


@pytest.mark.looptime
async def test_who_stays_bad_is_never_tried_with_the_others_again(world: World) -> None:
    requests = [request(n, start=T0) for n in range(50)]
    world.server.trouble = refusing(17)
    crowd = Crowd(world.source, requests)
    await crowd.look(12, lambda e: bool(e.blocks) or failing(e))
    before = len(world.server.asked)
    for k in range(2, 3 * REMEMBERED):
        await crowd.look(k * 10 + 2, lambda e: bool(e.blocks) or failing(e))
        await asyncio.sleep(0.5)
    assert {len(hosts_of(query)) for query in world.counting(before) if names(query, 17)} == {1}
    assert {len(hosts_of(query)) for query in world.counting(before) if not names(query, 17)} == {49}


@pytest.mark.looptime
@pytest.mark.parametrize(("every", "looks"), [(10, 3), (5, 6), (2, 40)])
async def test_several_bad_members_are_found_with_a_bounded_number_of_queries(
    world: World, every: int, looks: int
) -> None:
    bad = tuple(range(0, 60, every))
    requests = [request(n, start=T0) for n in range(60)]
    world.server.trouble = refusing(*bad)
    crowd = Crowd(world.source, requests)
    await crowd.look(12, lambda e: bool(e.blocks) or failing(e))
    assert len(world.counting()) <= 60
    for k in range(2, looks + 2):
        before = len(world.server.asked)
        await crowd.look(k * 10 + 2, lambda e: bool(e.blocks) or failing(e))
        await asyncio.sleep(5)
        assert len(world.counting(before)) <= 5 * len(requests)
    seeing = {name for name, e in crowd.evidence.items() if len(e.blocks) >= looks}
    assert seeing >= {host(n) for n in range(60) if n not in bad}
    assert all(not crowd.evidence[host(n)].blocks for n in bad)


@pytest.mark.looptime
async def test_what_fails_for_everybody_is_not_taken_apart(world: World) -> None:
    """As with a store that is away, where the server must not answer in part."""
    away = QueryFailed("BadQuery", "expanding series: rpc error: code = Unavailable")
    world.server.trouble = lambda query: away if is_counting(query) else None
    crowd = Crowd(world.source, [request(n, start=T0) for n in range(50)])
    await crowd.look(12, failing)
    assert len(world.counting()) == 2 * (1 + 2)
    assert {e.error for e in crowd.evidence.values()} == {str(away)}
    world.server.trouble = lambda query: None
    before = len(world.server.asked)
    await crowd.look(22, blocks(2))
    assert [len(hosts_of(query)) for query in world.counting(before)] == [50, 50], "nobody is asked about alone"


@pytest.mark.looptime
async def test_queries_that_are_too_large_become_smaller_and_later_larger_again(world: World) -> None:
    def too_large(query: str) -> QueryFailed | None:
        large = is_counting(query) and len(hosts_of(query)) > 20
        return QueryFailed("BadQuery", "query processing would load too many samples into memory") if large else None

    world.server.trouble = too_large
    crowd = Crowd(world.source, [request(n, start=T0) for n in range(60)])
    await crowd.look(12, blocks(1))
    before = len(world.server.asked)
    await crowd.look(22, blocks(2))
    sizes = [len(hosts_of(query)) for query in world.counting(before)]
    assert max(sizes) <= 20
    assert len(sizes) <= 2 * 4
    world.server.trouble = lambda query: None
    for k in range(3, REMEMBERED + 3):
        before = len(world.server.asked)
        await crowd.look(k * 10 + 2, blocks(k))
    assert max(len(hosts_of(query)) for query in world.counting(before)) == 60


@pytest.mark.looptime
async def test_a_host_whose_series_cannot_be_read_spoils_its_own_evidence_alone(world: World) -> None:
    def reply(asked: Asked) -> Reply:
        answer = Mesh()(asked)
        for series in answer.body["data"]["result"]:
            if series["metric"].get("destination_service") == host(7):
                series["value"] = ["soon", "many"]
        return answer

    world.server.reply = reply
    crowd = Crowd(world.source, [request(n, start=T0) for n in range(20)])
    await crowd.look(12, lambda e: bool(e.blocks) or failing(e))
    bad = crowd.evidence.pop(host(7))
    assert bad.error.startswith("cannot read the series of the answer")
    assert all(len(e.blocks) == 1 and not e.error for e in crowd.evidence.values())
    assert len(world.counting()) == 2


@pytest.mark.looptime
async def test_a_host_without_series_is_no_data_and_no_error(world: World) -> None:
    world.server.reply = Mesh(unknown=frozenset({host(7)}))
    crowd = Crowd(world.source, [request(n, start=T0) for n in range(20)])
    await crowd.look(12, blocks(1))
    block = crowd.evidence[host(7)].blocks[0]
    assert (block.canary_seen, block.stable_seen, block.canary) == (False, False, Counts())
    assert crowd.evidence[host(7)].error == ""


@pytest.mark.looptime
async def test_a_warning_concerns_all_whom_the_query_counted(world: World) -> None:
    world.server.reply = Mesh(envelope={"warnings": ["store b is away"]})
    crowd = Crowd(world.source, [request(n, start=T0) for n in range(20)])
    await crowd.look(12, blocks(1))
    assert {e.warnings for e in crowd.evidence.values()} == {("store b is away",)}
    world.server.reply = Mesh()
    await crowd.look(23, lambda e: not e.warnings)
    assert {len(e.blocks) for e in crowd.evidence.values()} == {2}


@pytest.mark.looptime
async def test_versions_of_others_do_not_count(world: World) -> None:
    """One query asks for the versions of all its hosts; each host's are its own."""

    def reply(asked: Asked) -> Reply:
        rows = [
            {"destination_service": name, "destination_version": version, "kind": "known", "response_code": "200"}
            for name in hosts_of(asked.form["query"])
            for version in ("v1", "v2", "v3")
        ]
        value = [times(asked)[0], "5"]
        return result("vector", [{"metric": row, "value": value} for row in rows]) if not is_harmless("") else Reply()

    world.server.reply = reply
    first = request(0, start=T0, slow_above=None)
    second = request(1, start=T0, slow_above=None, stable="v2", canary="v3")
    crowd = Crowd(world.source, [first, second])
    await crowd.look(12, blocks(1))
    assert [crowd.evidence[host(n)].blocks[0].canary.requests for n in (0, 1)] == [5, 5]
    assert [crowd.evidence[host(n)].blocks[0].stable.requests for n in (0, 1)] == [5, 5]
