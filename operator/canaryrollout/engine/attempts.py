"""What is remembered about a rollout between two passes, and how soon a pass that failed is repeated.

Nothing here is worth keeping over a restart: it is how often something failed in a row, not what is to be done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.decision import Event
from canaryrollout.domain.observation import Failure
from canaryrollout.engine.scheduler import SLACK, fraction

CONFLICTS_AT_ONCE = 5
"""After so many conflicts in a row the next attempt waits like any other failure."""

AGAIN_AT_ONCE = 20
"""After so many passes in a row that asked for another at once, the next one has to wait."""

AGAIN_LATER = 1.0
"""How long it has to wait then, in seconds."""

SHORTEST_WAIT = 5.0
"""How soon at most a pass is repeated because a wait ends while the status cannot be written, in seconds."""

_FIRST_DELAY = 0.25
_CAP = 30.0
_CAP_URGENT = 0.5
_CLOCK_STEP = 1.0
"""Wall and monotonic clock drift apart slowly; only what exceeds this (seconds, between two passes) is a step."""


def retry_delay(key: str, failed: int, *, urgent: bool, asked: float = 0.0) -> float:
    """Return how long to wait before the next attempt.

    Args:
        key: The rollout; it decides the jitter.
        failed: How many passes have failed in a row, at least 1.
        urgent: Whether traffic is being taken back; then no wait is longer than half a second.
        asked: For how many seconds the API server asked to be left alone; 0 where it did not.

    Returns:
        Seconds: doubling from a quarter of a second up to 30 (0.5 when urgent), the upper half jittered. Where the API
        server asked for a wait it is that long, up to 30 s, and a tenth longer for some so that not all come at once.
    """
    if asked and not urgent:
        return min(_CAP, asked) * (1 + 0.1 * fraction(key, failed))
    delay = min(_CAP_URGENT if urgent else _CAP, _FIRST_DELAY * 2.0 ** min(failed - 1, 16))
    return delay * (0.5 + 0.5 * fraction(key, failed))


@dataclass(slots=True)
class Attempts:
    """Failures of one rollout in a row.

    Attributes:
        failures: Actions that failed last time, by `Action.key`.
        not_before: When these actions may be tried again, in monotonic seconds.
        held_back: Whether the last decision had actions that were not due.
        failed: Passes in a row that failed.
        conflicts: Passes in a row that met a conflict.
        again: Passes in a row that asked for another one at once.
        refetch: Whether the object must be read anew before the next decision.
        offset: Wall time minus monotonic time as of the last decision whose status was stored.
        looked: The same at the last look.
        unstored: A status, and what was decided on it last and could not be stored.
        told: What was last said to be wrong with a status that cannot be read.
        foretold: What was said although no status says so, because it was refused.
    """

    failures: dict[str, Failure] = field(default_factory=dict)
    not_before: dict[str, float] = field(default_factory=dict)
    held_back: bool = False
    failed: int = 0
    conflicts: int = 0
    again: int = 0
    refetch: bool = False
    offset: float | None = None
    looked: float | None = None
    unstored: tuple[CanaryRolloutStatus, CanaryRolloutStatus] | None = None
    told: tuple[Event, ...] = ()
    foretold: tuple[Event, ...] = ()

    def record(self, tried: Collection[str], failed: Mapping[str, str], now: datetime) -> None:
        """Count failures of actions: one that succeeded starts anew, one that was not tried keeps its count."""
        for key in tried:
            if key not in failed:
                self.failures.pop(key, None)
                self.not_before.pop(key, None)
        for key, message in failed.items():
            known = self.failures.get(key)
            if known is None:
                self.failures[key] = Failure(count=1, message=message, since=now)
            else:
                self.failures[key] = replace(known, count=known.count + 1, message=message)

    def put_off(self, rollout: str, actions: Collection[str], now: float, asked: Mapping[str, float]) -> None:
        """Let actions that failed wait, each time longer; looking at the rollout goes on meanwhile.

        Args:
            rollout: Key of the rollout.
            actions: Keys of the actions, as recorded.
            now: Monotonic time in seconds.
            asked: For how many seconds the API server asked to be left alone, by action.
        """
        for key in actions:
            wait = retry_delay(rollout, self.failures[key].count, urgent=False, asked=asked.get(key, 0.0))
            self.not_before[key] = now + wait

    def due(self, action: str, now: float) -> bool:
        """Return whether an action may be tried."""
        return self.not_before.get(action, now) <= now + SLACK

    def next_due(self, now: float) -> float | None:
        """Return when the next action that waits may be tried; ``None`` where none waits."""
        return min((at for at in self.not_before.values() if at > now + SLACK), default=None)

    def clock_step(self, offset: float) -> timedelta:
        """Return how far the wall clock jumped since a decision was stored; zero for less than a second."""
        self.looked = offset
        if self.offset is None or abs(offset - self.offset) < _CLOCK_STEP:
            return timedelta()
        return timedelta(seconds=offset - self.offset)

    def stored(self) -> None:
        """Take note that the status has what was decided, so that no step of the clock is taken in twice."""
        self.offset, self.unstored = self.looked, None

    def unstored_on(self, status: CanaryRolloutStatus) -> CanaryRolloutStatus | None:
        """Return what was decided last and could not be stored, unless the status has changed since."""
        return self.unstored[1] if self.unstored is not None and self.unstored[0] == status else None

    def succeeded(self, *, idle: bool) -> None:
        """Start counting anew after a pass that ended well; what failed is forgotten once nothing is to be done."""
        if idle and not self.held_back:
            self.failures.clear()
            self.not_before.clear()
        self.failed = 0
        self.conflicts = 0
        self.refetch = False
