"""The metrics source on Prometheus: evidence is fetched in the background and kept, block by block.

No decision waits for Prometheus. Whoever asks gets what is at hand; asking is also what keeps the fetching going, so
that a rollout nobody looks at costs no query. Each request has its own grid of blocks from its start on; a block is
asked for once its end is as far back as the provider lags, many blocks (after a restart) by a range query at once.
What was fetched is never fetched again, except blocks that came with a warning: their counts may be partial, and are
replaced by the next answer without one. Queries of the user's own run beside the built-in ones and never delay them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus_client import Metrics, PrometheusClient, Provider, QueryFailed
from canaryrollout.adapters.prometheus_counts import (
    BadAnswer,
    Reading,
    Rows,
    edge_problem,
    milliseconds_of,
    read_block,
    rows_of,
    value_of,
)
from canaryrollout.adapters.prometheus_queries import durations_query, edges_query, own_query, requests_query
from canaryrollout.domain.evidence import Block, Evidence, EvidenceRequest, MetricValue

__all__ = ["PrometheusSource", "Provider"]

MAX_BLOCKS: Final = 100
"""How many blocks one answer may bring; more are fetched one answer after the other."""
MAX_PROVISIONAL: Final = 50
"""How many blocks that came with a warning are kept for another try; older ones stay, with their warning."""
MAX_NOTES: Final = 3
FIRST_RETRY: Final = timedelta(seconds=1)
KEPT_INTERVALS: Final = 20
KEPT_AT_LEAST: Final = timedelta(minutes=5)
SWEEP_EVERY: Final = timedelta(minutes=1)

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    """What is known about one request.

    Attributes:
        request: The request, its ``until`` the newest asked for.
        wake: Whom to tell, as of the last asking.
        asked_at: When it was asked for last.
        blocks: Blocks that will not change.
        provisional: Blocks after them that came with a warning.
        warnings: Warnings about the provisional blocks.
        own_warnings: Warnings about the user's own queries.
        kept_warnings: Warnings about blocks that were provisional too long.
        notes: Remarks on the blocks.
        metrics: Newest values of the user's own queries.
        error: Why the last fetch failed.
        error_since: Since when fetches fail.
        failures: How many failed in a row.
        not_before: When to try again.
        fetching: The fetch of blocks under way.
        asking: The fetch of the user's own values under way.
    """

    request: EvidenceRequest
    wake: Callable[[], None]
    asked_at: datetime
    blocks: tuple[Block, ...] = ()
    provisional: tuple[Block, ...] = ()
    warnings: tuple[str, ...] = ()
    own_warnings: tuple[str, ...] = ()
    kept_warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    error: str = ""
    error_since: datetime | None = None
    failures: int = 0
    not_before: datetime | None = None
    fetching: asyncio.Task[None] | None = None
    asking: asyncio.Task[None] | None = None

    def evidence(self) -> Evidence | None:
        """Return what is at hand; ``None`` when nothing was fetched yet."""
        if not self.blocks and not self.provisional and not self.error:
            return None
        return Evidence(
            request=self.request,
            blocks=self.blocks + self.provisional,
            error=self.error,
            error_since=self.error_since,
            warnings=tuple(dict.fromkeys(self.kept_warnings + self.warnings + self.own_warnings)),
            notes=self.notes,
            metrics=self.metrics,
        )

    def due(self, now: datetime, lag: timedelta) -> tuple[datetime, ...]:
        """Return the ends of the blocks to fetch now, oldest first; empty when there is nothing new to learn."""
        interval = self.request.interval
        start = self.blocks[-1].end if self.blocks else self.request.start
        latest = now - lag if self.request.until is None else min(now - lag, self.request.until)
        count = min(max((latest - start) // interval, 0), MAX_BLOCKS)
        return tuple(start + (k + 1) * interval for k in range(count))


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What one fetch brought; ``problem`` is a lasting mistake that leaves the counts of requests usable."""

    readings: tuple[Reading, ...]
    warnings: tuple[str, ...]
    problem: str = ""


class PrometheusSource:
    """Implements the engine's ``MetricsSource`` on the providers that the administrator defined.

    All methods belong to one event loop.
    """

    def __init__(self, providers: Mapping[str, Provider], registry: CollectorRegistry) -> None:
        self._providers = dict(providers)
        self._metrics = Metrics(registry)
        self._clients: dict[str, PrometheusClient] = {}
        self._entries: dict[EvidenceRequest, _Entry] = {}
        self._swept_at: datetime | None = None

    def latest(self, request: EvidenceRequest, now: datetime, wake: Callable[[], None]) -> Evidence | None:
        """Return the newest evidence at hand and see to it that due blocks are fetched.

        Args:
            request: What to count.
            now: The present time.
            wake: Called from the event loop when newer evidence (or an error) has come in.

        Returns:
            The evidence so far, or ``None`` when nothing was fetched yet.
        """
        self._sweep(now)
        provider = self._providers.get(request.provider)
        key = replace(request, until=None)
        entry = self._entries.setdefault(key, _Entry(request, wake, now))
        entry.request, entry.wake, entry.asked_at = request, wake, now
        if provider is None:
            defined = ", ".join(sorted(self._providers)) or "none"
            entry.error = f"analysis.provider {request.provider} is not defined here; defined are: {defined}"
            entry.error_since = entry.error_since or now
        elif entry.fetching is None and (entry.not_before is None or now >= entry.not_before):
            self._start(entry, provider, now)
        return entry.evidence()

    def _start(self, entry: _Entry, provider: Provider, now: datetime) -> None:
        """Fetch what is due, if anything is."""
        ends = entry.due(now, provider.lag)
        if not ends:
            return
        loop = asyncio.get_running_loop()
        client = self._client(provider)
        entry.fetching = loop.create_task(_fetch(entry, client, ends, now))
        if entry.request.queries and entry.asking is None:
            entry.asking = loop.create_task(_ask(entry, client, ends[-1]))

    async def close(self) -> None:
        """Give up what is under way and release threads and connections."""
        tasks = [
            task for entry in self._entries.values() for task in (entry.fetching, entry.asking) if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.close()

    def _sweep(self, now: datetime) -> None:
        """Forget requests that nobody has asked for in a while."""
        if self._swept_at is not None and timedelta() <= now - self._swept_at < SWEEP_EVERY:
            return
        self._swept_at = now
        for key, entry in list(self._entries.items()):
            if now - entry.asked_at > max(KEPT_INTERVALS * key.interval, KEPT_AT_LEAST) and entry.fetching is None:
                del self._entries[key]

    def _client(self, provider: Provider) -> PrometheusClient:
        """Return the provider's client, made when it is first needed."""
        client = self._clients.get(provider.name)
        if client is None:
            client = self._clients[provider.name] = PrometheusClient(provider, self._metrics)
        return client


async def _fetch(entry: _Entry, client: PrometheusClient, ends: Sequence[datetime], now: datetime) -> None:
    """Fetch blocks into an entry and wake whoever asked, unless all it brought is the same error again."""
    error = entry.error
    try:
        fetched = await _blocks(entry.request, client, ends)
    except (QueryFailed, BadAnswer) as failure:
        _failed(entry, str(failure), now)
        news = entry.error != error
    except Exception as failure:  # noqa: BLE001 - a mistake in reading answers must show up as missing evidence
        _log.exception("evidence could not be read", host=entry.request.host, provider=client.provider.name)
        _failed(entry, f"the operator could not read the answer: {failure!r}", now)
        news = entry.error != error
    else:
        _arrived(entry, fetched, now)
        news = True
    finally:
        entry.fetching = None
    if news:
        entry.wake()


async def _ask(entry: _Entry, client: PrometheusClient, at: datetime) -> None:
    """Fetch the values of the user's own queries into an entry and wake whoever asked."""
    try:
        queries = entry.request.queries
        values = await asyncio.gather(*(_own_value(client, entry.request, name, text, at) for name, text in queries))
        entry.metrics = {name: value for (name, _), (value, _) in zip(queries, values, strict=True)}
        entry.own_warnings = tuple(warning for _, warnings in values for warning in warnings)
    finally:
        entry.asking = None
    entry.wake()


async def _blocks(request: EvidenceRequest, client: PrometheusClient, ends: Sequence[datetime]) -> _Fetched:
    """Fetch the blocks that end at ``ends``: one query for requests, and one for durations where they are judged."""
    labels, scrape_interval = client.provider.labels, client.provider.scrape_interval
    texts = [requests_query(request, labels, scrape_interval)]
    if request.slow_above is not None:
        texts.append(durations_query(request, labels, scrape_interval))
    answers = await asyncio.gather(*(_series(client, text, ends, request.interval) for text in texts))
    rows = [rows for rows, _ in answers]
    durations: Rows = rows[1] if len(rows) > 1 else {}
    readings = []
    for end in ends:
        at = milliseconds_of(end)
        readings.append(read_block(request, labels, end, rows[0].get(at, ()), durations.get(at, ())))
    warnings = tuple(dict.fromkeys(warning for _, warnings in answers for warning in warnings))
    problem = await _edge_problem(request, client, ends[-1]) if readings[-1].lacks_edge else ""
    return _Fetched(tuple(readings), warnings, problem)


async def _edge_problem(request: EvidenceRequest, client: PrometheusClient, at: datetime) -> str:
    found = await client.at(edges_query(request, client.provider.labels), at)
    rows = rows_of(found.result_type, found.result).values()
    edges = [row.labels["le"] for at_once in rows for row in at_once if row.labels.get("le")]
    return edge_problem(request.slow_above or timedelta(), edges)


async def _series(
    client: PrometheusClient, query: str, ends: Sequence[datetime], step: timedelta
) -> tuple[Rows, tuple[str, ...]]:
    """Evaluate a query at each of ``ends``, by one range query where there are several.

    Some servers in front of Prometheus round the times of range queries to multiples of the step. Such an answer is of
    no use; the blocks are then asked for one by one.
    """
    if len(ends) > 1:
        answer = await client.over(query, ends[0], ends[-1], step)
        rows = rows_of(answer.result_type, answer.result)
        if rows.keys() <= {milliseconds_of(end) for end in ends}:
            return rows, answer.warnings
    answers = [await client.at(query, end) for end in ends]
    merged = {at: found for answer in answers for at, found in rows_of(answer.result_type, answer.result).items()}
    return merged, tuple(warning for answer in answers for warning in answer.warnings)


async def _own_value(
    client: PrometheusClient, request: EvidenceRequest, name: str, text: str, at: datetime
) -> tuple[MetricValue, tuple[str, ...]]:
    """Ask a query of the user's own; what goes wrong is said in the value."""
    try:
        answer = await client.at(own_query(text, request), at)
    except ValueError as error:
        return MetricValue(None, at, str(error), "BadQuery"), ()
    except QueryFailed as error:
        reason = "BadQuery" if error.outcome == "BadQuery" else "ProviderError"
        return MetricValue(None, at, str(error), reason), ()
    return value_of(answer.result_type, answer.result, at), tuple(f"{name}: {text}" for text in answer.warnings)


def _arrived(entry: _Entry, fetched: _Fetched, now: datetime) -> None:
    blocks = tuple(reading.block for reading in fetched.readings)
    notes = dict.fromkeys([*entry.notes, *(note for reading in fetched.readings for note in reading.notes)])
    entry.notes = tuple(notes)[-MAX_NOTES:]
    entry.warnings = fetched.warnings
    if fetched.warnings:
        kept = max(len(blocks) - MAX_PROVISIONAL, 0)
        entry.blocks += blocks[:kept]
        entry.provisional = blocks[kept:]
        entry.kept_warnings = fetched.warnings if kept else entry.kept_warnings
        entry.not_before = now + entry.request.interval
    else:
        entry.blocks += blocks
        entry.provisional = ()
        entry.not_before = None
    entry.failures = 0
    entry.error = fetched.problem
    entry.error_since = (entry.error_since or now) if fetched.problem else None


def _failed(entry: _Entry, message: str, now: datetime) -> None:
    entry.error = message
    entry.error_since = entry.error_since or now
    pause = min(FIRST_RETRY * 2 ** min(entry.failures, 10), max(entry.request.interval, FIRST_RETRY))
    entry.not_before = now + pause
    entry.failures += 1
