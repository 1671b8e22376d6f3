"""The proxy before an API server that remembers what reached it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from lab.faultproxy import FaultProxy

SERVICES = "/apis/networking.istio.io/v1/namespaces/shop/virtualservices"
REVIEWS = f"{SERVICES}/reviews"
WATCH = f"{SERVICES}?watch=true"


@dataclass
class Server:
    """The API server: answers every request, and watches with the events put into `events`."""

    url: str = ""
    reached: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    events: list[bytes] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.reached.append((request.method, request.path_qs, (await request.read()).decode()))
        self.headers.append(dict(request.headers))
        if request.query.get("watch"):
            return await self.watched(request)
        if request.path.endswith("missing"):
            return web.json_response({"kind": "Status", "code": 404}, status=404)
        return web.json_response({"metadata": {"resourceVersion": str(len(self.reached))}, "filler": "x" * 1000})

    async def watched(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        sent = 0
        while True:
            while sent < len(self.events):
                await response.write(self.events[sent])
                sent += 1
            self.more.clear()
            await self.more.wait()

    def happen(self, name: str) -> None:
        self.events.append(json.dumps({"type": "ADDED", "object": {"name": name}}).encode() + b"\n")
        self.more.set()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
def kubeconfig(tmp_path: Path, server: Server) -> Path:
    path = tmp_path / "upstream"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "sesame"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
async def proxy(kubeconfig: Path) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(kubeconfig) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=5)
    # A reused connection would be asked again by itself when it turns out to be closed.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(proxy.url, timeout=timeout, connector=connector) as client:
        yield client


@contextmanager
def waiting_child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def with_server(kubeconfig: Path, server: str) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = server
    kubeconfig.write_text(yaml.safe_dump(document))


async def patch(client: aiohttp.ClientSession, **body: Any) -> tuple[int, Any]:
    async with client.patch(REVIEWS, json=body) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_what_no_rule_names_goes_through_as_it_is(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    content = {"Content-Type": "application/json-patch+json", "X-Mine": "yes"}
    async with client.patch(f"{REVIEWS}?fieldManager=me&a=b%2Bc", data=b'[{"op":"x"}]', headers=content) as answer:
        assert (answer.status, (await answer.json())["metadata"]) == (200, {"resourceVersion": "1"})
    async with client.get(f"{SERVICES}/missing") as answer:
        assert answer.status == 404
    assert server.reached[0] == ("PATCH", f"{REVIEWS}?fieldManager=me&a=b%2Bc", '[{"op":"x"}]')
    sent = server.headers[0]
    assert (sent["X-Mine"], sent["Content-Type"]) == ("yes", "application/json-patch+json")
    assert sent["Authorization"] == "Bearer sesame", "the proxy's credentials, as the client has none"
    written, read = proxy.entries()
    assert (written.call.kind, written.code, written.upstream, written.version) == (
        "patch virtualservices", 200, 200, "1"
    )  # fmt: skip
    assert (written.applied, written.body, read.applied, read.code) == (True, [{"op": "x"}], False, 404)
    assert written.seconds is not None


async def test_a_client_keeps_its_own_credentials(server: Server, proxy: FaultProxy, tmp_path: Path) -> None:
    document = yaml.safe_load(proxy.kubeconfig(tmp_path / "own", token="mine").read_text())
    assert document["clusters"][0]["cluster"]["server"] == proxy.url
    token = document["users"][0]["user"]["token"]
    async with (
        aiohttp.ClientSession(proxy.url, headers={"Authorization": f"Bearer {token}"}) as client,
        client.get(REVIEWS),
    ):
        assert server.headers[0]["Authorization"] == "Bearer mine"


async def test_the_nth_request_of_a_kind_is_answered_and_never_arrives(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    rule = proxy.rule("patch virtualservices n=2 answer=409")
    async with client.get(REVIEWS):
        pass
    codes = [(await patch(client, weight=n))[0] for n in range(3)]
    assert codes == [200, 409, 200]
    assert [body for method, _, body in server.reached if method == "PATCH"] == ['{"weight": 0}', '{"weight": 2}']
    assert (rule.matched, rule.hits) == (3, 1)
    refused = [entry for entry in proxy.entries("patch virtualservices") if entry.rule]
    assert [(entry.code, entry.upstream, entry.applied) for entry in refused] == [(409, None, False)]


async def test_an_error_after_the_fact_hides_that_it_was_done(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    proxy.rule("patch answer-after=504")
    status, answer = await patch(client)
    assert (status, answer["reason"], len(server.reached)) == (504, "Timeout", 1)
    entry = proxy.entries()[0]
    assert (entry.code, entry.upstream, entry.version, entry.applied) == (504, 200, "1", True)


async def test_too_many_requests_come_with_a_time_to_wait(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    proxy.rule("* answer=429 retry-after=7")
    async with client.get(REVIEWS) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")


@pytest.mark.parametrize(("text", "reached"), [("drop", 0), ("drop-after", 1)])
async def test_a_dropped_request_has_no_answer(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession, text: str, reached: int
) -> None:
    proxy.rule(f"patch {text}")
    with pytest.raises(aiohttp.ClientConnectionError):
        await patch(client)
    assert len(server.reached) == reached
    entry = proxy.entries()[0]
    assert (entry.code, entry.applied) == (None, bool(reached))


@pytest.mark.parametrize(("text", "reached"), [("hang", 0), ("hang-after", 1)])
async def test_a_hanging_request_lasts_as_long_as_the_client(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession, text: str, reached: int
) -> None:
    proxy.rule(f"patch {text}")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await patch(client)
    assert len(server.reached) == reached
    async with client.get(REVIEWS) as answer:
        assert answer.status == 200, "others are not disturbed"
    while proxy.entries()[0].seconds is None:  # noqa: ASYNC110 - the proxy is another thread
        await asyncio.sleep(0.01)


async def test_a_hanging_request_goes_on_when_the_fault_ends(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    rule = proxy.rule("patch for=200ms hang")
    assert [(await patch(client))[0] for _ in range(2)] == [200, 200]
    waited, _ = (entry.seconds for entry in proxy.entries())
    assert waited is not None
    assert waited > 0.1
    assert rule.hits == 1


async def test_a_cut_answer_ends_in_the_middle(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    proxy.rule("get cut=100")
    async with client.get(REVIEWS) as answer:
        assert answer.status == 200
        assert len(await answer.content.readexactly(100)) == 100
        with pytest.raises(aiohttp.ClientError):
            await answer.content.read()


async def test_a_delayed_request_is_done_all_the_same(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    proxy.rule("patch delay=200ms")
    assert (await patch(client))[0] == 200
    entry = proxy.entries()[0]
    assert entry.seconds is not None
    assert 0.2 <= entry.seconds < 2


async def test_a_write_is_finished_even_if_the_client_has_gone(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    proxy.rule("patch delay-after=100ms")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await patch(client)
    while proxy.entries()[0].seconds is None:  # noqa: ASYNC110 - the proxy is another thread
        await asyncio.sleep(0.01)
    assert proxy.entries()[0].applied


@pytest.mark.parametrize(("text", "reached"), [("kill", 0), ("kill-after", 1)])
async def test_the_process_is_dead_before_the_request_goes_on_or_after_it_was_done(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession, text: str, reached: int
) -> None:
    with waiting_child() as child:
        rule = proxy.rule(f"patch {text}", lambda: child.pid)
        with pytest.raises(aiohttp.ClientConnectionError):
            await patch(client)
        assert child.wait(5) == -signal.SIGKILL
        assert (len(server.reached), rule.hits) == (reached, 1)


async def test_a_stopped_process_can_go_on(server: Server, proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    with waiting_child() as child:
        proxy.rule("patch stop", lambda: child.pid)
        assert (await patch(client))[0] == 200
        assert state_of(child.pid) == "T", "stopped"
        child.send_signal(signal.SIGCONT)
        child.communicate(b"\n", timeout=5)
        assert child.returncode == 0


async def events_of(answer: aiohttp.ClientResponse, count: int) -> list[str]:
    lines = [json.loads(await answer.content.readline()) for _ in range(count)]
    return [line["object"].get("name") or line["object"]["reason"] for line in lines]


async def test_watches_are_passed_on_event_by_event_and_cut_when_asked(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    async with client.get(WATCH) as first, client.get(WATCH) as second:
        server.happen("a")
        assert await events_of(first, 1) == await events_of(second, 1) == ["a"]
        server.happen("b")
        assert await events_of(first, 1) == await events_of(second, 1) == ["b"]
        assert proxy.end_watches("destinationrules") == 0
        assert proxy.end_watches("virtualservices") == 2
        with pytest.raises(aiohttp.ClientError):
            await first.content.readline()
    entry = proxy.entries("watch virtualservices")[0]
    assert (entry.code, entry.events) == (200, 2)


async def test_a_watch_ends_with_410_when_history_is_gone(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    async with client.get(WATCH) as answer:
        proxy.end_watches(gone=True)
        assert await events_of(answer, 1) == ["Expired"]
        assert await answer.content.readline() == b""
    rule = proxy.rule("watch n=1 gone")
    async with client.get(WATCH) as answer:
        assert await events_of(answer, 1) == ["Expired"]
    server.happen("a")
    async with client.get(WATCH) as answer:
        assert await events_of(answer, 1) == ["a"]
    assert rule.hits == 1


async def test_a_rule_about_watches_ends_those_under_way_when_it_begins(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    async with client.get(WATCH) as answer:
        proxy.rule("watch virtualservices from=100ms for=100ms gone")
        assert await events_of(answer, 1) == ["Expired"]
    assert proxy.entries()[0].rule == "watch virtualservices from=100ms for=100ms gone"


async def test_a_watch_is_cut_after_some_events(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    proxy.rule("watch cut=2")
    for name in "abc":
        server.happen(name)
    async with client.get(WATCH) as answer:
        assert await events_of(answer, 2) == ["a", "b"]
        with pytest.raises(aiohttp.ClientError):
            await answer.content.readline()


async def test_a_hang_silences_watches_while_it_lasts(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    async with client.get(WATCH) as answer:
        server.happen("a")
        assert await events_of(answer, 1) == ["a"]
        rule = proxy.rule("* hang")
        server.happen("b")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await answer.content.readline()
        proxy.retire(rule)
        async with asyncio.timeout(2):
            assert await events_of(answer, 1) == ["b"]


async def test_a_rule_taken_back_does_nothing(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    rule = proxy.rule("patch answer=500")
    assert (await patch(client))[0] == 500
    proxy.retire(rule)
    assert (await patch(client))[0] == 200


async def test_of_several_rules_the_first_acts_and_all_count(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    proxy.rule("patch n=1 answer=500")
    proxy.rule("patch n=1-2 answer=503")
    assert [(await patch(client))[0] for _ in range(3)] == [500, 503, 200]


async def test_without_an_api_server_it_says_so(kubeconfig: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with_server(kubeconfig, f"http://127.0.0.1:{held.getsockname()[1]}")
        async with FaultProxy(kubeconfig) as proxy, aiohttp.ClientSession(proxy.url) as client:
            status, answer = await patch(client)
    assert status == 502
    assert "cannot reach the API server" in answer["message"]


def test_by_hand_it_prints_what_went_through(tmp_path: Path) -> None:
    asyncio.run(_by_hand(tmp_path))


async def _by_hand(tmp_path: Path) -> None:
    server, app = Server(), web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = tmp_path / "upstream"
    clusters = [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}]
    contexts = [{"name": "c", "context": {"cluster": "c"}}]
    upstream.write_text(yaml.safe_dump({"current-context": "c", "contexts": contexts, "clusters": clusters}))
    command = ["-m", "lab.faultproxy", "--upstream-kubeconfig", str(upstream), "--kubeconfig", str(tmp_path / "k")]
    rules = ["--rule", "patch n=1 answer=409", "--json", "--writes"]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, *command, *rules, stdout=pipe, stderr=pipe)
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        url = (await child.stderr.readline()).decode().split()[2].rstrip(",")
        assert yaml.safe_load((tmp_path / "k").read_text())["clusters"][0]["cluster"]["server"] == url
        async with aiohttp.ClientSession(url) as client:
            await client.get(REVIEWS)
            await patch(client)
            await patch(client)
        lines = [json.loads(await child.stdout.readline()) for _ in range(2)]
    finally:
        child.send_signal(signal.SIGINT)
        assert await child.wait() == 0
        await runner.cleanup()
    seen = [
        (line["number"], line["verb"], line["resource"], line["name"], line["code"], line["rule"]) for line in lines
    ]
    assert seen == [
        (2, "patch", "virtualservices", "reviews", 409, "patch n=1 answer=409"),
        (3, "patch", "virtualservices", "reviews", 200, ""),
    ]
