"""Ready endpoints of both versions: what they let a rollout do, whatever the evidence says.

A canary without any is taken back after its grace; one with too few is not raised. Nor is one whose stable version has
lost so many that the traffic could not come back. Endpoints that could not be read are neither there nor gone.
"""

from __future__ import annotations

from datetime import datetime

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.status import Phase, RolloutRecord
from canaryrollout.domain import rollback
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.draft import Draft


def unready(draft: Draft) -> Decision | None:
    """Take back a canary that has been without ready endpoints for its grace.

    Moments without add up, until it has had endpoints for as long as the grace in one go: a canary that crashes again
    and again is ready in between.
    """
    _recall(draft)
    case, record = draft.case, draft.record
    if case.ready(record.version) != 0:
        _ready_again(draft)
        return None
    since = record.unready_since or case.now
    if record.ready_again_at is not None:
        since += case.now - record.ready_again_at
    draft.rollout(unready_since=since, ready_again_at=None)
    grace = case.spec.readiness.unready_grace
    if case.now - since < grace:
        return None
    return rollback.begin(
        draft, "CanaryUnready", f"{record.version} has had no ready endpoint for {format_duration(grace)}"
    )


def _recall(draft: Draft) -> None:
    """Go on counting from moments that could not be stored: taking traffic back depends on no status write."""
    record, unstored = draft.record, draft.case.observation.unstored
    before = unstored.rollout if unstored is not None else None
    if before is None or _which(before) != _which(record):
        return
    seen = {name: getattr(before, name) for name in ("unready_since", "ready_again_at")}
    draft.rollout(**{name: min(at, draft.case.now) if at is not None else None for name, at in seen.items()})


def _which(record: RolloutRecord) -> tuple[str, str, datetime]:
    return record.version, record.token, record.started_at


def _ready_again(draft: Draft) -> None:
    case, record = draft.case, draft.record
    if record.unready_since is None:
        return
    since = record.ready_again_at or case.now
    known = case.ready(record.version) is not None
    if known and case.now - since >= case.spec.readiness.unready_grace:
        draft.rollout(unready_since=None, ready_again_at=None)
    else:
        draft.rollout(ready_again_at=since)


def hold_raise(draft: Draft, phase: Phase) -> Decision | None:
    """Return why the canary gets no more traffic now, as far as endpoints are concerned.

    Args:
        draft: The decision in the making.
        phase: Phase to show meanwhile.
    """
    short = short_of_endpoints(draft, phase)
    if short is not None or draft.record.weight == 100:
        return short
    return _stable_shrinking(draft, phase)


def short_of_endpoints(draft: Draft, phase: Phase) -> Decision | None:
    """Return the wait for a canary that has fewer ready endpoints than ``minReady``."""
    version, ready, needed = draft.record.version, draft.case.ready(draft.record.version), draft.required()
    if ready is not None and ready >= needed:
        return None
    seen = "an unknown number of" if ready is None else str(ready)
    message = f"{version} has {seen} ready endpoints and needs {needed} before it gets more traffic"
    return draft.move(phase, "CanaryNotReady", message, wake_in=draft.case.settings.retry)


def follow_stable(draft: Draft) -> None:
    """Keep in mind how many endpoints stable had, and since when it has lost half of them or more.

    Fewer are no loss where they are still as many as its share of the traffic calls for: an autoscaler does that. What
    it keeps for long enough is its new size, and be it none: then traffic had better go on to where it is answered.
    """
    case, record = draft.case, draft.record
    ready = case.ready(draft.status.stable_version)
    if ready is None:
        return
    full = ready if record.stable_ready is None else record.stable_ready
    lost = 2 * ready <= full and 100 * ready < full * (100 - record.weight)
    since = (record.stable_shrunk_since or case.now) if lost else None
    if since is not None and case.now - since >= case.settings.stable_settle:
        full, since = ready, None
    if (full, since) != (record.stable_ready, record.stable_shrunk_since):
        draft.rollout(stable_ready=full, stable_shrunk_since=since)


def _stable_shrinking(draft: Draft, phase: Phase) -> Decision | None:
    """Hold the raise while stable could not take the traffic back; the deadline stands still, as no gate is awaited."""
    case, record = draft.case, draft.record
    since = record.stable_shrunk_since
    if since is None:
        return None
    if record.awaiting_since is None:
        draft.rollout(awaiting_since=case.now)
    until = since + case.settings.stable_settle
    message = (
        f"{draft.status.stable_version} has {case.ready(draft.status.stable_version)} ready endpoints of the "
        f"{record.stable_ready} it had, so {record.version} stays at {record.weight} % until they are back, or until "
        f"{until:%H:%M:%S} UTC, when that is taken for its new size"
    )
    draft.note_once("StableShrinking", message, warning=True)
    wake_at = min(until, case.now + case.settings.poll)
    return draft.move(phase, "StableShrinking", message, wake_at=wake_at)
