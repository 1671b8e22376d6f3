"""Everything that has to be true before the canary gets its first request.

Make before break: the finalizer, then the subsets, then time for the mesh to learn of them, then all traffic pinned to
stable (a route without subsets gives every ready endpoint its part, so this comes before the canary is awaited), then
ready endpoints, then the provider's answers: that it can judge the canary at all, and how many requests reach no
version without it; only then a weight.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.status import Phase
from canaryrollout.domain import coverage, preflight, rollback, routes, steps
from canaryrollout.domain.decision import Decision, SetFinalizer
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.first_sight import blocked
from canaryrollout.domain.observation import Unreadable
from canaryrollout.domain.raising import raise_to, set_weights
from canaryrollout.domain.subsets import find_or_add


def prepare(draft: Draft) -> Decision:
    """Do the next thing that the first weight needs, or say what is waited for."""
    case, record = draft.case, draft.record
    if _overdue(draft):
        return _give_up(draft)
    if case.traffic.flaws:
        movable = case.identity.finalizer and not case.known_gone(draft.status.stable_version)
        return (_level(draft) if movable else None) or blocked(draft)
    coverage.show(draft)
    if case.settings.lag and case.spec.analysis.provider not in case.settings.lag:
        return _unknown_provider(draft)
    if case.traffic.unreadable or case.traffic.rule is None:
        return _no_rule(draft)
    if not case.identity.finalizer:
        message = "marking the object, so that its traffic is restored before it is deleted"
        finalizer = SetFinalizer(True)
        wait = case.settings.retry
        return draft.move(Phase.PREPARING, "Preparing", message, actions=(finalizer,), again=True, wake_in=wait)
    return (
        _level(draft)
        or preflight.refuse(draft)
        or find_or_add(draft)
        or _settle(draft)
        or _pin(draft)
        or _await_endpoints(draft)
        or preflight.await_provider(draft)
        or _await_person(draft)
        or raise_to(draft, 100 if record.promote else steps.next_weight(case.spec, record.weight))
    )


def baseline_window(started: datetime, window: timedelta) -> tuple[datetime, datetime]:
    """Return the stretch of time before the rollout began in which requests that reach no version are counted."""
    return started - window, started


def _no_rule(draft: Draft) -> Decision:
    case = draft.case
    flaw = case.traffic.rule_flaw
    if case.traffic.unreadable or isinstance(flaw, Unreadable) or flaw is None:
        messages = [*case.traffic.unreadable, *([flaw.message] if isinstance(flaw, Unreadable) else [])]
        return draft.move(Phase.PREPARING, "MeshUnreadable", "; ".join(messages), wake_in=case.settings.retry)
    return draft.move(Phase.BLOCKED, flaw.reason, flaw.message, wake_in=case.settings.blocked_retry)


def _unknown_provider(draft: Draft) -> Decision:
    case = draft.case
    message = (
        f"spec.analysis.provider is {case.spec.analysis.provider}, which the administrator has not defined: "
        f"use one of {', '.join(sorted(case.settings.lag))}"
    )
    return draft.move(Phase.BLOCKED, "ProviderUnknown", message, wake_in=case.settings.blocked_retry)


def _overdue(draft: Draft) -> bool:
    due = steps.deadline(draft.case.spec, draft.record)
    return due is not None and draft.case.now >= due


def _give_up(draft: Draft) -> Decision:
    record = draft.record
    what = draft.status.message or "preparation did not finish"
    ready = draft.case.ready(record.version)
    reason = "CanaryNotReady" if ready is not None and ready < draft.required() else "DeadlineExceeded"
    limit = format_duration(draft.case.spec.progress_deadline)
    return rollback.begin(draft, reason, f"{record.version} was not ready for traffic within {limit}: {what}")


def _level(draft: Draft) -> Decision | None:
    """Take the canary to 0 where it has traffic already, so that no weight goes unjudged."""
    case, version = draft.case, draft.record.version
    early = ", ".join(route.name for route in case.traffic.routes if route.weight_of(version))
    stable = draft.status.stable_version
    if not early:
        return None
    if case.known_gone(stable):
        return _stay_off_the_dead(draft, early)
    actions = routes.lower(case.traffic, stable or "", version, draft.subsets())
    if not actions:
        return None
    message = f"{version} has traffic on {early} before its first step; taking it to 0"
    wait = case.settings.retry
    return draft.move(Phase.PREPARING, "Leveling", message, actions=actions, again=True, wake_in=wait)


def _stay_off_the_dead(draft: Draft, early: str) -> Decision | None:
    """Leave the canary what it has while stable does not answer; where that is everything, it is promoted."""
    version, stable = draft.record.version, draft.status.stable_version
    if all(set(route.serving()) == {version} for route in draft.case.traffic.routes) and not draft.record.promote:
        draft.rollout(promote=True)
        message = f"{stable} has no ready endpoint, and {version} has all the traffic already"
        draft.note("ServingVersionGone", message, warning=True)
    if draft.record.promote:
        return None
    message = f"{version} has traffic on {early} before its first step, but {stable} has no ready endpoint"
    return _stable_gone(draft, f"{message}: traffic stays until it has one")


def _stable_gone(draft: Draft, message: str) -> Decision:
    return draft.move(Phase.BLOCKED, "StableGone", message, wake_in=draft.case.settings.poll)


def _settle(draft: Draft) -> Decision | None:
    case = draft.case
    since = draft.record.subset_seen_at
    if since is None:
        draft.rollout(subset_seen_at=case.now)
        since = case.now
    due = since + case.settings.subset_settle
    if case.now >= due:
        return None
    return draft.move(Phase.PREPARING, "Settling", "letting the mesh learn of the subsets", wake_at=due)


def _await_endpoints(draft: Draft) -> Decision | None:
    case, version = draft.case, draft.record.version
    endpoints = case.observation.endpoints
    ready, needed = case.ready(version), draft.required()
    if ready is not None and ready >= needed:
        return None
    if ready is None:
        message = endpoints.message if isinstance(endpoints, Unreadable) else "endpoints have not been read yet"
        return draft.move(Phase.PREPARING, "EndpointsUnreadable", message, wake_in=case.settings.retry)
    message = f"waiting for ready endpoints of {version}: {ready} of {needed}"
    return draft.move(Phase.PREPARING, "WaitingForCanary", message, wake_in=case.settings.poll)


def _pin(draft: Draft) -> Decision | None:
    """Give the stable version's own subset all the traffic of routes that name none."""
    stable = draft.status.stable_version or ""
    plain = [
        route
        for route in draft.case.traffic.routes
        if None in route.serving() and not route.weight_of(draft.record.version)
    ]
    if not plain:
        return None
    names = ", ".join(route.name for route in plain)
    if draft.case.known_gone(stable):
        return _stable_gone(draft, f"{names} cannot be pinned to {stable}: it has no ready endpoint")
    message = f"pinning {names} to {stable}, so that {draft.record.version} gets only its weight"
    return set_weights(draft, 0, Phase.PREPARING, "PinningStable", message)


def _await_person(draft: Draft) -> Decision | None:
    if not draft.case.spec.paused or draft.record.promote:
        return None
    if draft.record.awaiting_since is None:
        draft.rollout(awaiting_since=draft.case.now)
    draft.note_once("Paused", f"{draft.record.version} is ready for traffic; spec.paused is true")
    message = f"ready to give {draft.record.version} traffic; spec.paused is true"
    return draft.move(Phase.PAUSED, "Paused", message, wake_in=draft.case.settings.poll)
