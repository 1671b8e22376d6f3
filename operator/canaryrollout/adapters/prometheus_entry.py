"""What is known about one request for evidence, and what is due of it.

Blocks arrive in order and stay. Blocks that came with a warning are provisional: their counts may be partial, so they
are asked for again together with the next ones, and replaced by the first answer without a warning. Where there are
many of them only the newest are; the first answer without a warning then lets all be asked for anew. Of a very long
step the oldest blocks are dropped, see `EvidenceRequest.first_kept`. Times are those
that callers pass; nothing here reads a clock or asks anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from canaryrollout.adapters.prometheus_counts import Reading
from canaryrollout.adapters.prometheus_own import OwnReadings
from canaryrollout.domain.evidence import KEPT_BLOCKS, Block, Evidence, EvidenceRequest

MAX_BLOCKS: Final = 100
"""How many blocks one answer may bring; more are fetched one answer after the other."""
MAX_PROVISIONAL: Final = 50
"""How many blocks that came with a warning are asked for again each time; older ones wait for an answer without."""
MAX_NOTES: Final = 3
FIRST_RETRY: Final = timedelta(seconds=1)
DROPPED: Final = f"of this long step only the newest {KEPT_BLOCKS:,} intervals or more are counted"
LIVE_INTERVALS: Final = 2
LIVE_AT_LEAST: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks of one length that follow each other, so that one query counts them.

    Attributes:
        window: Length of each block.
        ends: Their ends, oldest first, ``window`` apart.
    """

    window: timedelta
    ends: tuple[datetime, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was counted; ``problem`` is a lasting mistake that leaves the counts of requests usable."""

    readings: tuple[Reading, ...]
    warnings: tuple[str, ...] = ()
    problem: str = ""


@dataclass(slots=True)
class Job:
    """A stretch of one request to be counted, and in the end what came of it."""

    entry: Entry
    stretch: Stretch
    outcome: Fetched | Exception | None = None

    @property
    def request(self) -> EvidenceRequest:
        """Return the request that it is for."""
        return self.entry.request


@dataclass(slots=True)
class Entry:
    """What is known about one request.

    Attributes:
        request: The request.
        wake: Whom to tell, as of the last asking.
        asked_at: When it was asked for last.
        own: Readings of the user's own queries.
        begin: Where the first block begins.
        blocks: Blocks that will not change; those from ``sound`` on may once no warning comes any more.
        provisional: Blocks after them that came with a warning.
        warnings: Warnings about the provisional blocks.
        kept_warnings: Warnings about blocks that are not asked for again for the time being.
        sound: How many blocks came without a warning, where there are such warnings.
        notes: Remarks on the blocks.
        error: Why the last fetch failed.
        error_since: Since when fetches fail.
        failures: How many failed in a row.
        not_before: When to try again.
        edge_problem: Why the latency threshold cannot be used, as found out last.
        jobs: What is being fetched.
    """

    request: EvidenceRequest
    wake: Callable[[], None]
    asked_at: datetime
    own: OwnReadings = field(init=False)
    begin: datetime = field(init=False)
    blocks: tuple[Block, ...] = ()
    provisional: tuple[Block, ...] = ()
    warnings: tuple[str, ...] = ()
    kept_warnings: tuple[str, ...] = ()
    sound: int = 0
    notes: tuple[str, ...] = ()
    error: str = ""
    error_since: datetime | None = None
    failures: int = 0
    not_before: datetime | None = None
    edge_problem: str = ""
    jobs: tuple[Job, ...] = ()

    def __post_init__(self) -> None:
        self.own = OwnReadings(self.request)
        self.begin = self.request.start

    def evidence(self) -> Evidence | None:
        """Return what is at hand; ``None`` when nothing was fetched yet."""
        metrics = self.own.metrics()
        if not (self.blocks or self.provisional or self.error or metrics):
            return None
        return Evidence(
            request=self.request,
            blocks=self.blocks + self.provisional,
            error=self.error,
            error_since=self.error_since,
            warnings=tuple(sorted({*self.kept_warnings, *self.warnings, *self.own.warnings})),
            notes=self.notes if self.begin == self.request.start else (*self.notes, DROPPED),
            metrics=metrics,
        )

    def live(self, now: datetime) -> bool:
        """Return whether somebody has asked for it of late: what is due of it is then fetched with that of others."""
        return now - self.asked_at <= max(LIVE_INTERVALS * self.request.interval, LIVE_AT_LEAST)

    def due(self, now: datetime, lag: timedelta) -> tuple[Stretch, ...]:
        """Return what to fetch now, oldest first; nothing while it is being fetched or after a failure of late."""
        if self.jobs:
            return ()
        self._forget_after(now)
        if self._pausing(now):
            return ()
        if not self.blocks:
            self.begin = max(self.begin, self.request.first_kept(now - lag))
        begin = self.blocks[-1].end if self.blocks else self.begin
        at_once = max(MAX_BLOCKS >> self.failures, 1)  # a range may be too much for a server; fewer blocks are less
        ends = tuple(self.request.ends(begin, now - lag)[:at_once])
        if not ends:
            return ()
        window = ends[0] - begin
        if len(ends) == 1 or window == self.request.interval:
            return (Stretch(window, ends),)
        return Stretch(window, ends[:1]), Stretch(self.request.interval, ends[1:])

    def settle(self, now: datetime, since: datetime | None = None) -> bool:
        """Take over what the jobs brought, once all are done.

        Args:
            now: The present time.
            since: Since when the provider is known to be away.

        Returns:
            Whether there is something new to tell.
        """
        if not self.jobs or any(job.outcome is None for job in self.jobs):
            return False
        outcomes, self.jobs = [job.outcome for job in self.jobs], ()
        before = self.error
        found: list[Fetched] = []
        failure: Exception | None = None
        for outcome in outcomes:
            if not isinstance(outcome, Fetched):
                failure = outcome
                break
            found.append(outcome)
        if found:
            self._arrived(found, now)
        if failure is not None:
            self.fail(str(failure), now, since)
        return bool(found) or self.error != before

    def fail(self, message: str, now: datetime, since: datetime | None = None) -> None:
        """Note that blocks could not be fetched.

        Args:
            message: Why, for people.
            now: The present time.
            since: Since when the provider is known to be away.
        """
        known = [time for time in (self.error_since, since) if time is not None]
        self.error, self.error_since = message, min(known, default=now)
        pause = min(FIRST_RETRY * 2 ** min(self.failures, 10), max(self.request.interval, FIRST_RETRY))
        self.not_before = now + pause
        self.failures += 1

    def _pausing(self, now: datetime) -> bool:
        """Return whether to wait after a failure; a longer pause is left over from before the clock went back."""
        longest = max(self.request.interval, FIRST_RETRY)
        return self.not_before is not None and now < self.not_before <= now + longest

    def _forget_after(self, now: datetime) -> None:
        """Drop what ends in the future: it was counted before its time, as the clock has been set back since."""
        self.own.forget_after(now)
        if self.begin > now:
            self.begin = self.request.start
        newest = self.provisional or self.blocks
        if not newest or newest[-1].end <= now:
            return
        self.provisional = tuple(block for block in self.provisional if block.end <= now)
        self.blocks = tuple(block for block in self.blocks if block.end <= now)
        self.sound = min(self.sound, len(self.blocks))

    def retry_now(self) -> None:
        """Forget the pause after a failure: what stood in the way is gone."""
        if self.failures:
            self.failures, self.not_before = 0, None

    def _arrived(self, found: Sequence[Fetched], now: datetime) -> None:
        readings = [reading for fetched in found for reading in fetched.readings]
        blocks = self._joined(reading.block for reading in readings)
        notes = dict.fromkeys([*self.notes, *(note for reading in readings for note in reading.notes)])
        self.notes = tuple(notes)[-MAX_NOTES:]
        self.warnings = tuple(dict.fromkeys(warning for fetched in found for warning in fetched.warnings))
        if self.warnings:
            kept = max(len(blocks) - MAX_PROVISIONAL, 0)
            self.sound = self.sound if self.kept_warnings else len(self.blocks)
            self.blocks += blocks[:kept]
            self.provisional = blocks[kept:]
            self.kept_warnings = self.warnings if kept else self.kept_warnings
            self.not_before = now + self.request.interval
        else:
            self.blocks = self.blocks[: self.sound] if self.kept_warnings else self.blocks + blocks
            self.provisional = self.kept_warnings = ()
            self.not_before = None
        self._drop_oldest()
        self.failures = 0
        self.error = self.edge_problem = found[-1].problem
        self.error_since = (self.error_since or now) if self.error else None

    def _drop_oldest(self) -> None:
        """Drop what a very long step needs no more room for."""
        newest = self.provisional or self.blocks
        begin = self.request.first_kept(newest[-1].end) if newest else self.begin
        if begin <= self.begin:
            return
        kept = tuple(block for block in self.blocks if block.start >= begin)
        self.sound = max(self.sound - (len(self.blocks) - len(kept)), 0)
        self.begin, self.blocks = begin, kept

    def _joined(self, blocks: Iterable[Block]) -> tuple[Block, ...]:
        """Return blocks that begin with the very time at which the one before ends: a long step has thousands."""
        joined, begin = [], self.blocks[-1].end if self.blocks else self.begin
        for block in blocks:
            joined.append(replace(block, start=begin))
            begin = block.end
        return tuple(joined)
