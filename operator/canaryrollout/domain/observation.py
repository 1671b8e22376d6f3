"""What the operator saw of the world in one pass.

Every reading says what it is: a value, *missing*, *refused* (readable, but not a shape that can be moved safely) or
*unreadable*. Unknown is never zero: a decision that depends on what could not be read has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.evidence import Evidence, Preflight


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that should exist does not."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Something exists in a shape that cannot be moved safely; the message says which and what would be right.

    ``destinations`` are those of the host on such a route, or on all that may be meant where that is not clear, where
    they could be read: its traffic is not unknown.
    """

    reason: str
    message: str
    destinations: tuple[Destination, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something could not be read this time."""

    message: str


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination of a route that names the rollout's host.

    Attributes:
        subset: Subset it names; ``None`` for a plain destination.
        weight: Share in effect, in percent of the route: what is written, normalized (a single destination has 100,
            an absent weight among several is 0, weights that do not sum to 100 are scaled and rounded).
        written: The weight as written; ``None`` where the field is absent.
    """

    subset: str | None
    weight: int
    written: int | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """A route that can be moved, and how it splits the host's traffic now."""

    destinations: tuple[Destination, ...]


RouteState = Weights | Refused


@dataclass(frozen=True, slots=True)
class VirtualServiceState:
    """A VirtualService as read.

    Attributes:
        name: Its name, in the rollout's namespace.
        generation: ``metadata.generation``.
        writer: Field manager that wrote ``spec.http`` last; empty where managedFields do not tell.
        written_by_us: Whether that manager is this operator.
        routes: State of each managed route, by route name; the only route of a VirtualService whose reference lists
            none has the key ``""``.
        names_host: Whether the rollout's host is among its hosts, by name or wildcard; at a gateway it need not be.
        document: The object as read, for the router to plan a guarded patch against; opaque to decisions.
    """

    name: str
    generation: int
    writer: str
    written_by_us: bool
    routes: Mapping[str, RouteState]
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    names_host: bool = True


@dataclass(frozen=True, slots=True)
class Subset:
    """A subset of the DestinationRule and the version its labels select (``None`` where they select none)."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True)
class DestinationRuleState:
    """A DestinationRule as read; ``document`` as in `VirtualServiceState`.

    ``empty_list`` tells that its author wrote an empty list of subsets rather than none: removing ours leaves it.
    """

    name: str
    generation: int
    subsets: tuple[Subset, ...]
    empty_list: bool = False
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The rollout's VirtualServices (by name, every one the spec lists) and its DestinationRule.

    ``references`` tells, for each subset of the DestinationRule, which VirtualServices that we can list name it on this
    host, whatever the weight (``namespace/name``); ``None`` when it was not asked for or could not be read.
    ``uncovered`` says, for people, which callers meet the canary without a listed route sending them there;
    `Unreadable` when it could not be read, ``None`` when it was not asked for or cannot be told yet.
    """

    virtual_services: Mapping[str, VirtualServiceState | Missing | Unreadable]
    destination_rule: DestinationRuleState | Missing | Refused | Unreadable
    references: Mapping[str, tuple[str, ...]] | None = None
    uncovered: tuple[str, ...] | Unreadable | None = None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Ready endpoints behind the host, by version. A version that is absent has none."""

    ready: Mapping[str, int]

    def of(self, version: str | None) -> int:
        """Return how many ready endpoints a version has."""
        return self.ready.get(version or "", 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that did not succeed, how often in a row, and why."""

    count: int
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """Another CanaryRollout on the same host."""

    key: str
    uid: str
    created_at: datetime
    active: bool

    @property
    def rank(self) -> tuple[bool, datetime, str]:
        """Return what decides which of several judges the host: the smallest, so an active one, else the oldest."""
        return not self.active, self.created_at, self.uid


@dataclass(frozen=True, slots=True)
class Identity:
    """The rollout object apart from spec and status.

    Attributes:
        namespace: Its namespace.
        name: Its name.
        uid: Its uid.
        generation: ``metadata.generation``.
        created_at: ``metadata.creationTimestamp``.
        deleting: Whether it has a deletion timestamp.
        finalizer: Whether our finalizer is on it.
        command: Value of the command annotation; empty where there is none.
        deleted_at: Its deletion timestamp; ``None`` while it is not being deleted.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: datetime
    deleting: bool = False
    finalizer: bool = False
    command: str = ""
    deleted_at: datetime | None = None

    @property
    def key(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything one decision may look at.

    Attributes:
        identity: The rollout object.
        mesh: VirtualServices and DestinationRule; ``None`` when they were not needed.
        endpoints: Ready endpoints by version; `Unreadable` is not zero; ``None`` when not needed.
        evidence: Evidence of the step in force; ``None`` when not needed or nothing was fetched yet.
        opening: Evidence of the moments before that, while proxies took the weight over; ``None`` likewise.
        baseline: Evidence of the window before the first step; ``None`` likewise.
        preflight: What is known of the provider before the first step; ``None`` likewise.
        failures: Actions that failed last time, by `Action.key`.
        claims: The other rollout on the same host that judges it, where there is one.
        clock_step: How far the wall clock jumped against the monotonic one since the last pass.
        unstored: What was decided last, where that could not be written to the object; ``None`` otherwise.
    """

    identity: Identity
    mesh: Mesh | None = None
    endpoints: Endpoints | Unreadable | None = None
    evidence: Evidence | None = None
    opening: Evidence | None = None
    baseline: Evidence | None = None
    preflight: Preflight | None = None
    failures: Mapping[str, Failure] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    clock_step: timedelta = timedelta()
    unstored: CanaryRolloutStatus | None = None
