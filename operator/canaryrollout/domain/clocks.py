"""A clock that was set makes no wait longer than if it began now, and as far as it can be told none shorter.

Status keeps absolute times, and whoever goes on from it may have another clock than who wrote it: the machine's was
set, or another replica leads. A time in the future says only that this happened; it is taken for now, in one place,
before anything is decided. A clock that is set forward while the operator runs is seen against the monotonic one, and
what waits is moved along. One that is set forward while nobody runs cannot be told from time that went by: deadlines
and waits may end early then by as much. More traffic needs evidence all the same, and evidence has times of its own.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil
from typing import Any, Final

from canaryrollout.api.spec import ApiModel, CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Contest, RolloutRecord
from canaryrollout.domain.settings import DomainSettings

MIN_STEP: Final = timedelta(seconds=5)
"""Steps of the clock below this are not worth a status write."""
_STANDING: Final = frozenset({"started_at", "applied_at", "in_effect_at", "last_passed_at", "ended_at"})
"""Times of a record that evidence or the deadline are counted from; what else waits ends by our own clock alone."""


def as_of(
    status: CanaryRolloutStatus, spec: CanaryRolloutSpec, now: datetime, settings: DomainSettings
) -> CanaryRolloutStatus:
    """Return a status in which nothing lies in the future that has happened, and nothing is later than if it began now.

    Args:
        status: What was decided so far.
        spec: What the user wants.
        now: The wall-clock time, UTC.
        settings: Timing.

    Returns:
        The status itself where all is well.
    """
    fields: dict[str, Any] = {}
    record, contest = status.rollout, status.contest
    if record is not None and (changed := _of_record(record, now)):
        fields["rollout"] = record.model_copy(update=changed)
    if contest is not None and (changed := _of_contest(contest, spec, now, settings)):
        fields["contest"] = contest.model_copy(update=changed)
    if record is not None and record.ended_at is None and any(c.last_transition_time > now for c in status.conditions):
        fields["conditions"] = tuple(
            c.model_copy(update={"last_transition_time": min(c.last_transition_time, now)}) for c in status.conditions
        )
    return status.model_copy(update=fields) if fields else status


def moved_along(record: RolloutRecord, step: timedelta, now: datetime) -> dict[str, Any]:
    """Return fields of a record after the clock was set forward: the step is no time in which anything was waited for.

    Args:
        record: The change under way.
        step: How far the clock was set.
        now: The wall-clock time, UTC, after that.
    """
    if record.ended_at is not None or step < MIN_STEP:
        return {}
    moved: dict[str, Any] = {
        name: min(since + step, now) for name, since in _times(record).items() if name not in _STANDING
    }
    return moved | {"awaited_seconds": record.awaited_seconds + round(step.total_seconds())}


def _times(model: ApiModel) -> dict[str, datetime]:
    """Return all times in a part of the status, whoever added them to it."""
    return {name: value for name, value in model if isinstance(value, datetime)}


def _of_record(record: RolloutRecord, now: datetime) -> dict[str, Any]:
    changed: dict[str, Any] = {name: now for name, time in _times(record).items() if time > now}
    if record.target is not None and record.target.set_at > now:
        changed["target"] = record.target.model_copy(update={"set_at": now})
    if "applied_at" in changed:  # its evidence begins anew, and with it the question whether it is in effect
        changed |= {"in_effect_at": None, "convergence": ""}
    lasted = max(ceil((now - (record.last_passed_at or record.started_at)).total_seconds()), 0)
    if record.awaited_seconds > lasted:  # nobody was awaited for longer than the step has lasted
        changed["awaited_seconds"] = lasted
    return changed


def _of_contest(contest: Contest, spec: CanaryRolloutSpec, now: datetime, settings: DomainSettings) -> dict[str, Any]:
    given_up = contest.given_up_generation is not None
    most = settings.max_reassertions
    latest = now + spec.analysis.interval * (1 << (most if given_up else min(max(contest.count, 0), most)))
    changed: dict[str, Any] = {name: now for name, time in _times(contest).items() if time > now}
    changed.pop("not_before", None)  # the only time that is meant to lie ahead
    return changed | ({"not_before": latest} if contest.not_before > latest else {})
