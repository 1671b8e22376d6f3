"""Reading the stable version from the mesh, when status does not know it.

``spec.version`` is intent, the stable version is fact: it is what the routes serve now. Where the mesh does not tell,
the answer is `Blocked` with what was found and what to set, never a guess.
"""

from __future__ import annotations

from canaryrollout.api.status import Change, ChangeKind, Phase, RolloutRecord
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.observation import Endpoints, Unreadable


def first_sight(draft: Draft) -> Decision:
    """Find the stable version, or say what is in the way."""
    traffic = draft.case.traffic
    if traffic.unreadable or isinstance(draft.case.observation.endpoints, Unreadable | None):
        endpoints = draft.case.observation.endpoints
        flaws = [*traffic.unreadable, *([endpoints.message] if isinstance(endpoints, Unreadable) else [])]
        message = f"cannot read the mesh: {'; '.join(flaws) or 'not read yet'}"
        return draft.move(Phase.BLOCKED, "MeshUnreadable", message, wake_in=draft.case.settings.retry * 5)
    if traffic.flaws:
        return blocked(draft)
    served = {version for route in traffic.routes for version in route.serving()}
    wanted = draft.case.spec.version
    if served == {None}:
        return _unsubsetted(draft)
    if None not in served and len(served) == 1:
        return _single(draft, next(v for v in served if v is not None))
    if None not in served and len(served) == 2 and wanted in served:
        return _split(draft, next(v for v in served if v not in (None, wanted)) or "")
    return _unclear(draft, _found(draft))


def blocked(draft: Draft) -> Decision:
    """Say which objects or routes are missing or cannot be moved."""
    flaws = draft.case.traffic.flaws
    message = "; ".join(flaw.message for flaw in flaws)
    return draft.move(Phase.BLOCKED, flaws[0].reason, message, wake_in=draft.case.settings.blocked_retry)


def _single(draft: Draft, serving: str) -> Decision:
    case = draft.case
    wanted = case.spec.version
    if serving == wanted:
        return _adopt(draft, serving)
    if case.known_gone(serving) and (case.ready(wanted) or 0) > 0:
        draft.update(stable_version=serving)
        message = f"{serving} serves but has no ready endpoint, {wanted} has: everything moves at once"
        record = RolloutRecord(version=wanted, started_at=case.now, promote=True)
        draft.update(rollout=record)
        draft.note("ServingVersionGone", message, warning=True)
        return draft.move(Phase.PREPARING, "ServingVersionGone", message, again=True)
    return _adopt(draft, serving)


def _adopt(draft: Draft, stable: str) -> Decision:
    draft.update(stable_version=stable)
    draft.note("StableVersionFound", f"{stable} has all the traffic")
    return draft.move(Phase.STABLE, "StableVersionFound", f"{stable} serves", again=True)


def _split(draft: Draft, stable: str) -> Decision:
    case = draft.case
    canary = case.spec.version
    weight = min(case.traffic.weights_of(canary))
    original = [
        Change(
            kind=ChangeKind.WEIGHT, object=r.virtual_service.name, route=r.route, subset=d.subset, original=d.written
        )
        for r in case.traffic.routes
        for d in r.destinations
        if d.subset
    ]
    draft.remember(original)
    record = RolloutRecord(version=canary, started_at=case.now, weight=weight)
    if weight:
        record = record.model_copy(update={"applied_at": case.now})
    draft.update(stable_version=stable, rollout=record, subsets=_subsets(draft, stable, canary))
    message = f"traffic was split already: {canary} has {weight} %, {stable} the rest; this weight is judged first"
    draft.note("SplitAdopted", message)
    return draft.move(Phase.PROGRESSING if weight else Phase.PREPARING, "SplitAdopted", message, again=True)


def _subsets(draft: Draft, *versions: str) -> dict[str, str]:
    names = dict(draft.status.subsets)
    for version in versions:
        named = [name for route in draft.case.traffic.routes if (name := route.subset_of(version))]
        if named:
            names[version] = named[0]
    return names


def _unsubsetted(draft: Draft) -> Decision:
    spec = draft.case.spec
    endpoints = draft.case.observation.endpoints
    ready = sorted(v for v, count in endpoints.ready.items() if count) if isinstance(endpoints, Endpoints) else []
    if spec.initial_stable_version:
        return _adopt(draft, spec.initial_stable_version)
    if len(ready) == 1:
        return _adopt(draft, ready[0])
    if not ready:
        return _unclear(draft, f"the routes name no subset and no version of {spec.host} has a ready endpoint")
    return _unclear(draft, f"the routes name no subset and several versions serve: {', '.join(ready)}")


def _found(draft: Draft) -> str:
    return "; ".join(f"{route.name} sends {route.shares() or 'no traffic'}" for route in draft.case.traffic.routes)


def _unclear(draft: Draft, found: str) -> Decision:
    initial = draft.case.spec.initial_stable_version
    if initial:
        return _adopt(draft, initial)
    message = (
        f"cannot tell which version is stable: {found}. Set spec.initialStableVersion to the version that serves now, "
        "or give one version all the traffic"
    )
    return draft.move(Phase.BLOCKED, "StableVersionUnknown", message, wake_in=draft.case.settings.blocked_retry)
