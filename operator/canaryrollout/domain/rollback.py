"""Taking the traffic back.

A rollback writes the mesh before it writes status, and needs nothing but the API server. It is withheld in one case
only: stable is *known* to have no ready endpoint, so that going back would send every request nowhere.
"""

from __future__ import annotations

from canaryrollout.api.status import Phase
from canaryrollout.domain import routes
from canaryrollout.domain.cleanup import cleanup
from canaryrollout.domain.decision import Decision, Order
from canaryrollout.domain.draft import Draft


def begin(draft: Draft, reason: str, explanation: str) -> Decision:
    """Take the canary to 0 everywhere, at once.

    Args:
        draft: The decision in the making.
        reason: CamelCase reason, kept as what ended the rollout.
        explanation: The same for people, with the numbers that decided it.

    Returns:
        The decision; `Blocked` with ``StableGone`` where the rollback is withheld.
    """
    if _nowhere_to_go(draft):
        return _withheld(draft, explanation)
    draft.rollout(reason=reason, explanation=explanation, target=None, awaiting_since=None, ended_at=None)
    draft.update(contest=None)
    draft.note(reason, f"taking {draft.record.version} back: {explanation}", warning=True)
    return _lower(draft)


def proceed(draft: Draft) -> Decision:
    """Bring a rollback that has begun to its end: weight 0 everywhere, drained, cleaned up."""
    record = draft.record
    if _nowhere_to_go(draft):
        return _withheld(draft, record.explanation)
    if any(draft.case.traffic.weights_of(record.version)):
        return _lower(draft)
    if draft.case.traffic.unreadable:
        return draft.move(
            Phase.ROLLING_BACK,
            "MeshUnreadable",
            f"cannot see whether {record.version} is at 0 everywhere: {'; '.join(draft.case.traffic.unreadable)}",
            wake_in=draft.case.settings.retry,
        )
    if record.weight:
        draft.rollout(weight=0)
    waiting = cleanup(draft, Phase.ROLLING_BACK)
    return waiting or _ended(draft)


def _lower(draft: Draft) -> Decision:
    record = draft.record
    actions = routes.lower(draft.case.traffic, draft.status.stable_version or "", record.version, draft.status.subsets)
    failures = [f.message for a in actions if (f := draft.case.observation.failures.get(a.key))]
    stuck = [r.name for r in draft.case.traffic.routes if r.weight_of(record.version)] if not actions else []
    message = f"taking {record.version} to 0: {record.explanation}"
    if failures:
        message = f"{message}; not yet accepted: {'; '.join(failures)}"
    if stuck:
        return draft.move(
            Phase.BLOCKED,
            "StableUnknown",
            f"{record.version} has traffic on {', '.join(stuck)}, and no subset of {draft.status.stable_version} is "
            "known to take it back to: add a subset for it to the DestinationRule",
            wake_in=draft.case.settings.retry,
        )
    return draft.move(
        Phase.ROLLING_BACK,
        record.reason,
        message,
        actions=actions,
        order=Order.MESH_FIRST,
        again=not failures,
        wake_in=draft.case.settings.retry,
    )


def _nowhere_to_go(draft: Draft) -> bool:
    """Return whether the canary has traffic that stable is known to be unable to take."""
    case, canary = draft.case, draft.record.version
    if not any(case.traffic.weights_of(canary)) or not case.known_gone(draft.status.stable_version):
        return False
    return not (case.identity.deleting and case.known_gone(canary))


def _withheld(draft: Draft, explanation: str) -> Decision:
    return draft.move(
        Phase.BLOCKED,
        "StableGone",
        f"{draft.record.version} should be taken back ({explanation}), but {draft.status.stable_version} has no ready "
        "endpoint: traffic stays until it has one",
        wake_in=draft.case.settings.retry,
    )


def _ended(draft: Draft) -> Decision:
    record, spec, stable = draft.record, draft.case.spec, draft.status.stable_version
    draft.rollout(weight=0)
    draft.note("RolledBack", f"all traffic is on {stable} again: {record.explanation}", warning=True)
    if spec.version == record.version and not draft.case.identity.deleting:
        draft.rollout(ended_at=draft.case.now, drained_since=None, cleaned_at=None)
        return draft.move(Phase.ROLLED_BACK, record.reason, f"{record.version} was taken back: {record.explanation}")
    draft.update(rollout=None)
    message = f"all traffic is on {stable}"
    return draft.move(Phase.STABLE, "RolledBack", message, again=spec.version != stable)
