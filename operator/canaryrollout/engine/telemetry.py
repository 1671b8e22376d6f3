"""What the engine tells about itself, as a protocol, so that it need not know how figures are exposed."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Outcome(StrEnum):
    """How a pass ended."""

    UNCHANGED = "unchanged"
    ACTED = "acted"
    CONFLICT = "conflict"
    FAILED = "failed"
    CRASHED = "crashed"
    NOT_LEADING = "not-leading"
    GONE = "gone"


class Telemetry(Protocol):
    """Receives figures; implementations are cheap and never raise."""

    def pass_done(self, outcome: Outcome, seconds: float) -> None:
        """Count a pass of the worker and how long it took."""
        ...

    def schedule_lag(self, seconds: float) -> None:
        """Record by how many seconds a rollout was looked at later than it was due."""
        ...

    def queue_wait(self, seconds: float) -> None:
        """Record how long a rollout waited for a worker."""
        ...

    def leading(self, leads: bool) -> None:
        """Say whether this replica leads."""
        ...

    def sweep_done(self, succeeded: bool) -> None:
        """Count a full list of all rollouts."""
        ...


class Silent:
    """Telemetry that goes nowhere."""

    def pass_done(self, outcome: Outcome, seconds: float) -> None:
        """Drop it."""

    def schedule_lag(self, seconds: float) -> None:
        """Drop it."""

    def queue_wait(self, seconds: float) -> None:
        """Drop it."""

    def leading(self, leads: bool) -> None:
        """Drop it."""

    def sweep_done(self, succeeded: bool) -> None:
        """Drop it."""
