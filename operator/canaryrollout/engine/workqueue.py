"""A queue of keys in which a key waits at most once and is never worked on twice at the same time.

Watches, timers and answers from Prometheus all say the same thing: "look at this rollout again". Ten such hints are one
pass, a hint that comes while the rollout is being worked on means one more pass afterwards, and a rollback never waits
behind a thousand periodic looks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from itertools import count

from canaryrollout.engine.ports import Clock


class Priority(IntEnum):
    """Which keys go first; the smaller the earlier."""

    URGENT = 0
    ROUTINE = 1


class Closed(RuntimeError):  # noqa: N818 - a state of affairs, not a mistake
    """The queue gives out no more keys."""


@dataclass(frozen=True, slots=True)
class _Ticket:
    priority: Priority
    number: int
    since: float


_CLOSING = ""
"""Stands for "closed" in the heap; no rollout has an empty key."""


class WorkQueue:
    """Keys that want a pass, deduplicated, urgent ones first, otherwise first come first served."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = count()
        self._heap: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
        self._waiting: dict[str, _Ticket] = {}
        self._running: set[str] = set()
        self._dirty: dict[str, Priority] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Return how many keys are being worked on."""
        return len(self._running)

    def add(self, key: str, priority: Priority = Priority.ROUTINE) -> None:
        """Ask for a pass of ``key``; a key that is being worked on gets one more pass afterwards."""
        if self._closed:
            return
        if key in self._running:
            self._dirty[key] = min(priority, self._dirty.get(key, priority))
            return
        ticket = self._waiting.get(key)
        if ticket is not None and ticket.priority <= priority:
            return
        since = ticket.since if ticket is not None else self._clock.monotonic()
        ticket = _Ticket(priority, next(self._numbers), since)
        self._waiting[key] = ticket
        self._heap.put_nowait((ticket.priority, ticket.number, key))

    async def get(self) -> tuple[str, float]:
        """Take the next key; give it back with `done`.

        Returns:
            The key, and the seconds it has waited.

        Raises:
            Closed: If the queue was closed.
        """
        while True:
            _, number, key = await self._heap.get()
            if key == _CLOSING:
                self._heap.put_nowait((-1, number, _CLOSING))
                raise Closed
            ticket = self._waiting.get(key)
            if ticket is None or ticket.number != number:
                continue  # overtaken by a more urgent request, or discarded
            del self._waiting[key]
            self._running.add(key)
            return key, self._clock.monotonic() - ticket.since

    def done(self, key: str) -> None:
        """Give a key back; when something asked for it meanwhile, it is queued again."""
        self._running.discard(key)
        priority = self._dirty.pop(key, None)
        if priority is not None:
            self.add(key, priority)

    def discard(self, key: str) -> None:
        """Drop what waits for ``key``; a pass under way is not disturbed."""
        self._waiting.pop(key, None)
        self._dirty.pop(key, None)

    def oldest_wait(self) -> float:
        """Return for how many seconds the longest waiting key has waited; 0 when none does."""
        if not self._waiting:
            return 0.0
        return self._clock.monotonic() - min(ticket.since for ticket in self._waiting.values())

    def close(self) -> None:
        """Give out no more keys; every present and future `get` raises `Closed`."""
        if not self._closed:
            self._closed = True
            self._heap.put_nowait((-1, next(self._numbers), _CLOSING))
