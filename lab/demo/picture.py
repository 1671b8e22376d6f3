"""What a watcher sees at one moment, as plain data: made from notes and records, shown by `lab.demo.view`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from canaryrollout.api.status import CanaryRolloutStatus
from lab.loadreport import Record, Report

WINDOW_SECONDS: Final = 2.0
"""How far back shares, rates and latencies look."""
HISTORY: Final = 60


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one version answered lately.

    Attributes:
        version: The version.
        role: ``stable``, ``canary`` or empty.
        weight: Share it should have, in percent.
        share: Share it had, 0 to 1.
        rate: Requests a second.
        errors: Share of its answers that were no 200, 0 to 1.
        p50: Median latency, in milliseconds; ``None`` without requests.
        p99: 99th percentile likewise.
    """

    version: str
    role: str
    weight: int
    share: float = 0.0
    rate: float = 0.0
    errors: float = 0.0
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The canary at one second of the past."""

    weight: int
    share: float
    errors: float
    p99: float


@dataclass(frozen=True, slots=True)
class Line:
    """Something that happened: when (seconds since the demo began), what, and how it is meant."""

    at: float
    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment.

    Attributes:
        elapsed: Seconds since the demo began.
        expected: Seconds that it takes, usually.
        number: Which story this is, from 1.
        of: How many there are.
        title: Title of the story.
        tells: What is going to happen, for people.
        status: Status of the CanaryRollout.
        traffic: What each version answers.
        history: The canary's past, one sample a second, oldest first.
        lines: What happened, oldest first.
        sent: Requests so far.
        lost: Requests that reached no version so far.
    """

    elapsed: float
    expected: float
    number: int = 0
    of: int = 0
    title: str = ""
    tells: str = ""
    status: CanaryRolloutStatus = field(default_factory=CanaryRolloutStatus)
    traffic: tuple[Traffic, ...] = ()
    history: tuple[Sample, ...] = ()
    lines: tuple[Line, ...] = ()
    sent: int = 0
    lost: int = 0

    @property
    def canary(self) -> Traffic | None:
        """The canary, if there is one."""
        return next((each for each in self.traffic if each.role == "canary"), None)


def traffic_of(
    records: Sequence[Record], status: CanaryRolloutStatus, versions: Sequence[str], now: float
) -> tuple[Traffic, ...]:
    """Sum up what each version answered in the last seconds; those without a role and requests are left out."""
    lately = _lately(records, now - WINDOW_SECONDS)
    report = Report.of(lately)
    weights = _weights(status)
    found = []
    for version in versions:
        role = "stable" if version == status.stable_version else "canary" if version in weights else ""
        of = report.versions.get(version)
        if of is None:
            if role:
                found.append(Traffic(version, role, weights.get(version, 0)))
            continue
        bad = sum(count for code, count in of.statuses.items() if code != 200)
        found.append(
            Traffic(
                version,
                role,
                weights.get(version, 0),
                report.share(version),
                of.requests / WINDOW_SECONDS,
                bad / of.requests,
                of.p50,
                of.p99,
            )
        )
    return tuple(found)


def _lately(records: Sequence[Record], since: float) -> list[Record]:
    """Records of answers that came after a time; records are in the order of the answers."""
    found = []
    for index in range(len(records) - 1, -1, -1):
        if records[index].finished < since:
            break
        found.append(records[index])
    return found


def _weights(status: CanaryRolloutStatus) -> dict[str, int]:
    """Weight by version, as status has it."""
    record, stable = status.rollout, status.stable_version
    if record is None or record.version == stable:
        return {stable: 100} if stable else {}
    weight = 0 if record.reason else record.weight
    return {stable or "": 100 - weight, record.version: weight}


class Past:
    """The canary's past, one sample a second."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=HISTORY)
        self._due = 0.0

    def note(self, traffic: Sequence[Traffic], now: float) -> tuple[Sample, ...]:
        """Add a sample if one is due, and return all of them."""
        if now >= self._due:
            self._due = now + 1.0
            canary = next((each for each in traffic if each.role == "canary"), None)
            if canary is not None:
                self._samples.append(Sample(canary.weight, canary.share, canary.errors, canary.p99 or 0.0))
        return tuple(self._samples)

    def clear(self) -> None:
        """Begin anew."""
        self._samples.clear()


def event_line(document: Any, at: float) -> Line:
    """An Event of the operator as a line."""
    warning = document.get("type") == "Warning"
    return Line(at, f"{document.get('reason')}: {document.get('note') or ''}", "bad" if warning else "event")
