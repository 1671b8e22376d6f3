"""Kubernetes Events: what happened to a rollout, where ``kubectl describe`` shows it.

The same thing happening again within a few minutes counts up the Event that is there instead of adding another, as the
field's own recorders do, so that a rollout which is stuck does not bury the rest. And an object has a budget: who edits
theirs a hundred times a second gets a hundred answers in its status, but not as many Events.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from canaryrollout.adapters.kube import FIELD_MANAGER, ApiError, KubeClient, Resource
from canaryrollout.api.crd import API_VERSION, KIND
from canaryrollout.domain.decision import Event
from canaryrollout.engine.ports import Clock, Conflict, Gone, NotLeading, Permit, Rollout

EVENTS: Final = Resource("", "v1", "events")

FORBIDDEN: Final = 403
_SAME: Final = timedelta(minutes=10)
_REMEMBERED: Final = 2000
BURST: Final = 100
"""Writes of Events about one object at once; a rollout of 50 steps has less to say."""
PERIOD: Final = 6.0
"""Seconds until an object that used them up has one more."""
_LONGEST_NAME: Final = 230

_log = structlog.get_logger(__name__)

_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Emitted:
    name: str
    count: int
    last: datetime


class _Budgets:
    """A leaky bucket for each object, as the moment at which it will be empty (the generic cell rate algorithm)."""

    def __init__(self) -> None:
        self._empty_at: OrderedDict[str, float] = OrderedDict()
        self._spent: set[str] = set()

    def allow(self, uid: str, now: float) -> bool:
        """Take one write from the budget of an object, if it has one left; ``now`` in seconds that never jump."""
        while self._empty_at and next(iter(self._empty_at.values())) <= now:
            self._spent.discard(self._empty_at.popitem(last=False)[0])
        empty_at = max(self._empty_at.get(uid, now), now) + PERIOD
        if empty_at > now + BURST * PERIOD:
            return False
        self._spent.discard(uid)
        self._empty_at[uid] = empty_at
        self._empty_at.move_to_end(uid)
        return True

    def first_refusal(self, uid: str) -> bool:
        """Return whether an object was refused for the first time since it was last allowed something."""
        first = uid not in self._spent
        self._spent.add(uid)
        return first


class Recorder:
    """Creates Events and counts up those that repeat; ``instance`` names this replica."""

    def __init__(self, client: KubeClient, clock: Clock, instance: str) -> None:
        self._client = client
        self._clock = clock
        self._instance = instance
        self._may_patch = True
        self._emitted: OrderedDict[_Key, _Emitted] = OrderedDict()
        self._budgets = _Budgets()

    async def emit(self, rollout: Rollout, event: Event, permit: Permit) -> None:
        """Create an Event, or count up the one that says the same; never raises, a lost Event is logged."""
        uid = rollout.identity.uid
        if not self._budgets.allow(uid, self._clock.monotonic()):
            if self._budgets.first_refusal(uid):
                told = f"{BURST} at once and one every {PERIOD:.0f} s are written about one object"
                _log.warning("too many events", rollout=rollout.identity.key, reason=event.reason, limit=told)
            return
        try:
            await self._emit(rollout, event, permit)
        except (ApiError, Conflict, Gone, NotLeading) as error:
            _log.warning("event lost", rollout=rollout.identity.key, reason=event.reason, error=str(error))

    async def _emit(self, rollout: Rollout, event: Event, permit: Permit) -> None:
        now = self._clock.now()
        key = (rollout.identity.uid, event.reason, event.message)
        known = self._emitted.get(key)
        if known is not None and self._may_patch and timedelta() <= now - known.last < _SAME:
            permit()
            known.count, known.last = known.count + 1, now
            patch = {"count": known.count, "lastTimestamp": _seconds(now)}
            if await self._count_up(rollout.identity.namespace, known.name, patch):
                return
        body = event_body(rollout, event, now, self._instance)
        permit()
        await self._client.create(EVENTS, rollout.identity.namespace, body)
        self._emitted[key] = _Emitted(body["metadata"]["name"], 1, now)
        self._emitted.move_to_end(key)
        while len(self._emitted) > _REMEMBERED:
            self._emitted.popitem(last=False)

    async def _count_up(self, namespace: str, name: str, patch: dict[str, Any]) -> bool:
        """Return whether the Event is there and was counted up; a Role without ``patch`` means a new one each time."""
        try:
            await self._client.merge_patch(EVENTS, namespace, name, patch)
        except Gone:
            return False
        except ApiError as error:
            if error.status != FORBIDDEN:
                raise
            self._may_patch = False
            return False
        return True


def event_body(rollout: Rollout, event: Event, now: datetime, instance: str) -> dict[str, Any]:
    """Return a core/v1 Event about a rollout; ``instance`` names the replica that reports it."""
    identity = rollout.identity
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{identity.name[:_LONGEST_NAME].rstrip('.-')}.{secrets.token_hex(8)}",
            "namespace": identity.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": identity.namespace,
            "name": identity.name,
            "uid": identity.uid,
            "resourceVersion": rollout.resource_version,
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": event.message,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": f"canaryrollout.io/{FIELD_MANAGER}",
        "reportingInstance": instance[:128],
        "action": event.reason,
        "firstTimestamp": _seconds(now),
        "lastTimestamp": _seconds(now),
        "count": 1,
    }


def _seconds(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ")
