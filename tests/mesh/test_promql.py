"""Queries confined to a namespace, as a real Prometheus reads them.

That the operator's parser finds the matcher in every selector is worth as much as its agreement with the server's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canaryrollout.adapters.promql import QueryRefused, enforce
from lab import probe
from tests.promqlqueries import Query, queries
from tests.remotewrite import Recorded, recorded_prometheus

pytestmark = pytest.mark.mesh

NOW = datetime.now(UTC).replace(microsecond=0)
MINE = {"name": "namespace", "type": "=", "value": "shop"}


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    """Two namespaces with the same series; those of ours count 1, those of the other 1000."""
    with recorded_prometheus() as server:
        server.write(
            ({"__name__": name, "namespace": namespace, "job": "a", "instance": namespace}, [(NOW, value)])
            for name in ("secret", "target_info")
            for namespace, value in (("shop", 1.0), ("other", 1000.0))
        )
        yield server


@pytest.fixture(scope="module")
def client() -> Iterator[requests.Session]:
    with probe.session() as session:
        yield session


def asked(recorded: Recorded, client: requests.Session, endpoint: str, query: str) -> Any:
    form = {"query": query, "time": str((NOW + timedelta(seconds=1)).timestamp())}
    answer = client.post(f"{recorded.url}/api/v1/{endpoint}", data=form, timeout=10).json()
    assert answer["status"] == "success", f"{query}: {answer.get('error')}"
    return answer["data"]


def selectors(node: Any) -> Iterator[Any]:
    """Return the selectors of a query as Prometheus has parsed it."""
    if isinstance(node, dict):
        if node.get("type") in {"vectorSelector", "matrixSelector"}:
            yield node
        for child in node.values():
            yield from selectors(child)
    elif isinstance(node, list):
        for child in node:
            yield from selectors(child)


@given(query=queries)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_prometheus_finds_the_matcher_in_every_selector(
    recorded: Recorded, client: requests.Session, query: Query
) -> None:
    confined = enforce(query.text, "namespace", "shop")
    found = list(selectors(asked(recorded, client, "parse_query", confined)))
    assert len(found) == query.selectors
    assert all(MINE in selector["matchers"] for selector in found)
    as_written = list(selectors(asked(recorded, client, "parse_query", query.text)))
    for written, guarded in zip(as_written, found, strict=True):
        kept = list(guarded["matchers"])
        kept.remove(MINE)
        assert {**guarded, "matchers": kept} == written, "all else is as its author wrote it"


@given(query=queries, data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_prometheus_takes_of_a_broken_query_is_confined(
    recorded: Recorded, client: requests.Session, query: Query, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(query.text)))
    put = data.draw(st.sampled_from(['"', "'", "`", "\\", "{", "}", " or ", "#", "\n", "secret", ",", "by", "\f", "$"]))
    try:
        confined = enforce(query.text[:at] + put + query.text[at:], "namespace", "shop")
    except QueryRefused:
        return
    form = {"query": confined}
    answer = client.post(f"{recorded.url}/api/v1/parse_query", data=form, timeout=10).json()
    if answer["status"] == "success":
        assert all(MINE in selector["matchers"] for selector in selectors(answer["data"]))


@pytest.mark.parametrize(
    "query",
    [
        "sum(secret)",
        'sum({__name__="secret"})',
        'sum({"secret"})',
        "sum(last_over_time(secret[5m]))",
        "max_over_time(sum(secret)[5m:1s])",
        'sum(secret{namespace=~".*"})',
        'sum(secret{namespace!=""})',
        "sum(secret * on (job) group_left () sum by (job) (secret))",
        'sum(label_replace(secret, "namespace", "shop", "namespace", ".*"))',
        "sum(secret) or vector(1000)",
        'sum(secret{a!="\\"} or secret{b=\\""})',
        "sum(secret{a!=`\\`} #`} or secret\n)",
        "scalar(sum(secret)) + 0",
    ],
)
def test_the_other_namespace_is_not_read(recorded: Recorded, client: requests.Session, query: str) -> None:
    data = asked(recorded, client, "query", enforce(query, "namespace", "shop"))
    value = data["result"][1] if data["resultType"] == "scalar" else data["result"][0]["value"][1]
    assert value == "1", "1001 or 1000 with the other's"


def test_without_the_matcher_it_would_be_read(recorded: Recorded, client: requests.Session) -> None:
    assert asked(recorded, client, "query", "sum(secret)")["result"][0]["value"][1] == "1001"
