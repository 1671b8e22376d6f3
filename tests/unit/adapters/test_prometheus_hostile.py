"""A Prometheus that means harm cannot crash the operator, fill its memory or hold its threads."""

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from canaryrollout.adapters import prometheus_client
from canaryrollout.adapters.prometheus_client import LONGEST_WARNING, MOST_WARNINGS, Metrics, PrometheusClient, Provider
from canaryrollout.adapters.prometheus_counts import BadAnswer, read_block, rows_by_host, rows_of
from canaryrollout.adapters.prometheus_own import UNREADABLE, values_over
from canaryrollout.adapters.prometheus_provider import QueryFailed
from canaryrollout.adapters.prometheus_queries import Labels
from canaryrollout.adapters.promql_values import value_of
from canaryrollout.domain.evidence import EvidenceRequest
from tests.prometheusstub import Reply, Stub, prometheus_stub, result

T0 = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
HOST = "reviews.shop.svc.cluster.local"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        yield server


@pytest.fixture
async def client(stub: Stub) -> AsyncIterator[PrometheusClient]:
    client = PrometheusClient(Provider("default", stub.url, timeout=timedelta(seconds=5)), Metrics(CollectorRegistry()))
    yield client
    await client.close()


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_without_end_is_not_read_to_its_end(
    stub: Stub, client: PrometheusClient, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_client, "LONGEST_ANSWER", 1 << 20)
    body = b" " * (4 << 20)
    body, headers = (gzip.compress(body), {"Content-Encoding": "gzip"}) if packed else (body, {})
    stub.reply = lambda _: Reply(body=body, headers=headers)
    with pytest.raises(QueryFailed, match="more than 1 MiB") as failed:
        await client.at("up", T0)
    assert failed.value.outcome == "BadAnswer"


async def test_an_answer_that_drips_is_given_up_and_its_thread_is_free(
    stub: Stub, client: PrometheusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client._session, "_patience", -1.0)  # the time is over when the first piece arrives
    stub.reply = lambda _: Reply(body=b" " * (1 << 20))
    with pytest.raises(QueryFailed, match="no answer within") as failed:
        await client.at("up", T0)
    assert failed.value.outcome == "Timeout"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"data":' * 50_000,
        b"[]",
        b"null",
        b'"text"',
        b'{"status":"success"}',
        b'{"status":"success","data":null}',
        b'{"status":"success","data":[]}',
        b'{"status":"success","data":{"result":' + b"9" * 5000 + b"}}",
        b"\xff\xfe\x00",
        b"",
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_body_that_is_no_result_is_a_failed_query(
    stub: Stub, client: PrometheusClient, body: bytes, status: int
) -> None:
    stub.reply = lambda _: Reply(status, body)
    with pytest.raises(QueryFailed):
        await client.at("up", T0)


@pytest.mark.parametrize("wish", ["9" * 5000, "-1", "soon", "Fri, 31 Dec 9999 23:59:59 GMT", "\u00e9"])
async def test_a_wish_to_be_left_alone_that_makes_no_sense(stub: Stub, client: PrometheusClient, wish: str) -> None:
    stub.reply = lambda _: Reply(429, {}, {"Retry-After": wish})
    with pytest.raises(QueryFailed) as failed:
        await client.at("up", T0)
    assert failed.value.outcome == "ServerError"


@pytest.mark.parametrize("warnings", [["\x1b[31mred"] * 1000, ["w" * 100_000], {"a": 1}, "text", 5, [None, {}]])
async def test_warnings_are_few_short_and_plain(stub: Stub, client: PrometheusClient, warnings: Any) -> None:
    stub.reply = lambda _: result("vector", [], warnings=warnings)
    shown = (await client.at("up", T0)).warnings
    assert len(shown) <= MOST_WARNINGS
    assert all(len(text) <= LONGEST_WARNING and text.isprintable() for text in shown)


numbers = st.sampled_from(["NaN", "+Inf", "-Inf", "1e999", "-5", "0", "12", "", "x", "1_0", "9" * 400])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
labels = st.fixed_dictionaries(
    {},
    optional={
        "destination_service": st.just(HOST) | junk,
        "destination_version": st.sampled_from(["v1", "v2", "unknown"]) | junk,
        "kind": st.sampled_from(["known", "new", "reset", "start"]) | junk,
        "response_code": st.sampled_from(["200", "500", "0"]) | junk,
        "le": st.sampled_from(["500", "+Inf"]) | junk,
    },
)
sample = st.tuples(st.just(T0.timestamp()) | junk, numbers | junk).map(list)
series = (
    st.fixed_dictionaries({}, optional={"metric": labels | junk, "value": sample, "values": st.lists(sample)}) | junk
)
answers = st.tuples(
    st.sampled_from(["vector", "matrix", "scalar", "string", "None"]), st.lists(series, max_size=4) | junk
)


@given(answers, answers)
def test_no_result_crashes_a_reader_or_is_read_as_counts_below_zero(
    requests: tuple[str, Any], durations: tuple[str, Any]
) -> None:
    request = EvidenceRequest(
        "default", "shop", HOST, "v1", "v2", "version", T0 - timedelta(seconds=10), timedelta(seconds=10)
    )
    try:
        for answer in (requests, durations):
            rows_by_host(*answer, "destination_service")
        rows = [next(iter(rows_of(*answer).values()), ()) for answer in (requests, durations)]
        block = read_block(request, Labels(), request.start, T0, *rows).block
    except BadAnswer:
        return
    for counts in (block.canary, block.stable):
        assert 0 <= counts.errors <= counts.requests
        assert 0 <= counts.slow <= counts.timed


def test_a_time_without_end_is_no_answer_to_a_users_query() -> None:
    with pytest.raises(UNREADABLE):
        values_over("matrix", [{"metric": {}, "values": [[float("inf"), "1"]]}], [T0])


@given(answers)
def test_no_result_of_a_users_query_crashes_its_reader(answer: tuple[str, Any]) -> None:
    for read in (lambda: value_of(*answer, T0), lambda: values_over(*answer, [T0, T0 + timedelta(seconds=10)])):
        try:
            found = read()
        except UNREADABLE:
            continue
        json.dumps([str(found)])
