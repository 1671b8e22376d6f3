from __future__ import annotations

from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.resource import read_rollout
from canaryrollout.api.status import CanaryRolloutStatus, Phase
from tests.unit.api.rule_cases import SPEC, spec_with

STATUS: dict[str, Any] = {
    "phase": "Progressing",
    "stableVersion": "v1",
    "weight": 30,
    "rollout": {"version": "v2", "startedAt": "2026-01-31T12:00:00.250Z", "weight": 30},
}


def body(spec: Any = SPEC, status: Any = STATUS) -> dict[str, Any]:
    return {"metadata": {"name": "reviews", "namespace": "shop"}, "spec": spec, "status": status}


def test_an_object_is_read() -> None:
    read = read_rollout(body())

    assert read.problems == ()
    assert read.status_problems == ()
    assert read.spec is not None
    assert read.spec.steps[1].hold == timedelta(minutes=2)
    assert read.status.phase is Phase.PROGRESSING
    assert read.status.as_object() == STATUS
    assert read.spec.as_object() == SPEC


def test_a_new_object_has_an_empty_status() -> None:
    read = read_rollout({"metadata": {"namespace": "shop"}, "spec": SPEC})

    assert read.status == CanaryRolloutStatus()
    assert read.status_problems == ()


def test_what_is_left_out_is_told_as_yaml_names_it() -> None:
    read = read_rollout(body(spec={"istio": {"virtualServices": [{"routes": ["a"]}]}}))

    assert read.spec is None
    assert read.problems == (
        "spec.version is missing: it is required",
        "spec.host is missing: it is required",
        "spec.istio.virtualServices[0].name is missing: it is required",
        "spec.istio.destinationRule is missing: it is required",
    )


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec.version", 1.4, "spec.version is 1.4: must be a text; put it in quotes"),
        ("spec.paused", "maybe", "spec.paused is 'maybe': must be true or false"),
        ("spec.onDeadline", "Wait", "spec.onDeadline is 'Wait': must be one of 'Hold' or 'Rollback'"),
        ("spec.hold", 60, "spec.hold is 60: must be a duration, such as 30s, 2m, 1h30m or 500ms"),
        ("spec.hold", None, "spec.hold is null: must be a duration, such as 30s, 2m, 1h30m or 500ms"),
        ("spec.steps", {"weight": 10}, "spec.steps is {weight: 10}: must be a list"),
        ("spec.steps[0]", 10, "spec.steps[0] is 10: must be a mapping of fields"),
        ("spec.steps[0].weight", 0.5, "spec.steps[0].weight is 0.5: must be a whole number"),
        ("spec.steps[0].weight", "x", "spec.steps[0].weight is 'x': must be a whole number"),
        ("spec.steps[0].weight", 0, "spec.steps[0].weight is 0: must be 1 or more"),
        ("spec.istio", None, "spec.istio is null: must be a mapping of fields"),
        (
            "spec.readiness.minReady",
            True,
            "spec.readiness.minReady is true: "
            "must be a count of 1 or more, or a percentage from 1% to 100%, such as 50%",
        ),
        (
            "spec.analysis.metrics[0].max",
            5.5,
            "spec.analysis.metrics[0].max is 5.5: must be a decimal number in quotes, such as '5' or '0.25'",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_field_value_and_remedy(path: str, value: Any, problem: str) -> None:
    read = read_rollout(body(spec=spec_with(path, value)))

    assert read.spec is None
    assert read.problems == (problem,)


def test_an_unreadable_status_is_empty_and_told_apart_from_the_spec() -> None:
    read = read_rollout(body(status={**STATUS, "phase": "Dancing", "rollout": {"version": "v2", "startedAt": "noon"}}))

    assert read.spec is not None
    assert read.problems == ()
    assert read.status == CanaryRolloutStatus()
    assert [problem.split(": must be ")[0] for problem in read.status_problems] == [
        "status.phase is 'Dancing'",
        "status.rollout.startedAt is 'noon'",
    ]


def test_unknown_fields_are_ignored_as_the_api_server_prunes_them() -> None:
    read = read_rollout(body(spec={**SPEC, "fromTheFuture": 1}, status={**STATUS, "fromTheFuture": 1}))

    assert read.spec is not None
    assert read.status.phase is Phase.PROGRESSING


@pytest.mark.parametrize("host", ["reviews.other.svc.cluster.local", "reviews.other.svc", "reviews.other.svc.a.b"])
def test_a_spec_about_a_service_of_another_namespace_is_no_spec_whatever_the_status_says(host: str) -> None:
    read = read_rollout(body(spec=spec_with("spec.host", host)))

    assert read.status.phase is Phase.PROGRESSING
    assert read.spec is None, "nothing is counted, observed or moved because of it, and it stands for no host"
    assert f"spec.host is '{host}'" in read.problems[0]


def test_views_of_an_object_are_read_like_the_object() -> None:
    spec = MappingProxyType({**SPEC, "hold": MappingProxyType({"a": 1})})

    read = read_rollout(MappingProxyType({"metadata": MappingProxyType({"namespace": "shop"}), "spec": spec}))

    assert read.problems == ("spec.hold is {a: 1}: must be a duration, such as 30s, 2m, 1h30m or 500ms",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    "spec.version",
    "spec.host",
    "spec.istio",
    "spec.istio.virtualServices",
    "spec.istio.virtualServices[0].routes",
    "spec.steps",
    "spec.steps[1].hold",
    "spec.readiness",
    "spec.readiness.minReady",
    "spec.analysis",
    "spec.analysis.latency",
    "spec.analysis.metrics",
    "spec.analysis.metrics[0].min",
]


@given(st.sampled_from(PATHS), JSON)
def test_reading_never_raises_whatever_a_field_holds(path: str, value: Any) -> None:
    read = read_rollout(body(spec=spec_with(path, value)))

    assert read.spec is not None or read.problems


@given(st.dictionaries(st.sampled_from(["metadata", "spec", "status", "kind"]), JSON))
def test_reading_never_raises_whatever_the_object_is(raw: dict[str, Any]) -> None:
    read = read_rollout(raw)

    assert read.spec is not None or read.problems
