"""Somebody else changed the weights: respect it, answer it, and give way before it becomes a fight.

Lowering the canary is respected at once. The recorded intent is asserted again after one analysis interval, then after
twice that, and so on; after a few times the operator gives way, with the canary at 0 and the step kept, and names the
manager it would have had to fight. Progress is never reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from canaryrollout.api.status import Change, ChangeKind, Contest, Phase
from canaryrollout.domain import routes
from canaryrollout.domain.decision import Decision, Order, SetWeights
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.routes import RouteView


@dataclass(frozen=True, slots=True)
class Intent:
    """The weight that the routes should have.

    Attributes:
        stable: Version with the rest of the traffic.
        canary: Version with ``weight`` percent; ``None`` when stable has everything.
        weight: Percent for the canary.
        phase: Phase to show while the intent is not met.
    """

    stable: str
    canary: str | None
    weight: int
    phase: Phase


def differing(draft: Draft, intent: Intent) -> tuple[RouteView, ...]:
    """Return the routes on which the traffic is not split as intended."""
    wanted = {intent.stable: 100 - intent.weight}
    if intent.canary:
        wanted[intent.canary] = intent.weight
    share = {version: weight for version, weight in wanted.items() if weight}
    return tuple(route for route in draft.case.traffic.routes if route.serving() != share)


def raised(intent: Intent, off: tuple[RouteView, ...]) -> tuple[RouteView, ...]:
    """Return the routes on which somebody else gave the canary more than intended.

    What we raised ourselves, and somebody came in between on another route, has been earned and can wait.
    """
    if intent.canary is None:
        return ()
    theirs = (route for route in off if not route.virtual_service.written_by_us)
    return tuple(route for route in theirs if route.weight_of(intent.canary) > intent.weight)


def newly_listed(draft: Draft, route: RouteView) -> bool:
    """Return whether a route came onto the list after the weight was written: nothing of ours is on it."""
    return not _altered(draft, route) and not route.weight_of(draft.record.version)


def rollback_under_way(draft: Draft, off: tuple[RouteView, ...]) -> bool:
    """Return whether the weights show a rollback that was not finished: we lowered them, and not while giving way."""
    contest = draft.status.contest
    if contest is not None and (contest.resumed or contest.given_up_generation is not None):
        return False
    return any(taken_back(draft, route) and _altered(draft, route) for route in off)


def taken_back(draft: Draft, route: RouteView) -> bool:
    """Return whether a route shows that we gave the canary traffic and took it back since.

    That we wrote its VirtualService last is not enough: another CanaryRollout may have routes of its own in it. A
    canary that was taken back has less than it had, and the destination that was added for it is still there.
    """
    if not route.virtual_service.written_by_us:
        return False
    version, before = draft.record.version, draft.record.weight
    added = {c.subset for c in _altered(draft, route) if (c.kind, c.version) == (ChangeKind.DESTINATION, version)}
    if added:
        present = {destination.subset for destination in route.destinations}
        return bool(added & present) and route.weight_of(version) < max(before, 1)
    return route.weight_of(version) < before


def naming_host(draft: Draft) -> tuple[str, ...]:
    """Return the VirtualServices that have the host among their hosts, by name."""
    services = [route.virtual_service for route in draft.case.traffic.routes]
    return tuple(sorted({service.name for service in services if service.names_host}))


def lost_host(draft: Draft) -> str:
    """Say which VirtualServices had the host when traffic began to move, and have not now; empty where all still have.

    Requests to the host pass them by then, and meet every version whatever the weights say.
    """
    without = {route.virtual_service.name for route in draft.case.traffic.routes} - set(naming_host(draft))
    lost = [name for name in draft.record.host_named_by if name in without]
    if not lost:
        return ""
    return (
        f"spec.hosts of VirtualService {' and '.join(lost)} is without {draft.case.spec.host} now, so its weights do "
        "not count for requests to it: put it back"
    )


def pinned(draft: Draft, route: RouteView) -> bool:
    """Return whether a route that names no subset now was given one by us."""
    return any(change.kind is ChangeKind.DESTINATION for change in _altered(draft, route))


def _altered(draft: Draft, route: RouteView) -> list[Change]:
    place = (route.virtual_service.name, route.route)
    on_record = draft.status.changes
    return [c for c in on_record if c.kind is not ChangeKind.SUBSET and (c.object, c.route) == place]


def held_back(draft: Draft) -> bool:
    """Return whether a canary's weight is not set again by an edit of the spec, because it is paused."""
    record = draft.status.rollout
    return draft.case.spec.paused and record is not None and record.ended_at is None


def answer(draft: Draft, intent: Intent, off: tuple[RouteView, ...], *, wake_at: datetime | None = None) -> Decision:
    """Answer a foreign change of weights.

    Args:
        draft: The decision in the making.
        intent: What the weights should be.
        off: The routes that differ.
        wake_at: When to look again at the latest while waiting.

    Returns:
        The move: wait, assert again, or give way.
    """
    case = draft.case
    managers = sorted({route.virtual_service.writer or "an unknown manager" for route in off})
    manager = ", ".join(managers)
    found = "; ".join(f"{route.name} is at {route.shares() or 'nothing'}" for route in off)
    contest = draft.status.contest
    if contest is not None and contest.given_up_generation is not None:
        return _given_way(draft, intent, contest, off)
    if contest is not None and contest.changed_at is None and _unwritten(draft, intent):
        return _assert_again(draft, intent, contest, contest.count)
    if contest is None or contest.changed_at is None:
        contest = _changed_again(draft, contest, manager)
        if contest.count == 0:
            draft.note("DriftDetected", f"weights were changed by {manager}: {found}", warning=True)
    if case.observation.endpoints is None:
        return draft.move(intent.phase, "WeightDrift", f"{manager} changed the weights ({found})", again=True)
    if contest.count >= case.settings.max_reassertions:
        return _give_way(draft, intent, contest, manager, off)
    if case.now < contest.not_before and not raised(intent, off) and not _serves_the_dead(draft, off):
        message = f"{manager} changed the weights ({found}); they are set again at {contest.not_before:%H:%M:%S} UTC"
        wake_at = min(contest.not_before, wake_at or contest.not_before)
        return draft.move(intent.phase, "WeightDrift", message, wake_at=wake_at)
    return _to_the_dead(draft, intent, off, found) or _assert_again(draft, intent, contest, contest.count + 1)


def settled(draft: Draft) -> None:
    """Take note that the weights are as intended; forget a contest once they have stayed so for long enough."""
    contest, until = draft.status.contest, forgotten_at(draft)
    if contest is None or until is None:
        return
    if draft.case.now >= until:
        draft.update(contest=None)
    elif contest.changed_at is not None or contest.resumed:
        draft.update(contest=contest.model_copy(update={"changed_at": None, "resumed": False}))


def forgotten_at(draft: Draft) -> datetime | None:
    """Return when a contest is forgotten if the weights stay: after a hold and the longest pause between answers."""
    contest = draft.status.contest
    return contest.not_before + draft.case.spec.hold + _longest_pause(draft) if contest is not None else None


def _longest_pause(draft: Draft) -> timedelta:
    return draft.case.spec.analysis.interval * (1 << draft.case.settings.max_reassertions)


def _changed_again(draft: Draft, contest: Contest | None, manager: str) -> Contest:
    """Begin the wait that a change of the weights is respected for: doubled for each answer that was given before."""
    case = draft.case
    count = contest.count if contest is not None else 0
    not_before = case.now + case.spec.analysis.interval * 2**count
    resumed = contest is not None and contest.resumed
    contest = Contest(manager=manager, count=count, changed_at=case.now, not_before=not_before, resumed=resumed)
    draft.update(contest=contest)
    return contest


def _to_the_dead(draft: Draft, intent: Intent, off: tuple[RouteView, ...], found: str) -> Decision | None:
    """Refuse to move requests from a version that answers to one that is known to have no ready endpoint."""
    case = draft.case
    gains = [(intent.stable, 100 - intent.weight), (intent.canary or "", intent.weight)]
    dead = [v for v, share in gains if case.known_gone(v) and any(route.weight_of(v) < share for route in off)]
    if not dead or _serves_the_dead(draft, off):
        return None
    reason = "StableGone" if dead[0] == intent.stable else "CanaryNotReady"
    message = (
        f"weights should be {_target(intent)}, but {dead[0]} has no ready endpoint, so they stay ({found}): "
        "bring it back, or set spec.version to the version that serves"
    )
    return draft.move(Phase.BLOCKED, reason, message, wake_in=case.settings.poll)


def _serves_the_dead(draft: Draft, off: tuple[RouteView, ...]) -> bool:
    """Return whether every version that the changed routes now serve is known to have no ready endpoint."""
    served = {version for route in off for version in route.serving()}
    return bool(served) and None not in served and all(draft.case.known_gone(version) for version in served)


def _unwritten(draft: Draft, intent: Intent) -> bool:
    """Return whether the last answer is still to be written: the API server did not accept it."""
    failures = draft.case.observation.failures
    actions = routes.shift(draft.case.traffic, intent.stable, intent.canary, intent.weight, draft.subsets())
    return any(action.key in failures for action in actions)


def _assert_again(draft: Draft, intent: Intent, contest: Contest, count: int) -> Decision:
    case = draft.case
    pause = case.spec.analysis.interval * 2**count
    message = f"weights set to {_target(intent)} again, {count} of {case.settings.max_reassertions} times"
    actions = routes.shift(case.traffic, intent.stable, intent.canary, intent.weight, draft.subsets())
    if not actions:
        message = (
            f"weights should be {_target(intent)}, but no subset is known for {intent.stable}: "
            "add one with its version label to the DestinationRule"
        )
        return draft.move(Phase.BLOCKED, "StableUnknown", message, wake_in=case.settings.poll)
    if count > contest.count:
        draft.note("WeightReasserted", message)
    given = {"count": count, "changed_at": None, "not_before": case.now + pause}
    draft.update(contest=contest.model_copy(update=given))  # still resumed until the weights are seen to be as intended
    if draft.status.rollout is not None:
        draft.rollout(applied_at=None, in_effect_at=None, convergence="", drained_since=None, cleaned_at=None)
    return draft.move(
        intent.phase, "WeightReasserted", message, actions=actions, again=True, wake_in=case.settings.retry
    )


def _give_way(draft: Draft, intent: Intent, contest: Contest, manager: str, off: tuple[RouteView, ...]) -> Decision:
    generation = draft.case.identity.generation
    given_up = {"manager": manager, "given_up_generation": generation, "not_before": draft.case.now}
    contest = contest.model_copy(update=given_up)
    draft.update(contest=contest)
    return _given_way(draft, intent, contest, off)


def _given_way(draft: Draft, intent: Intent, contest: Contest, off: tuple[RouteView, ...]) -> Decision:
    case = draft.case
    record = draft.status.rollout
    if record is not None and record.ended_at is None and record.awaiting_since is None:
        draft.rollout(awaiting_since=case.now)
    actions = _safe_weights(draft, intent, off) if case.now >= contest.not_before else ()
    if actions:
        contest = contest.model_copy(update={"not_before": case.now + _longest_pause(draft)})
        draft.update(contest=contest)
    way = "set spec.paused to false" if held_back(draft) else "edit the rollout's spec"
    message = (
        f"{contest.manager} keeps changing the weights that should be {_target(intent)}; no longer answered. "
        f"Make it leave the weights alone, then {way} or give the retry command"
    )
    return draft.move(
        Phase.BLOCKED,
        "WeightContested",
        message,
        actions=actions,
        order=Order.MESH_FIRST,
        wake_in=case.settings.retry if actions else case.settings.blocked_retry,
    )


def _safe_weights(draft: Draft, intent: Intent, off: tuple[RouteView, ...]) -> tuple[SetWeights, ...]:
    """Return what is written although we gave way: the canary is at 0, and requests go to a version that answers."""
    traffic, stable = draft.case.traffic, intent.stable
    if draft.case.known_gone(stable):
        return ()
    if intent.canary is not None:
        return routes.lower(traffic, stable, intent.canary, draft.subsets())
    return routes.shift(traffic, stable, None, 0, draft.subsets()) if _serves_the_dead(draft, off) else ()


def _target(intent: Intent) -> str:
    if intent.canary is None or intent.weight == 0:
        return f"{intent.stable} 100"
    return f"{intent.stable} {100 - intent.weight} / {intent.canary} {intent.weight}"
