"""Says what stays behind when a rollout's object vanishes.

An object that is deleted while what we added serves the stable version leaves that in place: taking it away would take
traffic away. Whoever looks for its origin later should find an answer.
"""

from __future__ import annotations

from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.decision import Event


def describe(change: Change) -> str:
    """Return one recorded alteration in words."""
    route = f" of route {change.route}" if change.route else ""
    match change.kind:
        case ChangeKind.SUBSET:
            return f"subset {change.subset} in {change.object}"
        case ChangeKind.DESTINATION:
            return f"the destination {change.subset or '(no subset)'}{route} in {change.object}"
        case ChangeKind.WEIGHT:
            return f"the weight of {change.subset or '(no subset)'}{route} in {change.object}"


def left_in_place(changes: tuple[Change, ...]) -> Event | None:
    """Return the Event that names what stays, or ``None`` when nothing does."""
    if not changes:
        return None
    named = list(dict.fromkeys(describe(change) for change in changes))
    return Event(
        reason="LeftInPlace",
        message=f"The CanaryRollout is gone; what it had set stays, because it may carry traffic: {'; '.join(named)}",
    )
