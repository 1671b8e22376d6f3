"""The sample service, over a real loopback socket."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest

APP = Path(__file__).parents[3] / "examples" / "sample-service" / "app.py"


def load_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_service_app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


app = load_app()


class Client:
    """An HTTP client of one running service."""

    def __init__(self, session: aiohttp.ClientSession, service: Any, server: Any) -> None:
        self.session = session
        self.service = service
        self.server = server

    async def get(self, path: str = "/") -> tuple[int, str, str]:
        async with self.session.get(path) as response:
            return response.status, response.headers["X-App-Version"], await response.text()

    async def set_mode(self, mode: object) -> tuple[int, str]:
        async with self.session.post("/admin/mode", data=json.dumps(mode)) as response:
            return response.status, await response.text()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    crashes: list[str] = []

    def crash() -> None:
        crashes.append("crashed")
        raise ConnectionResetError("crashed")

    service = app.Service("v7", chance=random.Random(1).random, crash=crash)
    service.crashes = crashes
    server = app.Server(service)
    port = await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield Client(session, service, server)
    await server.stop()


@pytest.mark.parametrize("path", ["/", "/any/path?with=query"])
async def test_every_path_is_answered_with_the_version(client: Client, path: str) -> None:
    status, version, body = await client.get(path)
    assert (status, version) == (200, "v7")
    assert body == f"v7 greets {path.partition('?')[0]}\n"


async def test_health_follows_the_mode_while_requests_are_still_served(client: Client) -> None:
    assert (await client.get("/healthz"))[0] == 200
    await client.set_mode({"unhealthy": True})
    assert (await client.get("/healthz"))[0] == 503
    assert (await client.get("/"))[0] == 200
    await client.set_mode({})
    assert (await client.get("/healthz"))[0] == 200


async def test_the_error_rate_is_kept_and_errors_are_500(client: Client) -> None:
    await client.set_mode({"errorRate": 0.05})
    statuses = [(await client.get())[0] for _ in range(1000)]
    assert set(statuses) == {200, 500}
    # 1000 draws of 5 %: the 99.99 % interval is 24 to 79, and the draws are seeded.
    assert 24 <= statuses.count(500) <= 79


@pytest.mark.parametrize(("rate", "status"), [(0, 200), (1, 500)])
async def test_the_ends_of_the_error_rate_are_exact(client: Client, rate: int, status: int) -> None:
    await client.set_mode({"errorRate": rate})
    assert {(await client.get())[0] for _ in range(50)} == {status}


async def test_latency_meets_the_share_that_was_asked_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def note(seconds: float) -> None:
        slept.append(seconds)

    await client.set_mode({"latencyMs": 250, "latencyRate": 0.5})
    monkeypatch.setattr(app.asyncio, "sleep", note)
    for _ in range(200):
        await client.get()
    monkeypatch.undo()
    assert set(slept) == {0.25}
    assert 63 <= len(slept) <= 137  # 99.99 % of Binomial(200, 0.5)


async def test_mode_is_replaced_whole_and_can_be_read_back(client: Client) -> None:
    await client.set_mode({"errorRate": 0.5, "latencyMs": 10})
    status, text = await client.set_mode({"latencyMs": 20})
    assert status == 200
    assert json.loads(text)["errorRate"] == 0
    assert json.loads((await client.get("/admin/mode"))[2])["latencyMs"] == 20


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"errorRate": 5}, "errorRate is 5; it must be a number from 0 to 1"),
        ({"errorRate": True}, "errorRate is true; it must be a number from 0 to 1"),
        ({"unhealthy": "yes"}, 'unhealthy is "yes"; it must be true or false'),
        ({"errorrate": 0.1}, "unknown field 'errorrate'; known are errorRate"),
        ([], "must be a JSON object"),
    ],
)
async def test_a_wrong_mode_is_refused_with_what_would_be_right(client: Client, mode: object, message: str) -> None:
    await client.set_mode({"latencyMs": 1})
    status, text = await client.set_mode(mode)
    assert status == 400
    assert message in text
    assert client.service.mode.latencyMs == 1


async def test_it_crashes_only_once_it_has_answered_so_many_requests(client: Client) -> None:
    await client.set_mode({"crashAfterRequests": 3})
    for _ in range(3):
        assert (await client.get())[0] == 200
        assert (await client.get("/healthz"))[0] == 200  # probes do not count
    assert client.service.crashes == []
    with pytest.raises(aiohttp.ClientError):
        await client.get()
    assert client.service.crashes


async def test_metrics_count_answers_and_leave_probes_out(client: Client) -> None:
    await client.get()
    await client.get("/healthz")
    await client.set_mode({"errorRate": 1})
    await client.get()
    await client.get()
    status, _, text = await client.get("/metrics")
    assert status == 200
    lines = text.splitlines()
    assert 'app_requests_total{version="v7",code="200"} 1' in lines
    assert 'app_requests_total{version="v7",code="500"} 2' in lines
    assert 'app_request_duration_seconds_bucket{version="v7",le="+Inf"} 3' in lines
    assert 'app_request_duration_seconds_count{version="v7"} 3' in lines


def test_histogram_buckets_hold_their_upper_edge() -> None:
    metrics = app.Metrics("v1")
    metrics.observe(200, 0.005)
    metrics.observe(200, 0.0051)
    lines = metrics.render().splitlines()
    assert 'app_request_duration_seconds_bucket{version="v1",le="0.005"} 1' in lines
    assert 'app_request_duration_seconds_bucket{version="v1",le="0.01"} 2' in lines


async def test_metrics_are_read_by_a_prometheus_parser(client: Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    await client.get()
    families = {f.name: f.type for f in text_string_to_metric_families((await client.get("/metrics"))[2])}
    assert families == {
        "app_requests": "counter",
        "app_request_duration_seconds": "histogram",
        "app_requests_in_flight": "gauge",
    }


async def exchange(client: Client, data: bytes) -> bytes:
    port = client.session._base_url.port  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(
    client: Client, data: bytes, status: bytes
) -> None:
    assert (await exchange(client, data)).split(b" ")[1] == status


async def test_connections_stay_open_until_one_asks_to_close(client: Client) -> None:
    answer = await exchange(
        client,
        b"GET /1 HTTP/1.1\r\n\r\n"
        b"HEAD /2 HTTP/1.1\r\n\r\n"
        b"GET /3 HTTP/1.1\r\nConnection: close\r\n\r\n"
        b"GET /4 HTTP/1.1\r\n\r\n",
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b"greets /1" in answer
    assert b"greets /2" not in answer  # a HEAD has no body
    assert answer.endswith(b"Connection: close\r\n\r\nv7 greets /3\n")


async def test_stopping_finishes_what_is_in_flight_and_refuses_the_rest(client: Client) -> None:
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def work(request: Any) -> Any:
        started.set()
        await go_on.wait()
        return app.Response(200, "finished\n")

    client.service._work = work
    pending = asyncio.create_task(client.get())
    await started.wait()
    stopping = asyncio.create_task(client.server.stop())
    await asyncio.sleep(0)  # lets it begin
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get()
    assert not stopping.done()
    go_on.set()
    assert (await pending)[2] == "finished\n"
    await stopping


async def test_draining_fails_readiness_and_says_connection_close(client: Client) -> None:
    client.service.draining = True
    async with client.session.get("/healthz") as response:
        assert response.status == 503
    async with client.session.get("/") as response:
        assert (response.status, response.headers["Connection"]) == (200, "close")


async def start_process(*arguments: str, **environment: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(APP), *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    return process, line


async def test_as_a_process_it_takes_its_settings_from_the_environment_and_ends_on_sigterm() -> None:
    process, line = await start_process(VERSION="v3", PORT="0", HOST="127.0.0.1")
    assert line.startswith("v3 listens on 127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_as_a_process_a_crash_exits_with_a_status_of_its_own() -> None:
    process, line = await start_process("--version", "v3", "--port", "0")
    port = line.strip().rpartition(":")[2]
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/admin/mode", data='{"crash": true}') as response,
    ):
        assert response.status == 200
    assert await process.wait() == 1
