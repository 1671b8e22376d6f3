"""The load generator, against small servers on loopback that behave and misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from lab.connection import Connection, LostRequestError, Pool
from lab.load import BackgroundLoad, LoadGenerator, check_address, main
from lab.loadreport import Record, Report, percentile

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
KEEP = frozenset({"x-app-version", "x-envoy-response-flags"})
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def answer(status: int = 200, version: str | None = "v1", body: str = "hello", extra: str = "") -> bytes:
    named = f"X-App-Version: {version}\r\n" if version else ""
    return f"HTTP/1.1 {status} Any\r\n{named}{extra}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


def answering(*answers: bytes) -> Handler:
    """A handler that gives these answers in turn on one connection, the last one for ever."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    return handler


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:80/", "http://127.9.9.9/", "http://localhost:1/x", "http://[::1]:80/", "http://10.77.0.9/"],
)
def test_addresses_of_the_lab_are_accepted(url: str) -> None:
    assert check_address(url).hostname


@pytest.mark.parametrize(
    "url", ["http://example.com/", "http://10.78.0.1/", "http://192.168.1.1/", "http://127.0.0.1.example.com/"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not the lab's"):
        LoadGenerator(url)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "127.0.0.1:80", "http:///path"])
def test_what_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be http://"):
        LoadGenerator(url)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"rate": 1001}, "rate is 1001; it must be above 0 and at most 1000"),
        ({"rate": 0}, "rate is 0; it must be above 0"),
        ({"max_seconds": 3601}, "max_seconds is 3601"),
        ({"max_connections": 1001}, "max_connections is 1001"),
    ],
)
def test_the_bounds_are_kept(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadGenerator("http://127.0.0.1:1/", **bounds)  # type: ignore[arg-type]


async def test_records_name_version_status_and_flags() -> None:
    flagged = "x-envoy-response-flags: URX\r\n"
    async with serving(answering(answer(), answer(500, "v2", extra=flagged))) as port:
        pool = Pool("127.0.0.1", port, 5, KEEP)
        connection = await pool.acquire(1)
        first = await connection.request(REQUEST, 1)
        second = await connection.request(REQUEST, 1)
        connection.close()
    assert first == (200, {"x-app-version": "v1"}, "hello")
    assert second == (500, {"x-app-version": "v2", "x-envoy-response-flags": "URX"}, "hello")


async def test_the_host_header_and_the_path_are_sent() -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer())

    async with serving(handler) as port:
        await LoadGenerator(f"http://127.0.0.1:{port}/a?b=c", "reviews.example", 100, max_seconds=0.05).run()
    assert seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: reviews.example\r\n")


def stuck_until(release: asyncio.Event) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(answer(extra="Connection: close\r\n"))

    return handler


async def test_it_keeps_the_rate_while_answers_are_slow() -> None:
    release = asyncio.Event()
    async with serving(stuck_until(release)) as port:
        generator = LoadGenerator(f"http://127.0.0.1:{port}/", rate=200, max_seconds=0.1)
        await generator.start()
        await generator.wait_sent()
        assert generator.records == []  # a closed loop would still wait for its first answer
        released = generator.now()
        release.set()
        await generator.stop()
    assert len(generator.records) + generator.skipped == 20
    assert all(record.finished >= released for record in generator.records)
    # The last of them may still have been connecting.
    assert sum(record.sent <= released for record in generator.records) > 1


async def test_it_stops_by_itself() -> None:
    async with serving(answering(answer())) as port:
        generator = LoadGenerator(f"http://127.0.0.1:{port}/", rate=100, max_seconds=0.1)
        report = await generator.run()
    assert not generator.running
    assert report.requests + report.skipped == 10  # a machine that stands still for long makes it skip


async def test_busy_connections_mean_skipped_requests_and_not_late_ones() -> None:
    release = asyncio.Event()
    async with serving(stuck_until(release)) as port:
        generator = LoadGenerator(f"http://127.0.0.1:{port}/", rate=200, max_connections=3, max_seconds=0.1)
        await generator.start()
        await generator.wait_sent()
        assert not generator.settled(generator.now())
        release.set()
        await generator.stop()
        assert generator.settled(generator.now())
    assert (len(generator.records), generator.skipped, generator.crowded_out) == (3, 17, 17)


async def test_an_answer_made_by_the_mesh_is_lost_and_says_why() -> None:
    async with serving(answering(answer(503, None, "no healthy upstream"))) as port:
        report = await LoadGenerator(f"http://127.0.0.1:{port}/", rate=100, max_seconds=0.1).run()
    assert report.versions == {}
    assert {(of.status, of.reason) for of in report.lost} == {(503, "no healthy upstream")}


async def test_a_server_that_is_not_there_is_counted() -> None:
    async with serving(answering(answer())) as port:
        pass
    report = await LoadGenerator(f"http://127.0.0.1:{port}/", rate=100, max_seconds=0.1).run()
    assert [(of.status, of.reason) for of in report.lost] == [(0, "cannot connect: ConnectionRefusedError")]
    assert report.lost[0].requests == report.requests > 0


async def test_a_close_between_two_requests_is_no_loss() -> None:
    """The server answers and then closes without having said so, as one with a short idle timeout does."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer())
        await writer.drain()

    async with serving(once) as port:
        report = await LoadGenerator(f"http://127.0.0.1:{port}/", rate=20, max_seconds=0.5).run()
    assert report.lost == ()
    assert report.versions["v1"].requests == report.requests > 1


async def test_a_close_instead_of_an_answer_is_a_loss_and_is_not_repeated() -> None:
    requests = 0

    async def second_time_never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(answer())
        await reader.readuntil(b"\r\n\r\n")
        requests += 1

    async with serving(second_time_never) as port:
        pool = Pool("127.0.0.1", port, 5, KEEP)
        connection = await pool.acquire(1)
        await connection.request(REQUEST, 1)
        with pytest.raises(LostRequestError, match=r"closed before an answer \(reused connection\)"):
            await connection.request(REQUEST, 1)
        pool.release(connection)
        assert pool.open == 0
    assert requests == 2


async def test_half_an_answer_is_a_loss() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer()[:-2])

    async with serving(half) as port:
        connection = await Pool("127.0.0.1", port, 5, KEEP).acquire(1)
        with pytest.raises(LostRequestError, match=r"closed before an answer \(fresh connection\)"):
            await connection.request(REQUEST, 1)


async def test_an_answer_that_takes_too_long_is_a_loss_and_its_connection_is_not_used_again() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(never) as port:
        pool = Pool("127.0.0.1", port, 5, KEEP)
        connection = await pool.acquire(1)
        with pytest.raises(LostRequestError, match=r"no answer within 0\.05 s"):
            await connection.request(REQUEST, 0.05)
        pool.release(connection)
        assert pool.open == 0


async def test_connection_close_is_honored() -> None:
    async with serving(answering(answer(extra="Connection: close\r\n"))) as port:
        pool = Pool("127.0.0.1", port, 5, KEEP)
        connection = await pool.acquire(1)
        assert (await connection.request(REQUEST, 1)).status == 200
        pool.release(connection)
        assert pool.open == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "abcde"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
    ],
)
async def test_every_framing_is_read_in_any_pieces(data: bytes, text: str) -> None:
    connection = Connection(KEEP)

    class Wire(asyncio.Transport):
        def write(self, _: object) -> None:
            for byte in data:
                asyncio.get_running_loop().call_soon(connection.data_received, bytes([byte]))

    connection.connection_made(Wire())
    assert (await connection.request(REQUEST, 1)).text == text
    assert (await connection.request(REQUEST, 1)).text == text


async def test_a_body_may_end_with_the_connection() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-App-Version: v1\r\n\r\nto the end")

    async with serving(handler) as port:
        connection = await Pool("127.0.0.1", port, 5, KEEP).acquire(1)
        assert (await connection.request(REQUEST, 1)).text == "to the end"
    assert connection.closed


def test_from_a_thread_requests_are_counted_by_when_they_were_sent() -> None:
    ready: list[int] = []
    done = asyncio.Event()

    async def server(started: Callable[[int], None]) -> None:
        async with serving(answering(answer())) as port:
            started(port)
            await done.wait()

    import threading

    loop = asyncio.new_event_loop()
    begun = threading.Event()

    def started(port: int) -> None:
        ready.append(port)
        begun.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server(started)))
    thread.start()
    assert begun.wait(5)
    try:
        with BackgroundLoad(f"http://127.0.0.1:{ready[0]}/", rate=200) as load:
            begin = load.now()
            load.wait_settled(until=begin + 0.3)
            window = load.report(since=begin + 0.1, until=begin + 0.2)
        total = load.report().requests
        load.stop()
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(5)
    assert 10 <= window.requests <= 30
    assert total == len(load.records) >= window.requests
    assert all(r.sent <= r.finished and r.version == "v1" for r in load.records)


def record(version: str | None, status: int = 200, latency: float = 0.0, reason: str = "", flags: str = "") -> Record:
    return Record(1.0, 1.0 + latency, version, status, reason, flags)


def test_a_report_counts_per_version_and_what_was_lost_apart() -> None:
    records = [record("v2", 500, 0.1), *(record("v1", latency=i / 1000) for i in range(1, 101))]
    records += [record(None, 503, reason="no healthy upstream", flags="UH")] * 2 + [record(None, 0, reason="closed")]
    report = Report.of(records, skipped=4)
    assert list(report.versions) == ["v1", "v2"]
    v1 = report.versions["v1"]
    assert (v1.requests, v1.statuses, v1.p50, v1.p95, v1.p99) == (100, {200: 100}, 50.0, 95.0, 99.0)
    assert report.share("v2") == pytest.approx(1 / 101)
    assert report.share("v9") == 0
    assert [(of.requests, of.status, of.flags) for of in report.lost] == [(2, 503, "UH"), (1, 0, "")]
    table = report.table()
    assert "status 503, UH, no healthy upstream" in table
    assert "no answer, closed" in table
    assert json.loads(json.dumps(report.as_dict()))["versions"]["v2"]["statuses"] == {"500": 1}


def test_nothing_sent_is_a_report_too() -> None:
    assert Report.of([]).table().startswith("0 requests")


@pytest.mark.parametrize(("percent", "value"), [(50, 2), (95, 4), (99, 4), (1, 1)])
def test_percentiles_are_values_that_occurred(percent: float, value: float) -> None:
    assert percentile([1, 2, 3, 4], percent) == value


def test_the_command_line_exits_with_1_when_requests_were_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http://127.0.0.1:1/", "--rate", "50", "--seconds", "0.1", "-o", "json"]) == 1
    lost = json.loads(capsys.readouterr().out)["lost"]
    assert lost[0]["reason"] == "cannot connect: ConnectionRefusedError"


def test_the_command_line_explains_a_refused_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["http://example.com/"])
    assert "is not the lab's" in capsys.readouterr().err
