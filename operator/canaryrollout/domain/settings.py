"""Timing that decisions need and users of a CanaryRollout should not have to think about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class DomainSettings:
    """Times the administrator may tune.

    Attributes:
        subset_settle: How long a subset must have been in the DestinationRule before a route may name it, and how long
            routes must have been without it before it goes: the mesh learns of both objects at different moments.
        drain: How long a destination stays at weight 0 before it is removed, so that requests under way can end.
        propagation: How long after a weight was confirmed on the API server its evidence begins.
        baseline_window: Length of the window before the first step in which requests that reach no version are counted.
        convergence_bound: How long to wait for observed traffic to agree with a weight before analysis starts anyway.
        poll: How often an active rollout looks at its mesh objects and endpoints at least.
        retry: How soon something unreadable is read again.
        blocked_retry: How soon a blocked rollout looks again by itself.
        release: How long an object that is being deleted is kept while its traffic cannot be given back.
        stable_settle: How long stable may be short of endpoints before the raise is not held any longer: what it keeps
            is its new size then.
        max_reassertions: How often a foreign change of weights is answered before giving way.
        lag: How far behind the present each provider's data is, by provider name.
    """

    subset_settle: timedelta = timedelta(seconds=5)
    drain: timedelta = timedelta(seconds=5)
    propagation: timedelta = timedelta(seconds=1)
    baseline_window: timedelta = timedelta(seconds=60)
    convergence_bound: timedelta = timedelta(seconds=30)
    poll: timedelta = timedelta(seconds=5)
    retry: timedelta = timedelta(seconds=1)
    blocked_retry: timedelta = timedelta(seconds=30)
    release: timedelta = timedelta(minutes=10)
    stable_settle: timedelta = timedelta(minutes=5)
    max_reassertions: int = 3
    lag: Mapping[str, timedelta] = field(default_factory=dict)

    def lag_of(self, provider: str) -> timedelta:
        """Return how far behind the present a provider's data is."""
        return self.lag.get(provider, timedelta())
