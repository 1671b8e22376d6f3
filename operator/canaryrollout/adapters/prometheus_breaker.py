"""Whether a provider is away, so that it is left alone and its rollouts can say since when.

A few failures in a row that say the provider is away (no connection, no answer in time, a server's error) open the
circuit: nothing is asked any more but one harmless question now and then, at growing distances. The first answer closes
it. A query that cannot be run, or credentials that are refused, are answers: the provider is there. A server that asks
for patience (429 or 503 with Retry-After) is left alone for as long as it says. Callers pass the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from canaryrollout.adapters.prometheus_provider import QueryFailed

AWAY: Final = frozenset({"Timeout", "Unreachable", "ServerError"})
"""Outcomes that say that the provider is away."""
FAILURES: Final = 3
"""How many of them in a row open the circuit."""
SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 15.0
LONGEST_PATIENCE: Final = 300.0
"""How many seconds a server's own wish to be left alone is respected."""


class Availability:
    """Which providers answer, as a metric."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(
            "canaryrollout_provider_up",
            "Whether a Prometheus answers (1), or has failed too often in a row and is left alone (0).",
            ("provider",),
            registry=registry,
        )

    def show(self, provider: str, *, up: bool) -> None:
        """Show whether a provider answers."""
        self._gauge.labels(provider).set(float(up))

    def forget(self, provider: str) -> None:
        """Show nothing of a provider any more."""
        self._gauge.remove(provider)


@dataclass(slots=True)
class Breaker:
    """The circuit of one provider: closed while it answers.

    Attributes:
        is_open: Whether nothing is asked.
        since: Time of the first failure since the last answer; ``None`` where there was none.
        reason: Why it does not answer, for people: the first failure since the last answer, or of another kind.
        pause: Seconds until the next harmless question, while open.
    """

    is_open: bool = False
    since: datetime | None = None
    reason: str = ""
    pause: float = SHORTEST_PAUSE
    _outcome: str = ""
    _failures: int = 0

    def succeeded(self) -> None:
        """Note an answer, whatever it says."""
        self.is_open, self.since, self.reason = False, None, ""
        self.pause, self._outcome, self._failures = SHORTEST_PAUSE, "", 0

    def failed(self, failure: QueryFailed, now: datetime) -> None:
        """Note that a query was not answered.

        Args:
            failure: Why.
            now: The present time.
        """
        patience = failure.retry_after
        if failure.outcome not in AWAY and patience is None:
            self.succeeded()
            return
        self._failures += 1
        self.since = self.since or now
        if failure.outcome != self._outcome:  # a text that changes with each try would be noise
            self.reason, self._outcome = str(failure), failure.outcome
        if self.is_open:
            self.pause = min(self.pause * 2, LONGEST_PAUSE)
        self.is_open = self.is_open or self._failures >= FAILURES or patience is not None
        if patience is not None:
            self.pause = min(max(patience, SHORTEST_PAUSE), LONGEST_PATIENCE)
