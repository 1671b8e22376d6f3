"""Somebody else changed the weights: respect it, answer it, and give way before it becomes a fight.

Lowering the canary is respected at once. The recorded intent is asserted again after one analysis interval, then after
twice that, and so on; after a few times the operator gives way, with the canary at 0 and the step kept, and names the
manager it would have had to fight. Progress is never reset.
"""

from __future__ import annotations

from dataclasses import dataclass

from canaryrollout.api.status import Contest, Phase
from canaryrollout.domain import routes
from canaryrollout.domain.changes import changes_of
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


def answer(draft: Draft, intent: Intent, off: tuple[RouteView, ...]) -> Decision:
    """Answer a foreign change of weights.

    Args:
        draft: The decision in the making.
        intent: What the weights should be.
        off: The routes that differ.

    Returns:
        The move: wait, assert again, or give way.
    """
    case = draft.case
    managers = sorted({route.virtual_service.writer or "an unknown manager" for route in off})
    manager = ", ".join(managers)
    found = "; ".join(f"{route.name} is at {_shares(route)}" for route in off)
    contest = draft.status.contest
    if contest is None:
        contest = Contest(manager=manager, not_before=case.now + case.spec.analysis.interval)
        draft.update(contest=contest)
        draft.note("DriftDetected", f"weights were changed by {manager}: {found}", warning=True)
    elif contest.given_up_generation is not None:
        return _given_way(draft, intent, contest)
    if case.observation.endpoints is None:
        return draft.move(intent.phase, "WeightDrift", f"{manager} changed the weights ({found})", again=True)
    raised = intent.canary is not None and any(r.weight_of(intent.canary) > intent.weight for r in off)
    if case.now < contest.not_before and not raised and not _serves_the_dead(draft, off):
        message = f"{manager} changed the weights ({found}); they are set again at {contest.not_before:%H:%M:%S} UTC"
        return draft.move(intent.phase, "WeightDrift", message, wake_at=contest.not_before)
    if contest.count >= case.settings.max_reassertions:
        return _give_way(draft, intent, contest, manager)
    return _assert_again(draft, intent, contest, manager)


def settled(draft: Draft) -> None:
    """Forget a contest whose weights have stayed as intended for as long as the next answer would have waited."""
    contest = draft.status.contest
    if contest is not None and draft.case.now >= contest.not_before:
        draft.update(contest=None)


def _shares(route: RouteView) -> str:
    return (
        " / ".join(f"{version or 'no single version'} {weight}" for version, weight in route.serving().items())
        or "nothing"
    )


def _serves_the_dead(draft: Draft, off: tuple[RouteView, ...]) -> bool:
    """Return whether every version that the changed routes now serve is known to have no ready endpoint."""
    served = {version for route in off for version in route.serving()}
    return bool(served) and None not in served and all(draft.case.known_gone(version) for version in served)


def _assert_again(draft: Draft, intent: Intent, contest: Contest, manager: str) -> Decision:
    case = draft.case
    count = contest.count + 1
    pause = case.spec.analysis.interval * 2**count
    draft.update(contest=Contest(manager=manager, count=count, not_before=case.now + pause))
    message = f"weights set to {_target(intent)} again, {count} of {case.settings.max_reassertions} times"
    draft.note("WeightReasserted", message)
    actions = routes.shift(case.traffic, intent.stable, intent.canary, intent.weight, draft.status.subsets)
    draft.remember(change for action in actions for change in changes_of(action, draft.status.subsets))
    if draft.status.rollout is not None and draft.record.applied_at is not None:
        draft.rollout(applied_at=None, in_effect_at=None, convergence="")
    return draft.move(
        intent.phase, "WeightReasserted", message, actions=actions, again=True, wake_in=case.settings.retry
    )


def _give_way(draft: Draft, intent: Intent, contest: Contest, manager: str) -> Decision:
    generation = draft.case.identity.generation
    draft.update(contest=contest.model_copy(update={"manager": manager, "given_up_generation": generation}))
    return _given_way(draft, intent, contest.model_copy(update={"manager": manager}))


def _given_way(draft: Draft, intent: Intent, contest: Contest) -> Decision:
    case = draft.case
    record = draft.status.rollout
    if record is not None and record.ended_at is None and record.awaiting_since is None:
        draft.rollout(awaiting_since=case.now)
    actions: tuple[SetWeights, ...] = ()
    if (
        intent.canary is not None
        and not case.known_gone(intent.stable)
        and intent.canary != draft.status.stable_version
    ):
        actions = routes.lower(case.traffic, intent.stable, intent.canary, draft.status.subsets)
    message = (
        f"{contest.manager} keeps changing the weights that should be {_target(intent)}; no longer answered. "
        "Make it leave the weights alone, then edit the rollout's spec or give the retry command"
    )
    return draft.move(
        Phase.BLOCKED,
        "WeightContested",
        message,
        actions=actions,
        order=Order.MESH_FIRST,
        wake_in=case.settings.retry if actions else case.settings.blocked_retry,
    )


def _target(intent: Intent) -> str:
    if intent.canary is None or intent.weight == 0:
        return f"{intent.stable} 100"
    return f"{intent.stable} {100 - intent.weight} / {intent.canary} {intent.weight}"
