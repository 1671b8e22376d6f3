"""A canary with traffic: judge it, hold it, raise it, or take it back.

The order of the questions is the order of their urgency: is the weight what it should be, does the canary have ready
endpoints, does the evidence speak against it; only then whether it is time to go on.
"""

from __future__ import annotations

from datetime import datetime

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.spec import OnDeadline, OnNoData
from canaryrollout.api.status import FinishedStep, Phase, Verdict
from canaryrollout.domain import drift, rollback, steps
from canaryrollout.domain.convergence import Agreement, agreement
from canaryrollout.domain.decision import Decision, SetFinalizer
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.evidence import Block, total
from canaryrollout.domain.gates import judge
from canaryrollout.domain.looks import grid_start, next_look
from canaryrollout.domain.observation import Missing, Refused
from canaryrollout.domain.raising import raise_to, set_weights, stop_waiting
from canaryrollout.domain.results import Judgement
from canaryrollout.domain.subsets import restore_lost


def progress(draft: Draft) -> Decision:
    """Look at a canary that has traffic and make the next move."""
    judgement = _judge(draft)
    draft.judged(judgement)
    return (
        _unready(draft)
        or _failed(draft, judgement)
        or _drifted(draft)
        or _without_subset(draft)
        or _promoted_by_command(draft)
        or _converge(draft)
        or _hold(draft, judgement)
        or _passed(draft, judgement)
    )


def urgent(draft: Draft, waiting: str) -> Decision | None:
    """Return the rollback that is due whatever else is under way: a raise that does not finish, or a claimed host.

    Args:
        draft: The decision in the making.
        waiting: What is waited for, should the deadline have passed.
    """
    if not draft.record.weight:
        return overdue(draft, waiting)
    judgement = _judge(draft)
    draft.judged(judgement)
    return _unready(draft) or _failed(draft, judgement) or overdue(draft, waiting)


def _judge(draft: Draft) -> Judgement:
    record, evidence, opening = draft.record, draft.case.observation.evidence, draft.case.observation.opening
    judgement = judge(
        draft.case.spec.analysis,
        evidence,
        weight=record.weight,
        finished=record.finished,
        baseline=record.baseline,
        since=record.in_effect_at,
        opening=opening.blocks if opening is not None else (),
    )
    if evidence is None:
        draft.condition("AnalysisHealthy", "Unknown", "AwaitingData", "no data has come in yet for this weight")
    elif evidence.error:
        since = f" since {evidence.error_since:%H:%M:%S} UTC" if evidence.error_since else ""
        draft.condition("AnalysisHealthy", "False", "ProviderError", f"the provider fails{since}: {evidence.error}")
    elif evidence.warnings:
        draft.condition("AnalysisHealthy", "False", "PartialData", "; ".join(evidence.warnings))
    elif judgement.verdict is Verdict.ERROR:
        draft.condition("AnalysisHealthy", "False", judgement.reason, judgement.message)
    else:
        draft.condition("AnalysisHealthy", "True", "Answering", "the provider answers")
    return judgement


def _unready(draft: Draft) -> Decision | None:
    case, record = draft.case, draft.record
    ready = case.ready(record.version)
    if ready is None or ready > 0:
        if record.unready_since is not None:
            draft.rollout(unready_since=None)
        return None
    since = record.unready_since or case.now
    draft.rollout(unready_since=since)
    grace = case.spec.readiness.unready_grace
    if case.now - since >= grace:
        return rollback.begin(
            draft, "CanaryUnready", f"{record.version} has had no ready endpoint for {format_duration(grace)}"
        )
    return None


def _failed(draft: Draft, judgement: Judgement) -> Decision | None:
    if judgement.verdict is Verdict.FAIL:
        return rollback.begin(draft, "GateFailed", f"at {draft.record.weight} %: {judgement.message}")
    record, case = draft.record, draft.case
    if (
        judgement.reason == "NoData"
        and case.spec.analysis.on_no_data is OnNoData.ROLLBACK
        and record.in_effect_at is not None
        and case.now >= record.in_effect_at + steps.hold_of(case.spec, record.weight) + case.settings.convergence_bound
    ):
        return rollback.begin(draft, "NoData", f"at {record.weight} %, onNoData is Rollback: {judgement.message}")
    return None


def _drifted(draft: Draft) -> Decision | None:
    case, record = draft.case, draft.record
    traffic = case.traffic
    if traffic.unreadable:
        message = "; ".join(traffic.unreadable)
        return overdue(draft, message) or draft.move(
            Phase.PROGRESSING, "MeshUnreadable", message, wake_in=case.settings.retry
        )
    if traffic.flaws:
        return overdue(draft, "the mesh objects cannot be used") or draft.move(
            Phase.BLOCKED,
            traffic.flaws[0].reason,
            "; ".join(flaw.message for flaw in traffic.flaws),
            wake_in=case.settings.poll,
        )
    stable = draft.status.stable_version or ""
    intent = drift.Intent(stable, record.version, record.weight, Phase.PROGRESSING)
    off = drift.differing(draft, intent)
    if not off:
        drift.settled(draft)
        if record.applied_at is None:
            draft.rollout(applied_at=case.now)
        return None
    if drift.rollback_under_way(draft, off):
        return rollback.begin(draft, "RollbackResumed", "a rollback was under way")
    below = all(route.weight_of(record.version) < record.weight for route in off)
    short = _short_of_endpoints(draft) if below else None
    if short is not None:
        return overdue(draft, short.status.message) or short
    if all(drift.newly_listed(draft, route) for route in off):
        names = ", ".join(route.name for route in off)
        message = f"bringing {names}, now on the list, to {record.weight} %"
        return set_weights(draft, record.weight, Phase.PROGRESSING, "RouteListed", message)
    return drift.answer(draft, intent, off, wake_at=next_look(draft))


def _without_subset(draft: Draft) -> Decision | None:
    """Answer a DestinationRule that does not tell the versions apart any more: requests would go nowhere."""
    case, record = draft.case, draft.record
    rule, flaw = case.traffic.rule, case.traffic.rule_flaw
    if rule is None:
        message = flaw.message if flaw is not None else "the DestinationRule has not been read yet"
        phase, reason = (
            (Phase.BLOCKED, flaw.reason) if isinstance(flaw, Missing | Refused) else (None, "MeshUnreadable")
        )
        wake = case.settings.retry
        return overdue(draft, message) or draft.move(phase or _phase(draft), reason, message, wake_in=wake)
    restored = restore_lost(draft, (draft.status.stable_version or "", record.version), _phase(draft))
    if restored is None:
        return None
    return overdue(draft, restored.status.message) or restored


def _promoted_by_command(draft: Draft) -> Decision | None:
    record = draft.record
    if not record.promote:
        return None
    if record.weight == 100:
        return _promote(draft, f"{record.version} was promoted without waiting for its gates")
    short = _short_of_endpoints(draft)
    if short is not None:
        return overdue(draft, short.status.message) or short
    return raise_to(draft, 100)


def _converge(draft: Draft) -> Decision | None:
    """Find out since when observed traffic agrees with the weight; until then nothing passes."""
    case, record = draft.case, draft.record
    if record.in_effect_at is not None or record.applied_at is None:
        _show_convergence(draft)
        return None
    start = grid_start(record.applied_at, case.settings.propagation)
    evidence = case.observation.evidence
    blocks = evidence.blocks if evidence is not None else ()
    since, state, message = _in_effect(blocks, record.weight, start)
    bound = max(case.settings.convergence_bound, 3 * case.spec.analysis.interval)
    if since is None and case.now >= start + bound:
        since = blocks[-1].end if state == "ShareContradicts" else start
        if state == "ShareContradicts":
            draft.note(state, f"{message}; looking for {format_duration(bound)} did not change that", warning=True)
    if since is not None:
        draft.rollout(in_effect_at=since, convergence=state)
        draft.condition("TrafficConverged", _STATUS[state], state, message)
        return None
    draft.condition("TrafficConverged", "Unknown", "Converging", message)
    return overdue(draft, message) or draft.move(
        _phase(draft),
        "Converging",
        f"waiting for traffic to show {record.weight} %: {message}",
        wake_at=next_look(draft),
    )


_STATUS = {"Converged": "True", "TooLittleTraffic": "Unknown", "ShareContradicts": "False"}


def _show_convergence(draft: Draft) -> None:
    state = draft.record.convergence
    if state:
        draft.condition("TrafficConverged", _STATUS[state], state, "")


def _in_effect(blocks: tuple[Block, ...], weight: int, start: datetime) -> tuple[datetime | None, str, str]:
    """Return since when the weight is in effect (``None``: not yet), the state otherwise, and the numbers."""
    if not blocks:
        return None, "TooLittleTraffic", "no complete interval of data yet"
    canary, stable = total(tuple(b.canary for b in blocks)), total(tuple(b.stable for b in blocks))
    whole = agreement(canary.requests, stable.requests, weight)
    if whole.agreement is Agreement.AGREES:
        return start, "Converged", whole.message
    newest = blocks[-1]
    latest = agreement(newest.canary.requests, newest.stable.requests, weight)
    if whole.agreement is Agreement.CONTRADICTS and latest.agreement is Agreement.AGREES:
        return newest.start, "Converged", latest.message
    state = "TooLittleTraffic" if whole.agreement is Agreement.TOO_FEW else "ShareContradicts"
    return None, state, whole.message


def _hold(draft: Draft, judgement: Judgement) -> Decision | None:
    """Return the wait, unless the hold is over and the gates pass on data from after it."""
    case, record = draft.case, draft.record
    if record.in_effect_at is None:
        return draft.move(
            _phase(draft), "Converging", "waiting for the weight to be confirmed", wake_in=case.settings.retry
        )
    held_until = record.in_effect_at + steps.hold_of(case.spec, record.weight)
    evidence = case.observation.evidence
    seen_until = evidence.until if evidence is not None else record.in_effect_at
    if judgement.verdict is Verdict.PASS and seen_until >= held_until:
        return None
    waiting = f"{record.version} at {record.weight} %: {judgement.message}"
    if judgement.verdict is Verdict.PASS:
        return overdue(draft, waiting) or draft.move(
            _phase(draft), "Holding", f"{waiting}; held until {held_until:%H:%M:%S} UTC", wake_at=next_look(draft)
        )
    return overdue(draft, waiting) or draft.move(_phase(draft), judgement.reason, waiting, wake_at=next_look(draft))


def overdue(draft: Draft, waiting: str) -> Decision | None:
    """Return what the deadline policy says, if the deadline has passed."""
    case, record = draft.case, draft.record
    if case.spec.paused and record.awaiting_since is None:
        draft.rollout(awaiting_since=case.now)
    due = steps.deadline(case.spec, draft.record)
    if due is None or case.now < due:
        return None
    message = f"{record.version} did not pass at {record.weight} % before {due:%H:%M:%S} UTC: {waiting}"
    if case.spec.on_deadline is OnDeadline.ROLLBACK:
        return rollback.begin(draft, "DeadlineExceeded", message)
    draft.note_once("DeadlineExceeded", f"{message}; onDeadline is Hold", warning=True)
    return draft.move(
        Phase.PROGRESSING, "DeadlineExceeded", f"{message}; onDeadline is Hold", wake_at=next_look(draft), stalled=True
    )


def _passed(draft: Draft, judgement: Judgement) -> Decision:
    case, record = draft.case, draft.record
    if steps.needs_approval(case.spec, record.weight) and not record.approved:
        return _await(
            draft,
            "AwaitingApproval",
            f"{record.version} passed at {record.weight} % ({judgement.message}); approve it with the annotation "
            f"canaryrollout.io/command: approve/{record.version}/<token>",
        )
    if case.spec.paused and record.weight < 100:
        return _await(draft, "Paused", f"{record.version} passed at {record.weight} %; spec.paused is true")
    short = _short_of_endpoints(draft)
    if short is not None:
        return overdue(draft, short.status.message) or short
    if not case.identity.finalizer:
        message = "marking the object, so that its traffic is restored before it is deleted"
        return draft.move(
            Phase.PROGRESSING,
            "Preparing",
            message,
            actions=(SetFinalizer(True),),
            again=True,
            wake_in=case.settings.retry,
        )
    stop_waiting(draft)
    finished = FinishedStep(weight=record.weight, passed_at=case.now, canary=judgement.canary, stable=judgement.stable)
    draft.rollout(finished=(*draft.record.finished, finished), last_passed_at=case.now, awaited_seconds=0)
    draft.note("StepPassed", f"{record.version} passed at {record.weight} %: {judgement.message}")
    draft.update(contest=None)
    if record.weight == 100:
        return _promote(draft, f"{record.version} passed every step")
    return raise_to(draft, steps.next_weight(case.spec, record.weight))


def _await(draft: Draft, reason: str, message: str) -> Decision:
    if draft.record.awaiting_since is None:
        draft.rollout(awaiting_since=draft.case.now)
    draft.note_once(reason, message)
    return draft.move(Phase.PAUSED, reason, message, wake_at=next_look(draft))


def _short_of_endpoints(draft: Draft) -> Decision | None:
    version, ready, needed = draft.record.version, draft.case.ready(draft.record.version), draft.required()
    if ready is not None and ready >= needed:
        return None
    seen = "an unknown number of" if ready is None else str(ready)
    message = f"{version} has {seen} ready endpoints and needs {needed} before it gets more traffic"
    return draft.move(_phase(draft), "CanaryNotReady", message, wake_in=draft.case.settings.retry)


def _promote(draft: Draft, message: str) -> Decision:
    """Make the canary the stable version: one status write, after which there is only forward clean-up."""
    record = draft.record
    former = draft.status.stable_version
    draft.update(stable_version=record.version)
    draft.rollout(drained_since=None, cleaned_at=None)
    draft.note("Promoted", f"{message}: {record.version} is stable now, it was {former}")
    return draft.move(Phase.PROMOTING, "Promoted", message, again=True)


def _phase(draft: Draft) -> Phase:
    return Phase.PAUSED if draft.case.spec.paused else Phase.PROGRESSING
