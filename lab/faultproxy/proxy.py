"""The proxy for tests: runs in a thread with an event loop of its own, and is told what to do while it runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from aiohttp import web

from lab.faultproxy.journal import Entry, Journal
from lab.faultproxy.rules import Fault, Match, Process, Rule, parse
from lab.faultproxy.server import Armed, Proxy
from lab.faultproxy.upstream import pointing_to, read_kubeconfig
from lab.ports import LOOPBACK

_T = TypeVar("_T")
_START_SECONDS: Final = 10.0
_POLL: Final = 0.005


async def serve(proxy: Proxy, port: int = 0) -> tuple[web.AppRunner, str]:
    """Serve on loopback; return what is to be cleaned up, and the base URL."""
    runner = web.AppRunner(proxy.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    return runner, f"http://{LOOPBACK}:{runner.addresses[0][1]}"


class FaultProxy:
    """A proxy in front of an API server; a context manager, with or without ``async``.

    Args:
        kubeconfig: Where the API server is, and with which credentials it is asked where the client brings none.
        rules: Rules from the start.
        port: Where to listen on loopback; any free port when 0.
        on_entry: See `Journal`; called in the proxy's thread.

    Attributes:
        journal: What went through.
    """

    def __init__(
        self,
        kubeconfig: Path,
        *rules: str,
        port: int = 0,
        on_entry: Callable[[Entry], None] | None = None,
    ) -> None:
        self.journal = Journal(on_entry)
        self._upstream = read_kubeconfig(kubeconfig)
        self._first_rules = [parse(rule) for rule in rules]
        self._port = port
        self._proxy = Proxy(self._upstream, self.journal)
        self._started: Future[tuple[asyncio.AbstractEventLoop, str]] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(_START_SECONDS)
        for rule in self._first_rules:
            self.arm(rule)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._end)

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return self._started.result(_START_SECONDS)[1]

    def kubeconfig(self, path: Path, token: str = "") -> Path:
        """Write a kubeconfig that leads through the proxy, and return its path.

        Args:
            path: Where to.
            token: The client's own token; the proxy's credentials are used where there is none.
        """
        path.write_text(pointing_to(self.url, token))
        return path

    def rule(self, text: str, process: Process | None = None) -> Armed:
        """Put a rule in force, see `lab.faultproxy.rules.GRAMMAR`; ``process`` is whom to kill or stop.

        Raises:
            RuleError: It makes no sense.
        """
        return self.arm(parse(text, process))

    def arm(self, rule: Rule) -> Armed:
        """Put a rule in force."""
        return self._run(lambda: self._proxy.arm(rule))

    def retire(self, *rules: Armed) -> None:
        """Take rules back."""
        for armed in rules:
            self._run(lambda armed=armed: self._proxy.retire(armed))  # type: ignore[misc]

    def calm(self) -> None:
        """Take all rules back."""
        self._run(self._proxy.calm)

    def end_watches(self, resource: str = "", *, gone: bool = False) -> int:
        """Cut the watches under way, or end them with 410 Expired, and return how many there were."""
        fault = Fault.GONE if gone else Fault.CUT
        return self._run(lambda: self._proxy.end_watches(Match(resource=resource), fault))

    def wait(self, armed: Armed, within: float, hits: int = 1) -> None:
        """Wait until a rule has disturbed so many requests.

        Raises:
            TimeoutError: It has not within so many seconds.
        """
        deadline = time.monotonic() + within
        while armed.hits < hits:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the rule {armed.rule.text!r} has met {armed.hits} of {hits} requests")
            time.sleep(_POLL)

    def entries(self, *kinds: str, since: int = 0) -> list[Entry]:
        """Entries of the journal whose verb and resource are among ``kinds`` (all where none is named)."""
        wanted: Iterable[str] = frozenset(kinds)
        return self.journal.entries((lambda call: call.kind in wanted) if kinds else None, since)

    def _run(self, function: Callable[[], _T]) -> _T:
        async def run() -> _T:
            return function()

        loop, _ = self._started.result(_START_SECONDS)
        return asyncio.run_coroutine_threadsafe(run(), loop).result(_START_SECONDS)

    async def _live(self) -> None:
        try:
            runner, url = await serve(self._proxy, self._port)
        except OSError as error:
            self._started.set_exception(error)
            return
        self._started.set_result((asyncio.get_running_loop(), url))
        await self._stop.wait()
        await runner.cleanup()

    def _end(self) -> None:
        loop, _ = self._started.result(_START_SECONDS)
        loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
