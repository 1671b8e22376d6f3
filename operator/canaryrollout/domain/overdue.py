"""Waits at a step, and what becomes of them once its deadline has passed: `onDeadline` decides."""

from __future__ import annotations

from canaryrollout.api.spec import OnDeadline
from canaryrollout.api.status import Phase
from canaryrollout.domain import rollback, steps
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.looks import next_look


def wait(draft: Draft, reason: str, waiting: str, until: str = "") -> Decision:
    """Return the wait for new evidence at a step, or what the deadline policy says of it.

    Args:
        draft: The decision in the making.
        reason: CamelCase reason of the wait.
        waiting: The same for people.
        until: More for people, which says nothing any more once the deadline has passed.
    """
    return overdue(draft, waiting) or draft.move(
        draft.case.step_phase, reason, waiting + until, wake_at=next_look(draft)
    )


def overdue(draft: Draft, waiting: str) -> Decision | None:
    """Return what the deadline policy says of a wait in which there is nothing to do, if the deadline has passed."""
    missed = _missed(draft, waiting)
    if not missed:
        return None
    return _by_policy(draft, missed) or draft.move(
        Phase.PROGRESSING,
        "DeadlineExceeded",
        f"{missed}; onDeadline is Hold",
        wake_at=next_look(draft),
        stalled=True,
    )


def expired(draft: Draft, waiting: str) -> Decision | None:
    """Return the rollback that the deadline policy asks for, if the deadline has passed.

    With ``Hold`` there is none, and what is to be done about the weight that is held goes on being done.
    """
    missed = _missed(draft, waiting)
    return _by_policy(draft, missed) if missed else None


def _by_policy(draft: Draft, missed: str) -> Decision | None:
    """Return the rollback where that is the policy; else say once that the deadline was missed."""
    if draft.case.spec.on_deadline is OnDeadline.ROLLBACK:
        return rollback.begin(draft, "DeadlineExceeded", missed)
    draft.note_once("DeadlineExceeded", f"{missed}; onDeadline is Hold", warning=True)
    return None


def _missed(draft: Draft, waiting: str) -> str:
    """Say that the deadline has passed; empty while it has not. It stands still while the rollout is paused."""
    case, record = draft.case, draft.record
    if case.spec.paused and record.awaiting_since is None:
        draft.rollout(awaiting_since=case.now)
    due = steps.deadline(case.spec, draft.record)
    if due is None or case.now < due:
        return ""
    return f"{record.version} did not pass at {record.weight} % before {due:%H:%M:%S} UTC: {waiting}"
