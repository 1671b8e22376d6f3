import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import MAX_BLOCKS, MAX_PROVISIONAL, PrometheusSource, Provider, _Entry
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import Evidence, EvidenceRequest
from canaryrollout.engine.ports import MetricsSource
from tests.prometheusstub import Asked, Reply, Stub, failure, prometheus_stub, result

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INTERVAL = 10 * SECOND
LAG = 2 * SECOND
REQUEST = EvidenceRequest("default", "shop", "reviews.shop.svc.cluster.local", "v1", "v2", "version", T0, INTERVAL)


class Prometheus:
    """Answers with the counts of scripted blocks, whichever way they are asked for."""

    def __init__(self, requests: dict[int, float] | None = None, **envelope: Any) -> None:
        self.requests = requests or {}
        self.envelope = envelope

    def __call__(self, asked: Asked) -> Reply:
        ends = times(asked)
        if "duration" in asked.form["query"] and "kind" not in asked.form["query"]:
            edges = [{"metric": {"le": le}, "value": [ends[0], "1"]} for le in ("250.0", "500.0", "+Inf")]
            return result("vector", edges)
        if "duration" in asked.form["query"]:
            return self.answer(asked, [("known", "v2", 5.0, {"le": "500.0"}), ("known", "v2", 8.0, {})])
        return self.answer(asked, [("known", "v1", 90.0, {}), ("known", "v2", None, {}), ("start", "", 1.0, {})])

    def answer(self, asked: Asked, rows: list[tuple[str, str, float | None, dict[str, str]]]) -> Reply:
        ends = times(asked)
        series = []
        for kind, version, value, labels in rows:
            points = [
                [end, str(self.requests.get(round(end - T0.timestamp()), 10) if value is None else value)]
                for end in ends
            ]
            metric = {"kind": kind, "destination_version": version, **labels}
            series.append(
                {"metric": metric, "values": points} if is_range(asked) else {"metric": metric, "value": points[0]}
            )
        return result("matrix" if is_range(asked) else "vector", series, **self.envelope)


def is_range(asked: Asked) -> bool:
    return asked.path.endswith("query_range")


def times(asked: Asked) -> list[float]:
    if not is_range(asked):
        return [float(asked.form["time"])]
    start, end, step = (float(asked.form[name]) for name in ("start", "end", "step"))
    return [start + k * step for k in range(round((end - start) / step) + 1)]


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

    def entry(self, request: EvidenceRequest = REQUEST) -> _Entry:
        """Return what the source keeps, without asking it."""
        return self.source._entries[replace(request, until=None)]

    async def quiet(self, seconds: float, request: EvidenceRequest = REQUEST) -> Evidence | None:
        """Ask, and let pass whatever that could have started."""
        evidence = self.latest(seconds, request)
        for _ in range(20):
            await asyncio.sleep(0)
        return evidence


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        server.reply = Prometheus()
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


def test_it_is_a_metrics_source() -> None:
    source: MetricsSource = PrometheusSource({}, CollectorRegistry())  # mypy compares the signatures
    assert source.latest(REQUEST, T0, lambda: None) is not None


async def test_nothing_is_asked_before_a_block_is_due(asker: Asker, stub: Stub) -> None:
    assert await asker.quiet(11.999) is None
    assert stub.asked == []


async def test_a_block_is_fetched_once_the_lag_has_passed(asker: Asker, stub: Stub) -> None:
    assert asker.latest(12) is None
    await asyncio.wait_for(asker.woken.wait(), 5)
    evidence = await asker.quiet(13)
    assert evidence is not None
    assert [(block.start, block.end) for block in evidence.blocks] == [(T0, T0 + INTERVAL)]
    assert evidence.blocks[0].canary == Counts(requests=10)
    assert evidence.blocks[0].stable == Counts(requests=90)
    assert evidence.error == ""
    assert len(stub.asked) == 1


async def test_each_block_costs_one_query_and_is_never_asked_for_again(asker: Asker, stub: Stub) -> None:
    for k in range(1, 6):
        evidence = await asker.after(k * 10 + 2)
        assert len(evidence.blocks) == k
        assert len(stub.asked) == k
    ends = [asked.form["time"] for asked in stub.asked]
    assert ends == [f"{T0.timestamp() + k * 10:.3f}" for k in range(1, 6)]


async def test_latency_costs_one_more_query_at_the_same_time(asker: Asker, stub: Stub) -> None:
    request = replace(REQUEST, slow_above=timedelta(milliseconds=500))
    evidence = await asker.after(12, request)
    assert evidence.blocks[0].canary == Counts(requests=10, timed=8, slow=3)
    assert len(stub.asked) == 2
    assert len({asked.form["time"] for asked in stub.asked}) == 1


async def test_asking_while_a_fetch_is_under_way_starts_no_other(asker: Asker, stub: Stub) -> None:
    stub.hold.clear()
    for second in (12, 13, 14, 23):
        await asker.quiet(second)
    stub.hold.set()
    await asyncio.wait_for(asker.woken.wait(), 5)
    assert len(stub.asked) == 1


async def test_many_blocks_are_one_range_query(asker: Asker, stub: Stub) -> None:
    stub.reply = Prometheus({k * 10: float(k) for k in range(1, 51)})
    evidence = await asker.after(502)
    assert [block.canary.requests for block in evidence.blocks] == list(range(1, 51))
    assert evidence.blocks[-1].end == T0 + 500 * SECOND
    assert [asked.path for asked in stub.asked] == ["/api/v1/query_range"]


async def test_a_long_absence_is_caught_up_with_in_bounded_answers(asker: Asker, stub: Stub) -> None:
    now = (2 * MAX_BLOCKS + 5) * 10 + 2
    assert [len((await asker.after(now)).blocks) for _ in range(3)] == [MAX_BLOCKS, 2 * MAX_BLOCKS, 2 * MAX_BLOCKS + 5]
    assert len(stub.asked) == 3
    assert await asker.quiet(now) is not None
    assert len(stub.asked) == 3


async def test_range_answers_at_other_times_are_not_used(asker: Asker, stub: Stub) -> None:
    """Query frontends may round the times of a range to multiples of its step."""

    def rounding(asked: Asked) -> Reply:
        if not is_range(asked):
            return Prometheus()(asked)
        shifted = {name: str(float(asked.form[name]) - 3) for name in ("start", "end")}
        return Prometheus()(replace(asked, form={**asked.form, **shifted}))

    stub.reply = rounding
    evidence = await asker.after(32)
    assert [block.canary.requests for block in evidence.blocks] == [10, 10, 10]
    assert [asked.path for asked in stub.asked] == ["/api/v1/query_range"] + ["/api/v1/query"] * 3


async def test_no_block_ends_after_until(asker: Asker, stub: Stub) -> None:
    request = replace(REQUEST, until=T0 + 25 * SECOND)
    evidence = await asker.after(100, request)
    assert len(evidence.blocks) == 2
    assert await asker.quiet(200, request) is not None
    assert len(stub.asked) == 1


async def test_failure_keeps_what_was_fetched_and_says_since_when(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    stub.reply = lambda _: failure(503, "timeout", "query timed out")
    evidence = await asker.after(22)
    assert len(evidence.blocks) == 1
    assert evidence.error == f"{stub.url} answers 503: query timed out"
    assert evidence.error_since == T0 + 22 * SECOND
    stub.reply = lambda _: failure(500, "internal", "disk full")
    evidence = await asker.after(32)
    assert evidence.error == f"{stub.url} answers 500: disk full"
    assert evidence.error_since == T0 + 22 * SECOND
    stub.reply = Prometheus()
    evidence = await asker.after(52)
    assert (evidence.error, evidence.error_since) == ("", None)
    assert len(evidence.blocks) == 5


async def test_failures_are_retried_later_and_later_up_to_the_interval(asker: Asker, stub: Stub) -> None:
    stub.reply = lambda _: failure(500, "internal", f"{len(stub.asked)} times")  # different each time, so that it wakes
    now = 12.0
    await asker.after(now)
    for pause in (1, 2, 4, 8, 10, 10):
        asked = len(stub.asked)
        await asker.quiet(now + pause - 0.001)
        assert asker.entry().fetching is None
        now += pause
        await asker.after(now)
        assert len(stub.asked) == asked + 1


async def test_the_same_error_again_wakes_nobody(asker: Asker, stub: Stub) -> None:
    stub.reply = lambda _: failure(500, "internal", "no")
    await asker.after(12)
    assert asker.wakes == 1
    asker.latest(40)
    fetching = asker.entry().fetching
    assert fetching is not None
    await fetching
    assert len(stub.asked) == 2
    assert asker.wakes == 1


async def test_partial_answers_are_shown_and_replaced(asker: Asker, stub: Stub) -> None:
    stub.reply = Prometheus({10: 4.0}, warnings=["store b is away"])
    evidence = await asker.after(12)
    assert evidence.blocks[0].canary.requests == 4
    assert evidence.warnings == ("store b is away",)
    stub.reply = Prometheus({10: 10.0, 20: 11.0})
    evidence = await asker.after(22)
    assert [block.canary.requests for block in evidence.blocks] == [10, 11]
    assert evidence.warnings == ()


async def test_partial_answers_for_ever_stay_bounded_and_warned_of(asker: Asker, stub: Stub) -> None:
    stub.reply = Prometheus(warnings=["store b is away"])
    evidence = await asker.after((MAX_PROVISIONAL + 20) * 10 + 2)
    assert len(evidence.blocks) == MAX_PROVISIONAL + 20
    stub.reply = Prometheus()
    evidence = await asker.after((MAX_PROVISIONAL + 30) * 10 + 2)
    assert len(times(stub.asked[-1])) == MAX_PROVISIONAL + 10
    assert len(evidence.blocks) == MAX_PROVISIONAL + 30
    assert evidence.warnings == ("store b is away",)


async def test_threshold_that_is_no_edge_leaves_the_counts_of_errors(asker: Asker, stub: Stub) -> None:
    def without_edge(asked: Asked) -> Reply:
        if "duration" in asked.form["query"] and "kind" in asked.form["query"]:
            return Prometheus().answer(asked, [("known", "v2", 8.0, {})])
        return Prometheus()(asked)

    stub.reply = without_edge
    request = replace(REQUEST, slow_above=timedelta(milliseconds=300))
    evidence = await asker.after(12, request)
    assert evidence.error.endswith("300ms is no bucket edge; the nearest: 250ms or 500ms")
    assert evidence.error_since == T0 + 12 * SECOND
    assert evidence.blocks[0].canary == Counts(requests=10)
    evidence = await asker.after(22, request)
    assert len(evidence.blocks) == 2
    assert evidence.error_since == T0 + 12 * SECOND


async def test_answer_that_cannot_be_read_is_an_error(asker: Asker, stub: Stub) -> None:
    stub.reply = lambda _: result("vector", [{"metric": {}}])
    assert (await asker.after(12)).error.startswith("cannot read the series of the answer")


async def test_own_queries_are_asked_at_the_newest_end(asker: Asker, stub: Stub) -> None:
    def reply(asked: Asked) -> Reply:
        own: dict[str, Callable[[], Reply]] = {
            "own 30": lambda: result("scalar", [1, "0.5"]),
            "nothing": lambda: result("vector", []),
            "broken": lambda: failure(400, "bad_data", "parse error"),
            "away": lambda: failure(503, "timeout", "too slow"),
            "partial": lambda: result("scalar", [1, "1"], warnings=["half"]),
        }
        return own.get(asked.form["query"], lambda: Prometheus()(asked))()

    stub.reply = reply
    names = {"own": "own $weight", "nothing": "nothing", "broken": "broken", "away": "away", "partial": "partial"}
    request = replace(REQUEST, queries=tuple(names.items()), weight=30)
    evidence = await asker.after(32, request)
    while not evidence.metrics or not evidence.blocks:
        asker.woken.clear()
        await asyncio.wait_for(asker.woken.wait(), 5)
        evidence = await asker.quiet(32, request) or evidence
    assert evidence.metrics["own"].value == Fraction(1, 2)
    assert {value.at for value in evidence.metrics.values()} == {T0 + 30 * SECOND}
    reasons = {name: value.reason for name, value in evidence.metrics.items()}
    assert reasons == {"own": "", "nothing": "NoData", "broken": "BadQuery", "away": "ProviderError", "partial": ""}
    assert evidence.warnings == ("partial: half",)
    assert evidence.error == ""


async def test_a_slow_own_query_delays_no_block(asker: Asker, stub: Stub) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def reply(asked: Asked) -> Reply:
        if asked.form["query"] == "slow":
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)
            return result("scalar", [1, "7"])
        return Prometheus()(asked)

    stub.reply = reply
    request = replace(REQUEST, queries=(("slow", "slow"),))
    for k in (1, 2):
        evidence = await asker.after(k * 10 + 2, request)
        assert len(evidence.blocks) == k
        assert evidence.metrics == {}
    asker.woken.clear()
    release.set()
    await asyncio.wait_for(asker.woken.wait(), 5)
    evidence = await asker.quiet(22, request) or evidence
    assert evidence.metrics["slow"].value == 7
    assert [asked.form["query"] for asked in stub.asked].count("slow") == 1


async def test_unknown_provider_is_named(asker: Asker, stub: Stub) -> None:
    evidence = await asker.quiet(50, replace(REQUEST, provider="nowhere"))
    assert evidence is not None
    assert evidence.error == "analysis.provider nowhere is not defined here; defined are: default"
    assert evidence.error_since == T0 + 50 * SECOND
    assert stub.asked == []


async def test_requests_nobody_asks_about_are_forgotten(asker: Asker, stub: Stub) -> None:
    await asker.after(12)
    assert len(stub.asked) == 1
    other = replace(REQUEST, host="ratings.shop.svc.cluster.local", start=T0 + 10_000 * SECOND)
    await asker.quiet(600, other)
    with pytest.raises(KeyError):
        asker.entry()
    assert len((await asker.after(12)).blocks) == 1  # asked for anew
    assert len(stub.asked) == 2


async def test_the_end_of_a_question_may_move_without_losing_blocks(asker: Asker, stub: Stub) -> None:
    await asker.after(12, replace(REQUEST, until=T0 + 10 * SECOND))
    evidence = await asker.after(22, replace(REQUEST, until=T0 + 20 * SECOND))
    assert len(evidence.blocks) == 2
    assert len(stub.asked) == 2


async def test_closing_ends_what_is_under_way(stub: Stub, registry: CollectorRegistry) -> None:
    source = PrometheusSource({"default": Provider("default", stub.url, lag=LAG)}, registry)
    stub.hold.clear()
    assert source.latest(REQUEST, T0 + 12 * SECOND, lambda: None) is None
    await asyncio.sleep(0)
    await source.close()
    assert all(entry.fetching is None or entry.fetching.done() for entry in source._entries.values())
