import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.adapters.prometheus_queries import (
    Labels,
    any_of,
    durations_query,
    edges_like,
    edges_query,
    quoted,
    requests_query,
    versions_query,
)
from canaryrollout.domain.evidence import EvidenceRequest

REQUEST = EvidenceRequest(
    provider="default",
    namespace="shop",
    host="reviews.shop.svc.cluster.local",
    stable="v1",
    canary="1.4.2",
    version_label="version",
    start=datetime(2026, 1, 1, 12, tzinfo=UTC),
    interval=timedelta(seconds=10),
    slow_above=timedelta(milliseconds=500),
    weight=30,
)
SCRAPE = timedelta(seconds=2)
INTERVAL = timedelta(seconds=10)


def test_requests_are_asked_for_in_one_query() -> None:
    query = requests_query([REQUEST], INTERVAL, Labels(), SCRAPE)
    selector = (
        'istio_requests_total{reporter="source",destination_service="reviews.shop.svc.cluster.local",'
        'destination_version=~"v1|1\\\\.4\\\\.2|unknown|-|"}'
    )
    end, begin = f"last_over_time({selector}[10000ms])", f"last_over_time({selector}[900000ms] offset 10000ms)"
    by = "sum by (destination_service, destination_version, response_code, response_flags, grpc_response_status)"
    known, new, reset, start = query.split("\nor ")
    assert known == f'label_replace({by} (clamp_min({end} - {begin}, 0)), "kind", "known", "", "")'
    assert new == f'label_replace({by} ({end} unless {begin}), "kind", "new", "", "")'
    peak = f"clamp_min(max_over_time({selector}[10000ms]) - {begin}, 0)"
    assert reset == f'label_replace({by} (({end} < {begin}) + {peak}), "kind", "reset", "", "")'
    anything = 'istio_requests_total{reporter="source",destination_service="reviews.shop.svc.cluster.local"}'
    assert (
        start == "label_replace(count by (destination_service) "
        f'(last_over_time({anything}[900000ms] offset 10000ms)), "kind", "start", "", "")'
    )


def test_a_block_shorter_than_three_scrapes_looks_back_three() -> None:
    assert "[45000ms]" in requests_query([REQUEST], INTERVAL, Labels(), timedelta(seconds=15))


def test_labels_are_the_providers() -> None:
    labels = Labels(reporter="waypoint", version="destination_canonical_revision", service="destination_service_name")
    for query in (
        requests_query([REQUEST], INTERVAL, labels, SCRAPE),
        durations_query([REQUEST], INTERVAL, labels, SCRAPE),
    ):
        assert 'reporter="waypoint",destination_service_name="reviews.shop.svc.cluster.local"' in query
        assert "sum by (destination_service_name, destination_canonical_revision, " in query
        assert "destination_version" not in query


def test_durations_take_count_and_bucket_of_one_histogram() -> None:
    query = durations_query([REQUEST], INTERVAL, Labels(), SCRAPE)
    name = "istio_request_duration_milliseconds"
    assert f'{{__name__=~"{name}_count|{name}_bucket",' in query
    assert 'le=~"500|500\\\\.0|"' in query
    assert "sum by (destination_service, destination_version, le)" in query
    assert "istio_requests_total" not in query


def test_durations_need_a_threshold() -> None:
    with pytest.raises(ValueError, match="no latency threshold"):
        durations_query([REQUEST, replace(REQUEST, slow_above=None)], INTERVAL, Labels(), SCRAPE)


def test_many_hosts_versions_and_thresholds_are_one_query() -> None:
    other = replace(REQUEST, host="ratings.shop.svc.cluster.local", canary="v9", slow_above=timedelta(seconds=1))
    for query in (
        requests_query([REQUEST, other, REQUEST], INTERVAL, Labels(), SCRAPE),
        durations_query([other, REQUEST], INTERVAL, Labels(), SCRAPE),
    ):
        hosts = {"reviews", "ratings"}
        named = set(re.findall(r"(\w+)\\\\.shop\\\\.svc", query))
        assert named == hosts
        assert query.count("destination_service=~") == query.count("reporter=")
        versions = re.search(r'destination_version=~"([^"]*)"', query)
        assert versions is not None
        assert {"v1", "v9", "1\\\\.4\\\\.2"} <= set(versions[1].split("|"))
    assert 'le=~"500|500\\\\.0|1000|1000\\\\.0|"' in durations_query([REQUEST, other], INTERVAL, Labels(), SCRAPE)


def test_a_window_is_never_nothing() -> None:
    query = requests_query([REQUEST], timedelta(microseconds=300), Labels(), SCRAPE)
    assert "offset 1ms" in query
    assert "[0ms]" not in query


def test_edges_are_those_of_the_service() -> None:
    expected = 'reporter="source",destination_service="reviews.shop.svc.cluster.local"'
    found = edges_query(REQUEST.host, Labels())
    assert found == f"count by (le) (istio_request_duration_milliseconds_bucket{{{expected}}})"


def test_versions_are_those_of_the_service() -> None:
    expected = 'reporter="source",destination_service="reviews.shop.svc.cluster.local"'
    assert (
        versions_query(REQUEST.host, Labels()) == f"count by (destination_version) (istio_requests_total{{{expected}}})"
    )


@pytest.mark.parametrize(
    ("milliseconds", "spellings"),
    [
        (5, {"5", "5.0"}),
        (500, {"500", "500.0"}),
        (10_000, {"10000", "10000.0"}),
        (1_800_000, {"1800000", "1800000.0", "1.8e+06"}),
    ],
)
def test_spellings_of_an_edge(milliseconds: int, spellings: set[str]) -> None:
    assert set(edges_like(timedelta(milliseconds=milliseconds))) == spellings


@given(st.text())
def test_a_literal_cannot_be_left(value: str) -> None:
    literal = quoted(value)
    body = literal[1:-1]
    assert literal[0] == literal[-1] == '"'
    assert "\n" not in body
    unescaped = body.replace("\\\\", "").replace('\\"', "").replace("\\n", "")
    assert '"' not in unescaped
    assert "\\" not in unescaped


def test_alternatives_match_themselves_alone() -> None:
    assert any_of(("v1", "a.b", "x-1")) == '"v1|a\\\\.b|x-1"'
