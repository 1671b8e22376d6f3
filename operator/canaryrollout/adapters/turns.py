"""Places for work that many namespaces share, given to one namespace after the other.

Users' own queries are as slow as their authors make them, and only a few are asked at once. First come, first served
would let a tenant with a hundred slow queries keep everybody else's waiting for all of them; here who has one query
waits for one of each other namespace at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import AbstractAsyncContextManager
from types import TracebackType

Turn = AbstractAsyncContextManager[None, None]
"""Holds a place inside ``async with``; the same may be used any number of times, also at once."""


class Turns:
    """So many places, and those who wait for one: namespaces in turn, within a namespace first come first served."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def of(self, namespace: str) -> Turn:
        """Return what waits for a place, and holds it, on behalf of a namespace."""
        return _Turn(self, namespace)

    async def take(self, namespace: str) -> None:
        """Wait for a place; give it back with `give_back`."""
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(namespace, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Give a place to the next namespace in turn, or keep it for whoever comes."""
        while self._waiting:
            namespace, places = self._waiting.popitem(last=False)
            place = places.popleft()
            if places:
                self._waiting[namespace] = places
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class _Turn(AbstractAsyncContextManager[None, None]):
    """A place of one namespace."""

    def __init__(self, turns: Turns, namespace: str) -> None:
        self._turns = turns
        self._namespace = namespace

    async def __aenter__(self) -> None:
        await self._turns.take(self._namespace)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.give_back()
