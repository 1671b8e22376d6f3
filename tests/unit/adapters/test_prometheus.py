"""The source as the engine sees it, on a real HTTP server that answers like Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.adapters.prometheus_entry import MAX_BLOCKS, MAX_PROVISIONAL, Entry
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import Evidence, EvidenceRequest
from canaryrollout.engine.ports import MetricsSource
from tests.meshstory import Mesh, is_harmless, is_range, is_timing, times
from tests.prometheusstub import Asked, Reply, Stub, failure, prometheus_stub, result

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INTERVAL = 10 * SECOND
LAG = 2 * SECOND
REQUEST = EvidenceRequest("default", "shop", "reviews.shop.svc.cluster.local", "v1", "v2", "version", T0, INTERVAL)


def at_second(counts: dict[int, float]) -> Callable[[str, float], float]:
    """Requests of the canary by the second at which a block ends, ten where nothing is said."""
    return lambda host, end: counts.get(round(end - T0.timestamp()), 10.0)


class Asker:
    """Asks the source as the engine does, and waits to be woken."""

    def __init__(self, source: PrometheusSource) -> None:
        self.source = source
        self.woken = asyncio.Event()
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1
        self.woken.set()

    def latest(self, seconds: float, request: EvidenceRequest = REQUEST) -> Evidence | None:
        return self.source.latest(request, T0 + seconds * SECOND, self.wake)

    async def after(self, seconds: float, request: EvidenceRequest = REQUEST) -> Evidence:
        """Ask, wait for the news, and return it."""
        self.woken.clear()
        self.latest(seconds, request)
        await asyncio.wait_for(self.woken.wait(), 5)
        evidence = self.entry(request).evidence()
        assert evidence is not None
        return evidence

    def entry(self, request: EvidenceRequest = REQUEST) -> Entry:
        """Return what the source keeps, without asking it."""
        return self.source._entries[request.provider][request]

    def idle(self, request: EvidenceRequest = REQUEST) -> bool:
        """Return whether nothing is under way or planned."""
        backend = self.source._backends.get(request.provider)
        return backend is None or (backend._gathering is None and not backend._tasks)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        server.reply = Mesh()
        yield server


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def asker(stub: Stub, registry: CollectorRegistry) -> AsyncIterator[Asker]:
    provider = Provider("default", stub.url, lag=LAG, scrape_interval=SECOND)
    source = PrometheusSource({"default": provider}, registry)
    yield Asker(source)
    await source.close()


def counting(stub: Stub) -> list[Asked]:
    return [asked for asked in stub.asked if not is_harmless(asked.form["query"])]


def test_it_is_a_metrics_source() -> None:
    source: MetricsSource = PrometheusSource({}, CollectorRegistry())  # mypy compares the signatures
    assert source.latest(REQUEST, T0, lambda: None) is not None


async def test_nothing_is_asked_before_a_block_is_due(asker: Asker, stub: Stub) -> None:
    assert asker.latest(11.999) is None
    assert asker.idle()
    assert stub.asked == []


async def test_a_block_is_fetched_once_the_lag_has_passed(asker: Asker, stub: Stub) -> None:
    evidence = await asker.after(12)
    assert [(block.start, block.end) for block in evidence.blocks] == [(T0, T0 + INTERVAL)]
    assert evidence.blocks[0].canary == Counts(requests=10)
    assert evidence.blocks[0].stable == Counts(requests=90)
    assert evidence.error == ""
    assert asker.latest(13) == evidence
    assert asker.idle()
    assert len(stub.asked) == 1


async def test_each_block_costs_one_query_and_is_never_asked_for_again(asker: Asker, stub: Stub) -> None:
    for k in range(1, 6):
        evidence = await asker.after(k * 10 + 2)
        assert len(evidence.blocks) == k
        assert len(stub.asked) == k
    ends = [asked.form["time"] for asked in stub.asked]
    assert ends == [f"{T0.timestamp() + k * 10:.3f}" for k in range(1, 6)]


async def test_first_block_ends_on_the_grid_and_is_counted_by_its_own_window(asker: Asker, stub: Stub) -> None:
    request = replace(REQUEST, start=T0 + 3.25 * SECOND)
    evidence = await asker.after(12, request)
    assert [(block.start, block.end) for block in evidence.blocks] == [(request.start, T0 + INTERVAL)]
    assert "offset 6750ms" in stub.asked[0].form["query"]
    evidence = await asker.after(22, request)
    assert evidence.blocks[1].start == evidence.blocks[0].end
    assert "offset 10000ms" in stub.asked[1].form["query"]


async def test_after_a_restart_the_first_block_and_the_others_are_fetched_together(asker: Asker, stub: Stub) -> None:
    request = replace(REQUEST, start=T0 + 3 * SECOND)
    evidence = await asker.after(52, request)
    assert [block.end for block in evidence.blocks] == [T0 + k * INTERVAL for k in range(1, 6)]
    assert [block.start for block in evidence.blocks] == [request.start, *(b.end for b in evidence.blocks[:-1])]
    assert sorted(asked.path for asked in stub.asked) == ["/api/v1/query", "/api/v1/query_range"]


async def test_latency_costs_one_more_query_at_the_same_time(asker: Asker, stub: Stub) -> None:
    request = replace(REQUEST, slow_above=timedelta(milliseconds=500))
    evidence = await asker.after(12, request)
    assert evidence.blocks[0].canary == Counts(requests=10, timed=8, slow=2)
    assert len(stub.asked) == 2
    assert len({asked.form["time"] for asked in stub.asked}) == 1


async def test_asking_while_a_fetch_is_under_way_starts_no_other(asker: Asker, stub: Stub) -> None:
    stub.hold.clear()
    asker.latest(12)
    assert await asyncio.to_thread(stub.taken.acquire, timeout=5)
    for second in (13, 14, 23):
        asker.latest(second)
    stub.hold.set()
    await asyncio.wait_for(asker.woken.wait(), 5)
    assert len(stub.asked) == 1


async def test_many_blocks_are_one_range_query(asker: Asker, stub: Stub) -> None:
    stub.reply = Mesh(at_second({k * 10: float(k) for k in range(1, 51)}))
    evidence = await asker.after(502)
    assert [block.canary.requests for block in evidence.blocks] == list(range(1, 51))
    assert evidence.blocks[-1].end == T0 + 500 * SECOND
    assert [asked.path for asked in stub.asked] == ["/api/v1/query_range"]


async def test_a_long_absence_is_caught_up_with_in_bounded_answers(asker: Asker, stub: Stub) -> None:
    now = (2 * MAX_BLOCKS + 5) * 10 + 2
    assert [len((await asker.after(now)).blocks) for _ in range(3)] == [MAX_BLOCKS, 2 * MAX_BLOCKS, 2 * MAX_BLOCKS + 5]
    assert len(stub.asked) == 3
    asker.latest(now)
    assert asker.idle()


async def test_a_range_that_is_too_much_for_a_server_becomes_shorter(asker: Asker, stub: Stub) -> None:
    def limited(asked: Asked) -> Reply:
        too_much = f"too many samples, try {len(stub.asked)}"  # other words each time, so that each is news
        return failure(422, "execution", too_much) if len(times(asked)) > 30 else Mesh()(asked)

    stub.reply = limited
    now = MAX_BLOCKS * 10 + 2
    evidence = await asker.after(now)
    assert evidence.error.startswith("Prometheus cannot run the query: too many samples")
    while evidence.until < T0 + MAX_BLOCKS * INTERVAL:
        assert len(stub.asked) < 20
        now += 10
        evidence = await asker.after(now)
    assert [block.start for block in evidence.blocks[1:]] == [block.end for block in evidence.blocks[:-1]]


async def test_range_answers_at_other_times_are_not_used(asker: Asker, stub: Stub) -> None:
    """Query frontends may round the times of a range to multiples of its step."""

    def rounding(asked: Asked) -> Reply:
        if not is_range(asked):
            return Mesh()(asked)
        shifted = {name: str(float(asked.form[name]) - 3) for name in ("start", "end")}
        return Mesh()(replace(asked, form={**asked.form, **shifted}))

    stub.reply = rounding
    evidence = await asker.after(32)
    assert [block.canary.requests for block in evidence.blocks] == [10, 10, 10]
    assert [asked.path for asked in stub.asked] == ["/api/v1/query_range"] + ["/api/v1/query"] * 3


async def test_request_with_an_end_is_one_block(asker: Asker, stub: Stub) -> None:
    """What is asked of the time before a step: its own window, on no grid."""
    start = T0 + 3.5 * SECOND
    request = replace(REQUEST, start=start, interval=15 * SECOND, until=start + 15 * SECOND)
    asker.latest(20.4, request)
    assert asker.idle()
    evidence = await asker.after(100, request)
    assert [(block.start, block.end) for block in evidence.blocks] == [(start, start + 15 * SECOND)]
    assert "offset 15000ms" in stub.asked[0].form["query"]
    asker.latest(200, request)
    assert asker.idle()
    assert len(stub.asked) == 1


async def test_failure_keeps_what_was_fetched_and_says_since_when(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    stub.reply = lambda asked: Mesh()(asked) if is_harmless(asked.form["query"]) else failure(500, "x", "disk full")
    evidence = await asker.after(22)
    assert len(evidence.blocks) == 1
    assert evidence.error == f"{stub.url} answers 500: disk full"
    assert evidence.error_since is not None
    assert T0 + 22 * SECOND <= evidence.error_since < T0 + 24 * SECOND
    since = evidence.error_since
    stub.reply = lambda _: failure(422, "execution", "too many samples")
    evidence = await asker.after(32)
    assert evidence.error == "Prometheus cannot run the query: too many samples"
    assert evidence.error_since == since
    stub.reply = Mesh()
    evidence = await asker.after(52)
    assert (evidence.error, evidence.error_since) == ("", None)
    assert len(evidence.blocks) == 5


async def test_partial_answers_are_shown_and_replaced(asker: Asker, stub: Stub) -> None:
    stub.reply = Mesh(at_second({10: 4.0}), envelope={"warnings": ["store b is away"]})
    evidence = await asker.after(12)
    assert evidence.blocks[0].canary.requests == 4
    assert evidence.warnings == ("store b is away",)
    stub.reply = Mesh(at_second({10: 10.0, 20: 11.0}))
    evidence = await asker.after(23)
    assert [block.canary.requests for block in evidence.blocks] == [10, 11]
    assert evidence.warnings == ()


async def test_partial_answers_for_long_stay_bounded_and_heal_completely(asker: Asker, stub: Stub) -> None:
    await asker.after(202)
    stub.reply = Mesh(envelope={"warnings": ["store b is away"]})
    await asker.after(482)
    evidence = await asker.after((MAX_PROVISIONAL + 20) * 10 + 2)
    assert len(evidence.blocks) == MAX_PROVISIONAL + 20
    evidence = await asker.after((MAX_PROVISIONAL + 30) * 10 + 2)
    assert len(times(stub.asked[-1])) == MAX_PROVISIONAL + 10
    assert len(evidence.blocks) == MAX_PROVISIONAL + 30
    assert evidence.warnings == ("store b is away",)
    stub.reply = Mesh()
    evidence = await asker.after((MAX_PROVISIONAL + 40) * 10 + 2)
    assert (len(evidence.blocks), evidence.warnings) == (20, ()), "what may have been partial is asked for anew"
    evidence = await asker.after((MAX_PROVISIONAL + 40) * 10 + 2)
    assert len(evidence.blocks) == MAX_PROVISIONAL + 40
    assert evidence.warnings == ()


async def test_warning_about_the_first_of_two_stretches_keeps_all_blocks_in_order(asker: Asker, stub: Stub) -> None:
    def partly(asked: Asked) -> Reply:
        return Mesh(envelope={} if is_range(asked) else {"warnings": ["store b is away"]})(asked)

    stub.reply = partly
    request = replace(REQUEST, start=T0 + 3 * SECOND)
    evidence = await asker.after(52, request)
    assert len(evidence.blocks) == 5
    assert evidence.warnings == ("store b is away",)
    stub.reply = Mesh()
    evidence = await asker.after(63, request)
    assert [block.end for block in evidence.blocks] == [T0 + k * INTERVAL for k in range(1, 7)]
    assert evidence.blocks[0].start == request.start
    assert evidence.warnings == ()


async def test_threshold_that_is_no_edge_leaves_the_counts_of_errors(asker: Asker, stub: Stub) -> None:
    request = replace(REQUEST, slow_above=timedelta(milliseconds=300))
    evidence = await asker.after(12, request)
    assert evidence.error.endswith("300ms is no bucket edge; the nearest: 250ms or 500ms")
    assert evidence.error_since is not None
    since = evidence.error_since
    assert evidence.blocks[0].canary == Counts(requests=10)
    evidence = await asker.after(22, request)
    assert len(evidence.blocks) == 2
    assert evidence.error_since == since
    assert len(stub.asked) == 5, "the edges are asked for once"


async def test_answer_that_cannot_be_read_is_an_error(asker: Asker, stub: Stub) -> None:
    stub.reply = lambda _: result("vector", [{"metric": {"destination_service": REQUEST.host}}])
    assert (await asker.after(12)).error.startswith("cannot read the series of the answer")


async def test_unknown_provider_is_named(asker: Asker, stub: Stub) -> None:
    evidence = asker.latest(50, replace(REQUEST, provider="nowhere"))
    assert evidence is not None
    assert evidence.error == "analysis.provider nowhere is not defined here; defined are: default"
    assert evidence.error_since == T0 + 50 * SECOND
    assert stub.asked == []


async def test_namespaces_that_may_not_use_a_provider_are_told(stub: Stub, registry: CollectorRegistry) -> None:
    provider = Provider("team", stub.url, lag=LAG, namespaces=("shop-*", "pay"))
    source = PrometheusSource({"team": provider}, registry)
    asker = Asker(source)
    evidence = asker.latest(50, replace(REQUEST, provider="team"))
    assert evidence is not None
    assert evidence.error == "analysis.provider team may not be used in namespace shop; allowed are: shop-*, pay"
    assert stub.asked == []
    assert len((await asker.after(12, replace(REQUEST, provider="team", namespace="shop-eu"))).blocks) == 1
    await source.close()


async def test_requests_nobody_asks_about_are_forgotten(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    assert len(stub.asked) == 1
    other = replace(REQUEST, host="ratings.shop.svc.cluster.local", start=T0 + 10_000 * SECOND)
    asker.latest(600, other)
    with pytest.raises(KeyError):
        asker.entry()
    assert len((await asker.after(12)).blocks) == 1  # asked for anew
    assert len(stub.asked) == 2


async def test_what_nobody_asked_about_of_late_is_not_fetched_with_the_others(asker: Asker, stub: Stub) -> None:
    other = replace(REQUEST, host="ratings.shop.svc.cluster.local")
    await asker.after(12, other)
    await asker.after(72)
    assert "ratings" not in stub.asked[-1].form["query"]
    assert len(asker.entry(other).blocks) == 1


async def test_closing_ends_what_is_under_way(stub: Stub, registry: CollectorRegistry) -> None:
    source = PrometheusSource({"default": Provider("default", stub.url, lag=LAG)}, registry)
    asker = Asker(source)
    stub.hold.clear()
    assert asker.latest(12) is None
    assert await asyncio.to_thread(stub.taken.acquire, timeout=5)
    await source.close()
    assert not source._backends
    assert asker.entry().jobs == ()


async def test_a_provider_that_hangs_delays_nobody_elses_rollouts(stub: Stub, registry: CollectorRegistry) -> None:
    """Each has threads of its own: all of one's are stuck, and the other's blocks come in as ever."""
    with prometheus_stub() as hanging:
        hanging.hold.clear()
        providers = {
            "well": Provider("well", stub.url, lag=LAG, scrape_interval=SECOND, concurrency=1),
            "ill": Provider("ill", hanging.url, lag=LAG, scrape_interval=SECOND, concurrency=1),
        }
        source = PrometheusSource(providers, registry)
        asker = Asker(source)
        for n in range(5):
            ill = replace(REQUEST, provider="ill", interval=(5 + n) * SECOND, slow_above=timedelta(milliseconds=500))
            source.latest(ill, T0 + 50 * SECOND, lambda: None)
        assert await asyncio.to_thread(hanging.taken.acquire, timeout=5)
        for k in (1, 2, 3):
            assert len((await asker.after(k * 10 + 2, replace(REQUEST, provider="well"))).blocks) == k
        assert hanging.busy == 1
        hanging.hold.set()
        await source.close()


# --- other providers while running --------------------------------------------------------------------------------


async def test_evidence_outlives_a_change_of_its_provider(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    before = asker.source._backends["default"]
    with prometheus_stub() as other:
        other.reply = Mesh()
        asker.woken.clear()
        asker.source.reconfigure({"default": Provider("default", other.url, lag=LAG)})
        assert asker.woken.is_set()
        evidence = await asker.after(22)
        assert len(evidence.blocks) == 2
        assert (len(stub.asked), len(other.asked)) == (1, 1)
        assert asker.source._backends["default"] is not before


async def test_unchanged_providers_keep_their_clients(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    before = asker.source._backends["default"]
    provider = Provider("default", stub.url, lag=LAG, scrape_interval=SECOND)
    asker.woken.clear()
    asker.source.reconfigure({"default": provider, "new": Provider("new", stub.url, lag=LAG)})
    assert asker.source._backends["default"] is before
    assert not asker.woken.is_set()
    assert len((await asker.after(12, replace(REQUEST, provider="new"))).blocks) == 1


async def test_removed_provider_is_an_error_and_its_return_is_none(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    providers = dict(asker.source._providers)
    asker.source.reconfigure({})
    evidence = asker.latest(13)
    assert evidence is not None
    assert evidence.error == "analysis.provider default is not defined here; defined are: none"
    assert len(evidence.blocks) == 1
    asker.source.reconfigure(providers)
    evidence = await asker.after(22)
    assert (evidence.error, len(evidence.blocks)) == ("", 2)


async def test_change_while_an_answer_is_awaited_asks_the_new_one(asker: Asker, stub: Stub) -> None:
    stub.hold.clear()
    asker.latest(12)
    assert await asyncio.to_thread(stub.taken.acquire, timeout=5)
    with prometheus_stub() as other:
        other.reply = Mesh()
        asker.source.reconfigure({"default": Provider("default", other.url, lag=LAG)})
        evidence = await asker.after(12)
        assert len(evidence.blocks) == 1
        assert evidence.error == ""
        stub.hold.set()


async def test_timing_is_asked_for_only_where_it_is_judged(asker: Asker, stub: Stub) -> None:
    timed = replace(REQUEST, host="ratings.shop.svc.cluster.local", slow_above=timedelta(milliseconds=500))
    asker.latest(12)
    await asker.after(12, timed)
    timing = [asked.form["query"] for asked in stub.asked if is_timing(asked.form["query"])]
    assert len(timing) == 1
    assert "ratings" in timing[0]
    assert "reviews" not in timing[0]
