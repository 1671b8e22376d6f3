"""Letting an object go whose traffic cannot be given back, so that nothing hangs on our finalizer.

A finalizer is a promise to clean up first. Where that cannot be done, because stable is gone, a webhook refuses every
write, or a newer operator wrote the status, whoever deletes the object would wait for ever, and a namespace with them.
So the wait has an end, it is told when that is, and then it is told what was left where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.answering import reason_of
from canaryrollout.domain.clocks import MIN_STEP
from canaryrollout.domain.decision import Decision, Event, Order, SetFinalizer
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.observation import Identity
from canaryrollout.domain.settings import DomainSettings

UNFINISHED: Final = "ReleasedUnfinished"


def bounded(draft: Draft, give_back: Callable[[Draft], Decision]) -> Decision:
    """Give the traffic of an object that is being deleted back, unless that has been tried for too long.

    Args:
        draft: The decision in the making.
        give_back: Makes the next move of giving it back.
    """
    case, step = draft.case, draft.case.observation.clock_step
    latest = case.now + case.settings.release
    unstored = case.observation.unstored
    due = draft.status.release_at or (unstored.release_at if unstored is not None else None) or latest
    due = min(due + step if step >= MIN_STEP else due, latest)  # a clock that was set is no time that went by
    draft.update(release_at=due)
    if case.now >= due:
        return _let_go(draft)
    decision = give_back(draft)
    status = decision.status.model_copy(update={"deadline": due})
    return replace(decision, status=status, wake_at=min(decision.wake_at or due, due))


def _let_go(draft: Draft) -> Decision:
    case, message = draft.case, draft.case.seen.message
    if reason_of(draft) != UNFINISHED:
        shares = "; ".join(f"{route.name} is at {route.shares() or 'nothing'}" for route in case.traffic.routes)
        message = (
            f"the traffic could not be given back within {format_duration(case.settings.release)} ({message}); "
            f"the object goes, and what is not undone stays as it is{': ' + shares if shares else ''}"
        )
    action = SetFinalizer(False)
    order = Order.STATUS_FIRST if case.observation.unstored is None else Order.MESH_FIRST  # it may never be stored
    wait = case.settings.retry
    decision = draft.move(Phase.BLOCKED, UNFINISHED, message, actions=(action,), order=order, wake_in=wait)
    return replace(decision, status=decision.status.model_copy(update={"deadline": None}))


def decide_unread(
    spec: CanaryRolloutSpec | None,
    identity: Identity,
    problems: Sequence[str],
    now: datetime,
    settings: DomainSettings,
) -> Decision:
    """Answer a status that a newer or broken operator wrote: what it records would be lost by writing over it.

    Args:
        spec: What the user wants, where that can be read.
        identity: The rollout object.
        problems: What is wrong with the status, for people.
        now: The wall-clock time, UTC.
        settings: Timing.

    Returns:
        A decision that writes no status and moves no traffic. An object that is being deleted is let go once somebody
        who can read the status, or correct it, has had the time to.
    """
    unread, why = CanaryRolloutStatus(), "; ".join(problems)
    if not identity.deleting:
        message = f"status cannot be read, so nothing is done: {why}"
        return Decision(unread, events=(Event("StatusUnreadable", message, warning=True),))
    if not identity.finalizer:
        return Decision(unread)
    due = (identity.deleted_at or now) + settings.release
    if now < due:
        message = (
            "status cannot be read, so it is not known what to undo before the object goes; unless that changes, the "
            f"object is let go as it is at {due:%H:%M:%S} UTC: {why}"
        )
        return Decision(unread, wake_at=due, events=(Event("StatusUnreadable", message, warning=True),))
    message = (
        f"status could not be read for {format_duration(settings.release)}, and the object goes; "
        f"{_where(spec, identity)}: {why}"
    )
    return Decision(unread, (SetFinalizer(False),), events=(Event(UNFINISHED, message, warning=True),))


def _where(spec: CanaryRolloutSpec | None, identity: Identity) -> str:
    """Say where something of ours may have stayed."""
    if spec is None:
        place = f"the VirtualServices and DestinationRules of namespace {identity.namespace}"
    else:
        services = ", ".join(reference.name for reference in spec.istio.virtual_services)
        place = f"VirtualService {services} and DestinationRule {spec.istio.destination_rule.name}"
    return f"look at weights, destinations and subsets in {place}, which stay as they are"
