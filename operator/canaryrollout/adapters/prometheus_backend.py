"""One provider at work: what is due of all its rollouts is sent together, and it is left alone while it is away.

Rollouts are looked at one after the other although their blocks end at the same time. So the first one that finds a
block due only starts a short gathering; what is then due of *all* rollouts that were asked about of late goes out
together. While the circuit is open nothing goes out but one harmless query now and then; when that is answered,
everything due is fetched at once, many blocks of many rollouts by few range queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from canaryrollout.adapters.prometheus_batch import Counting
from canaryrollout.adapters.prometheus_breaker import Availability, Breaker
from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.adapters.prometheus_entry import LIVE_AT_LEAST, Entry, Job
from canaryrollout.adapters.prometheus_own import Asks
from canaryrollout.adapters.prometheus_preflight import look
from canaryrollout.adapters.prometheus_provider import Provider
from canaryrollout.adapters.turns import Turns
from canaryrollout.domain.evidence import EvidenceRequest, Preflight, PreflightRequest

GATHER: Final = 0.05
"""For how many seconds due work is gathered before it is sent."""
HARMLESS: Final = "vector(1)"
"""A query that every server that is there can answer."""
UNCLEAR: Final = frozenset({"Timeout", "ServerError", "BadAnswer"})
"""Outcomes that may be the query's fault as well as the provider's."""
PATIENCE: Final = 5.0
"""How many seconds it has for that."""

_log = structlog.get_logger(__name__)

Entries = MutableMapping[EvidenceRequest, Entry]


class Backend:
    """Fetches what is due from one provider. All methods belong to one event loop.

    Args:
        server: The provider.
        entries: What its rollouts ask for; shared with who keeps it.
        availability: Shows whether it answers.

    Attributes:
        server: The provider.
        breaker: Whether it is away.
        own_places: How many of the users' own queries may be under way at once, namespaces in turn.
    """

    def __init__(self, server: Asks, entries: Entries, availability: Availability) -> None:
        self.server = server
        self.breaker = Breaker()
        self.own_places = Turns(max(server.provider.concurrency // 2, 1))
        self._entries = entries
        self._availability = availability
        self._counting = Counting(server, self._answered, self._there)
        self._told = datetime.fromtimestamp(0, UTC)
        self._told_at = 0.0
        self._gathering: asyncio.TimerHandle | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def provider(self) -> Provider:
        """Return what the administrator says about the provider."""
        return self.server.provider

    def ask(self, entry: Entry, now: datetime) -> None:
        """See to it that what is due of an entry is fetched.

        Args:
            entry: The entry.
            now: The present time.
        """
        self.tell(now)
        if entry.due(now, self.provider.lag):
            if self.breaker.is_open:
                self._away(entry, now)
                self._recover()
            else:
                self._gather(GATHER)
        if not self.breaker.is_open and entry.own.due(now, self.provider.lag):
            entry.own.asking = True
            self.start(self._ask_own(entry, now))

    async def preflight(self, request: PreflightRequest) -> Preflight:
        """Find out what has to be known before traffic moves, unless the provider is away.

        Args:
            request: What has to be known.

        Returns:
            The answer, or why there is none.
        """
        now = self.now()
        if self.breaker.is_open:
            self._recover()
            return Preflight(request, error=self.breaker.reason, error_since=self.breaker.since)
        try:
            answer = await look(self.server, request, now, self.own_places.of(request.namespace))
        except QueryFailed as failure:
            await self._there(failure, now)
            return Preflight(request, error=str(failure), error_since=self.breaker.since)
        self._answered()
        return answer

    def tell(self, now: datetime) -> None:
        """Take the present time from a caller."""
        self._told, self._told_at = now, asyncio.get_running_loop().time()

    def now(self) -> datetime:
        """Return the present time, by what callers said last and what has passed since."""
        return self._told + timedelta(seconds=asyncio.get_running_loop().time() - self._told_at)

    def stop(self) -> None:
        """Give up what is under way at once; entries may be fetched by somebody else from now on."""
        if self._gathering is not None:
            self._gathering.cancel()
        for task in self._tasks:
            task.cancel()
        for entry in self._entries.values():
            entry.jobs, entry.own.asking = (), False

    async def close(self) -> None:
        """Release threads and connections, after `stop`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.close()

    def _gather(self, seconds: float) -> None:
        """Send what is due after some seconds, or earlier where that is already planned."""
        loop = asyncio.get_running_loop()
        if self._gathering is not None:
            if self._gathering.when() <= loop.time() + seconds:
                return
            self._gathering.cancel()
        self._gathering = loop.call_later(seconds, self._send)

    def _send(self) -> None:
        """Fetch what is due of all entries that were asked about of late."""
        self._gathering = None
        if self.breaker.is_open:
            return
        now = self.now()
        groups: dict[tuple[timedelta, bool, datetime], list[Job]] = {}
        for entry in self._entries.values():
            if entry.live(now) and (stretches := entry.due(now, self.provider.lag)):
                entry.jobs = tuple(Job(entry, stretch) for stretch in stretches)
                for job in entry.jobs:
                    ends = job.stretch.ends
                    groups.setdefault((job.stretch.window, len(ends) > 1, ends[-1]), []).append(job)
        for group in groups.values():
            self.start(self._count(group))

    async def _count(self, jobs: list[Job]) -> None:
        """Count jobs of many entries, and tell who asked."""
        await self._counting.count(jobs)
        now = self.now()
        for entry in {id(job.entry): job.entry for job in jobs}.values():
            if entry.settle(now, self.breaker.since):
                entry.wake()
            if entry.failures and entry.not_before is not None:
                self._gather(max((entry.not_before - now).total_seconds(), GATHER))

    async def _ask_own(self, entry: Entry, now: datetime) -> None:
        await entry.own.ask(self.server, now, self.own_places.of(entry.request.namespace))
        entry.wake()

    # --- whether the provider is there ------------------------------------------------------------------------------

    async def _there(self, failure: QueryFailed, at: datetime) -> bool:
        """Return whether the provider answers others than the query that failed."""
        if failure.outcome not in UNCLEAR or failure.retry_after is not None:
            self._failed(failure)
            return False
        silence = await self._silence(at)
        if silence is None:
            self._answered()
            return True
        self._failed(failure)
        self._failed(silence)
        return False

    async def _silence(self, at: datetime) -> QueryFailed | None:
        """Return why the provider does not answer a harmless query; ``None`` when it does."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.server.at(HARMLESS, at)
        except TimeoutError:
            return QueryFailed("Timeout", f"{self.provider.url} does not answer within {PATIENCE:g} s")
        except QueryFailed as failure:
            return failure
        return None

    def _answered(self) -> None:
        self.breaker.succeeded()
        self._availability.show(self.provider.name, up=True)

    def _failed(self, failure: QueryFailed) -> None:
        if failure.outcome == "NoCredentials":  # nothing was asked
            return
        closed = not self.breaker.is_open
        self.breaker.failed(failure, self.now())
        self._availability.show(self.provider.name, up=not self.breaker.is_open)
        if not (closed and self.breaker.is_open):
            return
        _log.warning("provider is away", provider=self.provider.name, error=self.breaker.reason)
        self._counting.forget()
        now = self.now()
        for entry in self._entries.values():
            if entry.live(now) and entry.due(now, self.provider.lag):
                self._away(entry, now)
        self._recover()

    def _away(self, entry: Entry, now: datetime) -> None:
        """Say in an entry that the provider is away, and since when."""
        before = entry.error
        entry.fail(self.breaker.reason, now, self.breaker.since)
        if entry.error != before:
            entry.wake()

    def _recover(self) -> None:
        if self._recovering is None or self._recovering.done():
            self._recovering = self.start(self._until_back())

    async def _until_back(self) -> None:
        """Ask now and then whether the provider is back, as long as anybody needs it; then fetch everything due."""
        while self.breaker.is_open and self._needed():
            await asyncio.sleep(self.breaker.pause)
            silence = await self._silence(self.now())
            if silence is None:
                self._answered()
            else:
                self._failed(silence)
        if not self.breaker.is_open:
            _log.info("provider is back", provider=self.provider.name)
            for entry in self._entries.values():
                entry.retry_now()
            self._send()

    def _needed(self) -> bool:
        """Return whether somebody has asked for something of late."""
        now = self.now()
        return now - self._told <= LIVE_AT_LEAST or any(entry.live(now) for entry in self._entries.values())

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that ends with the provider's use."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
