"""Taking the traffic back.

A rollback writes the mesh before it writes status, and needs nothing but the API server. It is withheld in one case
only: stable is *known* to have no ready endpoint, so that going back would send every request nowhere.
"""

from __future__ import annotations

from itertools import takewhile

from canaryrollout.api.status import Baseline, Phase, RolloutRecord
from canaryrollout.domain import routes
from canaryrollout.domain.cleanup import cleanup
from canaryrollout.domain.decision import Decision, Order
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.observation import Refused


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
        return _lower(draft, _given_again_by(draft))
    stuck = [f for f in draft.case.traffic.flaws if isinstance(f, Refused) and _may_serve(draft, f, record.version)]
    if stuck:
        return draft.move(
            Phase.BLOCKED,
            stuck[0].reason,
            f"{record.version} should be taken to 0 ({record.explanation}), but still has traffic where it cannot be: "
            f"{'; '.join(flaw.message for flaw in stuck)}",
            wake_in=draft.case.settings.retry,
        )
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


def _given_again_by(draft: Draft) -> str:
    """Return who gave the canary traffic after it was at 0, and tell of it once; empty where nobody did."""
    record = draft.record
    given = [route for route in draft.case.traffic.routes if route.weight_of(record.version)]
    theirs = [route for route in given if not route.virtual_service.written_by_us]
    if record.weight or not theirs:
        return ""
    managers = ", ".join(sorted({route.virtual_service.writer or "an unknown manager" for route in theirs}))
    since = takewhile(lambda entry: entry.reason != record.reason, reversed(draft.status.history))
    if not any(entry.reason == "DriftDetected" for entry in since):
        found = "; ".join(f"{route.name} is at {route.shares()}" for route in theirs)
        message = f"weights were changed by {managers} while {record.version} is taken back: {found}"
        draft.note("DriftDetected", message, warning=True)
    return managers


def _lower(draft: Draft, given_again_by: str = "") -> Decision:
    record = draft.record
    stable = draft.status.stable_version or ""
    actions = routes.lower(draft.case.traffic, stable, record.version, draft.subsets())
    draft.rollout(drained_since=None, cleaned_at=None)
    stuck = [r.name for r in draft.case.traffic.routes if r.weight_of(record.version)] if not actions else []
    if stuck:
        return draft.move(
            Phase.BLOCKED,
            "StableUnknown",
            f"{record.version} has traffic on {', '.join(stuck)}, and no subset of {draft.status.stable_version} is "
            "known to take it back to: add a subset for it to the DestinationRule",
            wake_in=draft.case.settings.retry,
        )
    again = f" again, as {given_again_by} gave it traffic" if given_again_by else ""
    return draft.move(
        Phase.ROLLING_BACK,
        record.reason,
        f"taking {record.version} to 0{again}: {record.explanation}",
        actions=actions,
        order=Order.MESH_FIRST,
        again=True,
        wake_in=draft.case.settings.retry,
    )


def _may_serve(draft: Draft, flaw: Refused, version: str) -> bool:
    """Return whether a route that cannot be moved sends requests to a version, as far as its subset is known."""
    subset = draft.subsets().get(version)
    served = {d.subset for d in flaw.destinations if d.weight}
    if subset is not None:
        return subset in served
    return bool(served - {name for other, name in draft.subsets().items() if other != version})


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
        bounded=False,
    )


def _ended(draft: Draft) -> Decision:
    record, spec, stable = draft.record, draft.case.spec, draft.status.stable_version
    traffic = draft.case.traffic
    elsewhere = [f"{r.name} is at {r.shares()}" for r in traffic.routes if set(r.serving()) - {None, stable}]
    elsewhere += [flaw.message for flaw in traffic.flaws]
    where = f"all traffic is on {stable} again"
    if elsewhere:
        where = f"{record.version} has no traffic, {'; '.join(elsewhere)}"
    draft.note("RolledBack", f"{where}: {record.explanation}", warning=True)
    abandoned = record.reason in ("SpecReverted", "Superseded")
    if spec.version == record.version and not abandoned and not draft.case.identity.deleting:
        draft.rollout(ended_at=draft.case.now, drained_since=None, cleaned_at=None)
        message = f"{record.version} was taken back: {record.explanation}"
        return draft.move(Phase.ROLLED_BACK, record.reason, message, again=bool(elsewhere))
    if spec.version != stable and not draft.case.identity.deleting:
        return start(draft, record.baseline)
    draft.update(rollout=None)
    return draft.move(Phase.STABLE, "RolledBack", where, again=bool(elsewhere))


def start(draft: Draft, baseline: Baseline | None = None) -> Decision:
    """Start moving traffic to the wanted version.

    Args:
        draft: The decision in the making.
        baseline: What was measured before the rollout that ended just now; a window before this one would count what
            its canary did.
    """
    version, stable = draft.case.spec.version, draft.status.stable_version
    record = RolloutRecord(version=version, started_at=draft.case.now, baseline=baseline)
    draft.update(rollout=record, contest=None)
    message = f"moving {draft.case.spec.host} from {stable} to {version}"
    draft.note("RolloutStarted", message)
    return draft.move(Phase.PREPARING, "RolloutStarted", message, again=True)
