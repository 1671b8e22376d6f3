"""What the core asks the shells to do: one move at a time, as data.

Every action is absolute ("these subsets of this route have these weights"), so doing one twice is harmless, and carries
what it was planned against, so that it fails rather than overwrite somebody else's change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.api.text import LONGEST_EVENT, plain, plain_model
from canaryrollout.domain.evidence import EvidenceRequest, PreflightRequest
from canaryrollout.domain.observation import DestinationRuleState, VirtualServiceState


@dataclass(frozen=True, slots=True)
class RouteWeights:
    """Target weights of one route.

    Attributes:
        route: Route name, or ``""`` for the only route.
        weights: Weight by subset (``""``: the plain destination), summing to 100. A subset that has no destination yet
            gains one. Every other destination of the host on this route gets weight 0.
        template: Subset whose destination a new one is copied from; ``None`` for the plain destination.
    """

    route: str
    weights: Mapping[str, int]
    template: str | None


@dataclass(frozen=True, slots=True)
class SetWeights:
    """Set weights on routes of one VirtualService in one guarded patch."""

    found: VirtualServiceState
    routes: tuple[RouteWeights, ...]

    @property
    def key(self) -> str:
        """Return what failures of this action are counted under."""
        return f"SetWeights/{self.found.name}"


@dataclass(frozen=True, slots=True)
class RouteCleanup:
    """What goes from one route: our drained destinations, and weight leaves that get their original back.

    Attributes:
        route: Route name, or ``""`` for the only route.
        remove: Subsets whose destinations are removed; refused by the router unless their weight is 0.
        restore: Original written weight (``None``: absent) by subset (``""``: the plain destination).
    """

    route: str
    remove: tuple[str, ...]
    restore: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class CleanRoutes:
    """Remove our destinations from routes of one VirtualService in one guarded patch."""

    found: VirtualServiceState
    routes: tuple[RouteCleanup, ...]

    @property
    def key(self) -> str:
        """Return what failures of this action are counted under."""
        return f"CleanRoutes/{self.found.name}"


@dataclass(frozen=True, slots=True)
class AddSubset:
    """Add a subset to the DestinationRule: a copy of ``template`` with name and version label replaced."""

    found: DestinationRuleState
    name: str
    version: str
    version_label: str
    template: str | None

    @property
    def key(self) -> str:
        """Return what failures of this action are counted under."""
        return f"AddSubset/{self.found.name}"


@dataclass(frozen=True, slots=True)
class RemoveSubsets:
    """Remove our subsets from the DestinationRule.

    The list of subsets goes with its last entry, unless ``keep_empty_list``: its author had written an empty one
    (a recorded subset whose ``original`` is 0).
    """

    found: DestinationRuleState
    names: tuple[str, ...]
    keep_empty_list: bool = False

    @property
    def key(self) -> str:
        """Return what failures of this action are counted under."""
        return f"RemoveSubsets/{self.found.name}"


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Put our finalizer on the rollout, or take it off."""

    present: bool

    @property
    def key(self) -> str:
        """Return what failures of this action are counted under."""
        return "SetFinalizer"


Action = SetWeights | CleanRoutes | AddSubset | RemoveSubsets | SetFinalizer


class Order(StrEnum):
    """Which write comes first. Bookkeeping precedes every raise; safety precedes bookkeeping in a rollback."""

    STATUS_FIRST = "status-first"
    MESH_FIRST = "mesh-first"


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the rollout; its message is made plain, whatever words of others it quotes."""

    reason: str
    message: str
    warning: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", plain(self.message, LONGEST_EVENT))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a pass has to read before it can decide.

    Attributes:
        mesh: Whether VirtualServices and DestinationRule are needed.
        scope: The spec whose objects are to be read, where they are more than the user's spec lists now; else ``None``.
        references: Whether it is needed which VirtualServices name the host's subsets, and which callers no listed
            route covers.
        endpoints: Whether ready endpoints are needed.
        evidence: Counts of the step in force.
        opening: Counts of the moments between the write of its weight and the beginning of ``evidence``.
        baseline: Counts of the window before the first step.
        preflight: What has to be known of the provider before the first step.
    """

    mesh: bool = False
    scope: CanaryRolloutSpec | None = None
    references: bool = False
    endpoints: bool = False
    evidence: EvidenceRequest | None = None
    opening: EvidenceRequest | None = None
    baseline: EvidenceRequest | None = None
    preflight: PreflightRequest | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One move.

    Attributes:
        status: The status to be; equal to the present one when nothing is to be written.
        actions: Run concurrently.
        order: Whether the status is written before or after them.
        wake_at: When to look again at the latest; ``None`` leaves it to changes and the resync.
        events: Kubernetes Events, emitted once the status was written (or at once when it does not change).
        again: Whether another pass should follow at once, because this move only prepared the next.

    Every text of the status is made plain here, whatever words of others it quotes.
    """

    status: CanaryRolloutStatus
    actions: tuple[Action, ...] = ()
    order: Order = Order.STATUS_FIRST
    wake_at: datetime | None = None
    events: tuple[Event, ...] = ()
    again: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", plain_model(self.status))
