"""Counts blocks of many rollouts by few queries, and takes the answers apart again.

Rollouts whose blocks begin and end together differ in host and version alone, so one query can name them all. Queries
are bounded in members, because a server bounds samples, and in text. When a query fails although the provider answers
others, some of its members are asked about alone; if those are answered, it is halved until those that fail are found:
a rollout whose host cannot be counted is then asked about alone for a while and blinds nobody, at a cost of a few
queries. Halves that both succeed were too large together; queries then stay smaller for a while.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, count, groupby
from typing import Final

import structlog

from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.adapters.prometheus_counts import (
    BadAnswer,
    Reading,
    Row,
    Rows,
    edge_problem,
    milliseconds_of,
    read_block,
    rows_by_host,
    rows_of,
)
from canaryrollout.adapters.prometheus_entry import Fetched, Job
from canaryrollout.adapters.prometheus_own import Asks
from canaryrollout.adapters.prometheus_queries import durations_query, edges_query, requests_query
from canaryrollout.domain.evidence import EvidenceRequest

MOST_MEMBERS: Final = 64
"""How many hosts one query names."""
MOST_POINTS: Final = 2_000
"""How many blocks, over all its hosts, one query counts."""
LONGEST_NAMES: Final = 8_000
"""How many characters the hosts and versions of one query have; a query repeats them about ten times."""
SAMPLES: Final = 2
"""How many members of a query that failed are asked about alone before it is halved."""
REMEMBERED: Final = 10
"""For how many blocks it is remembered that a host had to be asked about alone, or that queries were too large."""
_log = structlog.get_logger(__name__)

Verify = Callable[[QueryFailed, datetime], Awaitable[bool]]
"""Finds out whether the provider is there although a query failed; the time is that of the query."""


@dataclass(slots=True)
class _Budget:
    """How many more queries may go into finding out why one failed."""

    left: int


@dataclass(slots=True)
class _Set:
    """Hosts that are asked about apart from the others, until a time."""

    number: int
    until: datetime


@dataclass(slots=True)
class Counting:
    """Counts blocks on one provider.

    Attributes:
        server: The provider.
        answered: Is told of every answer.
        there: Finds out whether the provider is there although a query failed.
    """

    server: Asks
    answered: Callable[[], None]
    there: Verify
    _apart: dict[str, _Set] = field(default_factory=dict)
    _turn: int = 0
    _numbers: count[int] = field(default_factory=count)
    _largest: int = MOST_MEMBERS
    _largest_until: datetime | None = None

    async def count(self, jobs: Sequence[Job]) -> None:
        """Count the blocks of jobs that have the same window and newest end; each job gets its outcome.

        Args:
            jobs: The jobs.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for part in self._parts(jobs):
                    group.create_task(self._try(part, _Budget(4 * len(part).bit_length()), split=False))
        except* Exception as errors:  # noqa: BLE001 - a mistake of ours must show up as missing evidence
            _log.exception("evidence could not be counted", provider=self.server.provider.name)
            error = RuntimeError(f"the operator could not read the answer: {errors.exceptions[0]!r}")
            for job in jobs:
                job.outcome = job.outcome or error

    def forget(self) -> None:
        """Forget who was asked about apart: what failed may have been the provider."""
        self._apart.clear()
        self._largest, self._largest_until = MOST_MEMBERS, None

    def _parts(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Cut jobs into those that one query counts, in an order that does not depend on who asked first."""
        newest = jobs[0].stretch.ends[-1]
        self._apart = {host: kept for host, kept in self._apart.items() if kept.until > newest}
        if self._largest_until is not None and newest >= self._largest_until:
            self._largest, self._largest_until = MOST_MEMBERS, None
        groups: dict[int, list[Job]] = {}
        for job in sorted(jobs, key=lambda job: job.request.host):
            kept = self._apart.get(job.request.host)
            groups.setdefault(-1 if kept is None else kept.number, []).append(job)
        return [part for group in groups.values() for part in self._chunks(group)]

    def _chunks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Cut jobs, sorted by host, into about equal parts within the bounds."""
        points = max(len(job.stretch.ends) for job in jobs)
        most = max(min(self._largest, MOST_POINTS // points), 1)
        names = sum(len(name) for name in {n for job in jobs for n in _names(job.request)})
        hosts = [list(of_host) for _, of_host in groupby(jobs, key=lambda job: job.request.host)]
        chunks = max(math.ceil(len(hosts) / most), math.ceil(names / LONGEST_NAMES))
        size = math.ceil(len(hosts) / min(chunks, len(hosts)))
        return [list(chain.from_iterable(hosts[i : i + size])) for i in range(0, len(hosts), size)]

    async def _try(self, jobs: Sequence[Job], budget: _Budget, *, split: bool) -> bool:
        """Count jobs by one set of queries, or find out who keeps them from being counted.

        Args:
            jobs: The jobs; what goes wrong is their outcome.
            budget: How many more tries there may be.
            split: Whether they are part of what failed.

        Returns:
            Whether all went well at the first try.
        """
        newest = jobs[0].stretch.ends[-1]
        try:
            await self._ask(jobs)
        except QueryFailed as failure:
            if failure.outcome != "BadQuery" and not await self.there(failure, newest):
                return _all(jobs, failure)
            if failure.outcome == "BadQuery":
                self.answered()
            if not split and len(jobs) > SAMPLES and await self._fails_for_everybody(jobs):
                return _all(jobs, failure)
            if len(jobs) == 1 or budget.left < 2:
                if split or jobs[0].request.host in self._apart:
                    self._set_apart(jobs)
                return _all(jobs, failure)
        else:
            self.answered()
            return True
        budget.left -= 2
        half = len(jobs) // 2
        well = await asyncio.gather(
            self._try(jobs[:half], budget, split=True), self._try(jobs[half:], budget, split=True)
        )
        if all(well):
            self._largest = len(jobs) - half
            self._largest_until = newest + REMEMBERED * jobs[0].stretch.window
        return False

    async def _fails_for_everybody(self, jobs: Sequence[Job]) -> bool:
        """Return whether some of the jobs, others each time, fail alone as well: then it is nobody's own fault."""
        self._turn += 1
        samples = [jobs[(self._turn + i * len(jobs) // SAMPLES) % len(jobs)] for i in range(SAMPLES)]
        failures = await asyncio.gather(*(self._ask([job]) for job in samples), return_exceptions=True)
        return all(isinstance(failure, QueryFailed) for failure in failures)

    def _set_apart(self, jobs: Sequence[Job]) -> None:
        """Ask about hosts apart from the others for a while, which begins anew whenever that fails, too."""
        if not all(job.request.host in self._apart for job in jobs):
            hosts = sorted(job.request.host for job in jobs)
            _log.warning("hosts cannot be counted, asking about them apart", hosts=hosts[:3], number=len(hosts))
        number, until = next(self._numbers), jobs[0].stretch.ends[-1] + REMEMBERED * jobs[0].stretch.window
        for job in jobs:
            self._apart[job.request.host] = _Set(number, until)

    async def _ask(self, jobs: Sequence[Job]) -> None:
        """Count jobs by one query for requests, and one for durations where they are judged.

        Raises:
            QueryFailed: If a query was not answered, or not with what it asks for.
        """
        provider = self.server.provider
        window, ends = jobs[0].stretch.window, sorted({end for job in jobs for end in job.stretch.ends})
        timed = [job.request for job in jobs if job.request.slow_above is not None]
        texts = [requests_query([job.request for job in jobs], window, provider.labels, provider.scrape_interval)]
        if timed:
            texts.append(durations_query(timed, window, provider.labels, provider.scrape_interval))
        answers = await asyncio.gather(*(self._series(text, ends, window) for text in texts))
        warnings = tuple(dict.fromkeys(warning for _, found in answers for warning in found))
        requests, durations = answers[0][0], answers[1][0] if timed else {}
        for job in jobs:
            try:
                job.outcome = await self._read(job, requests, durations, warnings)
            except BadAnswer as error:
                job.outcome = error
            if len(ends) > 1:  # many blocks: others are let in between
                await asyncio.sleep(0)

    async def _series(
        self, query: str, ends: Sequence[datetime], step: timedelta
    ) -> tuple[Mapping[str, Rows | BadAnswer], tuple[str, ...]]:
        """Evaluate a query at each of ``ends``, by one range query where there are several.

        Some servers in front of Prometheus round the times of range queries to multiples of the step. Such an answer
        is of no use; the blocks are then asked for one by one.
        """
        label = self.server.provider.labels.service
        try:
            if len(ends) > 1:
                answer = await self.server.over(query, ends[0], ends[-1], step)
                hosts = rows_by_host(answer.result_type, answer.result, label)
                times = {milliseconds_of(end) for end in ends}
                if all(isinstance(rows, BadAnswer) or rows.keys() <= times for rows in hosts.values()):
                    return hosts, answer.warnings
            answers = [await self.server.at(query, end) for end in ends]
            found = [rows_by_host(answer.result_type, answer.result, label) for answer in answers]
        except BadAnswer as error:
            raise QueryFailed("BadAnswer", str(error)) from error
        return _merged(found), tuple(warning for answer in answers for warning in answer.warnings)

    async def _read(
        self,
        job: Job,
        requests: Mapping[str, Rows | BadAnswer],
        durations: Mapping[str, Rows | BadAnswer],
        warnings: tuple[str, ...],
    ) -> Fetched:
        """Read one job's blocks from the answers to its batch."""
        request, labels = job.request, self.server.provider.labels
        own, timed = _of(requests, request.host), _of(durations, request.host)
        readings: list[Reading] = []
        for end in job.stretch.ends:
            at, start = milliseconds_of(end), end - job.stretch.window
            rows: Sequence[Row] = timed.get(at, ()) if request.slow_above is not None else ()
            readings.append(read_block(request, labels, start, end, own.get(at, ()), rows, partial=bool(warnings)))
        problem = ""
        if readings[-1].lacks_edge:
            problem = job.entry.edge_problem or await self._edge_problem(request, job.stretch.ends[-1])
        return Fetched(tuple(readings), warnings, problem)

    async def _edge_problem(self, request: EvidenceRequest, at: datetime) -> str:
        return await threshold_problem(self.server, request.host, request.slow_above or timedelta(), at)


async def threshold_problem(server: Asks, host: str, threshold: timedelta, at: datetime) -> str:
    """Ask for a host's bucket edges and say why a latency threshold cannot be used.

    Args:
        server: The provider.
        host: Fully qualified service host.
        threshold: The latency threshold.
        at: The time to ask for.

    Returns:
        The problem, for people; empty where the threshold is an edge, or the host has no histogram.

    Raises:
        QueryFailed: If there is no answer.
        BadAnswer: If it cannot be read.
    """
    found = await server.at(edges_query(host, server.provider.labels), at)
    rows = rows_of(found.result_type, found.result).values()
    edges = [row.labels["le"] for at_once in rows for row in at_once if row.labels.get("le")]
    if not edges or any(float(edge) == threshold / timedelta(milliseconds=1) for edge in edges):
        return ""
    return edge_problem(threshold, edges)


def _all(jobs: Sequence[Job], failure: QueryFailed) -> bool:
    for job in jobs:
        if not isinstance(job.outcome, Fetched):
            job.outcome = failure
    return False


def _names(request: EvidenceRequest) -> tuple[str, str, str]:
    return request.host, request.stable, request.canary


def _of(hosts: Mapping[str, Rows | BadAnswer], host: str) -> Rows:
    rows = hosts.get(host, {})
    if isinstance(rows, BadAnswer):
        raise rows
    return rows


def _merged(found: Sequence[Mapping[str, Rows | BadAnswer]]) -> Mapping[str, Rows | BadAnswer]:
    """Put answers at different times together; what cannot be read at one time spoils its host alone."""
    merged: dict[str, Rows | BadAnswer] = {}
    for hosts in found:
        for host, rows in hosts.items():
            before = merged.get(host, {})
            if isinstance(before, BadAnswer) or isinstance(rows, BadAnswer):
                merged[host] = before if isinstance(before, BadAnswer) else rows
            else:
                merged[host] = {**before, **rows}
    return merged
