"""A canary with traffic: judge it, hold it, raise it, or take it back.

The order of the questions is the order of their urgency: is the weight what it should be, does the canary have ready
endpoints, does the evidence speak against it; only then whether it is time to go on.
"""

from __future__ import annotations

from datetime import timedelta

from canaryrollout.api.spec import OnNoData
from canaryrollout.api.status import FinishedStep, Phase, Verdict
from canaryrollout.domain import drift, rollback, steps
from canaryrollout.domain.decision import Decision, SetFinalizer
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.gates import judge
from canaryrollout.domain.in_effect import converge, show_convergence
from canaryrollout.domain.looks import is_due, judged_weight, next_look
from canaryrollout.domain.observation import Missing, Refused
from canaryrollout.domain.outage import AWAY, HEALTHY, came_back, without_evidence
from canaryrollout.domain.overdue import expired, overdue, wait
from canaryrollout.domain.pace import Pace
from canaryrollout.domain.raising import raise_to, set_weights, stop_waiting
from canaryrollout.domain.readiness import follow_stable, hold_raise, short_of_endpoints, unready
from canaryrollout.domain.results import GateResult, Judgement
from canaryrollout.domain.subsets import restore_lost
from canaryrollout.domain.timeliness import is_behind, judged_until


def progress(draft: Draft) -> Decision:
    """Look at a canary that has traffic and make the next move."""
    judgement = _judge(draft)
    draft.judged(judgement)
    follow_stable(draft)
    return (
        unready(draft)
        or _failed(draft, judgement)
        or _drifted(draft)
        or _without_subset(draft)
        or _promoted_by_command(draft)
        or converge(draft)
        or _hold(draft, judgement)
        or _passed(draft, judgement)
    )


def urgent(draft: Draft, waiting: str) -> Decision | None:
    """Return the rollback that is due whatever else is under way: a raise that does not finish, or a claimed host.

    Args:
        draft: The decision in the making.
        waiting: What is waited for, should the deadline have passed.
    """
    first = not draft.record.weight
    if first and (draft.case.observation.evidence is None or not any(_shares(draft))):
        return expired(draft, waiting)
    judgement = _judge(draft)
    draft.judged(judgement)
    gone = None if first else unready(draft)  # a first weight is given up before its grace is over
    return gone or _failed(draft, judgement) or expired(draft, waiting)


def _shares(draft: Draft) -> tuple[int, ...]:
    return draft.case.traffic.weights_of(draft.record.version)


def _weight(draft: Draft) -> int:
    judged = judged_weight(draft.record)
    return judged[0] if judged is not None else draft.record.weight


def _judge(draft: Draft) -> Judgement:
    record, evidence, opening = draft.record, draft.case.observation.evidence, draft.case.observation.opening
    judgement = judge(
        draft.case.spec.analysis,
        evidence,
        weight=_weight(draft),
        # While the weight is being raised, the step that just passed is finished and still in force: not twice.
        finished=tuple(step for step in record.finished if step.weight < record.weight),
        baseline=record.baseline,
        since=record.in_effect_at,
        opening=opening.blocks if opening is not None else (),
    )
    _show_health(draft, judgement)
    show_convergence(draft)
    return judgement


def _show_health(draft: Draft, judgement: Judgement) -> None:
    evidence = draft.case.observation.evidence
    if without_evidence(draft):
        return
    if evidence is None:
        draft.condition(HEALTHY, "Unknown", "AwaitingData", "no data has come in yet for this weight")
        return
    came_back(draft)
    if evidence.warnings:
        draft.condition(HEALTHY, "False", "PartialData", "; ".join(evidence.warnings))
    elif judgement.verdict is Verdict.ERROR:
        draft.condition(HEALTHY, "False", judgement.reason, judgement.message)
    else:
        provider = draft.case.spec.analysis.provider
        draft.condition(HEALTHY, "True", "Answering", f"provider {provider} answers")


def _failed(draft: Draft, judgement: Judgement) -> Decision | None:
    if judgement.verdict is Verdict.FAIL:
        return rollback.begin(draft, "GateFailed", f"at {_weight(draft)} %: {judgement.message}")
    silent = [gate.message for gate in judgement.gates if gate.reason == "NoData" and _forbids_silence(draft, gate)]
    if silent:
        message = f"at {draft.record.weight} %, onNoData is Rollback: {'; '.join(dict.fromkeys(silent))}"
        return rollback.begin(draft, "NoData", message)
    return None


def _forbids_silence(draft: Draft, gate: GateResult) -> bool:
    """Return whether a gate without data takes the canary back: by its own policy, else by that of the analysis.

    What was not asked yet is no answer: after a restart there is no data for a moment, of anything. Nor is an answer
    that may be partial: the canary may be in the part that is missing.
    """
    record, case = draft.record, draft.case
    analysis, evidence = case.spec.analysis, case.observation.evidence
    if evidence is None or evidence.warnings or record.in_effect_at is None:
        return False
    policy, asked_until = analysis.on_no_data, evidence.until
    for metric in analysis.metrics:
        if gate.name == f"metrics/{metric.name}":
            policy = metric.on_no_data or policy
            readings = evidence.metrics.get(metric.name, ())
            asked_until = readings[-1].at if readings else evidence.request.start
    due = record.in_effect_at + steps.hold_of(case.spec, record.weight) + case.settings.convergence_bound
    return policy is OnNoData.ROLLBACK and asked_until >= due


def _drifted(draft: Draft) -> Decision | None:
    case, record = draft.case, draft.record
    intent = drift.Intent(draft.status.stable_version or "", record.version, record.weight, Phase.PROGRESSING)
    off = drift.differing(draft, intent)
    if drift.rollback_under_way(draft, off):
        return _asking_why(draft) or rollback.begin(draft, "RollbackResumed", "a rollback was under way")
    if (unusable := _unusable(draft)) is not None:
        phase, reason, message = unusable
        if beyond := drift.raised(intent, off):
            return expired(draft, message) or drift.answer(draft, intent, beyond)
        wake_in = case.settings.poll if phase is Phase.BLOCKED else case.settings.retry
        return overdue(draft, message) or draft.move(phase, reason, message, wake_in=wake_in)
    if not off:
        drift.settled(draft)
        if record.applied_at is None:
            draft.rollout(applied_at=case.now)
        return None
    below = all(route.weight_of(record.version) < record.weight for route in off)
    short = short_of_endpoints(draft, draft.case.step_phase) if below else None
    if short is not None:
        return overdue(draft, short.status.message) or short
    rising = any(route.weight_of(record.version) < record.weight for route in off)
    if rising and (broken := _without_subset(draft)) is not None:
        return broken
    if all(drift.newly_listed(draft, route) for route in off):
        names = ", ".join(route.name for route in off)
        message = f"bringing {names}, now on the list, to {record.weight} %"
        return set_weights(draft, record.weight, Phase.PROGRESSING, "RouteListed", message)
    waiting = f"weights are not {record.weight} % on {', '.join(route.name for route in off)}"
    return expired(draft, waiting) or drift.answer(draft, intent, off, wake_at=next_look(draft))


def _unusable(draft: Draft) -> tuple[Phase, str, str] | None:
    """Return why not every route can be looked at and moved: phase, reason and message of the wait."""
    traffic = draft.case.traffic
    if traffic.unreadable:
        return Phase.PROGRESSING, "MeshUnreadable", "; ".join(traffic.unreadable)
    if traffic.flaws:
        return Phase.BLOCKED, traffic.flaws[0].reason, "; ".join(flaw.message for flaw in traffic.flaws)
    if lost := drift.lost_host(draft):
        return Phase.BLOCKED, "HostsChanged", lost
    return None


def _asking_why(draft: Draft) -> Decision | None:
    """Wait for the first answer of the provider where it may tell why the traffic was taken back.

    Who took it back died before saying so. The evidence is the same for a successor, and `_failed` comes first once it
    is there. Nothing but the reason waits for it, and not beyond the deadline of the step.
    """
    case, record = draft.case, draft.record
    asked = [case.observation.evidence, *([case.observation.opening] if case.settings.propagation else [])]
    deadline = steps.deadline(case.spec, record)
    over = deadline is not None and case.now >= deadline
    if None not in asked or over or not is_due(draft) or any(_shares(draft)):
        return None
    message = f"{record.version} has no traffic any more; asking provider {case.spec.analysis.provider} why"
    return draft.move(Phase.ROLLING_BACK, "RollbackResumed", message, wake_in=case.settings.retry)


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
        if phase is Phase.BLOCKED:
            draft.rollout(subset_seen_at=None)
        return overdue(draft, message) or draft.move(phase or draft.case.step_phase, reason, message, wake_in=wake)
    restored = restore_lost(draft, (draft.status.stable_version or "", record.version), draft.case.step_phase)
    if restored is None:
        if record.subset_seen_at is None:
            draft.rollout(subset_seen_at=case.now)
        return None
    return expired(draft, restored.status.message) or restored


def _promoted_by_command(draft: Draft) -> Decision | None:
    record = draft.record
    if not record.promote:
        return None
    if record.weight == 100:
        return _promote(draft, f"{record.version} was promoted without waiting for its gates")
    short = short_of_endpoints(draft, draft.case.step_phase)
    if short is not None:
        return overdue(draft, short.status.message) or short
    return raise_to(draft, 100)


def _hold(draft: Draft, judgement: Judgement) -> Decision | None:
    """Return the wait, unless the hold is over and the gates pass on data from after it."""
    case, record = draft.case, draft.record
    if record.in_effect_at is None:
        message = "waiting for the weight to be confirmed"
        return draft.move(case.step_phase, "Converging", message, wake_in=case.settings.retry)
    undisturbed_since = max(record.in_effect_at, record.subset_seen_at or record.in_effect_at)
    held_until = undisturbed_since + steps.hold_of(case.spec, record.weight)
    evidence, analysis = case.observation.evidence, case.spec.analysis
    seen = evidence.until if evidence is not None else record.in_effect_at
    judged = judged_until(analysis, evidence) if evidence is not None else seen
    behind = is_behind(analysis, judged, case.now, case.settings.lag_of(analysis.provider))
    if judgement.verdict is Verdict.PASS and judged >= held_until and not behind:
        return None
    outage = without_evidence(draft)
    waiting = f"{record.version} at {record.weight} %: {outage or judgement.message}"
    if outage:
        return wait(draft, AWAY, waiting)
    if judgement.verdict is Verdict.PASS and behind:
        return wait(draft, "CatchingUp", f"{waiting}; that was at {judged:%H:%M:%S} UTC, waiting for newer evidence")
    if judgement.verdict is Verdict.PASS:
        return wait(draft, "Holding", waiting, f"; held until {held_until:%H:%M:%S} UTC")
    if slow := _too_slow(draft, judgement, seen - record.in_effect_at):
        waiting = f"{waiting}; {slow}"
        draft.note_once("TooLittleTraffic", waiting, warning=True)
        return wait(draft, "TooLittleTraffic", waiting)
    return wait(draft, judgement.reason, waiting)


def _too_slow(draft: Draft, judgement: Judgement, over: timedelta) -> str:
    """Say that traffic is too low for this step ever to pass in time; empty where it may."""
    due = steps.deadline(draft.case.spec, draft.record)
    if due is None or not judgement.needed:
        return ""
    return Pace(judgement.canary.requests, over).too_slow(judgement.needed, due - draft.case.now)


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
    held = hold_raise(draft, draft.case.step_phase)
    if held is not None:
        return overdue(draft, held.status.message) or held
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
    finished = FinishedStep(
        weight=record.weight,
        passed_at=case.now,
        canary=judgement.canary,
        stable=judgement.stable,
        evidence=dict(judgement.evidence),
    )
    earlier = tuple(step for step in record.finished if step.weight < record.weight)  # else a raise was given up
    draft.rollout(finished=(*earlier, finished), last_passed_at=case.now, awaited_seconds=0)
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


def _promote(draft: Draft, message: str) -> Decision:
    """Make the canary the stable version: one status write, after which there is only forward clean-up."""
    record = draft.record
    former = draft.status.stable_version
    draft.update(stable_version=record.version)
    draft.note("Promoted", f"{message}: {record.version} is stable now, it was {former}")
    return draft.move(Phase.PROMOTING, "Promoted", message, again=True)
