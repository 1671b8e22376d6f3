"""PromQL that counts requests exactly: built here as text, sent elsewhere.

``increase()`` is of no use for a canary: it ignores the first value of a new series, so that a fresh canary whose first
requests all fail in one scrape interval shows no error at all, and it extrapolates, so that counts are not integers.
The queries here take differences of each series between the two ends of a block instead:

- a series known at both ends counts with its difference;
- a series that is *new* in the block counts in full (the reader drops these where the service had no series at all at
  the block's start: then Prometheus itself has just begun to scrape, and nothing is known about the time before);
- a series that was *reset* (its end is below its start) counts with what it reached before the reset and what it has
  since: ``max(peak - start, 0) + end``. What the last scrape before the reset missed is lost, as with ``increase()``.

The value at a block's start is the last one of the 15 minutes before, staleness markers ignored, so that a failed
scrape neither loses requests nor makes a known series look new; blocks that follow each other share that value, so that
their counts add up to the difference of the outer ends. The value at a block's end has to be fresh, because a provider
that no longer scrapes must look like missing data and not like a canary without errors.

Each query returns all of this at once, told apart by the label ``kind``: ``known``, ``new``, ``reset`` and ``start``
(how many series the service had at the block's start). It asks about one host or about many, whose rows are told apart
by the service label: rollouts whose blocks begin and end together are counted by the same few queries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from canaryrollout.domain.evidence import EvidenceRequest

REQUESTS: Final = "istio_requests_total"
DURATION: Final = "istio_request_duration_milliseconds"
UNKNOWN_VERSIONS: Final = ("unknown", "-", "")
"""How proxies spell the version of a request that reached no workload."""

KIND: Final = "kind"
HISTORY: Final = timedelta(minutes=15)
"""How far back the last value before a block's start is looked for."""
FRESH_SCRAPES: Final = 3
"""How many scrapes old the value at a block's end may be."""


@dataclass(frozen=True, slots=True)
class Labels:
    """How a provider's Istio metrics are labeled.

    Attributes:
        reporter: Value of ``reporter`` to count by: ``source`` also sees requests that reached no workload.
        version: Label that holds the version of the workload that answered.
        service: Label that holds the fully qualified host.
    """

    reporter: str = "source"
    version: str = "destination_version"
    service: str = "destination_service"


def quoted(value: str) -> str:
    """Return a PromQL string literal that means ``value``."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def any_of(values: tuple[str, ...]) -> str:
    """Return a PromQL string literal: a regular expression that matches exactly one of ``values``."""
    return quoted("|".join(re.escape(value).replace("\\-", "-") for value in values))


def milliseconds(value: timedelta) -> str:
    """Spell a duration for PromQL without rounding to seconds, and never as nothing."""
    return f"{max(round(value / timedelta(milliseconds=1)), 1)}ms"


def edges_like(threshold: timedelta) -> tuple[str, ...]:
    """Return the spellings of ``le`` for a threshold: Prometheus 2 writes ``500``, Prometheus 3 ``500.0``."""
    number = threshold / timedelta(milliseconds=1)
    spellings = (f"{number:.15g}", f"{number:.15g}.0", f"{number:g}")
    return tuple(dict.fromkeys(text for text in spellings if float(text) == number))


def requests_query(
    requests: Sequence[EvidenceRequest], window: timedelta, labels: Labels, scrape_interval: timedelta
) -> str:
    """Return the query for requests of all versions asked about, and of none, in the block that ends at evaluation.

    Rows are labeled with host, version, ``response_code``, ``response_flags``, ``grpc_response_status`` and ``kind``.

    Args:
        requests: Whose hosts and versions to count; one or many, so that many rollouts cost one query.
        window: Length of the block.
        labels: How the provider's metrics are labeled.
        scrape_interval: How often the provider scrapes.
    """
    versions = any_of((*_versions(requests), *UNKNOWN_VERSIONS))
    services = _services(requests, labels)
    selector = f"{REQUESTS}{{{services},{labels.version}=~{versions}}}"
    by = (labels.service, labels.version, "response_code", "response_flags", "grpc_response_status")
    return _counts(selector, f"{REQUESTS}{{{services}}}", by, window, scrape_interval)


def durations_query(
    requests: Sequence[EvidenceRequest], window: timedelta, labels: Labels, scrape_interval: timedelta
) -> str:
    """Return the query for timed requests (rows without ``le``) and those within a threshold (rows with ``le``).

    Both come from the same histogram, hence from the same scrapes: the counter of requests runs ahead of it.

    Raises:
        ValueError: If a request has no latency threshold.
    """
    thresholds = sorted({request.slow_above for request in requests if request.slow_above is not None})
    if not thresholds or any(request.slow_above is None for request in requests):
        raise ValueError("the request has no latency threshold")
    names = any_of((f"{DURATION}_count", f"{DURATION}_bucket"))
    edges = any_of((*(edge for threshold in thresholds for edge in edges_like(threshold)), ""))
    services, versions = _services(requests, labels), any_of(_versions(requests))
    selector = f"{{__name__=~{names},{services},{labels.version}=~{versions},le=~{edges}}}"
    by = (labels.service, labels.version, "le")
    return _counts(selector, f"{DURATION}_count{{{services}}}", by, window, scrape_interval)


def edges_query(host: str, labels: Labels) -> str:
    """Return the query for the bucket edges that the host's latency histogram has."""
    return f"count by (le) ({DURATION}_bucket{{{_services_named((host,), labels)}}})"


def versions_query(host: str, labels: Labels) -> str:
    """Return the query for the versions of a host that have series of requests."""
    return f"count by ({labels.version}) ({REQUESTS}{{{_services_named((host,), labels)}}})"


def _versions(requests: Sequence[EvidenceRequest]) -> tuple[str, ...]:
    """Return all versions asked about; where there is one request, stable comes first."""
    return tuple(dict.fromkeys(version for request in requests for version in (request.stable, request.canary)))


def _services(requests: Sequence[EvidenceRequest], labels: Labels) -> str:
    return _services_named(tuple(dict.fromkeys(request.host for request in requests)), labels)


def _services_named(hosts: tuple[str, ...], labels: Labels) -> str:
    service = f"={quoted(hosts[0])}" if len(hosts) == 1 else f"=~{any_of(hosts)}"
    return f"reporter={quoted(labels.reporter)},{labels.service}{service}"


def _counts(selector: str, start: str, by: tuple[str, ...], window: timedelta, scrape_interval: timedelta) -> str:
    length, history = milliseconds(window), milliseconds(HISTORY)
    fresh = milliseconds(max(window, FRESH_SCRAPES * scrape_interval))
    end = f"last_over_time({selector}[{fresh}])"
    begin = f"last_over_time({selector}[{history}] offset {length})"
    peak = f"max_over_time({selector}[{length}])"
    group = f"sum by ({', '.join(by)})"
    return "\nor ".join(
        (
            _kind("known", f"{group} (clamp_min({end} - {begin}, 0))"),
            _kind("new", f"{group} ({end} unless {begin})"),
            _kind("reset", f"{group} (({end} < {begin}) + clamp_min({peak} - {begin}, 0))"),
            _kind("start", f"count by ({by[0]}) (last_over_time({start}[{history}] offset {length}))"),
        )
    )


def _kind(kind: str, expression: str) -> str:
    return f'label_replace({expression}, "{KIND}", "{kind}", "", "")'
