"""The one decision: from spec, status and observation to the next move.

`decide` is total and pure: every state and every observation has an answer, and the same input has the same answer.
Simulation, restart and property tests are replays of it. The branches live beside it, one module for each stretch of a
rollout's life: first_sight, prepare, raising, progress, rollback, cleanup, drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Condition, Phase
from canaryrollout.api.text import plain
from canaryrollout.domain import drift, progress, rollback
from canaryrollout.domain.answering import answer_command, reason_of, recent_baseline, resume_contest
from canaryrollout.domain.cleanup import cleanup, release
from canaryrollout.domain.clocks import moved_along
from canaryrollout.domain.decision import Decision, Event, SetFinalizer
from canaryrollout.domain.draft import COVERED, Draft, situation
from canaryrollout.domain.first_sight import blocked, first_sight
from canaryrollout.domain.letting_go import bounded
from canaryrollout.domain.observation import Claim, Identity, Observation
from canaryrollout.domain.prepare import prepare
from canaryrollout.domain.raising import complete, stop_waiting
from canaryrollout.domain.settings import DomainSettings
from canaryrollout.domain.subsets import restore_own


def decide(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    observation: Observation,
    now: datetime,
    settings: DomainSettings,
) -> Decision:
    """Decide on the next move of a rollout.

    Args:
        spec: What the user wants.
        status: What was decided so far.
        observation: What was seen in this pass.
        now: The wall-clock time, UTC.
        settings: Timing.

    Returns:
        One move.
    """
    draft = Draft(situation(spec, status, observation, now, settings))
    _absorb_clock_step(draft)
    if observation.identity.deleting:
        return _delete(draft)
    if status.stable_version is None:
        answer_command(draft)
        rival = rival_claim(observation.identity, active=False, claims=observation.claims)
        return _yield_host(draft, rival, settings.blocked_retry) if rival else first_sight(draft)
    answer_command(draft)
    _resume_contest(draft)
    if draft.status.rollout is None or draft.status.rollout.ended_at is not None:
        return _rest(draft)
    return _under_way(draft)


def decide_invalid(status: CanaryRolloutStatus, identity: Identity, problems: Sequence[str], now: datetime) -> Decision:
    """Answer an object whose spec cannot be used: say so, and leave the traffic as it is.

    Args:
        status: What was decided so far; nothing of it is lost.
        identity: The rollout object.
        problems: What is wrong, for people.
        now: The wall-clock time, UTC.

    Returns:
        A decision without mesh actions. An object that is being deleted is released, whatever becomes of its status:
        the API server refuses one where the spec is not what the definition asks for.
    """
    if identity.deleting:
        return Decision(status, (SetFinalizer(False),) if identity.finalizer else ())
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    message = plain("; ".join(problems))  # as status has it, or the same words would be news each time
    seen = {condition.type: condition for condition in status.conditions}
    conditions = []
    for kind, state in (("Ready", "False"), ("Reconciling", "False"), ("Stalled", "True")):
        before = seen.get(kind)
        since = before.last_transition_time if before and before.status == state else now
        conditions.append(
            Condition(
                type=kind,
                status=state,
                reason="InvalidSpec",
                message=message,
                last_transition_time=since,
                observed_generation=identity.generation,
            )
        )
    conditions += [seen[COVERED]] if COVERED in seen else []
    changed = status.phase is not Phase.BLOCKED or status.message != message
    events = (Event("InvalidSpec", message, warning=True),) if changed else ()
    after = status.model_copy(
        update={
            "phase": Phase.BLOCKED,
            "message": message,
            "conditions": tuple(conditions),
            "observed_generation": identity.generation,
        }
    )
    return Decision(after, events=events)


def rival_claim(identity: Identity, *, active: bool, claims: Sequence[Claim]) -> Claim | None:
    """Return the CanaryRollout that judges this host instead, if there is one.

    Of several on one host an active one wins, else the oldest; uids break ties.
    """
    mine = (not active, identity.created_at, identity.uid)
    return min((claim for claim in claims if claim.rank < mine), key=lambda claim: claim.rank, default=None)


def _yield_host(draft: Draft, rival: Claim, wake_in: timedelta) -> Decision:
    message = f"{rival.key} judges host {draft.case.spec.host} already, and evidence is per host: delete one of the two"
    return draft.move(Phase.BLOCKED, "HostClaimed", message, wake_in=wake_in)


def _resume_contest(draft: Draft) -> None:
    """Answer changes of the weights again after an edit of the spec, but not for a canary that is to be paused."""
    contest = draft.status.contest
    generation = draft.case.identity.generation
    if contest is None or contest.given_up_generation in (None, generation) or drift.held_back(draft):
        return
    resume_contest(draft, contest)


def _absorb_clock_step(draft: Draft) -> None:
    """Keep a forward jump of the wall clock from passing for time in which the rollout made no progress."""
    case, record = draft.case, draft.status.rollout
    if record is not None and (moved := moved_along(record, case.observation.clock_step, case.now)):
        draft.rollout(**moved)


def _under_way(draft: Draft) -> Decision:
    record, case = draft.record, draft.case
    if record.version == draft.status.stable_version:
        return _promoting(draft)
    if record.reason:
        return rollback.proceed(draft)
    _stop_waiting_for_nobody(draft)
    if case.spec.version != record.version:
        if case.spec.version == draft.status.stable_version:
            return rollback.begin(draft, "SpecReverted", f"spec.version is {case.spec.version} again")
        return rollback.begin(draft, "Superseded", f"spec.version is {case.spec.version} now")
    if record.target is not None:
        waiting = f"{record.target.weight} % is not on every route yet"
        return progress.urgent(draft, waiting) or complete(draft, record.target)
    rival = rival_claim(case.identity, active=True, claims=case.observation.claims)
    if rival is not None:
        wake_in = case.settings.poll if record.weight else case.settings.blocked_retry
        return progress.urgent(draft, f"{rival.key} claims the host") or _yield_host(draft, rival, wake_in)
    return progress.progress(draft) if record.weight else prepare(draft)


def _stop_waiting_for_nobody(draft: Draft) -> None:
    """Let the deadline run again once neither a person nor stable's endpoints are awaited any more."""
    contest = draft.status.contest
    contested = contest is not None and contest.given_up_generation is not None
    if not (draft.case.spec.paused or contested or reason_of(draft) in ("AwaitingApproval", "StableShrinking")):
        stop_waiting(draft)


def _rest(draft: Draft) -> Decision:
    case, status = draft.case, draft.status
    wanted, stable, ended = case.spec.version, status.stable_version or "", status.rollout
    baseline = recent_baseline(draft, ended) if ended is not None else None
    if ended is not None and wanted != ended.version:
        draft.update(rollout=None)
        ended = None
    rival = rival_claim(case.identity, active=False, claims=case.observation.claims)
    if rival is not None:
        return _yield_host(draft, rival, case.settings.blocked_retry)
    if ended is None and wanted != stable:
        return rollback.start(draft, baseline)
    phase = Phase.STABLE if ended is None else Phase.ROLLED_BACK
    off = drift.differing(draft, intent := drift.Intent(stable, ended.version if ended else None, 0, phase))
    off = tuple(route for route in off if set(route.serving()) != {None} or drift.pinned(draft, route))
    if off:
        return drift.answer(draft, intent, off)
    drift.settled(draft)
    if case.traffic.flaws:
        return blocked(draft)
    restored = restore_own(draft, phase)
    if restored is not None:
        return restored
    wake = case.settings.retry * 5 if case.traffic.unreadable else None
    wake_at = drift.forgotten_at(draft)
    if ended is not None:
        message = f"{ended.version} was taken back: {ended.explanation}"
        return draft.move(phase, ended.reason, message, wake_in=wake, wake_at=wake_at)
    return draft.move(phase, "Serving", f"{stable} serves", wake_in=wake, wake_at=wake_at)


def _promoting(draft: Draft) -> Decision:
    case, version = draft.case, draft.record.version
    if case.traffic.unreadable:
        message = "; ".join(case.traffic.unreadable)
        return draft.move(Phase.PROMOTING, "MeshUnreadable", message, wake_in=case.settings.retry)
    intent = drift.Intent(version, None, 0, Phase.PROMOTING)
    off = drift.differing(draft, intent)
    if off:
        return drift.answer(draft, intent, off)
    drift.settled(draft)
    waiting = restore_own(draft, Phase.PROMOTING) or cleanup(draft, Phase.PROMOTING)
    if waiting is not None:
        return waiting
    draft.update(rollout=None, contest=None)
    again = case.spec.version != version or bool(case.traffic.flaws)
    return draft.move(Phase.STABLE, "Serving", f"{version} serves", again=again)


def _delete(draft: Draft) -> Decision:
    """Give the traffic back to stable before the object goes, for as long as there is hope."""
    if not draft.case.identity.finalizer:
        return Decision(draft.status)
    return bounded(draft, _give_back)


def _give_back(draft: Draft) -> Decision:
    record = draft.status.rollout
    if record is None or record.ended_at is not None:
        return release(draft, Phase.STABLE, "Deleted")
    if record.version == draft.status.stable_version:
        return cleanup(draft, Phase.PROMOTING) or release(draft, Phase.PROMOTING, "Deleted")
    if record.reason:
        return rollback.proceed(draft)
    return rollback.begin(draft, "Deleted", "the CanaryRollout is being deleted")
