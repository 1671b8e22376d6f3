"""A warning about requests that no listed route covers.

Whoever reaches the host past the listed routes meets the canary as soon as it is ready, whatever its weight. That is
for its users to know before the first step, and no reason to wait: it may well be what they want. Finding out takes a
listing of VirtualServices, so it is asked for once, and again only when the spec has changed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.draft import COVERED, Draft
from canaryrollout.domain.observation import Identity, Unreadable

ASK_AGAIN_FOR: Final = timedelta(minutes=1)
"""For how long a listing that failed is tried again."""
SHOWN: Final = 5
"""How many callers are named; of more there is a count."""


def unanswered(status: CanaryRolloutStatus, identity: Identity, now: datetime) -> bool:
    """Return whether it is still to be found out, for a rollout before its first weight.

    While a rollout is blocked, its routes are not what they should be: it is found out when they are.
    """
    if status.phase is Phase.BLOCKED and status.observed_generation == identity.generation:
        return False
    seen = next((condition for condition in status.conditions if condition.type == COVERED), None)
    if seen is None or seen.observed_generation != identity.generation:
        return True
    return seen.status == "Unknown" and now - seen.last_transition_time < ASK_AGAIN_FOR


def show(draft: Draft) -> None:
    """Set the condition, with a warning Event where there are such callers, if it was found out in this pass."""
    mesh = draft.case.observation.mesh
    found = mesh.uncovered if mesh is not None else None
    if found is None:
        return
    version, host = draft.record.version, draft.case.spec.host
    if isinstance(found, Unreadable):
        message = f"cannot tell who reaches {version} past the listed routes: {found.message}"
        draft.condition(COVERED, "Unknown", "VirtualServicesUnreadable", message)
    elif not found:
        message = f"no caller of {host} meets {version} past the listed routes, as far as VirtualServices can be listed"
        draft.condition(COVERED, "True", "Covered", message)
    else:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        message = (
            f"some callers of {host} meet {version} as soon as it is ready, whatever its weight: "
            f"{'; '.join(found[:SHOWN])}{more}. List a route for them in spec.istio.virtualServices, or give them the "
            f"subset of {draft.status.stable_version}"
        )
        draft.condition(COVERED, "False", "UncoveredTraffic", message)
        draft.note_once("UncoveredTraffic", message, warning=True)
