"""What the operator alters in the mesh, as a record that can be undone.

The record is written into status before the mesh is touched, so it has to be known from a plan alone. It holds, for
every leaf, what its author wrote: undoing the record, newest first, gives back the author's JSON at every moment,
whichever of the recorded writes have happened. The same plan decides which leaves a patch writes, so that the two
cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.decision import Action, AddSubset, CleanRoutes, RemoveSubsets, RouteWeights, SetWeights
from canaryrollout.domain.observation import Weights

_NO_SUBSETS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """The leaves that a target writes on one route; the plain destination has the key ``""``.

    Attributes:
        write: New weight of destinations that exist and show another one.
        add: Weight of destinations that are missing.
    """

    write: Mapping[str, int]
    add: Mapping[str, int]


def plan_route(state: Weights, target: RouteWeights) -> RoutePlan:
    """Tell what a target writes on a route, and leave alone what says it already.

    An absent weight says 0 among several destinations, and 100 on a single one.
    """
    existing = {destination.subset or "": destination.written for destination in state.destinations}
    add = {subset: weight for subset, weight in target.weights.items() if subset not in existing}
    implied = 0 if len(existing) + len(add) > 1 else 100
    write = {}
    for subset, written in existing.items():
        weight = target.weights.get(subset, 0)
        if weight != (implied if written is None else written):
            write[subset] = weight
    return RoutePlan(write, add)


def changes_of(action: Action, subsets: Mapping[str, str] = _NO_SUBSETS) -> tuple[Change, ...]:
    """Tell what an action adds or alters, to be recorded before it is carried out.

    Args:
        action: The action as planned.
        subsets: Subset by version, to name the version behind an added destination.

    Returns:
        Changes in the order in which they happen; none for actions that only take away what was recorded.
    """
    match action:
        case SetWeights(found=found, routes=targets):
            versions = {subset: version for version, subset in subsets.items()}
            changes: list[Change] = []
            for target in targets:
                state = found.routes.get(target.route)
                if isinstance(state, Weights):
                    changes += _route_changes(found.name, state, target, versions)
            return tuple(changes)
        case AddSubset(found=rule, name=name, version=version):
            original = 0 if rule.empty_list else None
            change = Change(kind=ChangeKind.SUBSET, object=rule.name, subset=name, version=version, original=original)
            return (change,)
    return ()


def _route_changes(name: str, state: Weights, target: RouteWeights, versions: Mapping[str, str]) -> Iterable[Change]:
    plan = plan_route(state, target)
    originals = {destination.subset or "": destination.written for destination in state.destinations}
    for subset in plan.write:
        yield Change(kind=ChangeKind.WEIGHT, object=name, route=target.route, subset=subset, original=originals[subset])
    for subset in plan.add:
        version = versions.get(subset, "")
        yield Change(kind=ChangeKind.DESTINATION, object=name, route=target.route, subset=subset, version=version)


def merge_changes(existing: Iterable[Change], new: Iterable[Change]) -> tuple[Change, ...]:
    """Add changes to a record.

    What is recorded stays as it is: the first record of a leaf holds what its author wrote, later ones would hold what
    we wrote. The weight of a destination that we added has no author, and is not recorded.

    Returns:
        The record, oldest first.
    """
    merged = {_place(change): change for change in existing}
    for change in new:
        ours = _place(change.model_copy(update={"kind": ChangeKind.DESTINATION}))
        if change.kind is ChangeKind.WEIGHT and ours in merged:
            continue
        merged.setdefault(_place(change), change)
    return tuple(merged.values())


def changes_after_cleanup(existing: Iterable[Change], action: Action) -> tuple[Change, ...]:
    """Tell what remains recorded once a clean-up has been carried out.

    Args:
        existing: The record.
        action: `CleanRoutes` or `RemoveSubsets`; other actions take nothing off the record.
    """
    record = tuple(existing)
    match action:
        case CleanRoutes(found=found, routes=cleanups):
            removed = {(found.name, cleanup.route, subset) for cleanup in cleanups for subset in cleanup.remove}
            restored = {(found.name, cleanup.route, subset) for cleanup in cleanups for subset in cleanup.restore}
            gone = {ChangeKind.DESTINATION: removed, ChangeKind.WEIGHT: removed | restored}
            return tuple(c for c in record if (c.object, c.route, c.subset) not in gone.get(c.kind, ()))
        case RemoveSubsets(found=rule, names=names):
            return _without_subsets(record, rule.name, names)
    return record


def _without_subsets(record: Sequence[Change], rule: str, names: Iterable[str]) -> tuple[Change, ...]:
    """Take subsets off the record; that the list was empty before the first of them holds for those that stay."""
    own = [change for change in record if change.kind is ChangeKind.SUBSET and change.object == rule]
    gone = {_place(change) for change in own if change.subset in set(names)}
    original = own[0].original if own else None
    return tuple(
        change.model_copy(update={"original": original}) if change in own else change
        for change in record
        if _place(change) not in gone
    )


def _place(change: Change) -> tuple[ChangeKind, str, str, str]:
    return change.kind, change.object, change.route, change.subset
