"""One look at one rollout: observe, decide, act, and say when to look again.

A pass decides from the object as last seen. What it then does is safe all the same: a status write is refused by the
API server if the object has changed, and before traffic is touched without such a write the object is read anew. A pass
that fails, or crashes, is repeated later and disturbs no other rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from canaryrollout.api.status import Phase
from canaryrollout.domain.decision import Decision, Event, Order
from canaryrollout.engine.act import STATUS_KEY, Executor, Result
from canaryrollout.engine.attempts import (
    AGAIN_AT_ONCE,
    AGAIN_LATER,
    CONFLICTS_AT_ONCE,
    SHORTEST_WAIT,
    Attempts,
    retry_delay,
)
from canaryrollout.engine.core import Core
from canaryrollout.engine.observe import Observer
from canaryrollout.engine.ports import Clock, Later, NotLeading, Rollout, RolloutStore
from canaryrollout.engine.registry import Registry, is_followed
from canaryrollout.engine.scheduler import Scheduler, next_turn
from canaryrollout.engine.settings import EngineSettings
from canaryrollout.engine.telemetry import Outcome, Telemetry
from canaryrollout.engine.workqueue import Closed, Priority, WorkQueue

_log = structlog.get_logger(__name__)

_READINGS = 3
"""How often one pass starts over because the object had changed when it was read anew."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with; all workers share one."""

    core: Core
    clock: Clock
    store: RolloutStore
    observer: Observer
    executor: Executor
    registry: Registry
    queue: WorkQueue
    scheduler: Scheduler
    telemetry: Telemetry
    leads: Callable[[], bool]
    background: Callable[[Coroutine[Any, Any, None]], None]


def takes_back(decision: Decision) -> bool:
    """Return whether a decision takes traffic back, so that it is repeated within half a second if it fails."""
    return decision.order is Order.MESH_FIRST or decision.status.phase is Phase.ROLLING_BACK


def same_situation(rollout: Rollout, fresh: Rollout) -> bool:
    """Return whether two readings of an object call for the same decision, whatever their resourceVersions."""
    return replace(fresh, resource_version=rollout.resource_version) == rollout


def _log_events(key: str, events: tuple[Event, ...]) -> None:
    """Say in the log what the Events say: it lives longer than they do."""
    for event in events:
        log = _log.warning if event.warning else _log.info
        log(event.message, rollout=key, reason=event.reason)


def _said_once(rollout: Rollout, decision: Decision, attempts: Attempts) -> Decision:
    """Say what is to be said of a status that cannot be read once: nothing is written that would tell that it was."""
    decision = replace(decision, status=rollout.status)
    if decision.events in ((), attempts.told):
        return replace(decision, events=())
    attempts.told = decision.events
    _log.error("status unreadable", rollout=rollout.identity.key, problems=rollout.status_problems)
    return decision


def _is_told(attempts: Attempts, decision: Decision, result: Result, refused: bool) -> bool:
    """Return whether Events are due: when status says the same, or when it is refused where they are all there is.

    The API server refuses every status of an object that an older definition let in and the present one would not.
    """
    told = attempts.foretold
    if result.status_written:
        attempts.foretold = ()
        return told != decision.events
    idle = decision.status.phase is Phase.BLOCKED and not decision.actions
    if not (idle and refused) or told == decision.events:
        return False
    attempts.foretold = decision.events
    return True


class Worker:
    """Takes keys from the queue and makes one pass for each; several may run side by side."""

    def __init__(self, parts: Parts, settings: EngineSettings) -> None:
        self._parts = parts
        self._settings = settings
        self._attempts: dict[str, Attempts] = {}

    async def run(self) -> None:
        """Work until the queue is closed."""
        queue = self._parts.queue
        while True:
            try:
                key, waited = await queue.get()
            except Closed:
                return
            self._parts.telemetry.queue_wait(waited)
            try:
                await self.look(key)
            finally:
                queue.done(key)

    def use(self, core: Core) -> None:
        """Decide by other functions from the next pass on; a pass under way ends with those that it began with."""
        self._parts = replace(self._parts, core=core)

    def forget(self, key: str) -> None:
        """Drop what is remembered of a rollout that is gone."""
        self._attempts.pop(key, None)

    def follow(self) -> None:
        """Drop what was decided and not stored: another replica decides now."""
        for attempts in self._attempts.values():
            attempts.unstored = None

    async def look(self, key: str) -> Outcome:
        """Make one pass for ``key``; raises nothing but cancellation."""
        clock = self._parts.clock
        started = clock.monotonic()
        try:
            if not self._parts.leads():
                return Outcome.NOT_LEADING
            async with asyncio.timeout(self._settings.pass_timeout):
                outcome = await self._pass(key)
        except NotLeading:
            outcome = Outcome.NOT_LEADING
        except Later as error:
            _log.warning("rollout unreadable", rollout=key, error=str(error))
            outcome = Outcome.FAILED
            self._retry_later(key, urgent=self._was_taking_back(key), asked=error.seconds)
        except TimeoutError:
            _log.warning("rollout unreadable", rollout=key, error="no answer in time")
            outcome = Outcome.FAILED
            self._retry_later(key, urgent=self._was_taking_back(key))
        except Exception:  # noqa: BLE001 - one rollout must not stop the others
            _log.exception("pass crashed", rollout=key)
            outcome = Outcome.CRASHED
            self._retry_later(key, urgent=self._was_taking_back(key))
        self._parts.telemetry.pass_done(outcome, clock.monotonic() - started)
        return outcome

    async def _pass(self, key: str) -> Outcome:
        attempts = self._attempts.setdefault(key, Attempts())
        for _ in range(_READINGS):
            rollout, is_fresh = await self._current(key, attempts)
            if rollout is None:
                return Outcome.GONE
            decision = self._due(await self._decide(rollout, attempts), attempts)
            if not is_fresh and self._needs_reading(rollout, decision):
                fresh = await self._read_anew(rollout, decision)
                if fresh is None:
                    return Outcome.GONE
                if not same_situation(rollout, fresh):
                    continue
                rollout = fresh
            result = await self._parts.executor.execute(rollout, decision)
            return self._conclude(key, attempts, decision, result)
        return self._conflicted(key, attempts, urgent=self._was_taking_back(key))

    async def _current(self, key: str, attempts: Attempts) -> tuple[Rollout | None, bool]:
        """Return the object, and whether it was read just now; a rollout at rest is not kept and always read."""
        entry = self._parts.registry.get(key)
        if entry is None:
            self.forget(key)
            return None, True
        if entry.rollout is not None and not attempts.refetch:
            return entry.rollout, False
        return await self._fetch(key, entry.identity.uid), True

    async def _fetch(self, key: str, uid: str) -> Rollout | None:
        async with asyncio.timeout(self._settings.read_timeout):
            rollout = await self._parts.store.get(key)
        if rollout is None:
            self._vanished(key, uid)
        else:
            self._take_in(rollout)
        return rollout

    async def _read_anew(self, rollout: Rollout, decision: Decision) -> Rollout | None:
        """Read the object before traffic is touched; taking traffic back does not fail because that fails."""
        try:
            return await self._fetch(rollout.identity.key, rollout.identity.uid)
        except Exception as error:
            if not takes_back(decision):
                raise
            key = rollout.identity.key
            _log.warning("rollout unreadable, taking traffic back all the same", rollout=key, error=str(error))
            return rollout

    @staticmethod
    def _needs_reading(rollout: Rollout, decision: Decision) -> bool:
        """Return whether actions would run without a guarded status write that proves the object unchanged."""
        guarded = decision.order is Order.STATUS_FIRST and decision.status != rollout.status
        return bool(decision.actions) and not guarded

    async def _decide(self, rollout: Rollout, attempts: Attempts) -> Decision:
        core, now = self._parts.core, self._parts.clock.now
        if rollout.status_problems:
            unread = core.decide_unread(rollout.spec, rollout.identity, rollout.status_problems, now())
            return _said_once(rollout, unread, attempts)
        if rollout.spec is None or not is_followed(rollout):
            return core.decide_invalid(rollout.status, rollout.identity, rollout.problems, now())
        wake = partial(self._parts.queue.add, rollout.identity.key)
        needs = core.needs(rollout.spec, rollout.status, rollout.identity, now())
        observation = await self._parts.observer.observe(rollout, rollout.spec, needs, attempts, wake)
        return core.decide(rollout.spec, rollout.status, observation, now())

    def _due(self, decision: Decision, attempts: Attempts) -> Decision:
        """Leave actions out that failed and have to wait; taking traffic back has its own, shorter distances."""
        now = self._parts.clock.monotonic()
        due = tuple(a for a in decision.actions if takes_back(decision) or attempts.due(a.key, now))
        attempts.held_back = len(due) < len(decision.actions)
        return replace(decision, actions=due) if attempts.held_back else decision

    def _conclude(self, key: str, attempts: Attempts, decision: Decision, result: Result) -> Outcome:
        """Take in what became of a decision and arrange for the next look."""
        if result.gone:
            self._vanished(key, result.rollout.identity.uid)
            return Outcome.GONE
        now = self._parts.clock.now()
        failed = result.errors
        if attempts.conflicts >= CONFLICTS_AT_ONCE:
            failed = result.conflicts | result.errors
        attempts.record(result.tried, failed, now)
        if result.status_written:
            attempts.stored()
        else:
            attempts.unstored = None if result.fenced else (result.rollout.status, decision.status)
        self._take_in(result.rollout)
        if result.tried:
            _log.debug("acted", rollout=key, phase=result.rollout.status.phase, tried=result.tried)
        if decision.events and _is_told(attempts, decision, result, STATUS_KEY in failed):
            _log_events(key, decision.events)
            self._parts.background(self._parts.executor.tell(result.rollout, decision.events))
        if result.fenced:
            attempts.refetch = True
            return Outcome.NOT_LEADING
        if not result.well:
            return self._failed(key, attempts, decision, result)
        attempts.succeeded(idle=not result.tried)
        self._schedule_next(key, attempts, decision)
        return Outcome.ACTED if result.tried else Outcome.UNCHANGED

    def _failed(self, key: str, attempts: Attempts, decision: Decision, result: Result) -> Outcome:
        attempts.refetch = True
        for what, message in result.errors.items():
            _log.warning("write failed", rollout=key, what=what, error=message)
        if result.errors and (takes_back(decision) or STATUS_KEY in result.errors):
            ends = decision.wake_at if STATUS_KEY in result.errors else None
            wait = ends - self._parts.clock.now() if ends is not None else None
            asked = max(result.later.values(), default=0.0)
            self._retry_later(key, urgent=takes_back(decision), wait=wait, asked=asked)
            return Outcome.FAILED
        if result.errors:
            attempts.put_off(key, result.errors, self._parts.clock.monotonic(), result.later)
            self._schedule_next(key, attempts, decision)
            return Outcome.FAILED
        _log.debug("somebody else wrote, looking again", rollout=key, conflicts=result.conflicts)
        return self._conflicted(key, attempts, urgent=takes_back(decision))

    def _conflicted(self, key: str, attempts: Attempts, *, urgent: bool) -> Outcome:
        """Look again at once, unless that did not help the last few times."""
        attempts.refetch = True
        if attempts.conflicts >= CONFLICTS_AT_ONCE:
            self._retry_later(key, urgent=urgent)
            return Outcome.FAILED
        attempts.conflicts += 1
        self._parts.queue.add(key, Priority.URGENT)
        return Outcome.CONFLICT

    def _schedule_next(self, key: str, attempts: Attempts, decision: Decision) -> None:
        if decision.again:
            self._look_again(key, attempts, urgent=takes_back(decision))
            return
        attempts.again = 0
        wall = self._parts.clock.now().timestamp()
        entry = self._parts.registry.get(key)
        if entry is None:
            self.forget(key)
            return
        wake = next_turn(wall, self._settings.resync, entry.identity.uid)
        if decision.wake_at is not None:
            wake = min(wake, max(decision.wake_at.timestamp(), wall + self._settings.wake_floor))
        now = self._parts.clock.monotonic()
        at, due = now + wake - wall, attempts.next_due(now)
        self._parts.scheduler.set(key, at if due is None else min(at, due))
        if entry.rollout is None and not attempts.failures:
            self.forget(key)

    def _look_again(self, key: str, attempts: Attempts, *, urgent: bool) -> None:
        attempts.again += 1
        if attempts.again <= AGAIN_AT_ONCE:
            self._parts.queue.add(key, Priority.URGENT if urgent else Priority.ROUTINE)
            return
        _log.error("rollout asks for one pass after another, slowing down", rollout=key, passes=attempts.again)
        self._parts.scheduler.set(key, self._parts.clock.monotonic() + AGAIN_LATER)

    def _retry_later(self, key: str, *, urgent: bool, wait: timedelta | None = None, asked: float = 0.0) -> None:
        """Look again after a pause that grows; where only the status was refused, when a wait ends at the latest."""
        attempts = self._attempts.setdefault(key, Attempts())
        attempts.failed += 1
        attempts.refetch = True
        delay = retry_delay(key, attempts.failed, urgent=urgent, asked=asked)
        if wait is not None:
            delay = min(delay, max(wait.total_seconds(), SHORTEST_WAIT))
        self._parts.scheduler.set(key, self._parts.clock.monotonic() + delay)

    def _was_taking_back(self, key: str) -> bool:
        entry = self._parts.registry.get(key)
        return entry is not None and entry.phase is Phase.ROLLING_BACK

    def _take_in(self, rollout: Rollout) -> None:
        """Keep what was read or written; this pass deals with it, but rivals on the host may be concerned."""
        for key, priority in self._parts.registry.apply(rollout).items():
            if key != rollout.identity.key:
                self._parts.queue.add(key, priority)

    def _vanished(self, key: str, uid: str) -> None:
        entry, concerned = self._parts.registry.forget(key, uid)
        if entry is not None:
            self.forget(key)
            self._parts.scheduler.cancel(key)
        for other, priority in concerned.items():
            self._parts.queue.add(other, priority)
