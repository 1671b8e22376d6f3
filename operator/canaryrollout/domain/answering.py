"""Answering a person's command: each once, with what came of it in status, history and an Event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from canaryrollout.api.status import Baseline, CommandRecord, Contest, RolloutRecord
from canaryrollout.domain.commands import Command, Verb, parse
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.raising import stop_waiting


def answer_command(draft: Draft) -> None:
    """Handle the command annotation, unless it was answered before.

    The command's effect is left in status for the branches that follow: an approval, a wish to promote, an abort that a
    rollback then carries out, or a fresh start.
    """
    value = draft.case.identity.command
    last = draft.status.last_command
    if not value or (last is not None and last.command == value):
        return
    command = parse(value)
    refusal = command if isinstance(command, str) else _ANSWERS[command.verb](draft, command)
    result = f"refused: {refusal}" if refusal else "accepted"
    draft.update(last_command=CommandRecord(command=value, handled_at=draft.case.now, result=result))
    if refusal:
        draft.note("CommandRefused", f"{value}: {refusal}", warning=True)


def resume_contest(draft: Draft, contest: Contest) -> None:
    """Assert the weights again after giving way; the wait for a person is over."""
    now = draft.case.now
    draft.update(contest=Contest(manager=contest.manager, changed_at=now, not_before=now, resumed=True))
    if draft.status.rollout is not None:
        stop_waiting(draft)


def recent_baseline(draft: Draft, ended: RolloutRecord) -> Baseline | None:
    """Return the baseline of a rollout that ended so recently that a new window would count what its canary did."""
    recent = ended.ended_at is not None and draft.case.now - ended.ended_at < draft.case.settings.baseline_window
    return ended.baseline if recent else None


def reason_of(draft: Draft) -> str:
    """Return the reason that status shows for the present state or wait."""
    return next((c.reason for c in draft.case.seen.conditions if c.type == "Ready"), "")


def _under_way(draft: Draft, command: Command) -> RolloutRecord | str:
    record = draft.status.rollout
    if record is None or record.ended_at is not None:
        return "no rollout is under way"
    if record.version != command.version:
        return f"the rollout under way is to {record.version}, not {command.version}"
    if draft.status.stable_version == record.version:
        return f"{record.version} is promoted already"
    if record.reason:
        return f"{record.version} is being taken back already"
    return record


def _approve(draft: Draft, command: Command) -> str:
    record = _under_way(draft, command)
    if isinstance(record, str):
        return record
    if reason_of(draft) != "AwaitingApproval":
        return f"nothing waits for approval: {draft.case.seen.message}"
    draft.rollout(approved=True)
    draft.note("Approved", f"{command.version} may go beyond {record.weight} %")
    return ""


def _retry(draft: Draft, command: Command) -> str:
    record = draft.status.rollout
    contest = draft.status.contest
    if contest is not None and contest.given_up_generation is not None and command.version == draft.case.spec.version:
        resume_contest(draft, contest)
        draft.note("Retried", "the weights are set again")
        return ""
    if record is not None and record.reason and record.ended_at is None:
        return f"{record.version} is being taken back; retry once that is done"
    if record is None or record.ended_at is None:
        return "nothing was taken back"
    if command.version != record.version:
        return f"{record.version} was taken back, not {command.version}"
    if command.version != draft.case.spec.version:
        return f"{record.version} was taken back, and spec.version is {draft.case.spec.version} now"
    anew = RolloutRecord(version=record.version, token=command.token, started_at=draft.case.now)
    draft.update(rollout=anew.model_copy(update={"baseline": recent_baseline(draft, record)}))
    draft.note("Retried", f"{record.version} starts anew")
    return ""


def _abort(draft: Draft, command: Command) -> str:
    record = _under_way(draft, command)
    if isinstance(record, str):
        return record
    draft.rollout(reason="Aborted", explanation="a person gave the abort command", target=None, awaiting_since=None)
    draft.note("Aborted", f"taking {record.version} back: a person gave the abort command", warning=True)
    return ""


def _promote(draft: Draft, command: Command) -> str:
    record = _under_way(draft, command)
    if isinstance(record, str):
        return record
    contest = draft.status.contest
    if contest is not None and contest.given_up_generation is not None:
        resume_contest(draft, contest)
    draft.rollout(promote=True)
    draft.note(
        "PromoteRequested", f"{record.version} gets all traffic as soon as it is ready, without waiting for its gates"
    )
    return ""


_ANSWERS: Final[dict[Verb, Callable[[Draft, Command], str]]] = {
    Verb.APPROVE: _approve,
    Verb.RETRY: _retry,
    Verb.ABORT: _abort,
    Verb.PROMOTE: _promote,
}
