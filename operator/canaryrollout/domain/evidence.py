"""Evidence as the core sees it: counts of requests in blocks of time.

A block is the smallest unit of evidence. Plain thresholds sum blocks, sequential tests and dispersion estimates need
them apart, so a metrics source always returns them apart. Blocks lie on a grid that starts when a weight came into
effect; the same request therefore always names the same blocks, whoever asks and however often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from canaryrollout.api.status import Counts

NO_COUNTS: Final = Counts()


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
        start: Where the grid of blocks begins.
        interval: Length of a block.
        until: No block ends after this time; ``None`` for an open end.
        slow_above: Latency threshold; ``None`` when latency is not judged.
        queries: PromQL of the user's own metrics, by name.
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
    queries: tuple[tuple[str, str], ...] = ()
    weight: int = 0


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
class Evidence:
    """The answer to an `EvidenceRequest` so far.

    Attributes:
        request: The question.
        blocks: Complete blocks from ``request.start`` on, without gaps, oldest first.
        error: Why the newest fetch failed; empty when it did not. Blocks fetched before stay.
        error_since: Since when fetches have failed without a success between.
        warnings: Warnings of the provider about blocks in here (partial data above all). Such blocks are asked for
            again until an answer comes without one.
        notes: Remarks that put no count in doubt, such as a counter that was reset.
        metrics: Newest values of ``request.queries``.
    """

    request: EvidenceRequest
    blocks: tuple[Block, ...] = ()
    error: str = ""
    error_since: datetime | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)

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
