"""Evidence as the core sees it: counts of requests in blocks of time.

A block is the smallest unit of evidence. Plain thresholds sum blocks, sequential tests and dispersion estimates need
them apart, so a metrics source always returns them apart. The same request always names the same blocks, whoever asks
and however often: the first begins where the request does, and all end on a grid that every rollout with the same
interval shares (multiples of the interval since the epoch), so that one query can count for many of them. The first
block is therefore shorter than the others, or as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final, overload

from canaryrollout.api.status import Counts

NO_COUNTS: Final = Counts()
KEPT_BLOCKS: Final = 2880
"""How many blocks of a long step are counted at least, and fewer than twice as many at most: 8 to 16 hours at intervals
of 10 s. It bounds what a step costs: 4 MiB, and a second to weigh all of it after a restart."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OwnQuery:
    """A query of the user's own, variables not yet filled in.

    Attributes:
        name: Name of the gate.
        text: PromQL about the canary.
        baseline: PromQL that answers with the number to compare with; empty where nothing is compared.
    """

    name: str
    text: str
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceRequest:
    """What to count, and since when.

    Attributes:
        provider: Name of the administrator's provider.
        namespace: Namespace of the rollout (and of its host).
        host: Fully qualified service host, such as ``reviews.shop.svc.cluster.local``.
        stable: Version that serves, as its workloads' version label says.
        canary: Version that is judged.
        version_label: Workload label that tells versions apart.
        start: Where the first block begins.
        interval: Length of a block, but for the first.
        until: End of the one block that is asked for; ``None`` for blocks on the shared grid without an end.
        slow_above: Latency threshold; ``None`` when latency is not judged.
        server_faults: gRPC statuses that blame the server.
        queries: The user's own queries.
        weight: Canary weight in force, for the user's own queries.
    """

    provider: str
    namespace: str
    host: str
    stable: str
    canary: str
    version_label: str
    start: datetime
    interval: timedelta
    until: datetime | None = None
    slow_above: timedelta | None = None
    server_faults: tuple[int, ...] = (2, 4, 12, 13, 14, 15)
    queries: tuple[OwnQuery, ...] = ()
    weight: int = 0

    def first_end(self) -> datetime:
        """Return the end of the first block."""
        return self.until if self.until is not None else after(self.start, self.interval)

    def first_kept(self, now: datetime) -> datetime:
        """Return where the evidence begins that is kept: at the start, or in a very long step later.

        A step may last for weeks, with a block for every second of them, and each look goes over all blocks. So the
        oldest are dropped, many at a time: which ones depends on the request and the time alone, whoever asks.

        Args:
            now: The newest time that can be asked for.
        """
        ends = self.ends(self.start, now)
        dropped = max(len(ends) // KEPT_BLOCKS - 1, 0) * KEPT_BLOCKS
        return ends[dropped - 1] if dropped else self.start

    def ends(self, begin: datetime, now: datetime) -> Sequence[datetime]:
        """Return the ends of the blocks that begin at ``begin`` or later and have ended by ``now``, oldest first.

        They are made when they are asked for: a step may have millions.

        Args:
            begin: The start of the request, or the end of one of its blocks.
            now: The newest time that can be asked for.
        """
        if self.until is not None:
            return (self.until,) if begin < self.until <= now else ()
        first = after(begin, self.interval)
        count = (now - first) // self.interval + 1
        return _Ends(first, self.interval, range(max(count, 0)))


@dataclass(frozen=True, slots=True)
class _Ends(Sequence[datetime]):
    """Points of the grid, without room for each."""

    first: datetime
    interval: timedelta
    places: range

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> datetime: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[datetime, ...]: ...

    def __getitem__(self, index: int | slice) -> datetime | tuple[datetime, ...]:
        if isinstance(index, slice):
            return tuple(self.first + place * self.interval for place in self.places[index])
        return self.first + self.places[index] * self.interval


def after(time: datetime, interval: timedelta) -> datetime:
    """Return the first point of the shared grid after a time."""
    return _EPOCH + ((time - _EPOCH) // interval + 1) * interval


@dataclass(frozen=True, slots=True)
class Block:
    """Requests of both versions between two points of the grid.

    Attributes:
        start: Beginning of the block (exclusive, as Prometheus ranges are).
        end: End of the block.
        canary: Requests of the canary.
        stable: Requests of the stable version.
        unreached: Requests to the host that reached no version (no healthy upstream, connection failure).
        canary_seen: Whether the canary had any series at the block's end. No series is *no data*, not zero requests.
        stable_seen: Whether the stable version had any series at the block's end.
    """

    start: datetime
    end: datetime
    canary: Counts = NO_COUNTS
    stable: Counts = NO_COUNTS
    unreached: int = 0
    canary_seen: bool = True
    stable_seen: bool = True


@dataclass(frozen=True, slots=True)
class MetricValue:
    """The newest value of one of the user's own queries, or why there is none.

    Attributes:
        value: The value; ``None`` when there is none.
        at: For which time it was asked.
        problem: Why there is none, for people.
        reason: The same in one word: ``NoData`` or ``NotANumber`` when there is nothing to judge, ``BadQuery`` when the
            query can never give one number, ``ProviderError`` when it could not be asked.
    """

    value: Fraction | None
    at: datetime | None = None
    problem: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MetricReading:
    """One look at one of the user's own metrics.

    Attributes:
        at: For which time it was asked: the end of a block.
        value: What the query answered.
        baseline: What the baseline query answered; ``None`` where there is none.
    """

    at: datetime
    value: MetricValue
    baseline: MetricValue | None = None


@dataclass(frozen=True, slots=True)
class PreflightRequest:
    """What has to be known of a provider before a rollout moves traffic.

    Attributes:
        provider: Name of the administrator's provider.
        namespace: Namespace of the rollout (and of its host).
        host: Fully qualified service host.
        stable: The version whose series are looked for.
        slow_above: The latency threshold that has to be a bucket edge; ``None`` when latency is not judged.
        queries: The user's own queries, whose shape is checked.
        since: When it was asked for; an answer is not older.
    """

    provider: str
    namespace: str
    host: str
    stable: str
    since: datetime
    slow_above: timedelta | None = None
    queries: tuple[OwnQuery, ...] = ()


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a provider answered before the first step.

    Attributes:
        request: The question.
        error: Why there is no answer; empty when there is one.
        error_since: Since when there is none.
        refused: Why the rollout may not use this provider at all, for people (unknown, not for this namespace, a query
            that is not allowed); empty where it may.
        host_series: Whether the provider has any series of requests to the host.
        versions: Versions of the host that have series, sorted.
        edge_problem: Why the latency threshold cannot be used, with the nearest edges; empty where it can, or where
            the host has no histogram yet.
        warnings: Warnings of the provider.
    """

    request: PreflightRequest
    error: str = ""
    error_since: datetime | None = None
    refused: str = ""
    host_series: bool = False
    versions: tuple[str, ...] = ()
    edge_problem: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """The answer to an `EvidenceRequest` so far.

    Attributes:
        request: The question.
        blocks: Complete blocks from ``request.first_kept`` on, without gaps, oldest first.
        error: Why the newest fetch failed; empty when it did not. Blocks fetched before stay.
        error_since: Since when fetches have failed without a success between.
        warnings: Warnings of the provider about blocks in here (partial data above all). Such blocks are asked for
            again until an answer comes without one.
        notes: Remarks that put no count in doubt, such as a counter that was reset.
        metrics: Readings of ``request.queries`` since the start, by name, oldest first; the newest are kept.
    """

    request: EvidenceRequest
    blocks: tuple[Block, ...] = ()
    error: str = ""
    error_since: datetime | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, tuple[MetricReading, ...]] = field(default_factory=dict)

    @property
    def until(self) -> datetime:
        """Return up to when the evidence is complete."""
        return self.blocks[-1].end if self.blocks else self.request.start


def total(counts: tuple[Counts, ...]) -> Counts:
    """Add counts up."""
    return Counts(
        requests=sum(c.requests for c in counts),
        errors=sum(c.errors for c in counts),
        timed=sum(c.timed for c in counts),
        slow=sum(c.slow for c in counts),
    )
