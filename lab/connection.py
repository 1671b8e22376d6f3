"""One HTTP/1.1 connection that stays open and never repeats a request.

The load generator exists to find out whether a single request is lost, so it must know exactly what became of each.
General-purpose clients repeat an idempotent request by themselves when a reused connection turns out to be closed
(aiohttp does, without a public switch), which would hide precisely the losses looked for. This client is small enough
to be read whole: it sends bytes once, and either an answer comes back or a ``LostRequestError`` says why not.

A connection that the server closes *between* two requests is no loss. The event loop sees the close as soon as it
arrives, and the pool then forgets the connection; it also prefers the connection used last and drops those idle for
longer than ``IDLE_SECONDS``, which is shorter than any sensible server's idle timeout, and honors ``Connection:
close``. What remains is a close that crosses a request on the wire. Whether the server had begun to work on it cannot
be known, so it is counted as lost, with the reason ``closed before an answer (reused connection)`` that tells it from
the same on a fresh connection: nothing is repeated and nothing is explained away.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, NamedTuple

IDLE_SECONDS: Final = 15.0
"""A connection unused for longer is closed rather than trusted."""

REASON_BYTES: Final = 80
"""How much of a body is kept: enough for Envoy's own error texts."""


class Answer(NamedTuple):
    """What is kept of an HTTP answer: status, the headers asked for (lower-case names), and the body's beginning."""

    status: int
    headers: dict[str, str]
    text: str


class _Head(NamedTuple):
    """An answer's head while its body is awaited."""

    status: int
    headers: dict[str, str]
    length: int  # of the body, or one of the two below
    closing: bool


_CHUNKED: Final = -1
_UNTIL_CLOSED: Final = -2


class LostRequestError(Exception):
    """A request got no answer; the message is a short reason that reports count by."""


class Connection(asyncio.Protocol):
    """A client connection with at most one request under way.

    Args:
        keep: Lower-case names of the answer's headers to hand out.
    """

    def __init__(self, keep: frozenset[str]) -> None:
        self.closed = False
        self.used = 0
        self.idle_since = 0.0
        self._keep = keep
        self._buffer = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._head: _Head | None = None

    async def request(self, data: bytes, timeout_seconds: float) -> Answer:
        """Send one request and wait for its whole answer.

        Raises:
            LostRequestError: The connection broke, the answer made no sense, or it took too long.
        """
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self.used += 1
        self._transport.write(data)
        timer = loop.call_later(timeout_seconds, self._fail, f"no answer within {timeout_seconds:g} s")
        try:
            return await self._answer
        finally:
            timer.cancel()
            self._answer = None
            self.idle_since = loop.time()

    def close(self) -> None:
        """Close at once; a request under way is lost."""
        self.closed = True
        self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands (asyncio has set TCP_NODELAY on it)."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A piece of an answer; bytes that nobody asked for make the connection useless."""
        if self._answer is None:
            self.close()
            return
        self._buffer += data
        try:
            self._parse()
        except ValueError as error:
            self._fail(f"unreadable answer: {error}")

    def eof_received(self) -> None:
        """The server will send no more."""
        self.closed = True
        if self._head is not None and self._head.length == _UNTIL_CLOSED:
            self._finish(self._head, bytes(self._buffer))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and a request under way with it."""
        self.closed = True
        where = "reused" if self.used > 1 else "fresh"
        how = type(exc).__name__ if exc else "closed"
        self._fail(f"{how} before an answer ({where} connection)")

    # --- Parsing --------------------------------------------------------------------------------------------------

    def _parse(self) -> None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = self._read_head(bytes(self._buffer[:end]).decode("latin-1"))
            del self._buffer[: end + 4]
        head = self._head
        if head.length == _CHUNKED:
            if (body := _dechunk(self._buffer)) is not None:
                self._finish(head, body)
        elif head.length != _UNTIL_CLOSED and len(self._buffer) >= head.length:
            self._finish(head, bytes(self._buffer[: head.length]))

    def _read_head(self, text: str) -> _Head:
        first, *lines = text.split("\r\n")
        status = int(first[9:12])
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if "chunked" in headers.get("transfer-encoding", ""):
            length = _CHUNKED
        elif status in (204, 304):
            length = 0
        else:
            length = int(headers.get("content-length", _UNTIL_CLOSED))
        closing = headers.get("connection", "").lower() == "close" or length == _UNTIL_CLOSED
        return _Head(status, {name: headers[name] for name in self._keep if name in headers}, length, closing)

    def _finish(self, head: _Head, body: bytes) -> None:
        self._head = None
        self._buffer.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(head.status, head.headers, body[:REASON_BYTES].decode("utf-8", "replace")))
        if head.closing:
            self.close()

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LostRequestError(reason))
        if not self.closed:
            self.close()


def _dechunk(data: bytearray) -> bytes | None:
    """The whole body of a chunked answer, or None while parts of it are missing."""
    body, position = bytearray(), 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:end].split(b";")[0], 16)
        if size == 0:
            return bytes(body) if data.find(b"\r\n\r\n", end) >= 0 else None
        body += data[end + 2 : end + 2 + size]
        position = end + 2 + size + 2
    return None


class Pool:
    """Connections to one address, never more than ``limit`` of them.

    Args:
        host: IP address to connect to.
        port: Its port.
        limit: Most connections at a time.
        keep: Lower-case names of the headers that answers hand out.
    """

    def __init__(self, host: str, port: int, limit: int, keep: frozenset[str]) -> None:
        self.limit = limit
        self.open = 0
        self._address = (host, port)
        self._keep = keep
        self._idle: list[Connection] = []

    @property
    def exhausted(self) -> bool:
        """Whether the next request would need one connection more than the limit allows."""
        self._prune()
        return not self._idle and self.open >= self.limit

    async def acquire(self, timeout_seconds: float) -> Connection:
        """An open connection: the one used last, else a new one.

        Raises:
            LostRequestError: No connection could be made.
        """
        self._prune()
        if self._idle:
            return self._idle.pop()
        self.open += 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await loop.create_connection(lambda: Connection(self._keep), *self._address)
        except BaseException as error:
            self.open -= 1
            if isinstance(error, OSError):  # TimeoutError is one
                raise LostRequestError(f"cannot connect: {type(error).__name__}") from None
            raise
        return connection

    def release(self, connection: Connection) -> None:
        """Give a connection back, or let it go if it is closed."""
        if connection.closed:
            self.open -= 1
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close all idle connections."""
        for connection in self._idle:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and the connection with it
                connection.close()
        self.open -= len(self._idle)
        self._idle.clear()

    def _prune(self) -> None:
        """Forget what the server closed, and what nobody used for long; the oldest are in front."""
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        if self._idle and (self._idle[0].idle_since < oldest or any(c.closed for c in self._idle)):
            for connection in self._idle:
                if connection.idle_since < oldest and not connection.closed:
                    connection.close()
            kept = [connection for connection in self._idle if not connection.closed]
            self.open -= len(self._idle) - len(kept)
            self._idle = kept
