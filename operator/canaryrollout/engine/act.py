"""Carries a decision out: its actions at once, its status before or after them, and says what has happened.

Whatever goes wrong is collected, not raised, so that one VirtualService that cannot be written keeps no other from
being rolled back, and so that the next decision sees what failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from canaryrollout.domain.decision import Action, Decision, Event, Order, SetFinalizer
from canaryrollout.engine.ports import Conflict, Gone, Later, NotLeading, Permit, Rollout, RolloutStore, TrafficRouter

STATUS_KEY = "Status"
"""What failures of the status write are counted under, beside `Action.key` of the actions."""


@dataclass(slots=True)
class Result:
    """What became of a decision.

    Attributes:
        rollout: The object as last read or written.
        tried: Keys of what was attempted.
        conflicts: What others changed in between, by key.
        errors: What failed otherwise, by key.
        later: For how many seconds the API server asks to be left alone, by key of what failed for that.
        status_written: Whether the status is now the decided one.
        gone: Whether the object turned out not to exist any more.
        fenced: Whether this replica lost the right to write on the way.
    """

    rollout: Rollout
    tried: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)
    status_written: bool = False
    gone: bool = False
    fenced: bool = False

    @property
    def well(self) -> bool:
        """Return whether everything succeeded."""
        return not (self.conflicts or self.errors or self.gone or self.fenced)

    def take(self, key: str, error: BaseException) -> None:
        """File an error where it belongs."""
        match error:
            case NotLeading():
                self.fenced = True
            case Conflict():
                self.conflicts[key] = str(error)
            case TimeoutError():
                self.errors[key] = str(error) or "timed out"
            case _:
                self.errors[key] = f"{type(error).__name__}: {error}"
                if isinstance(error, Later):
                    self.later[key] = error.seconds


class Executor:
    """Carries decisions out by way of the store and the router; ``write_timeout`` (seconds) bounds each write."""

    def __init__(self, store: RolloutStore, router: TrafficRouter, permit: Permit, write_timeout: float) -> None:
        self._store = store
        self._router = router
        self._permit = permit
        self._write_timeout = write_timeout

    async def execute(self, rollout: Rollout, decision: Decision) -> Result:
        """Carry ``decision`` out for ``rollout`` and tell what became of it; raises nothing but cancellation.

        With `Order.STATUS_FIRST` no action is taken unless the status was written. With `Order.MESH_FIRST` the status
        is written whatever became of the actions.
        """
        result = Result(rollout)
        if decision.order is Order.STATUS_FIRST:
            await self._write_status(decision, result)
            if result.well:
                await self._act(decision.actions, result)
        else:
            await self._act(decision.actions, result)
            if not result.fenced:
                await self._write_status(decision, result)
        return result

    async def tell(self, rollout: Rollout, events: Iterable[Event]) -> None:
        """Say what has happened to ``rollout``, one after the other; never raises, a lost Event is logged."""
        for event in events:
            await self._store.emit(rollout, event, self._permit)

    async def _write_status(self, decision: Decision, result: Result) -> None:
        if decision.status == result.rollout.status:
            result.status_written = True
            return
        result.tried.append(STATUS_KEY)
        try:
            async with asyncio.timeout(self._write_timeout):
                result.rollout = await self._store.write_status(result.rollout, decision.status, self._permit)
            result.status_written = True
        except Gone:
            result.gone = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted and shown to the next decision
            result.take(STATUS_KEY, error)

    async def _act(self, actions: tuple[Action, ...], result: Result) -> None:
        await asyncio.gather(*(self._act_once(action, result) for action in actions))

    async def _act_once(self, action: Action, result: Result) -> None:
        result.tried.append(action.key)
        try:
            async with asyncio.timeout(self._write_timeout):
                if isinstance(action, SetFinalizer):
                    result.rollout = await self._store.set_finalizer(result.rollout, action.present, self._permit)
                else:
                    await self._router.apply(result.rollout.identity.namespace, action, self._permit)
        except Gone as error:
            if isinstance(action, SetFinalizer):
                result.gone = True
            else:
                result.conflicts[action.key] = str(error)  # it existed when it was observed: observe again
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted and shown to the next decision
            result.take(action.key, error)
