"""From notes to facts: weights and times from objects, shares from requests, and what could not be undone."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from lab.demo.facts import Failures, Outcome
from lab.demo.measure import (
    Routing,
    breach_of,
    difference,
    objects_of,
    originals_of,
    outcome_of,
    requests_of,
    steps_of,
    timeline,
    undo_of,
)
from lab.demo.watch import DESTINATION_RULE, ROLLOUT, VIRTUAL_SERVICE, Seen
from lab.loadreport import Record

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""Times below are told in seconds from here."""

HOST = "reviews.shop.svc.cluster.local"
ROUTING = Routing(HOST, {"a": ("primary",), "b": ()})


def virtual_service(name: str, canary: int | None, *, timeout: str = "10s") -> dict[str, Any]:
    route: list[dict[str, Any]] = [{"destination": {"host": "reviews", "subset": "v1"}}]
    if canary is not None:
        route[0]["weight"] = 100 - canary
        route.append({"destination": {"host": "reviews", "subset": "v2"}, "weight": canary})
    http: dict[str, Any] = {"timeout": timeout, "route": route}
    if name == "a":
        http["name"] = "primary"
    return {
        "kind": VIRTUAL_SERVICE,
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"},
        "spec": {"hosts": ["reviews"], "http": [http]},
    }


def rollout(weight: int, in_effect_at: float | None = None, **status: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"version": "v2", "startedAt": "2026-01-01T00:00:00Z", "weight": weight}
    if in_effect_at is not None:
        record["inEffectAt"] = datetime.fromtimestamp(START + in_effect_at, UTC).isoformat()
    return {
        "metadata": {"name": "reviews", "namespace": "shop"},
        "status": {"subsets": {"v1": "v1", "v2": "v2"}, "rollout": record, **status},
    }


def notes(*entries: tuple[float, dict[str, Any]]) -> list[Seen]:
    return [
        Seen(START + at, document.get("kind", ROLLOUT), document["metadata"]["name"], version, document)
        for version, (at, document) in enumerate(entries)
    ]


HISTORY = notes(
    (0.0, virtual_service("a", None)),
    (0.0, virtual_service("b", None)),
    (10.0, virtual_service("a", 10)),
    (10.1, virtual_service("b", 10)),
    (10.2, rollout(10)),
    (13.0, rollout(10, in_effect_at=11.0)),
    (20.0, virtual_service("b", 30)),
    (20.1, virtual_service("a", 30)),
    (23.0, rollout(30, in_effect_at=21.0)),
    (30.0, virtual_service("a", 0)),
    (30.2, virtual_service("b", 0)),
)


def since(at: float | None) -> float | None:
    """Seconds from the start, without what a float of today's size cannot hold."""
    return None if at is None else round(at - START, 3)


def record(sent: float, version: str | None, status: int = 200, reason: str = "", flags: str = "") -> Record:
    return Record(START + sent, START + sent + 0.01, version, status, reason, flags)


def test_the_timeline_tells_each_change_of_weight_on_every_virtual_service() -> None:
    assert [(since(at), weights) for at, weights in timeline(HISTORY, ROUTING, "v2")] == [
        (0.0, {"a": 0, "b": 0}),
        (10.0, {"a": 10, "b": 0}),
        (10.1, {"a": 10, "b": 10}),
        (20.0, {"a": 10, "b": 30}),
        (20.1, {"a": 30, "b": 30}),
        (30.0, {"a": 0, "b": 30}),
        (30.2, {"a": 0, "b": 0}),
    ]


def test_steps_count_what_was_sent_between_in_effect_and_the_next_write() -> None:
    records = [
        record(10.5, "v2"),  # written, not yet in effect
        record(11.0, "v1"),
        record(15.0, "v2"),
        record(19.9, "v1"),
        record(19.95, None, 503),  # reached no version
        record(20.0, "v2"),  # the next weight was written on one of the two
        record(25.0, "v2"),
        record(30.0, "v2"),
    ]
    steps = steps_of(HISTORY, ROUTING, "v2", START + 40.0, records)
    assert [
        (s.weight, since(s.written_at), since(s.in_effect_at), since(s.until), s.requests, s.canary) for s in steps
    ] == [
        (10, 10.1, 11.0, 20.0, 3, 1),
        (30, 20.1, 21.0, 30.0, 1, 1),
    ]


def test_a_step_that_was_never_in_effect_has_no_requests() -> None:
    seen = [each for each in HISTORY if each.kind == VIRTUAL_SERVICE]
    steps = steps_of(seen, ROUTING, "v2", START + 40.0, [record(15.0, "v2")])
    assert [(step.weight, step.in_effect_at, step.requests) for step in steps] == [(10, None, 0), (30, None, 0)]


def entry(at: float, reason: str) -> dict[str, Any]:
    return {"time": datetime.fromtimestamp(START + at, UTC).isoformat(), "reason": reason}


def test_a_step_ends_where_the_next_weight_is_decided_however_late_the_witness_hears_of_it() -> None:
    raising = rollout(10, in_effect_at=11.0)
    raising["status"]["rollout"]["target"] = {"weight": 30, "setAt": entry(19.0, "")["time"]}
    back = rollout(30, in_effect_at=21.0, history=[entry(5.0, "GateFailed"), entry(29.0, "GateFailed")])
    back["status"]["rollout"]["reason"] = "GateFailed"
    seen = sorted([*HISTORY, *notes((19.1, raising), (30.1, back))], key=lambda each: each.at)
    steps = steps_of(seen, ROUTING, "v2", START + 40.0, [record(18.9, "v2"), record(19.5, "v1"), record(29.5, "v1")])
    assert [(since(step.until), step.requests, step.canary) for step in steps] == [(19.0, 1, 1), (29.0, 0, 0)]


def test_a_canary_taken_back_before_its_weight_was_seen_in_effect_counts_from_its_first_answer() -> None:
    """From just after it: that first request was certain to be the canary's."""
    back = rollout(10, history=[entry(14.0, "GateFailed")])
    back["status"]["rollout"]["reason"] = "GateFailed"
    seen = [*HISTORY[:5], *notes((14.1, back), (14.2, virtual_service("a", 0)), (14.3, virtual_service("b", 0)))]
    records = [record(at, version) for at, version in ((10.3, "v1"), (11.0, "v2"), (12.0, "v1"), (13.0, "v2"))]
    (step,) = steps_of(seen, ROUTING, "v2", START + 40.0, records)
    assert (since(step.in_effect_at), since(step.until), step.requests, step.canary) == (11.0, 14.0, 2, 1)


def test_the_last_step_ends_with_the_rollout() -> None:
    assert steps_of(HISTORY[:9], ROUTING, "v2", START + 40.0, [])[-1].until == START + 40.0


def test_weight_zero_is_when_the_last_virtual_service_shows_it() -> None:
    breach = breach_of(HISTORY, ROUTING, "v2", (START + 28.0, "failed"))
    assert since(breach.zero_at) == 30.2
    assert breach.seconds == pytest.approx(2.2)


@pytest.mark.parametrize("until", [9, 10])
def test_weight_zero_is_not_seen_while_one_virtual_service_has_weight(until: int) -> None:
    assert breach_of(HISTORY[:until], ROUTING, "v2", (START + 28.0, "failed")).seconds is None


def test_weight_zero_counts_only_as_long_as_it_lasts() -> None:
    seen = [*HISTORY, *notes((33.0, virtual_service("a", 10)), (35.0, virtual_service("a", 0)))]
    assert since(breach_of(seen, ROUTING, "v2", (START + 28.0, "failed")).zero_at) == 35.0


def test_requests_are_sorted_by_what_became_of_them() -> None:
    found = requests_of(
        [
            record(1, "v1"),
            record(2, "v3", 500),
            record(3, "v1", 500),
            record(4, "v3", 503),
            record(5, None, 503, "no healthy upstream", "UH"),
            record(6, None, 0, "closed before an answer"),
        ],
        frozenset({"v3"}),
    )
    assert (found.sent, found.injected, found.lost_requests) == (6, 1, 2)
    assert set(found.failed) == {Failures(1, "v1", 500), Failures(1, "v3", 503)}
    assert Failures(1, None, 503, "no healthy upstream", "UH") in found.lost


CHANGES = [
    {"kind": "Weight", "object": "a", "route": "primary", "subset": "v1"},
    {"kind": "Destination", "object": "a", "route": "primary", "subset": "v2", "version": "v2"},
]


def test_recorded_changes_can_be_undone_at_every_moment() -> None:
    seen = notes(
        (0.0, virtual_service("a", None)),
        (1.0, rollout(0, changes=CHANGES)),
        (2.0, virtual_service("a", 10)),
        (3.0, virtual_service("a", 30)),
    )
    undone = undo_of(seen, originals_of(seen), HOST)
    assert (undone.moments, undone.mismatches) == (4, ())


def test_a_change_before_its_record_is_a_mismatch() -> None:
    seen = notes((0.0, virtual_service("a", None)), (1.0, virtual_service("a", 10)), (2.0, rollout(0, changes=CHANGES)))
    mismatches = undo_of(seen, originals_of(seen), HOST).mismatches
    assert len(mismatches) == 1
    assert "VirtualService a at resourceVersion 1" in mismatches[0]


def test_a_record_that_goes_before_its_change_is_undone_is_a_mismatch() -> None:
    seen = notes(
        (0.0, virtual_service("a", None)),
        (1.0, rollout(0, changes=CHANGES)),
        (2.0, virtual_service("a", 10)),
        (3.0, rollout(0)),
    )
    assert len(undo_of(seen, originals_of(seen), HOST).mismatches) == 1


def test_objects_differ_by_what_is_not_recorded_only() -> None:
    seen = notes(
        (0.0, virtual_service("a", None)),
        (1.0, rollout(0, changes=CHANGES)),
        (2.0, virtual_service("a", 10, timeout="5s")),
    )
    (facts,) = objects_of(seen, originals_of(seen), HOST, START + 0.5)
    assert [line.strip() for line in facts.diff] == ["-    timeout: 10s", "+    timeout: 5s"]
    assert any("subset: v2" in line for line in facts.altered)
    assert facts.writes == 1


def test_what_the_server_keeps_is_no_difference() -> None:
    before = virtual_service("a", None)
    after = copy.deepcopy(before)
    after["metadata"] |= {"resourceVersion": "99", "generation": 4, "managedFields": [{}], "uid": "x"}
    assert difference(before, after) == ()
    after["metadata"]["labels"] = {"team": "x"}
    assert difference(before, after) != ()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ({"phase": "Stable", "stableVersion": "v2"}, Outcome.PROMOTED),
        ({"phase": "Stable", "stableVersion": "v1"}, Outcome.UNFINISHED),
        ({"phase": "Promoting", "stableVersion": "v2"}, Outcome.UNFINISHED),
        ({"phase": "RollingBack", "stableVersion": "v1", "canaryVersion": "v2"}, Outcome.UNFINISHED),
        ({"phase": "RolledBack", "stableVersion": "v1", "canaryVersion": "v2"}, Outcome.TAKEN_BACK),
        ({"phase": "RolledBack", "stableVersion": "v1", "canaryVersion": "v9"}, Outcome.UNFINISHED),
        ({}, Outcome.UNFINISHED),
    ],
)
def test_a_rollout_has_ended_only_at_rest(status: dict[str, Any], outcome: Outcome) -> None:
    assert outcome_of({"status": status}, "v2") is outcome


def test_kinds_that_are_not_the_mesh_have_no_original() -> None:
    seen = notes((0.0, rollout(0)), (1.0, {"kind": DESTINATION_RULE, "metadata": {"name": "r"}, "spec": {}}))
    assert list(originals_of(seen)) == [(DESTINATION_RULE, "r")]
