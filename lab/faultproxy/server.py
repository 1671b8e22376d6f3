"""The proxy itself: an HTTP server that hands every request on, or does to it what a rule says.

A write that was handed on is finished even if the client has gone meanwhile, as it would be on a real API server that
had read it. Watches are passed on event by event and can be ended at any moment.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from lab.faultproxy.answers import Answer, answer, gone_event
from lab.faultproxy.calls import Call, call_of
from lab.faultproxy.journal import Journal
from lab.faultproxy.rules import Effect, Fault, Match, Process, Rule
from lab.faultproxy.upstream import Upstream
from lab.process import Record

LARGEST_BODY: Final = 64 * 2**20
LONGEST_EVENT: Final = 8 * 2**20
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)
_POLL: Final = 0.02
_LAST_BREATH: Final = 5.0


@dataclass
class Armed:
    """A rule in force.

    Attributes:
        rule: The rule.
        since: Monotonic time at which it was made.
        matched: How many requests it has matched while it was open.
        hits: How many it has disturbed.
        retired: Whether it was taken back.
    """

    rule: Rule
    since: float
    matched: int = 0
    hits: int = 0
    retired: bool = False

    def is_open(self) -> bool:
        """Whether it is in force now."""
        return not self.retired and self.rule.when.open(time.monotonic() - self.since)

    def meets(self, call: Call) -> bool:
        """Count a request, and say whether this rule disturbs it."""
        if not self.is_open() or not self.rule.match(call):
            return False
        self.matched += 1
        return self.rule.when.hits(self.matched)


@dataclass(eq=False)
class _Stream:
    """A watch under way; ``ending`` says how it is to end."""

    call: Call
    number: int
    ending: asyncio.Future[tuple[Fault, str]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Proxy:
    """Handles requests; all methods belong to one event loop.

    Args:
        upstream: Where they go.
        journal: Where they are noted.
    """

    def __init__(self, upstream: Upstream, journal: Journal) -> None:
        self._upstream = upstream
        self._journal = journal
        self._rules: list[Armed] = []
        self._streams: set[_Stream] = set()
        self._writes: set[asyncio.Task[Any]] = set()
        self._client: ClientSession | None = None

    def application(self) -> web.Application:
        """Return the server's side."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.cleanup_ctx.append(self._session)
        return app

    async def _session(self, _: web.Application) -> Any:
        connector = TCPConnector(ssl=self._upstream.tls or True, limit=0)
        self._client = ClientSession(
            connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False, read_bufsize=LONGEST_EVENT
        )
        yield
        await self._client.close()

    # --- rules ------------------------------------------------------------------------------------------------------

    def arm(self, rule: Rule) -> Armed:
        """Put a rule in force; watches under way that it cuts or ends are cut or ended when it begins."""
        armed = Armed(rule, time.monotonic())
        self._rules.append(armed)
        if rule.effect.fault in (Fault.CUT, Fault.GONE):
            asyncio.get_running_loop().call_later(rule.when.start, self._begin, armed)
        return armed

    def retire(self, armed: Armed) -> None:
        """Take a rule back; what it does to requests under way goes on."""
        armed.retired = True
        if armed in self._rules:
            self._rules.remove(armed)

    def calm(self) -> None:
        """Take all rules back."""
        for armed in list(self._rules):
            self.retire(armed)

    def end_watches(self, match: Match, fault: Fault, why: str = "") -> int:
        """Cut watches under way, or end them with 410; return how many."""
        found = [stream for stream in self._streams if match(stream.call) and not stream.ending.done()]
        for stream in found:
            stream.ending.set_result((fault, why))
        return len(found)

    def _begin(self, armed: Armed) -> None:
        # A rule that counts is about requests to come.
        when = armed.rule.when
        if not armed.retired and (when.first, when.every) == (1, 1) and armed.rule.effect.size is None:
            armed.hits += self.end_watches(armed.rule.match, armed.rule.effect.fault, armed.rule.text)

    def _rule_for(self, call: Call) -> Armed | None:
        met = [armed for armed in self._rules if armed.meets(call)]  # every rule counts
        if not met:
            return None
        met[0].hits += 1
        return met[0]

    def _silenced(self, call: Call) -> bool:
        return any(a.rule.effect.fault is Fault.HANG and a.is_open() and a.rule.match(call) for a in self._rules)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call = call_of(request.method, request.rel_url.raw_path, request.query)
        armed = self._rule_for(call)
        number = self._journal.begin(time.time(), call, armed.rule.text if armed else "")
        started = time.monotonic()
        try:
            return await self._serve(request, call, armed, number)
        finally:
            self._journal.change(number, seconds=time.monotonic() - started)
            self._journal.tell(number)

    async def _serve(self, request: web.Request, call: Call, armed: Armed | None, number: int) -> web.StreamResponse:
        effect = armed.rule.effect if armed is not None else None
        body = await request.read()
        if call.writes:
            self._journal.change(number, body=_json(body))
        if armed is not None and not armed.rule.effect.after:
            made = await self._disturb(request, call, armed)
            if made is not None:
                return self._answered(number, made)
        try:
            if call.verb == "watch":
                return await self._watch(request, call, effect, number)
            sending = asyncio.create_task(self._forward(request, body, number))
            self._writes.add(sending)
            sending.add_done_callback(self._writes.discard)
            response, content = await asyncio.shield(sending)
        except (ClientError, OSError, TimeoutError) as error:
            message = f"the fault proxy cannot reach the API server: {error or type(error).__name__}"
            return self._answered(number, _made(answer(502, call, message=message)))
        if call.writes:
            self._journal.change(number, version=_version(content))
        if armed is not None and armed.rule.effect.after:
            made = await self._disturb(request, call, armed)
            if made is not None:
                return self._answered(number, made)
        if effect is not None and effect.fault is Fault.CUT:
            return await self._cut(request, response, content, effect)
        return self._answered(number, web.Response(status=response.status, headers=_kept(response), body=content))

    async def _disturb(self, request: web.Request, call: Call, armed: Armed) -> web.Response | None:
        """Do what comes before or after the API server's part; return an answer of our own where there is to be one."""
        effect = armed.rule.effect
        match effect.fault:
            case Fault.DELAY:
                ends = time.monotonic() + (effect.seconds or 0.0)
                await _while_connected(request, lambda: time.monotonic() < ends)
            case Fault.HANG:
                await _while_connected(request, armed.is_open)
                return None if _connected(request) else _closed(request)
            case Fault.DROP:
                return _closed(request)
            case Fault.ANSWER:
                return _made(answer(effect.code, call, effect.reason, effect.message, effect.retry_after))
            case Fault.KILL:
                await _signal(effect.process, signal.SIGKILL)
                return _closed(request)
            case Fault.STOP:
                await _signal(effect.process, signal.SIGSTOP)
                await asyncio.sleep(effect.seconds or 0.0)
        return None

    def _answered(self, number: int, response: web.Response) -> web.Response:
        if not isinstance(response, _Closed):
            self._journal.change(number, code=response.status)
        return response

    async def _forward(self, request: web.Request, body: bytes, number: int) -> tuple[ClientResponse, bytes]:
        async with self._send(request, body) as response:
            content = await response.read()
        self._journal.change(number, upstream=response.status)
        return response, content

    def _send(self, request: web.Request, body: bytes) -> Any:
        assert self._client is not None
        url = URL(self._upstream.server + request.rel_url.raw_path_qs, encoded=True)
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP)
        headers.popall("Content-Length", None)
        if self._upstream.token:
            headers.setdefault("Authorization", f"Bearer {self._upstream.token}")
        return self._client.request(request.method, url, headers=headers, data=body or None, allow_redirects=False)

    async def _cut(
        self, request: web.Request, response: ClientResponse, content: bytes, effect: Effect
    ) -> web.StreamResponse:
        """Promise the whole answer, send a part of it, and close."""
        part = len(content) // 2 if effect.size is None else min(effect.size, len(content))
        headers = _kept(response)
        headers["Content-Length"] = str(max(len(content), part + 1))
        answer = web.StreamResponse(status=response.status, headers=headers)
        await answer.prepare(request)
        await answer.write(content[:part])
        await asyncio.sleep(_POLL)  # or the reset may overtake the part
        _close(request)
        return answer

    # --- watches ----------------------------------------------------------------------------------------------------

    async def _watch(self, request: web.Request, call: Call, effect: Effect | None, number: int) -> web.StreamResponse:
        async with self._send(request, b"") as response:
            self._journal.change(number, upstream=response.status, code=response.status)
            self._journal.tell(number)
            to_client = web.StreamResponse(status=response.status, headers=_kept(response))
            to_client.enable_chunked_encoding()
            await to_client.prepare(request)
            stream = _Stream(call, number)
            limit: int | None = None
            if effect is not None and effect.fault is Fault.GONE:
                stream.ending.set_result((Fault.GONE, ""))
            elif effect is not None and effect.fault is Fault.CUT:
                limit = effect.size or 0
            self._streams.add(stream)
            try:
                await self._stream(request, response, to_client, stream, limit)
            finally:
                self._streams.discard(stream)
            return to_client

    async def _stream(
        self,
        request: web.Request,
        response: ClientResponse,
        to_client: web.StreamResponse,
        stream: _Stream,
        limit: int | None,
    ) -> None:
        """Pass events on until the API server, the client, a limit or somebody else ends the watch."""
        passing = asyncio.create_task(self._pass_on(request, response, to_client, stream, limit))
        try:
            either: list[asyncio.Future[Any]] = [passing, stream.ending]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)
        if not stream.ending.done():
            return
        fault, why = stream.ending.result()
        if why:
            self._journal.change(stream.number, rule=why)
        if fault is Fault.GONE:
            await _quietly(to_client.write(gone_event(stream.call)))
            await _quietly(to_client.write_eof())
        else:
            _close(request)

    async def _pass_on(
        self,
        request: web.Request,
        response: ClientResponse,
        to_client: web.StreamResponse,
        stream: _Stream,
        limit: int | None,
    ) -> None:
        for count in itertools.count():
            if count == limit:
                stream.ending.set_result((Fault.CUT, ""))
                return
            reading = asyncio.ensure_future(response.content.readline())
            try:
                while not (await asyncio.wait({reading}, timeout=1.0))[0]:
                    if not _connected(request):
                        return
                line = reading.result()
            finally:
                reading.cancel()
            while self._silenced(stream.call):  # noqa: ASYNC110 - a time window opens and closes by itself
                await asyncio.sleep(_POLL)
            if not line or not await _quietly(to_client.write(line)):
                return
            self._journal.change(stream.number, events=count + 1)


class _Closed(web.Response):
    """Stands for an answer that is not given: the connection is closed."""


def _closed(request: web.Request) -> web.Response:
    _close(request)
    return _Closed()


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _connected(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


async def _while_connected(request: web.Request, lasts: Callable[[], bool]) -> None:
    while _connected(request) and lasts():  # noqa: ASYNC110 - neither a transport nor a time window has an event
        await asyncio.sleep(_POLL)


async def _quietly(sending: Any) -> bool:
    """Send something to a client that may be gone; say whether it was sent."""
    try:
        await sending
    except (ConnectionError, OSError):
        return False
    return True


async def _signal(process: Process | None, number: signal.Signals) -> None:
    """Send a signal, and wait until it has told: the process must not send another request."""
    pid = process() if process is not None else None
    record = Record.of(pid) if pid is not None else None
    if record is None or not record.signal(number):
        return
    deadline = time.monotonic() + _LAST_BREATH
    while not _halted(record) and time.monotonic() < deadline:  # noqa: ASYNC110 - a process has no event
        await asyncio.sleep(0.001)


def _halted(record: Record) -> bool:
    """Whether a process is stopped, or gone."""
    try:
        stat = Path(f"/proc/{record.pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "TXZ" or not record.alive()


def _made(content: Answer) -> web.Response:
    return web.Response(status=content.code, headers=content.headers, body=content.body)


def _kept(response: ClientResponse) -> CIMultiDict[str]:
    dropped = _HOP_BY_HOP | {"content-length"}
    return CIMultiDict((key, value) for key, value in response.headers.items() if key.lower() not in dropped)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _version(content: bytes) -> str:
    document = _json(content)
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return str((metadata or {}).get("resourceVersion") or "")
