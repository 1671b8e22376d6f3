import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters import prometheus_client
from canaryrollout.adapters.prometheus_client import Metrics, PrometheusClient, Provider, QueryFailed
from tests.prometheusstub import Reply, Stub, failure, prometheus_stub, result

T0 = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        yield server


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def client(stub: Stub, registry: CollectorRegistry) -> AsyncIterator[PrometheusClient]:
    provider = Provider("default", stub.url + "/", timeout=timedelta(seconds=5), headers={"X-Scope-OrgID": "team-a"})
    client = PrometheusClient(provider, Metrics(registry))
    yield client
    await client.close()


def queries(registry: CollectorRegistry, outcome: str) -> float:
    labels = {"provider": "default", "outcome": outcome}
    return registry.get_sample_value("canaryrollout_prometheus_queries_total", labels) or 0.0


async def test_instant_query_goes_as_a_form_with_exact_time_and_timeout(stub: Stub, client: PrometheusClient) -> None:
    stub.reply = lambda _: result("scalar", [1, "2"])
    answer = await client.at("up + 1", T0)
    assert (answer.result_type, answer.result, answer.warnings) == ("scalar", [1, "2"], ())
    asked = stub.asked[0]
    assert (asked.method, asked.path) == ("POST", "/api/v1/query")
    assert asked.form == {"query": "up + 1", "time": "1767268800.250", "timeout": "5000ms"}
    assert asked.headers["X-Scope-OrgID"] == "team-a"


async def test_range_query_keeps_milliseconds(stub: Stub, client: PrometheusClient) -> None:
    stub.reply = lambda _: result("matrix", [])
    await client.over("up", T0, T0 + timedelta(seconds=30), timedelta(milliseconds=2500))
    asked = stub.asked[0]
    assert asked.path == "/api/v1/query_range"
    assert asked.form == {
        "query": "up",
        "start": "1767268800.250",
        "end": "1767268830.250",
        "step": "2.500",
        "timeout": "5000ms",
    }


async def test_warnings_are_kept(stub: Stub, client: PrometheusClient) -> None:
    stub.reply = lambda _: result("vector", [], warnings=["store b is away"], infos=["no matter"])
    assert (await client.at("up", T0)).warnings == ("store b is away",)


@pytest.mark.parametrize(("seconds", "words"), [(300, "about 5m ahead of"), (-40, "about 30s behind")])
async def test_a_server_with_another_clock_is_not_believed(
    stub: Stub, client: PrometheusClient, seconds: int, words: str
) -> None:
    def reply(_: object) -> Reply:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        return replace(result("vector", []), headers={"Date": date})

    stub.reply = reply
    with pytest.raises(QueryFailed, match=f"its clock is {words} the operator's") as raised:
        await client.at("up", T0)
    assert raised.value.outcome == "ClocksApart"


@pytest.mark.parametrize("date", ["", "yesterday", None])
async def test_a_server_that_tells_no_time_is_believed(stub: Stub, client: PrometheusClient, date: str | None) -> None:
    told = date if date is not None else format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    stub.reply = lambda _: replace(result("vector", []), headers={"Date": told})
    assert (await client.at("up", T0)).result == []


async def test_a_remark_among_the_warnings_doubts_no_number(stub: Stub, client: PrometheusClient) -> None:
    remark = 'PromQL info: metric might not be a counter, name does not end in _total: "x" (1:6)'
    stub.reply = lambda _: result("vector", [], warnings=[remark, "store b is away"])
    assert (await client.at("up", T0)).warnings == ("store b is away",)


@pytest.mark.parametrize(
    ("reply", "outcome", "message"),
    [
        (failure(400, "bad_data", "parse error"), "BadQuery", "Prometheus cannot run the query: parse error"),
        (failure(422, "execution", "too many samples"), "BadQuery", "too many samples"),
        (failure(503, "timeout", "query timed out"), "ServerError", "answers 503: query timed out"),
        (Reply(500, b"<html>oops</html>"), "ServerError", "answers 500: Internal Server Error"),
        (Reply(429, b""), "ServerError", "answers 429: Too Many Requests"),
        (Reply(401, b""), "Refused", "refuses the operator's credentials (401 Unauthorized)"),
        (Reply(404, b"nothing here"), "BadAnswer", "serves no Prometheus API (404)"),
        (Reply(200, b"<html>login</html>"), "BadAnswer", "no Prometheus result"),
        (Reply(200, ["odd"]), "BadAnswer", "no Prometheus result"),
        (Reply(200, {"status": "error", "error": "odd"}), "BadAnswer", "no Prometheus result"),
        (
            Reply(302, b"", {"Location": "https://elsewhere/api/v1/query"}),
            "BadAnswer",
            "redirects to https://elsewhere/api/v1/query",
        ),
    ],
)
async def test_what_is_no_answer(
    stub: Stub, client: PrometheusClient, registry: CollectorRegistry, reply: Reply, outcome: str, message: str
) -> None:
    stub.reply = lambda _: reply
    with pytest.raises(QueryFailed) as failed:
        await client.at("up", T0)
    assert failed.value.outcome == outcome
    assert message in str(failed.value)
    assert len(stub.asked) == 1  # nothing retries or follows by itself
    assert queries(registry, outcome) == 1


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(429, b"", {"Retry-After": "30"}), 30),
        (Reply(503, b"", {"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}), 0),
        (Reply(503, b"", {"Retry-After": "soon"}), None),
        (Reply(503, b""), None),
        (Reply(500, b"", {"Retry-After": "30"}), None),
    ],
)
async def test_wish_to_be_left_alone_is_handed_on(
    stub: Stub, client: PrometheusClient, reply: Reply, seconds: float | None
) -> None:
    stub.reply = lambda _: reply
    with pytest.raises(QueryFailed) as failed:
        await client.at("up", T0)
    assert failed.value.retry_after == seconds


async def test_server_that_is_not_there(registry: CollectorRegistry) -> None:
    with socket.socket() as held:  # bound, not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        client = PrometheusClient(Provider("default", f"http://127.0.0.1:{held.getsockname()[1]}"), Metrics(registry))
        with pytest.raises(QueryFailed, match="Connection refused") as failed:
            await client.at("up", T0)
        await client.close()
    assert failed.value.outcome == "Unreachable"


async def test_address_that_is_none(registry: CollectorRegistry) -> None:
    client = PrometheusClient(Provider("default", "prometheus.example"), Metrics(registry))
    with pytest.raises(QueryFailed, match="No scheme supplied") as failed:
        await client.at("up", T0)
    await client.close()
    assert failed.value.outcome == "Unreachable"


async def test_server_that_does_not_answer_is_given_up(
    stub: Stub, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_client, "GRACE", timedelta())
    client = PrometheusClient(Provider("default", stub.url, timeout=timedelta(milliseconds=50)), Metrics(registry))
    stub.hold.clear()
    with pytest.raises(QueryFailed, match=r"no answer within 0\.05 s") as failed:
        await client.at("up", T0)
    stub.hold.set()
    await client.close()
    assert failed.value.outcome == "Timeout"
    assert queries(registry, "Timeout") == 1


async def test_the_event_loop_goes_on_while_a_server_is_silent(stub: Stub, client: PrometheusClient) -> None:
    stub.hold.clear()
    query = asyncio.ensure_future(client.at("up", T0))
    turns = 0
    while not stub.taken.acquire(blocking=False):
        turns += 1
        await asyncio.sleep(0)
    assert turns > 0
    assert not query.done()
    stub.hold.set()
    await query


async def test_the_same_question_at_the_same_time_is_asked_once(
    stub: Stub, client: PrometheusClient, registry: CollectorRegistry
) -> None:
    stub.reply = lambda asked: result("scalar", [1, asked.form["time"]])
    answers = await asyncio.gather(*(client.at("up", T0) for _ in range(5)), client.at("up", T0 + timedelta(seconds=1)))
    assert len(stub.asked) == 2
    assert [answer.result[1] for answer in answers] == ["1767268800.250"] * 5 + ["1767268801.250"]
    await client.at("up", T0)  # later is a new question
    assert len(stub.asked) == 3
    assert queries(registry, "Success") == 3


async def test_a_server_is_asked_so_much_at_once(stub: Stub, registry: CollectorRegistry) -> None:
    client = PrometheusClient(replace(Provider("default", stub.url), concurrency=2), Metrics(registry))
    await asyncio.gather(*(client.at(f"up + {n}", T0) for n in range(12)))
    await client.close()
    assert len(stub.asked) == 12
    assert 1 <= stub.busiest <= 2


async def test_who_gives_up_waiting_does_not_end_it_for_others(stub: Stub, client: PrometheusClient) -> None:
    stub.hold.clear()
    first = asyncio.ensure_future(client.at("up", T0))
    second = asyncio.ensure_future(client.at("up", T0))
    await asyncio.sleep(0)
    first.cancel()
    stub.hold.set()
    assert (await second).result == []
    assert first.cancelled()


async def test_token_file_is_read_for_every_request(stub: Stub, registry: CollectorRegistry, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    client = PrometheusClient(Provider("default", stub.url, bearer_token_file=token), Metrics(registry))
    await client.at("up", T0)
    token.write_text("second\n")
    await client.at("up", T0)
    assert [asked.headers["Authorization"] for asked in stub.asked] == ["Bearer first", "Bearer second"]
    token.unlink()
    with pytest.raises(QueryFailed, match="No such file"):
        await client.at("up", T0)
    await client.close()


async def test_proxies_of_the_environment_are_not_asked(
    stub: Stub, client: PrometheusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await client.at("up", T0)).result == []


async def test_slow_queries_are_measured(stub: Stub, client: PrometheusClient, registry: CollectorRegistry) -> None:
    await client.at("up", T0)
    name = "canaryrollout_prometheus_query_duration_seconds_count"
    assert registry.get_sample_value(name, {"provider": "default"}) == 1


def test_headers_are_not_shown() -> None:
    assert "secret" not in repr(Provider("default", "http://p", headers={"Authorization": "secret"}))
