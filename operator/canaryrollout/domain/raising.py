"""Giving the canary more traffic, write-ahead.

The target goes into status, with the generations it was planned on, before the mesh is touched; a later look at the
mesh confirms it. Whoever continues after a crash can therefore tell a write that never happened from a rollback that
did.
"""

from __future__ import annotations

from datetime import timedelta

from canaryrollout.api.status import Phase, Target
from canaryrollout.domain import drift, rollback, routes
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.observation import Missing, Refused
from canaryrollout.domain.subsets import restore_lost


def set_weights(draft: Draft, weight: int, phase: Phase, reason: str, message: str) -> Decision:
    """Write weights after what they alter has been recorded."""
    case, stable = draft.case, draft.status.stable_version or ""
    actions = routes.shift(case.traffic, stable, draft.record.version, weight, draft.subsets())
    return draft.move(phase, reason, message, actions=actions, again=True, wake_in=case.settings.retry)


def raise_to(draft: Draft, weight: int) -> Decision:
    """Record a target weight and write it."""
    case = draft.case
    generations = {route.virtual_service.name: route.virtual_service.generation for route in case.traffic.routes}
    stop_waiting(draft)
    if not draft.record.weight:
        draft.rollout(host_named_by=drift.naming_host(draft))
    if draft.record.stable_ready is None:
        draft.rollout(stable_ready=case.ready(draft.status.stable_version))
    draft.rollout(target=Target(weight=weight, set_at=case.now, generations=generations), approved=False)
    return set_weights(draft, weight, Phase.PROGRESSING, "SettingWeight", f"giving {draft.record.version} {weight} %")


def stop_waiting(draft: Draft) -> None:
    """End a wait that is not the canary's, such as for a person; its time does not count against the deadline."""
    record = draft.record
    if record.awaiting_since is not None:
        waited = max(0, round((draft.case.now - record.awaiting_since).total_seconds()))  # less if the clock was set
        draft.rollout(awaiting_since=None, awaited_seconds=record.awaited_seconds + waited)


def complete(draft: Draft, target: Target) -> Decision:
    """Bring a recorded target to the mesh, and confirm it once every route shows it."""
    case, record = draft.case, draft.record
    traffic = case.traffic
    if traffic.at(record.version, target.weight):
        return _confirmed(draft, target)
    if traffic.unreadable or traffic.flaws:
        meant = drift.Intent(draft.status.stable_version or "", record.version, target.weight, Phase.PROGRESSING)
        if drift.raised(meant, traffic.routes):
            return _changed_meanwhile(draft)
        messages = [*traffic.unreadable, *(flaw.message for flaw in traffic.flaws)]
        reason = "MeshUnreadable" if traffic.unreadable else traffic.flaws[0].reason
        phase = Phase.PROGRESSING if traffic.unreadable else Phase.BLOCKED
        return draft.move(phase, reason, "; ".join(messages), wake_in=case.settings.retry)
    if lost := drift.lost_host(draft):
        return draft.move(Phase.BLOCKED, "HostsChanged", lost, wake_in=case.settings.retry)
    ready = case.ready(record.version)
    if ready is not None and ready < draft.required():
        draft.rollout(target=None)
        message = f"{record.version} has {ready} ready endpoints and needs {draft.required()}; it gets no more traffic"
        return set_weights(draft, record.weight, Phase.PROGRESSING, "CanaryNotReady", message)
    written: dict[str, int] = {}
    for route in traffic.routes:
        found, share = route.virtual_service, route.weight_of(record.version)
        if share == target.weight or found.generation == target.generations.get(found.name):
            continue
        if drift.taken_back(draft, route) and found.name in target.generations:
            return rollback.begin(draft, "RollbackResumed", f"{found.name} shows a rollback that was under way")
        if record.weight and share != record.weight and found.name in target.generations:
            return _changed_meanwhile(draft)
        written[found.name] = found.generation
    if written:
        generations = {**target.generations, **written}
        draft.rollout(target=target.model_copy(update={"generations": generations}))
    if (waiting := _without_subset(draft)) is not None:
        return waiting
    message = f"giving {record.version} {target.weight} %"
    return set_weights(draft, target.weight, Phase.PROGRESSING, "SettingWeight", message)


def _without_subset(draft: Draft) -> Decision | None:
    """Wait for the subset that the weight is for, where somebody removed it meanwhile."""
    case, flaw = draft.case, draft.case.traffic.rule_flaw
    if case.traffic.rule is not None:
        return restore_lost(draft, (draft.status.stable_version or "", draft.record.version), Phase.PROGRESSING)
    message = flaw.message if flaw is not None else "the DestinationRule has not been read yet"
    phase, reason = Phase.PROGRESSING, "MeshUnreadable"
    if isinstance(flaw, Missing | Refused):
        phase, reason = Phase.BLOCKED, flaw.reason
    return draft.move(phase, reason, message, wake_in=case.settings.retry)


def _changed_meanwhile(draft: Draft) -> Decision:
    """Give up a raise that somebody else's weights came before; the present weight is what is intended again."""
    record = draft.record
    draft.rollout(target=None)
    intent = drift.Intent(draft.status.stable_version or "", record.version, record.weight, Phase.PROGRESSING)
    return drift.answer(draft, intent, drift.differing(draft, intent))


def _confirmed(draft: Draft, target: Target) -> Decision:
    case, record = draft.case, draft.record
    draft.rollout(weight=target.weight, target=None, applied_at=case.now, in_effect_at=None, convergence="")
    draft.note("WeightSet", f"{record.version} has {target.weight} %")
    phase = Phase.PROGRESSING
    message = f"{record.version} has {target.weight} %; waiting for traffic to show it"
    return draft.move(phase, "Converging", message, again=True, wake_in=timedelta(seconds=1))
