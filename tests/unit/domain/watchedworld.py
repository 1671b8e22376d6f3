"""A world whose decisions are kept, and whose objects can be unreadable one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import RolloutRecord
from canaryrollout.domain.decision import Decision, Event
from canaryrollout.domain.observation import Mesh, Unreadable
from tests.world import World


@dataclass
class WatchedWorld(World):
    """`World`, watched.

    Attributes:
        decisions: Every decision that was carried out, oldest first.
        unread: Names of VirtualServices that cannot be read.
        rule_unread: Whether the DestinationRule cannot be read.
        excuse: Words for why something cannot be read.
    """

    decisions: list[Decision] = field(default_factory=list)
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
        return decision

    def refused_raise(self) -> WatchedWorld:
        """Go on until a raise was decided that the API server does not accept; it does again from now on."""
        self.refusing = frozenset(self.services)
        self.run(until=lambda _: any(key.startswith("SetWeights/") for key in self.failures))
        self.refusing = frozenset()
        return self

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
