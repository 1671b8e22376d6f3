"""From rows of a Prometheus answer to blocks of counts: what is an error, what is slow, what reached no version.

Pure, like the queries whose answers it reads. The rules are those of Istio's standard metrics:

- an error is a response code 5xx, or for gRPC a status that blames the server, as the request says which do. A client
  that went away (code 0, flag DC) is a request and no error, whatever status was written down for it;
- a request reached no version when the row has no version and the mesh itself answered: no healthy upstream (UH), a
  failed connection (UF), no such cluster (NC; most proxies name no host there, and then it cannot be seen from here).
  Where a connection to a known endpoint failed, the row has that endpoint's version, and counts as its error. Other
  rows without a version (no route, rate limits) are nobody's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from canaryrollout.adapters.prometheus_queries import KIND, UNKNOWN_VERSIONS, Labels, edges_like
from canaryrollout.api.quantities import format_duration
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import NO_COUNTS, Block, EvidenceRequest

CLIENT_GONE: Final = "DC"
MOST: Final = 1e12
"""How many requests a row can count in one block; what is beyond is no count of requests."""
_ALL_SET: Final = set(Counts.model_fields)
"""Names of the fields of counts; one set for all, instead of one for each."""
UNREACHED_FLAGS: Final = frozenset({"UH", "UF", "NC"})


class BadAnswer(ValueError):  # noqa: N818 - the answer is bad, nothing else is
    """An answer that does not have the shape its query must give; the message says what it has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One series of an answer at one time."""

    labels: Mapping[str, str]
    value: float


Rows = Mapping[int, Sequence[Row]]
"""Rows by evaluation time, in milliseconds since the epoch."""


def milliseconds_of(time: datetime) -> int:
    """Return a time as Prometheus keeps it: milliseconds since the epoch."""
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))


def rows_of(result_type: str, result: Any) -> Rows:
    """Sort the series of a vector or matrix by time.

    Raises:
        BadAnswer: If it is neither.
    """
    rows: dict[int, list[Row]] = defaultdict(list)
    if result_type not in {"vector", "matrix"} or not isinstance(result, list):
        raise BadAnswer(f"expected series, got a {result_type}")
    try:
        for series in result:
            for time, value in series["values"] if result_type == "matrix" else [series["value"]]:
                rows[round(float(time) * 1000)].append(Row(series["metric"], float(value)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # JSON has numbers without end
        raise BadAnswer(f"cannot read the series of the answer: {error!r}") from error
    return rows


def rows_by_host(result_type: str, result: Any, label: str) -> Mapping[str, Rows | BadAnswer]:
    """Sort the series of a vector or matrix by host and time.

    One host's series that cannot be read leave those of the others alone.

    Args:
        result_type: Type of the result, as Prometheus names it.
        result: The result.
        label: The label that holds the host.

    Raises:
        BadAnswer: If it is neither, or a series does not say whose it is.
    """
    if result_type not in {"vector", "matrix"} or not isinstance(result, list):
        raise BadAnswer(f"expected series, got a {result_type}")
    series: dict[str, list[Any]] = defaultdict(list)
    for one in result:
        labels = one.get("metric") if isinstance(one, dict) else None
        if not isinstance(labels, dict):
            raise BadAnswer(f"expected series, got {str(one)[:80]}")
        series[str(labels.get(label, ""))].append(one)
    found: dict[str, Rows | BadAnswer] = {}
    for host, own in series.items():
        try:
            found[host] = rows_of(result_type, own)
        except BadAnswer as error:
            found[host] = error
    return found


@dataclass(slots=True)
class _Tally:
    """Counts of one version under way."""

    seen: bool = False
    requests: int = 0
    errors: int = 0
    timed: int = 0
    within: int = 0

    def counts(self) -> Counts:
        if not (self.requests or self.timed):
            return NO_COUNTS
        slow = min(max(self.timed - self.within, 0), self.timed)
        return _counts(self.requests, self.errors, self.timed, slow)


@lru_cache(maxsize=4096)
def _counts(requests: int, errors: int, timed: int, slow: int) -> Counts:
    """Return counts that take little room: blocks with the same numbers share them, a long step has thousands."""
    return Counts.model_construct(_ALL_SET, requests=requests, errors=errors, timed=timed, slow=slow)


@dataclass(frozen=True, slots=True)
class Reading:
    """A block as read, and what is remarkable about it.

    Attributes:
        block: The counts.
        notes: Remarks for people that put no count in doubt.
        lacks_edge: Whether the service has a latency histogram, but none with the threshold as a bucket edge.
    """

    block: Block
    notes: tuple[str, ...] = ()
    lacks_edge: bool = False


@dataclass(slots=True)
class _Reader:
    """Adds the rows of one block up."""

    labels: Labels
    tallies: dict[str, _Tally]
    faults: frozenset[str]
    edges: frozenset[str]
    partial: bool = False
    unreached: int = 0
    notes: list[str] = field(default_factory=list)
    timed_rows: int = 0
    edge_rows: int = 0

    def tally(self, row: Row) -> _Tally | None:
        """Return the tally of the row's version; ``None`` where it is neither stable nor canary."""
        version = row.labels.get(self.labels.version, "")
        return self.tallies.get(version)

    def add_requests(self, rows: Iterable[Row]) -> None:
        for row, count in self._counted(rows):
            tally = self.tally(row)
            if tally is not None:
                tally.seen = True
                tally.requests += count
                tally.errors += count if is_error(row.labels, self.faults) else 0
            elif is_unreached(row.labels, self.labels):
                self.unreached += count

    def add_durations(self, rows: Iterable[Row]) -> None:
        for row, count in self._counted(rows):
            tally = self.tally(row)
            if tally is None:
                continue
            edge = row.labels.get("le")
            if edge in self.edges:
                self.edge_rows += 1
                tally.within += count
            elif not edge:
                self.timed_rows += 1
                tally.timed += count

    def _counted(self, rows: Iterable[Row]) -> Iterable[tuple[Row, int]]:
        """Yield what each row counts.

        New series count nothing where the service had none before, and none in a partial answer: a series that only the
        store for the block's end told of is old, and what it counted in its life is not of this block.
        """
        rows = tuple(rows)
        history = any(row.labels.get(KIND) == "start" and row.value > 0 for row in rows)
        for row in rows:
            kind = row.labels.get(KIND)
            if kind == "start":
                continue
            if not 0 <= row.value <= MOST:
                raise BadAnswer(f"{_spelled(row.value)} requests of one kind between two points in time cannot be")
            count = round(row.value)
            if kind == "new" and not history:
                self._note("Prometheus had nothing on the host before: requests until its first scrape are not counted")
                count = 0
            if kind == "new" and self.partial:
                count = 0
            if kind == "reset" and self.tally(row) is not None:
                version = row.labels.get(self.labels.version, "")
                self._note(
                    f"a counter of version {version} was reset: requests since the scrape before it are not counted"
                )
            yield row, count

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_block(
    request: EvidenceRequest,
    labels: Labels,
    start: datetime,
    end: datetime,
    requests: Iterable[Row],
    durations: Iterable[Row],
    *,
    partial: bool = False,
) -> Reading:
    """Read the block between two times.

    Args:
        request: What was asked.
        labels: How the provider's metrics are labeled.
        start: The block's start.
        end: The block's end, the evaluation time of both answers.
        requests: The host's rows of `requests_query` at that time.
        durations: The host's rows of `durations_query` at that time; none where latency is not judged.
        partial: Whether the provider warned that something may be missing.

    Returns:
        The block and remarks on it.

    Raises:
        BadAnswer: If a row counts what cannot have been counted, such as fewer than no requests.
    """
    reader = _Reader(
        labels,
        {version: _Tally() for version in (request.stable, request.canary)},
        faults=frozenset(str(status) for status in request.server_faults),
        edges=frozenset(edges_like(request.slow_above)) if request.slow_above is not None else frozenset(),
        partial=partial,
    )
    reader.add_requests(requests)
    reader.add_durations(durations)
    lacks_edge = reader.timed_rows > 0 and reader.edge_rows == 0
    canary, stable = reader.tallies[request.canary], reader.tallies[request.stable]
    if lacks_edge:
        for tally in (canary, stable):
            tally.timed = 0
    block = Block(
        start=start,
        end=end,
        canary=canary.counts(),
        stable=stable.counts(),
        unreached=reader.unreached,
        canary_seen=canary.seen,
        stable_seen=stable.seen,
    )
    return Reading(block, tuple(reader.notes), lacks_edge)


def _spelled(value: float) -> str:
    """Spell a value as Prometheus does."""
    return "NaN" if math.isnan(value) else f"{value:+g}".title() if math.isinf(value) else f"{value:g}"


def is_error(labels: Mapping[str, str], faults: Collection[str]) -> bool:
    """Tell whether requests of a row failed by the server's fault.

    Args:
        labels: The row's labels.
        faults: gRPC statuses that blame the server.
    """
    code = labels.get("response_code", "")
    if code == "0" and CLIENT_GONE in labels.get("response_flags", "").split(","):
        return False
    return (len(code) == 3 and code.startswith("5")) or labels.get("grpc_response_status", "") in faults


def is_unreached(row: Mapping[str, str], labels: Labels) -> bool:
    """Tell whether requests of a row reached no version because the mesh found none."""
    flags = set(row.get("response_flags", "").split(","))
    return row.get(labels.version, "") in UNKNOWN_VERSIONS and bool(flags & UNREACHED_FLAGS)


def edge_problem(threshold: timedelta, edges: Iterable[str]) -> str:
    """Say that a threshold is no bucket edge, and which edges are nearest.

    Args:
        threshold: The latency threshold.
        edges: Values of ``le``, in milliseconds.

    Returns:
        A message for people that names field, value and remedy.
    """
    wanted = threshold / timedelta(milliseconds=1)
    known = sorted({float(edge) for edge in edges} - {math.inf})
    below = [edge for edge in known if edge < wanted][-1:]
    above = [edge for edge in known if edge > wanted][:1]
    nearest = " or ".join(_edge(edge) for edge in (*below, *above)) or "none, it has no edges"
    return f"analysis.latency.threshold {format_duration(threshold)} is no bucket edge; the nearest: {nearest}"


def _edge(milliseconds: float) -> str:
    duration = timedelta(milliseconds=milliseconds)
    return format_duration(duration) if milliseconds >= 1 else f"{milliseconds:g}ms"
