import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from canaryrollout.adapters.prometheus_counts import (
    BadAnswer,
    Reading,
    Row,
    edge_problem,
    is_error,
    is_unreached,
    milliseconds_of,
    read_block,
    rows_by_host,
    rows_of,
)
from canaryrollout.adapters.prometheus_queries import Labels
from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import NO_COUNTS, EvidenceRequest

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
REQUEST = EvidenceRequest(
    "default",
    "shop",
    "reviews",
    "v1",
    "v2",
    "version",
    T0,
    timedelta(seconds=10),
    slow_above=timedelta(milliseconds=500),
)
FAULTS = {"2", "4", "12", "13", "14", "15"}
START = Row({"kind": "start"}, 3)


def row(version: str, value: float, code: str = "200", kind: str = "known", **labels: str) -> Row:
    return Row({"kind": kind, "destination_version": version, "response_code": code, **labels}, value)


def timed(version: str, value: float, le: str = "", kind: str = "known") -> Row:
    return Row({"kind": kind, "destination_version": version, **({"le": le} if le else {})}, value)


def read(requests: Sequence[Row], durations: Sequence[Row] = (), request: EvidenceRequest = REQUEST) -> Reading:
    return read_block(request, Labels(), T0, T0 + timedelta(seconds=10), requests, durations)


def test_both_versions_are_told_apart() -> None:
    block = read([START, row("v1", 90), row("v1", 2, "500"), row("v2", 10), row("v2", 1, "503"), row("v3", 7)]).block
    assert (block.start, block.end) == (T0, T0 + timedelta(seconds=10))
    assert (block.stable, block.canary) == (Counts(requests=92, errors=2), Counts(requests=11, errors=1))
    assert (block.stable_seen, block.canary_seen) == (True, True)


@pytest.mark.parametrize("value", [-1, -0.7, 2e12, 1e300, math.inf, -math.inf, math.nan])
def test_what_no_requests_can_count_is_a_bad_answer_and_no_evidence(value: float) -> None:
    with pytest.raises(BadAnswer, match="requests of one kind between two points in time cannot be"):
        read([START, row("v2", 3, "500"), row("v2", value)])
    with pytest.raises(BadAnswer, match="cannot be"):
        read([START, row("v2", 3)], [START, timed("v2", value)])


def test_no_row_is_no_data_and_a_row_of_zero_is_no_traffic() -> None:
    block = read([START, row("v2", 0)]).block
    assert (block.stable_seen, block.canary_seen) == (False, True)
    assert block.canary == Counts()


def test_a_series_that_is_new_in_a_partial_answer_may_be_old() -> None:
    rows = [START, row("v2", 5), row("v2", 4_000, "500", "new")]
    whole = read_block(REQUEST, Labels(), T0, T0 + timedelta(seconds=10), rows, ())
    partial = read_block(REQUEST, Labels(), T0, T0 + timedelta(seconds=10), rows, (), partial=True)
    assert whole.block.canary == Counts(requests=4_005, errors=4_000)
    assert partial.block.canary == Counts(requests=5)


def test_known_new_and_reset_add_up() -> None:
    rows = [START, row("v2", 5, "500"), row("v2", 50, "500", "new"), row("v2", 7, "500", "reset")]
    reading = read(rows)
    assert reading.block.canary == Counts(requests=62, errors=62)
    assert reading.notes == ("a counter of version v2 was reset: requests since the scrape before it are not counted",)


def test_new_series_count_nothing_where_the_service_had_none() -> None:
    reading = read([row("v2", 50, "500", "new")])
    assert reading.block.canary == Counts()
    assert reading.block.canary_seen
    assert "nothing on the host before" in reading.notes[0]


def test_resets_of_other_versions_are_no_news() -> None:
    assert read([START, row("unknown", 5, "503", "reset", response_flags="UH")]).notes == ()


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"response_code": "500"}, True),
        ({"response_code": "503", "response_flags": "UH"}, True),
        ({"response_code": "404"}, False),
        ({"response_code": "0", "response_flags": "DC"}, False),
        ({"response_code": "200", "grpc_response_status": "0"}, False),
        ({"response_code": "200", "grpc_response_status": "14"}, True),
        ({"response_code": "200", "grpc_response_status": "2"}, True),
        ({"response_code": "200", "grpc_response_status": "5"}, False),
        ({"response_code": "200", "grpc_response_status": "1"}, False),
        ({"response_code": "0", "response_flags": "DC", "grpc_response_status": "14"}, False),
        ({"response_code": "0", "response_flags": "URX,DC", "grpc_response_status": "2"}, False),
        ({"response_code": "0", "response_flags": "-", "grpc_response_status": "14"}, True),
        ({"response_code": "5"}, False),
        ({}, False),
    ],
)
def test_what_is_an_error(labels: dict[str, str], error: bool) -> None:
    assert is_error(labels, FAULTS) is error


def test_which_statuses_blame_the_server_is_for_the_request_to_say() -> None:
    rows = [START, *(row("v2", 1, grpc_response_status=str(status)) for status in range(17))]
    assert read(rows).block.canary == Counts(requests=17, errors=6)
    assert read(rows, request=replace(REQUEST, server_faults=(8, 14))).block.canary == Counts(requests=17, errors=2)
    assert read(rows, request=replace(REQUEST, server_faults=())).block.canary == Counts(requests=17)


def test_clients_that_go_away_are_requests_and_no_errors() -> None:
    gone = [row("v2", 7, "0", response_flags="DC"), row("v1", 3, "0", response_flags="DC", grpc_response_status="14")]
    block = read([START, *gone]).block
    assert (block.canary, block.stable) == (Counts(requests=7), Counts(requests=3))


@pytest.mark.parametrize(
    ("version", "flags", "unreached"),
    [
        ("unknown", "UH", True),
        ("", "UF,URX", True),
        ("-", "NC", True),
        ("unknown", "NR", False),
        ("unknown", "RL", False),
        ("unknown", "-", False),
        ("unknown", "DC", False),
        ("v2", "UF", False),
    ],
)
def test_what_reached_no_version(version: str, flags: str, unreached: bool) -> None:
    assert is_unreached({"destination_version": version, "response_flags": flags}, Labels()) is unreached


def test_a_row_without_a_version_label_reached_none() -> None:
    assert read([START, Row({"kind": "known", "response_flags": "UH"}, 3)]).block.unreached == 3


def test_slow_is_what_the_bucket_lacks() -> None:
    block = read([START, row("v2", 99)], [START, timed("v2", 40), timed("v2", 37, "500.0")]).block
    assert block.canary == Counts(requests=99, timed=40, slow=3)


def test_edges_of_other_rollouts_thresholds_are_not_ours() -> None:
    rows = [START, timed("v2", 40), timed("v2", 37, "500.0"), timed("v2", 30, "250.0"), timed("v2", 40, "1000")]
    assert read([START, row("v2", 99)], rows).block.canary == Counts(requests=99, timed=40, slow=3)
    faster = replace(REQUEST, slow_above=timedelta(milliseconds=250))
    assert read([START, row("v2", 99)], rows, faster).block.canary == Counts(requests=99, timed=40, slow=10)
    assert read([START], rows, replace(REQUEST, slow_above=timedelta(milliseconds=100))).lacks_edge


def test_blocks_with_the_same_counts_share_them() -> None:
    first, second = (read([START, row("v2", 9)]).block for _ in range(2))
    assert first.canary is second.canary
    assert first.stable is NO_COUNTS


def test_slow_is_never_negative_nor_more_than_timed() -> None:
    assert read([], [START, timed("v2", 3), timed("v2", 5, "500")]).block.canary == Counts(timed=3, slow=0)


def test_histogram_without_the_edge_times_nothing() -> None:
    reading = read([START, row("v2", 99)], [START, timed("v2", 40)])
    assert reading.lacks_edge
    assert reading.block.canary == Counts(requests=99)
    assert not read([START, row("v2", 99)], []).lacks_edge


def test_edge_problem_names_the_neighbours() -> None:
    edges = ["0.5", "1", "250.0", "500.0", "+Inf"]
    assert edge_problem(timedelta(milliseconds=300), edges) == (
        "analysis.latency.threshold 300ms is no bucket edge; the nearest: 250ms or 500ms"
    )
    assert edge_problem(timedelta(seconds=9), edges).endswith("9s is no bucket edge; the nearest: 500ms")
    assert edge_problem(timedelta(seconds=9), []).endswith("the nearest: none, it has no edges")


def test_rows_of_vector_and_matrix() -> None:
    labels = {"a": "b"}
    at = milliseconds_of(T0)
    seconds = at / 1000
    assert rows_of("vector", [{"metric": labels, "value": [seconds, "2"]}]) == {at: [Row(labels, 2.0)]}
    matrix = [{"metric": labels, "values": [[seconds, "2"], [seconds + 10.25, "3"]]}]
    assert rows_of("matrix", matrix) == {at: [Row(labels, 2.0)], at + 10_250: [Row(labels, 3.0)]}


def test_rows_are_sorted_by_host_and_one_that_cannot_be_read_spoils_no_other() -> None:
    good = {"metric": {"service": "a"}, "value": [1, "2"]}
    nameless = {"metric": {}, "value": [1, "3"]}
    bad = {"metric": {"service": "b"}, "value": ["soon", "2"]}
    hosts = rows_by_host("vector", [good, bad, nameless, {**good, "metric": {"service": "b"}}], "service")
    assert hosts["a"] == {1000: [Row({"service": "a"}, 2.0)]}
    assert isinstance(hosts["b"], BadAnswer)
    assert set(hosts) == {"a", "b", ""}


@pytest.mark.parametrize(
    ("kind", "result"), [("scalar", [1, "2"]), ("vector", {}), ("vector", ["a"]), ("vector", [{"metric": None}])]
)
def test_rows_that_belong_to_nobody(kind: str, result: Any) -> None:
    with pytest.raises(BadAnswer):
        rows_by_host(kind, result, "service")


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("scalar", [1, "2"]),
        ("vector", {}),
        ("vector", [{"metric": {}}]),
        ("matrix", [{"metric": {}, "values": [["x"]]}]),
        ("vector", [{"metric": {}, "value": [float("inf"), "1"]}]),
    ],
)
def test_rows_of_something_else(kind: str, result: Any) -> None:
    with pytest.raises(BadAnswer):
        rows_of(kind, result)
