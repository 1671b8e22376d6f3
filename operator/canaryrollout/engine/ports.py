"""What the engine needs from the outside, as protocols.

The engine owns time and order; these are its only ways to see or change anything. Ports that write take a *permit*, a
callable that raises `NotLeading` when this replica may not write (any more): adapters call it right before each
request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.decision import Action, Event
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, Preflight, PreflightRequest
from canaryrollout.domain.observation import Endpoints, Identity, Mesh, Unreadable

Permit = Callable[[], None]


class NotLeading(RuntimeError):  # noqa: N818 - a state of affairs, not a mistake
    """This replica does not hold the lease, or not safely enough to write."""


class Conflict(RuntimeError):  # noqa: N818 - the API's own word
    """Somebody wrote in between, or the object is not what was planned for: observe and decide again at once."""


class Gone(RuntimeError):  # noqa: N818 - the API's own word
    """The object does not exist any more."""


class Later(RuntimeError):  # noqa: N818 - a state of affairs, not a mistake
    """The API server asks to be left alone for a while.

    Attributes:
        seconds: For how long.
    """

    def __init__(self, message: str, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Rollout:
    """A CanaryRollout as last seen.

    ``problems`` says, for people, what is wrong with the spec. ``spec`` is ``None`` when it cannot be read at all; one
    that can be read is here even when it has problems, because it still tells which traffic to take back.
    ``status_problems`` says why the status could not be read; ``status`` is then empty, and must not be written.
    """

    identity: Identity
    resource_version: str
    spec: CanaryRolloutSpec | None
    status: CanaryRolloutStatus
    problems: tuple[str, ...] = ()
    status_problems: tuple[str, ...] = ()


class RolloutStore(Protocol):
    """CanaryRollout objects on the API server."""

    async def get(self, key: str) -> Rollout | None:
        """Read one rollout now; ``None`` when it does not exist."""
        ...

    def list(self) -> AsyncIterator[Rollout]:
        """Read all rollouts in scope, page by page; one may come twice."""
        ...

    async def write_status(self, rollout: Rollout, status: CanaryRolloutStatus, permit: Permit) -> Rollout:
        """Write a status, guarded by ``rollout.resource_version``; raises `Conflict` or `Gone`."""
        ...

    async def set_finalizer(self, rollout: Rollout, present: bool, permit: Permit) -> Rollout:
        """Put our finalizer on the object or take it off, guarded likewise."""
        ...

    async def emit(self, rollout: Rollout, event: Event, permit: Permit) -> None:
        """Create a Kubernetes Event; never raises, a lost Event is logged."""
        ...


class TrafficRouter(Protocol):
    """The objects that split a host's traffic."""

    async def observe(self, namespace: str, spec: CanaryRolloutSpec, *, references: bool) -> Mesh:
        """Read what the spec refers to; never raises for what it finds, see `Mesh`."""
        ...

    async def apply(self, namespace: str, action: Action, permit: Permit) -> None:
        """Carry an action out in one guarded patch; raises `Conflict` when what was found no longer holds."""
        ...


class EndpointSource(Protocol):
    """Ready endpoints behind a host, by version."""

    async def ready(self, namespace: str, spec: CanaryRolloutSpec) -> Endpoints | Unreadable:
        """Count ready endpoints by value of the version label."""
        ...


class MetricsSource(Protocol):
    """Counts of requests, fetched in the background: asking never waits."""

    def latest(self, request: EvidenceRequest, now: datetime, wake: Callable[[], None]) -> Evidence | None:
        """Return the newest evidence at hand and see to it that due blocks are fetched.

        Args:
            request: What to count.
            now: The present time.
            wake: Called from the event loop when newer evidence (or an error) has come in.

        Returns:
            The evidence so far, or ``None`` when nothing was fetched yet.
        """
        ...

    def preflight(self, request: PreflightRequest, now: datetime, wake: Callable[[], None]) -> Preflight | None:
        """Return what is known of a provider before traffic moves, and see to it that it is found out.

        Args:
            request: What has to be known.
            now: The present time.
            wake: Called from the event loop when an answer (or an error) has come in.

        Returns:
            The answer, or ``None`` when there is none yet.
        """
        ...


class Clock(Protocol):
    """Wall and monotonic time."""

    def now(self) -> datetime:
        """Return the wall-clock time, UTC, aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        ...


class LeaseStore(Protocol):
    """One Lease object, by compare-and-swap."""

    async def read(self) -> tuple[str, dict[str, Any]] | None:
        """Return (resourceVersion, spec) or ``None`` when there is no Lease."""
        ...

    async def create(self, spec: dict[str, Any]) -> str:
        """Create the Lease and return its resourceVersion; raises `Conflict` when it exists."""
        ...

    async def replace(self, resource_version: str, spec: dict[str, Any]) -> str:
        """Replace the spec guarded by resourceVersion and return the new one; raises `Conflict`."""
        ...
