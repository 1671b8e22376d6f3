"""Evidence of the past: a real provider, asked as if it were then.

What is asked for goes ahead of the imagined time by some blocks, so that a stretch comes with one query and not with
one for each block; what is shown is what could have been known at the time, and nothing later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

from canaryrollout.cli.imagined import Readings
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, Preflight, PreflightRequest
from canaryrollout.engine.ports import MetricsSource

AHEAD: Final = 60
"""How many blocks are asked for ahead of the imagined time."""
PATIENCE: Final = 60.0
"""How many seconds a provider has for an answer, its own timeouts and retries included."""

_T = TypeVar("_T")


class NoAnswer(RuntimeError):  # noqa: N818 - reads as what happened
    """The provider could not be asked; the message says why."""


class PastProvider:
    """Answers what a rollout of the past needs to know.

    Args:
        source: Asks the provider.
        lag: How far behind the present its data was.
        until: End of the window; nothing after it is asked for.
    """

    def __init__(self, source: MetricsSource, lag: timedelta, until: datetime) -> None:
        self._source = source
        self._lag = lag
        self._until = until
        self._known: dict[EvidenceRequest, Evidence] = {}
        self._asked_until: dict[EvidenceRequest, datetime] = {}

    async def answer(self, needs: Needs, now: datetime) -> Readings:
        """Say what was known at a time.

        Args:
            needs: What is asked.
            now: The time.

        Raises:
            NoAnswer: If the provider does not answer.
        """
        return Readings(
            evidence=await self._evidence(needs.evidence, now) if needs.evidence else None,
            opening=await self._evidence(needs.opening, now) if needs.opening else None,
            baseline=await self._evidence(needs.baseline, now) if needs.baseline else None,
            preflight=await self._preflight(needs.preflight, now) if needs.preflight else None,
        )

    async def _evidence(self, request: EvidenceRequest, now: datetime) -> Evidence | None:
        seen = now - self._lag
        ends = request.ends(request.start, seen)
        if not ends:
            return None
        if ends[-1] > self._asked_until.get(request, request.start):
            ahead = min(max(now, self._until), now + AHEAD * request.interval)
            self._known[request] = await self._until_answered(lambda wake: self._counted(request, ahead, wake))
            self._asked_until[request] = request.ends(request.start, ahead - self._lag)[-1]
        known = self._known[request]
        return replace(
            known,
            blocks=tuple(block for block in known.blocks if block.end <= seen),
            metrics={
                name: tuple(reading for reading in readings if reading.at <= seen)
                for name, readings in known.metrics.items()
            },
        )

    def _counted(self, request: EvidenceRequest, ahead: datetime, wake: Callable[[], None]) -> Evidence | None:
        """Return the evidence once everything up to a time is there."""
        evidence = self._source.latest(request, ahead, wake)
        if evidence is None:
            return None
        if evidence.error:
            raise NoAnswer(evidence.error)
        last = request.ends(request.start, ahead - self._lag)[-1]
        missing = [q for q in request.queries if not (read := evidence.metrics.get(q.name)) or read[-1].at < last]
        return None if evidence.until < last or missing else evidence

    async def _preflight(self, request: PreflightRequest, now: datetime) -> Preflight:
        found = await self._until_answered(lambda wake: self._source.preflight(request, now, wake))
        if found.error:
            raise NoAnswer(found.error)
        return found

    async def _until_answered(self, ask: Callable[[Callable[[], None]], _T | None]) -> _T:
        woken = asyncio.Event()
        try:
            async with asyncio.timeout(PATIENCE):
                while (found := ask(woken.set)) is None:
                    await woken.wait()
                    woken.clear()
                return found
        except TimeoutError:
            raise NoAnswer(f"no answer within {PATIENCE:g} s") from None
