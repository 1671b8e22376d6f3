"""What has to be known of a provider before a rollout moves traffic.

The answer is kept once there is nothing to object to; as long as there is, it is asked for again every few seconds, so
that whoever mends a query, a threshold or a label sees it. All queries are instant ones about one host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from canaryrollout.adapters.prometheus_batch import threshold_problem
from canaryrollout.adapters.prometheus_client import QueryFailed
from canaryrollout.adapters.prometheus_counts import BadAnswer, rows_of
from canaryrollout.adapters.prometheus_own import UNREADABLE, Asks, filled_in
from canaryrollout.adapters.prometheus_queries import UNKNOWN_VERSIONS, versions_query
from canaryrollout.adapters.promql import QueryRefused
from canaryrollout.adapters.promql_values import value_of
from canaryrollout.adapters.turns import Turn
from canaryrollout.domain.evidence import Preflight, PreflightRequest

AGAIN: Final = timedelta(seconds=5)
"""How long after an answer with something to object to it is asked for again."""


@dataclass(slots=True)
class Check:
    """One request for a preflight.

    Attributes:
        request: The request.
        wake: Whom to tell, as of the last asking.
        asked_at: When it was asked for last.
        answer: The newest answer.
        not_before: When to ask again; ``None`` at once.
        asking: The asking under way.
    """

    request: PreflightRequest
    wake: Callable[[], None]
    asked_at: datetime
    answer: Preflight | None = None
    not_before: datetime | None = None
    asking: asyncio.Task[None] | None = None

    def due(self, now: datetime) -> bool:
        """Return whether the provider has to be asked."""
        # A longer pause is left over from before the clock went back.
        pausing = self.not_before is not None and now < self.not_before <= now + 2 * AGAIN
        if self.asking is not None or pausing:
            return False
        return self.answer is None or not satisfactory(self.answer)

    def take(self, answer: Preflight, now: datetime) -> bool:
        """Keep an answer; return whether it says something else than the one before."""
        before = self.answer
        if answer.error:
            since = before.error_since if before is not None and before.error else None
            answer = replace(answer, error_since=min(since or now, answer.error_since or now))
        self.answer, self.not_before = answer, now + AGAIN
        return answer != before


def satisfactory(answer: Preflight) -> bool:
    """Return whether an answer says nothing that might still change for the better."""
    known = answer.request.stable in answer.versions
    return known and not (answer.error or answer.refused or answer.edge_problem or answer.warnings)


async def look(server: Asks, request: PreflightRequest, at: datetime, places: Turn) -> Preflight:
    """Ask a provider all that has to be known.

    Args:
        server: The provider.
        request: What has to be known.
        at: The time to ask for.
        places: How many of the users' own queries may be under way at once.

    Returns:
        The answer; what goes wrong with the users' own queries is said in it.

    Raises:
        QueryFailed: If a query of ours was not answered.
    """
    try:
        found = await server.at(versions_query(request.host, server.provider.labels), at)
        label = server.provider.labels.version
        rows = [row for rows in rows_of(found.result_type, found.result).values() for row in rows]
        versions = {row.labels.get(label, "") for row in rows} - set(UNKNOWN_VERSIONS)
        problem = ""
        if request.slow_above is not None and rows:
            problem = await threshold_problem(server, request.host, request.slow_above, at)
    except BadAnswer as bad:
        raise QueryFailed("BadAnswer", str(bad)) from bad
    refused, warnings, error = await _own(server, request, at, places)
    return Preflight(
        request,
        error=error,
        refused=refused,
        host_series=bool(rows),
        versions=tuple(sorted(versions)),
        edge_problem=problem,
        warnings=tuple(dict.fromkeys((*found.warnings, *warnings))),
    )


def stand_ins(request: PreflightRequest) -> Mapping[str, str]:
    """Return values for the variables of a query before there is a canary: stable stands in for it.

    Args:
        request: The question.
    """
    return {
        "namespace": request.namespace,
        "host": request.host,
        "stable": request.stable,
        "canary": request.stable,
        "interval": "1m",
        "weight": "0",
    }


async def _own(server: Asks, request: PreflightRequest, at: datetime, places: Turn) -> tuple[str, tuple[str, ...], str]:
    """Try the user's own queries: return what is wrong with one of them, warnings, and why one was not answered."""
    warnings: list[str] = []
    for query in request.queries:
        for field, text in (("query", query.text), ("baselineQuery", query.baseline)):
            if not text:
                continue
            where = f"analysis.metrics[{query.name}].{field}"
            try:
                sent = filled_in(text, stand_ins(request), server.provider, where)
                async with places:
                    answer = await server.at(sent, at)
            except QueryRefused as refused:
                return str(refused), (), ""
            except QueryFailed as failure:
                wrong = f"{where}: {failure}"
                return (wrong, (), "") if failure.outcome == "BadQuery" else ("", tuple(warnings), wrong)
            try:
                value = value_of(answer.result_type, answer.result, at)
            except UNREADABLE as error:
                return "", (), f"{where}: cannot read the answer: {error!r}"
            if value.reason == "BadQuery":
                return f"{where}: {value.problem}", (), ""
            warnings += [f"{query.name}: {warning}" for warning in answer.warnings]
    return "", tuple(warnings), ""
