"""One heap of due times for all rollouts.

A timer or a task per rollout costs kilobytes and wakes in herds; an entry in a heap costs a few hundred bytes, and only
one timer of the event loop is ever armed. Each key has at most one due time; what was replaced stays in the heap until
it surfaces, and is then ignored.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import math
from collections.abc import Callable
from itertools import count

from canaryrollout.engine.ports import Clock

SLACK = 0.001
"""Seconds by which an entry may fire early, so that one wake-up of the event loop serves neighbours."""


def fraction(*parts: object) -> float:
    """Return a number in [0, 1) that looks random and is the same for the same arguments, in every process."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def next_turn(now: float, period: float, identity: str) -> float:
    """Return the next time after ``now`` at which something with this identity has its turn.

    Turns come every ``period`` seconds, at a phase that depends on the identity alone: many rollouts spread evenly over
    the period, and a restart does not bring them together.
    """
    phase = fraction(identity) * period
    return phase + (math.floor((now - phase) / period) + 1) * period


class Scheduler:
    """Calls ``fire(key, lag)`` when a key is due; ``lag`` is how many seconds late that is."""

    def __init__(self, clock: Clock, fire: Callable[[str, float], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._numbers = count()
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, tuple[float, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf

    def __len__(self) -> int:
        return len(self._due)

    def due(self, key: str) -> float | None:
        """Return when ``key`` is due on the monotonic clock, or ``None``."""
        entry = self._due.get(key)
        return entry[0] if entry else None

    def no_later_than(self, key: str, due: float) -> None:
        """Make ``key`` due at ``due`` (monotonic seconds) unless it is due earlier already."""
        present = self.due(key)
        if present is None or due < present:
            self.set(key, due)

    def set(self, key: str, due: float) -> None:
        """Make ``key`` due at ``due`` (monotonic seconds), whatever it was before."""
        number = next(self._numbers)
        self._due[key] = (due, number)
        heapq.heappush(self._heap, (due, number, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(when, n, k) for k, (when, n) in self._due.items()]
            heapq.heapify(self._heap)
        self._arm()

    def cancel(self, key: str) -> None:
        """Forget when ``key`` is due."""
        self._due.pop(key, None)

    def clear(self) -> None:
        """Forget everything and disarm the timer."""
        self._heap.clear()
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = None, math.inf

    def _drop_replaced(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)

    def _arm(self) -> None:
        self._drop_replaced()
        due = self._heap[0][0] if self._heap else math.inf
        if due == self._timer_due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = None, due
        if due < math.inf:
            delay = max(0.0, due - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_due = None, math.inf
        now = self._clock.monotonic()
        self._drop_replaced()
        while self._heap and self._heap[0][0] <= now + SLACK:
            due, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self._fire(key, max(0.0, now - due))
            self._drop_replaced()
        self._arm()
