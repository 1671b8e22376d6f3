"""When a rollout that has traffic is looked at again."""

from __future__ import annotations

from datetime import datetime, timedelta

from canaryrollout.api.status import RolloutRecord
from canaryrollout.domain import steps
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.evidence import after


def grid_start(applied_at: datetime, propagation: timedelta) -> datetime:
    """Return where the evidence of a weight begins: when it was confirmed, and the proxies had time to hear of it."""
    return applied_at + propagation


def judged_weight(record: RolloutRecord) -> tuple[int, datetime] | None:
    """Return the weight that the canary is judged at, and when it was written; ``None`` while it has none.

    A first weight counts as soon as it is decided on: one VirtualService may have it for long while another refuses it.
    """
    if record.weight:
        return (record.weight, record.applied_at) if record.applied_at is not None else None
    return (record.target.weight, record.target.set_at) if record.target is not None else None


def opening_window(applied_at: datetime, propagation: timedelta) -> tuple[datetime, datetime]:
    """Return the moments in which proxies take a weight over, from before it was written to where its grid starts.

    They say nothing on shares, but a canary that fails its very first requests fails them here. The write came some
    milliseconds before it was confirmed; the window begins as long before that as it ends after it.
    """
    return applied_at - propagation, grid_start(applied_at, propagation)


def is_due(draft: Draft) -> bool:
    """Return whether the provider has had time to know of any evidence on the weight in force."""
    case, applied_at = draft.case, draft.record.applied_at
    if applied_at is None:
        return False
    analysis = case.spec.analysis
    first = after(grid_start(applied_at, case.settings.propagation), analysis.interval)
    return first + case.settings.lag_of(analysis.provider) <= case.now


def next_look(draft: Draft) -> datetime:
    """Return when new evidence is due, a wait ends, or the mesh should be looked at again."""
    case, record = draft.case, draft.record
    looks = [case.now + case.settings.poll]
    if record.unready_since is not None:
        looks.append(record.unready_since + case.spec.readiness.unready_grace)
    if record.applied_at is not None:
        interval, lag = case.spec.analysis.interval, case.settings.lag_of(case.spec.analysis.provider)
        start = grid_start(record.applied_at, case.settings.propagation)
        looks.append(after(max(start, case.now - lag), interval) + lag)
    if (due := steps.deadline(case.spec, record)) is not None:
        looks.append(due)
    return min(look for look in looks if look > case.now)
