"""A queue of keys in which a key waits at most once and is never worked on twice at the same time.

Watches, timers and answers from Prometheus all say the same thing: "look at this rollout again". Ten such hints are one
pass, a hint that comes while the rollout is being worked on means one more pass afterwards, and a rollback never waits
behind a thousand periodic looks. No namespace gets all workers: passes of a tenant whose webhook hangs take seconds,
and there may be hundreds of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
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


_Place = tuple[int, int, str]
"""Priority, number and key."""


class WorkQueue:
    """Keys that want a pass, deduplicated, urgent ones first, otherwise first come first served.

    ``share`` is how many keys of one namespace may be worked on at once; what comes before the first ``/`` of a key is
    its namespace.
    """

    def __init__(self, clock: Clock, share: int) -> None:
        self._clock = clock
        self._share = share
        self._numbers = count()
        self._heap: asyncio.PriorityQueue[_Place] = asyncio.PriorityQueue()
        self._waiting: dict[str, _Ticket] = {}
        self._running: set[str] = set()
        self._busy: Counter[str] = Counter()
        self._held_back: dict[str, list[_Place]] = {}
        self._taken_at = 0.0
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
            place = await self._heap.get()
            _, number, key = place
            if key == _CLOSING:
                self._heap.put_nowait((-1, number, _CLOSING))
                raise Closed
            ticket = self._waiting.get(key)
            if ticket is None or ticket.number != number:
                self._let_in(_namespace(key))
                continue  # overtaken by a more urgent request, or discarded
            namespace = _namespace(key)
            if self._busy[namespace] >= self._share:
                heappush(self._held_back.setdefault(namespace, []), place)
                continue
            del self._waiting[key]
            self._running.add(key)
            self._busy[namespace] += 1
            self._taken_at = self._clock.monotonic()
            return key, self._taken_at - ticket.since

    def done(self, key: str) -> None:
        """Give a key back; when something asked for it meanwhile, it is queued again."""
        namespace = _namespace(key)
        self._running.discard(key)
        self._busy[namespace] -= 1
        if not self._busy[namespace]:
            del self._busy[namespace]
        self._let_in(namespace)
        priority = self._dirty.pop(key, None)
        if priority is not None:
            self.add(key, priority)

    def _let_in(self, namespace: str) -> None:
        """Let the first that was held back for the sake of other namespaces try again."""
        held_back = self._held_back.get(namespace, [])
        if held_back:
            self._heap.put_nowait(heappop(held_back))
        if not held_back:
            self._held_back.pop(namespace, None)

    def discard(self, key: str) -> None:
        """Drop what waits for ``key``; a pass under way is not disturbed."""
        self._waiting.pop(key, None)
        self._dirty.pop(key, None)

    def stalled(self) -> float:
        """Return for how many seconds no key was taken although one waits; 0 when none does."""
        if not self._waiting:
            return 0.0
        waiting_since = min(ticket.since for ticket in self._waiting.values())
        return self._clock.monotonic() - max(waiting_since, self._taken_at)

    def close(self) -> None:
        """Give out no more keys; every present and future `get` raises `Closed`."""
        if not self._closed:
            self._closed = True
            self._heap.put_nowait((-1, next(self._numbers), _CLOSING))


def _namespace(key: str) -> str:
    return key.partition("/")[0]
