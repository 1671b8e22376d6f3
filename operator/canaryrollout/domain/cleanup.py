"""Removing what the operator added and nobody needs any more, in the reverse order of making it.

First the destinations, once they stood at weight 0 for the drain time; then, after the mesh had time to forget them,
the subsets that no VirtualService names; last the finalizer. What serves stable stays, and so does whatever the user
wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from canaryrollout.api.status import Change, ChangeKind, Phase
from canaryrollout.domain.decision import (
    Action,
    CleanRoutes,
    Decision,
    Order,
    RemoveSubsets,
    RouteCleanup,
    SetFinalizer,
)
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.observation import Unreadable, VirtualServiceState
from canaryrollout.domain.routes import RouteView, TrafficView
from canaryrollout.domain.shares import percentages


def cleanup(draft: Draft, phase: Phase) -> Decision | None:
    """Do the next part of the clean-up.

    Args:
        draft: The decision in the making; the rollout's canary (or former stable) is at weight 0.
        phase: Phase to show meanwhile.

    Returns:
        The move, or ``None`` when nothing is left to do.
    """
    draft.update(changes=still_present(draft.status.changes, draft.case.traffic))
    keep = draft.status.stable_version or ""
    actions = _route_cleanups(draft, keep)
    if actions:
        return _clean_routes(draft, phase, actions)
    unneeded = tuple(
        c.subset
        for c in draft.status.changes
        if c.kind is ChangeKind.SUBSET and c.version != keep and not _named(draft, c.subset)
    )
    if unneeded and draft.case.traffic.rule is not None:
        return _remove_subsets(draft, phase, unneeded)
    if unneeded and isinstance(flaw := draft.case.traffic.rule_flaw, Unreadable):
        return draft.move(phase, "MeshUnreadable", flaw.message, wake_in=_retry(draft))
    return release(draft, phase, "CleaningUp") if draft.case.identity.finalizer else None


def release(draft: Draft, phase: Phase, reason: str) -> Decision:
    """Take the finalizer off: nothing is left to do before the object may go."""
    action = SetFinalizer(False)
    return draft.move(phase, reason, "releasing the object", actions=(action,), again=True, wake_in=_retry(draft))


def still_present(changes: tuple[Change, ...], traffic: TrafficView) -> tuple[Change, ...]:
    """Return the recorded changes that are still to be seen in the mesh; what cannot be read counts as present."""
    written = {
        (route.virtual_service.name, route.route, d.subset or ""): d.written
        for route in traffic.routes
        for d in route.destinations
    }
    subsets = {subset.name for subset in traffic.rule.subsets} if traffic.rule is not None else None
    managed = {(route.virtual_service.name, route.route) for route in traffic.routes}
    return tuple(change for change in changes if _present(change, managed, written, subsets))


def _present(
    change: Change,
    managed: set[tuple[str, str]],
    written: Mapping[tuple[str, str, str], int | None],
    subsets: set[str] | None,
) -> bool:
    if change.kind is ChangeKind.SUBSET:
        return subsets is None or change.subset in subsets
    if (change.object, change.route) not in managed:
        return True
    key = (change.object, change.route, change.subset)
    if change.kind is ChangeKind.DESTINATION:
        return key in written
    return key in written and written[key] != change.original


def _route_cleanups(draft: Draft, keep: str) -> list[CleanRoutes]:
    actions: dict[str, tuple[VirtualServiceState, list[RouteCleanup]]] = {}
    for route in draft.case.traffic.routes:
        own = [c for c in draft.status.changes if c.object == route.virtual_service.name and c.route == route.route]
        keeps = route.subset_of(keep)
        ours = {c.subset for c in own if c.kind is ChangeKind.DESTINATION}
        remove = tuple(
            d.subset for d in route.destinations if d.subset in ours and d.subset != keeps and not d.weight and d.subset
        )
        restore = _restorable(route, own, remove)
        if remove or restore:
            entry = actions.setdefault(route.virtual_service.name, (route.virtual_service, []))
            entry[1].append(RouteCleanup(route.route, remove, restore))
    return [CleanRoutes(found, tuple(cleanups)) for found, cleanups in actions.values()]


def _restorable(route: RouteView, changes: list[Change], remove: tuple[str, ...]) -> dict[str, int | None]:
    """Return the original weight leaves, if writing them leaves every share of traffic as it is."""
    originals = {c.subset: c.original for c in changes if c.kind is ChangeKind.WEIGHT}
    remaining = [d for d in route.destinations if d.subset not in remove]
    restored = [originals.get(d.subset or "", d.written) for d in remaining]
    differing = {s: w for s, w in originals.items() if any((d.subset or "") == s and d.written != w for d in remaining)}
    return differing if percentages(restored) == tuple(d.weight for d in remaining) else {}


def _named(draft: Draft, subset: str) -> bool:
    """Return whether a subset is named by a managed route, or by any other VirtualService that we can list."""
    if any(d.subset == subset for route in draft.case.traffic.routes for d in route.destinations):
        return True
    mesh = draft.case.observation.mesh
    references = mesh.references if mesh else None
    return bool(references and references.get(subset))


def _clean_routes(draft: Draft, phase: Phase, actions: list[CleanRoutes]) -> Decision:
    case = draft.case
    since = draft.record.drained_since
    if since is None:
        draft.rollout(drained_since=case.now, cleaned_at=None)
        since = case.now
    due = since + case.settings.drain
    if case.now < due:
        return draft.move(phase, "Draining", "letting requests under way end before destinations go", wake_at=due)
    draft.rollout(cleaned_at=case.now)
    return _apply(draft, phase, tuple(actions), "removing destinations that are no longer needed")


def _remove_subsets(draft: Draft, phase: Phase, names: tuple[str, ...]) -> Decision:
    case = draft.case
    if draft.record.cleaned_at is None:
        draft.rollout(cleaned_at=case.now)
    due = (draft.record.cleaned_at or case.now) + case.settings.subset_settle
    if case.now < due:
        return draft.move(phase, "Settling", "letting the mesh forget the routes before subsets go", wake_at=due)
    mesh = case.observation.mesh
    if mesh is None or mesh.references is None:
        message = "cannot see which VirtualServices name the subsets that should go"
        return draft.move(phase, "MeshUnreadable", message, wake_in=_retry(draft))
    rule = case.traffic.rule
    assert rule is not None  # noqa: S101 - the caller looked
    return _apply(
        draft,
        phase,
        (RemoveSubsets(rule, names, keep_empty_list=_was_empty(draft)),),
        "removing subsets that are no longer needed",
    )


def _was_empty(draft: Draft) -> bool:
    """Return whether the author wrote an empty list of subsets, which is then to be left."""
    return any(c.kind is ChangeKind.SUBSET and c.original == 0 for c in draft.status.changes)


def _apply(draft: Draft, phase: Phase, actions: tuple[Action, ...], message: str) -> Decision:
    return draft.move(
        phase,
        "CleaningUp",
        message,
        actions=actions,
        order=Order.MESH_FIRST,
        again=True,
        wake_in=_retry(draft),
    )


def _retry(draft: Draft) -> timedelta:
    return draft.case.settings.retry
