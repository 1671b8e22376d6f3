"""The observed routes in terms of versions, and the moves between weights.

The mesh speaks of subsets, users speak of versions. The DestinationRule tells which is which; where it cannot be read,
what status remembers does, because a rollback must not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from canaryrollout.domain.decision import RouteWeights, SetWeights
from canaryrollout.domain.observation import (
    Destination,
    DestinationRuleState,
    Mesh,
    Missing,
    Refused,
    Unreadable,
    VirtualServiceState,
    Weights,
)


@dataclass(frozen=True, slots=True)
class RouteView:
    """One managed route, with the version behind each destination (``None``: no single version)."""

    virtual_service: VirtualServiceState
    route: str
    destinations: tuple[Destination, ...]
    versions: tuple[str | None, ...]

    @property
    def name(self) -> str:
        """Return the route's name for people."""
        return f"{self.virtual_service.name}/{self.route}" if self.route else self.virtual_service.name

    def weight_of(self, version: str) -> int:
        """Return the share of a version, in percent."""
        return sum(d.weight for d, v in zip(self.destinations, self.versions, strict=True) if v == version)

    def subset_of(self, version: str) -> str | None:
        """Return the subset by which this route names a version, one with traffic first; ``None`` if it does not."""
        named = [d for d, v in zip(self.destinations, self.versions, strict=True) if v == version and d.subset]
        return max(named, key=lambda d: d.weight).subset if named else None

    def serving(self) -> dict[str | None, int]:
        """Return the share of every version that has traffic; ``None`` stands for traffic to no single version."""
        shares: dict[str | None, int] = {}
        for destination, version in zip(self.destinations, self.versions, strict=True):
            if destination.weight:
                shares[version] = shares.get(version, 0) + destination.weight
        return shares

    def shares(self) -> str:
        """Return the same for people, such as ``v1 90 / v2 10``; empty where nothing has traffic."""
        return " / ".join(f"{version or 'no single version'} {weight}" for version, weight in self.serving().items())


@dataclass(frozen=True, slots=True)
class TrafficView:
    """All managed routes, and what could not be used of what was observed.

    Attributes:
        routes: Every route that can be moved.
        flaws: Objects or routes that are missing or refused.
        unreadable: Messages about VirtualServices that could not be read this time.
        rule: The DestinationRule, if it could be read.
        rule_flaw: Why it cannot be used, if so.
    """

    routes: tuple[RouteView, ...]
    flaws: tuple[Missing | Refused, ...]
    unreadable: tuple[str, ...]
    rule: DestinationRuleState | None
    rule_flaw: Missing | Refused | Unreadable | None

    def weights_of(self, version: str) -> tuple[int, ...]:
        """Return a version's share on each route."""
        return tuple(route.weight_of(version) for route in self.routes)

    def complete(self) -> bool:
        """Return whether every listed route could be read and moved."""
        return not self.flaws and not self.unreadable

    def at(self, version: str, weight: int) -> bool:
        """Return whether every listed route gives a version exactly this share."""
        return self.complete() and all(share == weight for share in self.weights_of(version))


def view(mesh: Mesh | None, remembered: Mapping[str, str]) -> TrafficView:
    """Read a mesh observation in terms of versions.

    Args:
        mesh: The observation; ``None`` counts as unreadable.
        remembered: Subset by version, from status.

    Returns:
        The view.
    """
    if mesh is None:
        return TrafficView((), (), ("the mesh has not been read yet",), None, Unreadable("not read yet"))
    rule = mesh.destination_rule
    versions: dict[str | None, str | None] = {subset: version for version, subset in remembered.items()}
    if isinstance(rule, DestinationRuleState):
        versions |= {subset.name: subset.version for subset in rule.subsets}
    routes: list[RouteView] = []
    flaws: list[Missing | Refused] = []
    unreadable: list[str] = []
    for found in mesh.virtual_services.values():
        if isinstance(found, Unreadable):
            unreadable.append(found.message)
        elif isinstance(found, Missing):
            flaws.append(found)
        else:
            for name, state in found.routes.items():
                if isinstance(state, Weights):
                    resolved = tuple(versions.get(d.subset) if d.subset else None for d in state.destinations)
                    routes.append(RouteView(found, name, state.destinations, resolved))
                else:
                    flaws.append(state)
    return TrafficView(
        tuple(routes),
        tuple(flaws),
        tuple(unreadable),
        rule if isinstance(rule, DestinationRuleState) else None,
        None if isinstance(rule, DestinationRuleState) else rule,
    )


def _template(route: RouteView, stable: str) -> str | None:
    """Choose the destination that a new one is copied from: stable's, else the one with the most traffic."""
    own = route.subset_of(stable)
    if own is not None or not route.destinations:
        return own
    return max(route.destinations, key=lambda d: d.weight).subset


def _set(routes: list[tuple[RouteView, dict[str, int]]], stable: str) -> tuple[SetWeights, ...]:
    """Group targets by VirtualService: one patch each, of the routes that differ from their target."""
    actions: dict[str, tuple[VirtualServiceState, list[RouteWeights]]] = {}
    for route, target in routes:
        present = {d.subset: d.weight for d in route.destinations}
        differs = any(weight != target.get(subset or "", 0) for subset, weight in present.items())
        if differs or any(weight and subset not in present for subset, weight in target.items()):
            entry = actions.setdefault(route.virtual_service.name, (route.virtual_service, []))
            entry[1].append(RouteWeights(route.route, target, _template(route, stable)))
    return tuple(SetWeights(found, tuple(targets)) for found, targets in actions.values())


def shift(
    traffic: TrafficView, stable: str, canary: str | None, weight: int, subsets: Mapping[str, str]
) -> tuple[SetWeights, ...]:
    """Plan the patches that give a canary ``weight`` percent on every route and stable the rest.

    Args:
        traffic: The routes as observed.
        stable: Version that serves.
        canary: Version to be weighted; ``None`` to give stable everything.
        weight: Percent for the canary, 0 to 100.
        subsets: Subset by version, for routes that do not name the version yet.

    Returns:
        One action for each VirtualService with a route that differs; none when all is as it should be.
    """
    targets = []
    for route in traffic.routes:
        target: dict[str, int] = {}
        for version, share in ((stable, 100 - weight), (canary, weight)):
            present = route.subset_of(version) if version else None
            subset = present or (subsets.get(version) if version else None)
            if subset and (share or present):
                target[subset] = share
        if sum(target.values()) == 100:
            targets.append((route, target))
    return _set(targets, stable)


def lower(traffic: TrafficView, stable: str, canary: str, subsets: Mapping[str, str]) -> tuple[SetWeights, ...]:
    """Plan the patches that take a canary to 0, touching only routes on which it has traffic."""
    affected = tuple(route for route in traffic.routes if route.weight_of(canary))
    narrowed = TrafficView(affected, (), (), traffic.rule, traffic.rule_flaw)
    return shift(narrowed, stable, canary, 0, subsets)
