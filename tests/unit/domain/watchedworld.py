"""A world whose decisions are kept, and whose objects can be unreadable one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import RolloutRecord
from canaryrollout.domain.decision import Decision, Event
from canaryrollout.domain.evidence import Evidence, EvidenceRequest
from canaryrollout.domain.observation import Mesh, Unreadable
from tests.world import World, destination, spec, virtual_service


@dataclass
class WatchedWorld(World):
    """`World`, watched.

    Attributes:
        decisions: Every decision that was carried out, oldest first.
        times: When each of them was made.
        unmeasured: Whether the provider has no answer yet on what reached nobody before the rollout (``"unasked"``), or
            one without a block (``"empty"``).
        unread: Names of VirtualServices that cannot be read.
        rule_unread: Whether the DestinationRule cannot be read.
        excuse: Words for why something cannot be read.
    """

    decisions: list[Decision] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    unmeasured: str = ""
    unread: frozenset[str] = frozenset()
    rule_unread: bool = False
    excuse: Callable[[], str] = lambda: "timeout"

    @property
    def record(self) -> RolloutRecord:
        """Return the rollout under way, or the last one."""
        found = self.state.rollout
        assert found is not None
        return found

    @property
    def told(self) -> list[Event]:
        """Return every Event."""
        return [event for decision in self.decisions for event in decision.events]

    def step(self) -> Decision:
        """Make one pass, and keep what was decided."""
        decision = super().step()
        self.decisions.append(decision)
        self.times.append(self.now)
        return decision

    def refused_raise(self) -> WatchedWorld:
        """Go on until a raise was decided that the API server does not accept; it does again from now on."""
        self.refusing = frozenset(self.services)
        self.run(until=lambda _: any(key.startswith("SetWeights/") for key in self.failures))
        self.refusing = frozenset()
        return self

    def _evidence(self, request: EvidenceRequest | None) -> Evidence | None:
        if self.unmeasured and request is not None and request.until is not None and not request.weight:
            return None if self.unmeasured == "unasked" else Evidence(request)
        return super()._evidence(request)

    def _mesh(self, *, references: bool, scope: CanaryRolloutSpec | None = None) -> Mesh:
        mesh = super()._mesh(references=references, scope=scope)
        away = Unreadable(self.excuse())
        if not self.api:
            return Mesh(dict.fromkeys(mesh.virtual_services, away), away)
        services: Any = {name: away if name in self.unread else found for name, found in mesh.virtual_services.items()}
        rule = away if self.rule_unread else mesh.destination_rule
        return replace(mesh, virtual_services=services, destination_rule=rule)


def at(weight: int, **fields: Any) -> WatchedWorld:
    """Return a world in which the canary has just got this weight."""
    world = WatchedWorld(**fields)
    world.run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)
    return world


def on_two(weight: int, **fields: Any) -> WatchedWorld:
    """Return such a world with two VirtualServices, ``reviews`` and ``gateway``, whose only route is meant.

    At weight 0 the canary is awaited.
    """
    istio = {
        "virtualServices": [{"name": "reviews"}, {"name": "gateway"}],
        "destinationRule": {"name": "reviews"},
    }
    services = {name: virtual_service(name, {"route": [destination("v1", 100)]}) for name in ("reviews", "gateway")}
    if not weight:
        world = WatchedWorld(rollout=spec(istio=istio), services=services, ready={"v1": 2})
        world.run(until=lambda w: w.reason == "WaitingForCanary")
        return world
    return at(weight, rollout=spec(istio=istio, **fields.pop("rollout", {})), services=services, **fields)


def set_to(*shares: tuple[str | None, int]) -> Callable[[dict[str, Any]], None]:
    """Return an edit that gives the only route these destinations."""
    return lambda mesh: mesh["http"][0].update(route=[destination(subset, weight) for subset, weight in shares])


def edit(world: World, weight: int, manager: str = "argocd") -> None:
    """Let somebody give the second destination of the only route this weight, and the first one the rest."""

    def change(mesh: dict[str, Any]) -> None:
        route = mesh["http"][0]["route"]
        route[0]["weight"], route[1]["weight"] = 100 - weight, weight

    world.edit("reviews", change, manager)


def history(world: World) -> list[str]:
    """Return the reasons in the history of status, oldest first."""
    return [entry.reason for entry in world.state.history]
