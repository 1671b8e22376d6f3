"""What the load generator keeps of a request, and how many requests are summed up.

Apart from the generator because a demo or a test counts records by its own windows of time, without sending anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar


class Record(NamedTuple):
    """One request.

    Attributes:
        sent: When its bytes were written, in seconds since the epoch (when it was due, if no connection could be made).
        finished: When its answer was complete, or was given up.
        version: The answer's ``X-App-Version``; None if it reached no version.
        status: The answer's status; 0 if there was none.
        reason: Where no version answered: the beginning of the body (Envoy says there what it made the answer up for),
            or what broke. Empty otherwise.
        flags: Envoy's response flags, where the route puts them into a header. Empty otherwise.
    """

    sent: float
    finished: float
    version: str | None
    status: int
    reason: str
    flags: str

    @property
    def latency(self) -> float:
        """Seconds from sent to finished."""
        return self.finished - self.sent


@dataclass(frozen=True, slots=True)
class VersionReport:
    """The requests that one version answered; latencies in milliseconds."""

    requests: int
    statuses: dict[int, int]
    flags: dict[str, int]
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Requests of one kind that reached no version."""

    requests: int
    status: int
    reason: str
    flags: str


@dataclass(frozen=True, slots=True)
class Report:
    """A number of requests, summed up.

    Attributes:
        requests: All that were sent.
        seconds: From the first that was sent to the last.
        versions: By version, sorted by name.
        lost: Those that reached no version, most frequent first.
        skipped: Requests of the whole run that were due but not sent.
    """

    requests: int
    seconds: float
    versions: dict[str, VersionReport]
    lost: tuple[Lost, ...]
    skipped: int = 0

    @classmethod
    def of(cls, records: Sequence[Record], *, skipped: int = 0) -> Self:
        """Sum up records in any order."""
        by_version: dict[str, list[Record]] = {}
        lost: Counter[tuple[int, str, str]] = Counter()
        for record in records:
            if record.version is None:
                lost[record.status, record.reason, record.flags] += 1
            else:
                by_version.setdefault(record.version, []).append(record)
        sent = [record.sent for record in records]
        return cls(
            requests=len(records),
            seconds=max(sent) - min(sent) if sent else 0.0,
            versions={version: _of_version(of) for version, of in sorted(by_version.items())},
            lost=tuple(Lost(count, *key) for key, count in lost.most_common()),
            skipped=skipped,
        )

    def share(self, version: str) -> float:
        """The share, 0 to 1, of the requests that reached a version which reached this one; 0 where none did."""
        reached = sum(of.requests for of in self.versions.values())
        mine = self.versions.get(version)
        return mine.requests / reached if mine else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as what JSON knows."""
        return {
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
            "versions": {
                version: {
                    "requests": of.requests,
                    "share": round(self.share(version), 5),
                    "statuses": {str(status): count for status, count in of.statuses.items()},
                    "flags": of.flags,
                    "latencyMs": {"p50": of.p50, "p95": of.p95, "p99": of.p99},
                }
                for version, of in self.versions.items()
            },
            "lost": [
                {"requests": of.requests, "status": of.status, "reason": of.reason, "flags": of.flags}
                for of in self.lost
            ],
        }

    def table(self) -> str:
        """The report for people."""
        rate = f", {(self.requests - 1) / self.seconds:.1f} a second" if self.seconds else ""
        lines = [f"{self.requests} requests in {self.seconds:.1f} s{rate}; {self.skipped} skipped", ""]
        lines.append(f"{'version':<12}{'requests':>9}{'share':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}  statuses")
        for version, of in self.versions.items():
            latencies = f"{of.p50:>9.1f}{of.p95:>9.1f}{of.p99:>9.1f}"
            counts = _counts(of.statuses) + (f"  flags {_counts(of.flags)}" if of.flags else "")
            lines.append(f"{version:<12}{of.requests:>9}{self.share(version):>9.2%}{latencies}  {counts}")
        for of_lost in self.lost:
            status = f"status {of_lost.status}" if of_lost.status else "no answer"
            what = ", ".join(part for part in (status, of_lost.flags, of_lost.reason) if part)
            lines.append(f"{'(no version)':<12}{of_lost.requests:>9}  {what}")
        return "\n".join(lines)


def _of_version(records: Sequence[Record]) -> VersionReport:
    latencies = sorted(record.latency * 1000 for record in records)
    return VersionReport(
        requests=len(records),
        statuses=_sorted(Counter(record.status for record in records)),
        flags=_sorted(Counter(record.flags for record in records if record.flags)),
        p50=percentile(latencies, 50),
        p95=percentile(latencies, 95),
        p99=percentile(latencies, 99),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of ascending values, rounded to 0.001: a value that really occurred.

    Raises:
        ValueError: There are no values.
    """
    if not ordered:
        raise ValueError("no values have no percentile")
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)


_Key = TypeVar("_Key", int, str)


def _sorted(counts: Counter[_Key]) -> dict[_Key, int]:
    return dict(sorted(counts.items()))


def _counts(counts: dict[Any, int]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in counts.items())
