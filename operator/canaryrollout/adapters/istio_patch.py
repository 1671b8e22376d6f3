"""Patches of VirtualServices and DestinationRules, as data.

A patch may touch weights and our own entries, and nothing else; it must fail rather than overwrite what somebody else
wrote meanwhile. So every patch begins with the resourceVersion it was planned on (a stale one is answered with 409) and
tests what it is about to touch: the route's name and the host's destinations, or, where the route has no name, all of
its destinations (a difference is answered with 422). Weights are written with ``add``: the leaf may be absent.

Everything here is pure: documents go in, patches and documents come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import singledispatch
from typing import Any, Final

from canaryrollout.adapters.istio_read import find_route, names_host
from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.changes import plan_route
from canaryrollout.domain.decision import (
    Action,
    AddSubset,
    CleanRoutes,
    RemoveSubsets,
    RouteCleanup,
    RouteWeights,
    SetWeights,
)
from canaryrollout.domain.naming import CLUSTER_DOMAIN, fqdn
from canaryrollout.domain.observation import Weights
from canaryrollout.domain.shares import percentages

Document = Mapping[str, Any]
Operation = dict[str, Any]
Patch = tuple[Operation, ...]

_SERVER_FIELDS: Final = ("resourceVersion", "generation", "managedFields", "creationTimestamp", "uid", "selfLink")


class Unpatchable(ValueError):  # noqa: N818 - a verdict on the plan
    """The plan does not fit the document, or would break a promise; nothing may be sent."""


def build_patch(document: Document, action: Action, host: str = "", *, domain: str = CLUSTER_DOMAIN) -> Patch:
    """Build the JSON Patch that carries an action out.

    Args:
        document: The object the action was planned on.
        action: What to do.
        host: Fully qualified host of the rollout; empty to take the one that has the route's traffic.
        domain: DNS domain of the cluster.

    Returns:
        The operations; none where the document already is as the action wants it.

    Raises:
        Unpatchable: If the plan does not fit the document, weights would not sum to 100, or a destination with traffic
            would go.
    """
    operations = list(_operations(action, _Object(document, host, domain)))
    if not any(operation["op"] != "test" for operation in operations):
        return ()
    version = document["metadata"]["resourceVersion"]
    return ({"op": "replace", "path": "/metadata/resourceVersion", "value": version}, *operations)


class _Object:
    """A document, and which of its destinations are about the host."""

    def __init__(self, document: Document, host: str, domain: str) -> None:
        metadata = document.get("metadata") or {}
        self.name = f"{document.get('kind', 'object')} {metadata.get('name', '')}".strip()
        self.namespace = str(metadata.get("namespace", ""))
        self.spec: Document = document.get("spec") or {}
        self._host = host
        self._domain = domain

    def route(self, name: str) -> _Route:
        """Return a managed route by name, ``""`` being the only one."""
        http = self.spec.get("http") or ()
        index = find_route(http, name)
        if index is None:
            what = f"no single http route named {name!r}" if name else f"{len(http)} http routes where one was expected"
            raise Unpatchable(f"{self.name} has {what}")
        entries = http[index].get("route") or ()
        host = self._host or self._host_with_traffic(entries)
        own = {
            (entry.get("destination") or {}).get("subset") or "": position
            for position, entry in enumerate(entries)
            if names_host(entry.get("destination") or {}, host, self.namespace, self._domain)
        }
        label = f"{self.name}: route {name!r}" if name else self.name
        return _Route(label, index, http[index].get("name") or "", entries, own)

    def host_of(self, name: str) -> str:
        """Return the host that has the traffic of a managed route; empty where that is not clear."""
        http = self.spec.get("http") or ()
        index = find_route(http, name)
        return self._host_with_traffic(http[index].get("route") or ()) if index is not None else ""

    def _host_with_traffic(self, entries: Sequence[Document]) -> str:
        for entry, share in zip(entries, percentages([e.get("weight") for e in entries]) or (), strict=False):
            if share:
                return fqdn(str((entry.get("destination") or {}).get("host", "")), self.namespace, self._domain)
        return ""


class _Route:
    """One http route: its entries, and the position of the host's destinations by subset (``""``: the plain one)."""

    def __init__(
        self, label: str, index: int, name: str, entries: Sequence[Document], positions: Mapping[str, int]
    ) -> None:
        self.label = label
        self.index = index
        self.path = f"/spec/http/{index}"
        self.name = name
        self.entries = entries
        self.positions = positions

    def position(self, subset: str) -> int:
        """Return where the destination of a subset stands."""
        if subset not in self.positions:
            what = f"subset {subset!r}" if subset else "the plain host"
            raise Unpatchable(f"{self.label} has no destination of {what}")
        return self.positions[subset]

    def guards(self) -> Iterator[Operation]:
        """Yield tests that hold only while the route is the one that was planned on."""
        if not self.name:
            yield {"op": "test", "path": f"{self.path}/route", "value": deepcopy(list(self.entries))}
            return
        yield {"op": "test", "path": f"{self.path}/name", "value": self.name}
        for position in sorted(self.positions.values()):
            destination = deepcopy(self.entries[position]["destination"])
            yield {"op": "test", "path": f"{self.path}/route/{position}/destination", "value": destination}


@singledispatch
def _operations(action: object, subject: _Object) -> Iterator[Operation]:
    raise TypeError(f"{type(action).__name__} is no change of {subject.name}")


@_operations.register
def _(action: SetWeights, subject: _Object) -> Iterator[Operation]:
    _once(subject, [target.route for target in action.routes])
    for target in action.routes:
        state = action.found.routes.get(target.route)
        if not isinstance(state, Weights):
            raise Unpatchable(f"{subject.name}: route {target.route!r} was not found to be one that can be moved")
        yield from _weigh(subject.route(target.route), state, target)


@_operations.register
def _(action: CleanRoutes, subject: _Object) -> Iterator[Operation]:
    _once(subject, [cleanup.route for cleanup in action.routes])
    for cleanup in action.routes:
        yield from _clean(subject.route(cleanup.route), cleanup)


@_operations.register
def _(action: AddSubset, subject: _Object) -> Iterator[Operation]:
    subsets = subject.spec.get("subsets")
    for subset in subsets or ():
        if subset.get("name") == action.name:
            if (subset.get("labels") or {}).get(action.version_label) == action.version:
                return
            raise Unpatchable(f"{subject.name} has a subset {action.name!r} that is not {action.version}")
    entry: dict[str, Any] = {"name": action.name, "labels": {action.version_label: action.version}}
    yield {"op": "test", "path": "/spec/host", "value": subject.spec.get("host")}
    if action.template is not None:
        position = _subset_position(subject, action.template)
        template = (subsets or ())[position]
        yield {"op": "test", "path": f"/spec/subsets/{position}/name", "value": action.template}
        labels = {**(template.get("labels") or {}), action.version_label: action.version}
        entry = {**deepcopy(dict(template)), "name": action.name, "labels": labels}
    if subsets is None:
        yield {"op": "add", "path": "/spec/subsets", "value": [entry]}
    else:
        yield {"op": "add", "path": "/spec/subsets/-", "value": entry}


@_operations.register
def _(action: RemoveSubsets, subject: _Object) -> Iterator[Operation]:
    subsets = subject.spec.get("subsets") or ()
    positions = [i for i, subset in enumerate(subsets) if subset.get("name") in action.names]
    for position in positions:
        yield {"op": "test", "path": f"/spec/subsets/{position}/name", "value": subsets[position]["name"]}
    if positions and len(positions) == len(subsets) and not action.keep_empty_list:
        yield {"op": "remove", "path": "/spec/subsets"}
        return
    for position in reversed(positions):
        yield {"op": "remove", "path": f"/spec/subsets/{position}"}


def _weigh(route: _Route, state: Weights, target: RouteWeights) -> Iterator[Operation]:
    plan = plan_route(state, target)
    written: list[int | None] = [entry.get("weight") for entry in route.entries]
    writes = {route.position(subset): weight for subset, weight in plan.write.items()}
    for position, weight in writes.items():
        written[position] = weight
    written += plan.add.values()
    if any(weight < 0 for weight in target.weights.values()) or sum(target.weights.values()) != 100:
        raise Unpatchable(f"{route.label}: weights {dict(target.weights)} do not sum to 100")
    if len(written) > 1 and sum(weight or 0 for weight in written) != 100:
        raise Unpatchable(f"{route.label}: weights would be {written}, which do not sum to 100")
    if not plan.write and not plan.add:
        return
    yield from route.guards()
    for position, weight in writes.items():
        yield {"op": "add", "path": f"{route.path}/route/{position}/weight", "value": weight}
    for subset, weight in plan.add.items():
        entry = deepcopy(dict(route.entries[route.position(target.template or "")]))
        entry["destination"] = {**entry["destination"], "subset": subset}
        entry["weight"] = weight
        yield {"op": "add", "path": f"{route.path}/route/-", "value": entry}


def _clean(route: _Route, cleanup: RouteCleanup) -> Iterator[Operation]:
    written: list[int | None] = [entry.get("weight") for entry in route.entries]
    shares = percentages(written) or ()
    removed = sorted(route.positions[subset] for subset in cleanup.remove if subset in route.positions)
    for position in removed:
        if shares and shares[position]:
            raise Unpatchable(
                f"{route.label}: {shares[position]} % of its requests still go to {_subset(route, position)}"
            )
    restored = {
        route.positions[subset]: weight
        for subset, weight in cleanup.restore.items()
        if subset in route.positions and subset not in cleanup.remove and written[route.positions[subset]] != weight
    }
    kept = [position for position in range(len(written)) if position not in removed]
    after = percentages([restored.get(position, written[position]) for position in kept]) if kept else None
    if after != tuple(shares[position] for position in kept):
        raise Unpatchable(f"{route.label}: cleaning up would move traffic (from {shares} to {after})")
    if not removed and not restored:
        return
    yield from route.guards()
    for position, original in sorted(restored.items()):
        path = f"{route.path}/route/{position}/weight"
        yield {"op": "remove", "path": path} if original is None else {"op": "add", "path": path, "value": original}
    for position in reversed(removed):
        yield {"op": "remove", "path": f"{route.path}/route/{position}"}


def _subset(route: _Route, position: int) -> str:
    return f"subset {route.entries[position]['destination'].get('subset')!r}"


def _once(subject: _Object, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise Unpatchable(f"{subject.name}: a route is named twice in {list(names)}")


def _subset_position(subject: _Object, name: str) -> int:
    for position, subset in enumerate(subject.spec.get("subsets") or ()):
        if subset.get("name") == name:
            return position
    raise Unpatchable(f"{subject.name} has no subset {name!r} to copy")


def undo(
    document: Document, changes: Iterable[Change], host: str = "", *, domain: str = CLUSTER_DOMAIN
) -> dict[str, Any]:
    """Return a document as it would be without what the operator recorded.

    Changes that have not happened yet, or were undone, are passed over, so that a record written ahead does no harm.

    Args:
        document: A VirtualService or DestinationRule.
        changes: The record, oldest first; changes of other objects are passed over.
        host: Fully qualified host of the rollout; empty to take the one that has the route's traffic.
        domain: DNS domain of the cluster.

    Returns:
        A copy; the argument stays as it is.
    """
    copy: dict[str, Any] = deepcopy(dict(document))
    name, kind = copy["metadata"]["name"], copy.get("kind", "")
    record = [change for change in changes if change.object == name]
    subject = _Object(document, host, domain)
    hosts = {change.route: host or subject.host_of(change.route) for change in record}
    for change in reversed(record):
        if change.kind is ChangeKind.SUBSET:
            if kind != "VirtualService":
                _undo_subset(copy, change)
        elif kind != "DestinationRule":
            _undo_route(copy, change, hosts[change.route], domain)
    return copy


def _undo_subset(document: dict[str, Any], change: Change) -> None:
    spec = document.get("spec") or {}
    remaining = [subset for subset in spec.get("subsets") or () if subset.get("name") != change.subset]
    if remaining or change.original is not None:
        spec["subsets"] = remaining  # an empty list where the author had written one
    else:
        spec.pop("subsets", None)


def _undo_route(document: dict[str, Any], change: Change, host: str, domain: str) -> None:
    try:
        route = _Object(document, host, domain).route(change.route)
        position = route.position(change.subset)
    except Unpatchable:
        return
    entries = document["spec"]["http"][route.index]["route"]
    if change.kind is ChangeKind.DESTINATION:
        del entries[position]
    elif change.original is None:
        entries[position].pop("weight", None)
    else:
        entries[position]["weight"] = change.original


def without_server_fields(document: Document) -> dict[str, Any]:
    """Return a copy without the metadata that the API server keeps, for comparing what people wrote."""
    copy: dict[str, Any] = deepcopy(dict(document))
    copy["metadata"] = {key: value for key, value in copy["metadata"].items() if key not in _SERVER_FIELDS}
    return copy
