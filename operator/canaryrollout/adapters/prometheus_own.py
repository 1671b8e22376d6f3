"""Readings of the user's own queries: one number each, at the ends of blocks.

A query of the user's own may be slow, wrong or forbidden; none of that concerns the counts of requests. So these
queries are asked on their own, never more of them at once than half of what the provider may be asked, and what goes
wrong is said in the reading. They are asked at the same times whoever asks, so that counting failures is a function of
data: after a restart the times that have passed are asked for again, by one range query for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from canaryrollout.adapters.prometheus_client import Answer, QueryFailed
from canaryrollout.adapters.prometheus_counts import milliseconds_of
from canaryrollout.adapters.prometheus_provider import Provider
from canaryrollout.adapters.promql import QueryRefused, own_query, variables_of
from canaryrollout.adapters.promql_values import value_of
from canaryrollout.adapters.turns import Turn
from canaryrollout.domain.evidence import EvidenceRequest, MetricReading, MetricValue, OwnQuery

MAX_READINGS: Final = 200
"""How many readings of a query are kept: the newest."""
MAX_PROVISIONAL: Final = 20
"""How many readings that came with a warning, or did not come, are asked for again."""
UNREADABLE: Final = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What reading an answer of the wrong shape raises."""


class Asks(Protocol):
    """A Prometheus server that can be asked; `PrometheusClient` is one."""

    @property
    def provider(self) -> Provider:
        """Return what the administrator says about it."""
        ...

    async def at(self, query: str, time: datetime) -> Answer:
        """Evaluate a query at one time; raises `QueryFailed`."""
        ...

    async def over(self, query: str, first: datetime, last: datetime, step: timedelta) -> Answer:
        """Evaluate a query at ``first`` and every ``step`` until ``last``; raises `QueryFailed`."""
        ...

    async def close(self) -> None:
        """Release threads and connections."""
        ...


class OwnReadings:
    """The readings of one request's own queries."""

    def __init__(self, request: EvidenceRequest) -> None:
        self.warnings: tuple[str, ...] = ()
        """Warnings of the provider about readings in here."""
        self.asking = False
        """Whether they are being asked for."""
        self._request = request
        self._variables = variables_of(request)
        self._settled: dict[str, tuple[MetricReading, ...]] = {}
        self._provisional: dict[str, tuple[MetricReading, ...]] = {}
        self._asked_until: datetime | None = None

    def metrics(self) -> Mapping[str, tuple[MetricReading, ...]]:
        """Return the readings by name, oldest first."""
        found = {
            query.name: (self._settled.get(query.name, ()) + self._provisional.get(query.name, ()))[-MAX_READINGS:]
            for query in self._request.queries
        }
        return {name: readings for name, readings in found.items() if readings}

    def due(self, now: datetime, lag: timedelta) -> bool:
        """Return whether there is a time to ask for that was not asked for yet."""
        if self.asking or not self._request.queries:
            return False
        return bool(self._request.ends(self._asked_until or self._request.start, now - lag))

    def forget_after(self, now: datetime) -> None:
        """Drop readings of times that lie in the future: the clock has been set back since."""
        if self.asking or self._asked_until is None or self._asked_until <= now:
            return
        self._asked_until = None
        for kept in (self._settled, self._provisional):
            for name, readings in kept.items():
                kept[name] = tuple(reading for reading in readings if reading.at <= now)

    async def ask(self, server: Asks, now: datetime, places: Turn) -> None:
        """Ask for all readings that are due.

        Args:
            server: The provider.
            now: The present time.
            places: How many of these queries may be under way at once.
        """
        self.asking = True
        try:
            ends = self._request.ends(self._request.start, now - server.provider.lag)[-MAX_READINGS:]
            self._asked_until = ends[-1] if ends else self._asked_until
            found = await asyncio.gather(*(self._one(query, server, ends, places) for query in self._request.queries))
            self.warnings = tuple(dict.fromkeys(warning for warnings in found for warning in warnings))
        finally:
            self.asking = False

    async def _one(self, query: OwnQuery, server: Asks, ends: Sequence[datetime], places: Turn) -> tuple[str, ...]:
        """Bring one query's readings up to date and return the warnings about them."""
        settled = self._settled.get(query.name, ())
        wanted = [end for end in ends if not settled or end > settled[-1].at]
        if not wanted:
            return ()
        where, step = f"analysis.metrics[{query.name}]", self._request.interval
        questions = [_Question(query.text, self._variables, f"{where}.query", step)]
        if query.baseline:
            questions.append(_Question(query.baseline, self._variables, f"{where}.baselineQuery", step))
        answers = await asyncio.gather(*(question.ask(server, wanted, places) for question in questions))
        values, baselines = answers[0][0], answers[1][0] if query.baseline else None
        readings = tuple(
            MetricReading(at, value, baselines[i] if baselines is not None else None)
            for i, (at, value) in enumerate(zip(wanted, values, strict=True))
        )
        warnings = tuple(f"{query.name}: {text}" for _, found in answers for text in found)
        final = 0 if warnings else _answered(readings)
        final = max(final, len(readings) - MAX_PROVISIONAL)
        self._settled[query.name] = (settled + readings[:final])[-MAX_READINGS:]
        self._provisional[query.name] = readings[final:]
        return warnings


def _answered(readings: Sequence[MetricReading]) -> int:
    """Return how many readings, from the oldest on, the provider has answered."""
    for i, reading in enumerate(readings):
        if any(value is not None and value.reason == "ProviderError" for value in (reading.value, reading.baseline)):
            return i
    return len(readings)


@dataclass(frozen=True, slots=True)
class _Question:
    """A query of the user's own, with what fills its variables in and the field that it is from."""

    text: str
    variables: Mapping[str, str]
    field: str
    step: timedelta

    async def ask(
        self, server: Asks, ends: Sequence[datetime], places: Turn
    ) -> tuple[list[MetricValue], tuple[str, ...]]:
        """Return the answer at each of ``ends``, and warnings; what goes wrong is said in the values."""
        try:
            query = filled_in(self.text, self.variables, server.provider, self.field)
            async with places:
                return await self._send(query, server, ends)
        except QueryRefused as refused:
            return _everywhere(ends, str(refused), "BadQuery"), ()
        except QueryFailed as failure:
            if failure.outcome != "BadQuery":
                return _everywhere(ends, str(failure), "ProviderError"), ()
            if len(ends) == 1:
                return _everywhere(ends, str(failure), "BadQuery"), ()
        except UNREADABLE as error:
            return _everywhere(ends, f"cannot read the answer: {error!r}", "ProviderError"), ()
        return await self._ask_in_parts(server, ends, places)

    async def _send(
        self, query: str, server: Asks, ends: Sequence[datetime]
    ) -> tuple[list[MetricValue], tuple[str, ...]]:
        if len(ends) == 1:
            answer = await server.at(query, ends[0])
            return [value_of(answer.result_type, answer.result, ends[0])], answer.warnings
        answer = await server.over(query, ends[0], ends[-1], self.step)
        return values_over(answer.result_type, answer.result, ends), answer.warnings

    async def _ask_in_parts(
        self, server: Asks, ends: Sequence[datetime], places: Turn
    ) -> tuple[list[MetricValue], tuple[str, ...]]:
        """Ask at fewer times at once: a range may be too much for a server although each time is not."""
        newest, warnings = await self.ask(server, ends[-1:], places)
        if newest[0].reason in {"BadQuery", "ProviderError"}:
            return [replace(newest[0], at=end) for end in ends], warnings
        values: list[MetricValue] = []
        half = len(ends) // 2
        for part in (ends[:half], ends[half:-1]):
            if part:
                found, more = await self.ask(server, part, places)
                values, warnings = values + found, warnings + more
        return values + newest, tuple(dict.fromkeys(warnings))


def _everywhere(ends: Sequence[datetime], problem: str, reason: str) -> list[MetricValue]:
    return [MetricValue(None, at, problem, reason) for at in ends]


def filled_in(text: str, variables: Mapping[str, str], provider: Provider, field: str) -> str:
    """Return a query of the user's own as it may be sent to a provider.

    Args:
        text: The query as the user wrote it.
        variables: Values of its variables.
        provider: What the administrator allows.
        field: The field that the query is from.

    Raises:
        QueryRefused: If it may not be sent; the message names the field.
    """
    return own_query(text, variables, provider.custom_queries, provider.namespace_label, field)


def values_over(result_type: str, result: Any, ends: Sequence[datetime]) -> list[MetricValue]:
    """Read the one number that a query of the user's own must give, at each of several times.

    Args:
        result_type: Type of the result of a range query, as Prometheus names it.
        result: The result.
        ends: The times.

    Returns:
        A value for each time, or why there is none.
    """
    if result_type != "matrix" or not isinstance(result, list):
        return [value_of(result_type, result, at) for at in ends]
    at_time: dict[int, list[dict[str, Any]]] = {}
    for series in result:
        for time, value in series.get("values", ()):
            at_time.setdefault(round(float(time) * 1000), []).append({"value": [time, value]})
        for time, value in series.get("histograms", ()):
            at_time.setdefault(round(float(time) * 1000), []).append({"histogram": [time, value]})
    return [value_of("vector", at_time.get(milliseconds_of(at), []), at) for at in ends]
