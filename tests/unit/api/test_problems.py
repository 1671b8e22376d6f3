from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.api.problems import problems
from canaryrollout.api.spec import CanaryRolloutSpec
from tests.unit.api.rule_cases import spec_with


def found(path: str, value: Any, namespace: str = "shop") -> tuple[str, ...]:
    return problems(CanaryRolloutSpec.model_validate(spec_with(path, value)), namespace)


@pytest.mark.parametrize(
    "host", ["reviews", "reviews.shop.svc.cluster.local", "reviews.shop.svc.example.org", "reviews.example.com"]
)
def test_hosts_of_the_own_namespace_are_right(host: str) -> None:
    assert found("spec.host", host) == ()


def test_a_host_of_another_namespace_is_told_where_it_belongs() -> None:
    assert found("spec.host", "reviews.other.svc.cluster.local") == (
        "spec.host is 'reviews.other.svc.cluster.local': must be a service of the rollout's own namespace shop, "
        "not of other; create the CanaryRollout in namespace other",
    )


@pytest.mark.parametrize("host", ["reviews.shop", "reviews.shop.svc"])
def test_half_a_name_is_told_what_to_write(host: str) -> None:
    assert found("spec.host", host) == (
        f"spec.host is '{host}': Istio does not resolve names of this form; write reviews",
    )


def test_values_are_shown_as_yaml_has_them() -> None:
    steps = [{"weight": 10, "hold": "90s"}, {"weight": 5}, {"weight": 100}]

    assert found("spec.steps", steps) == (
        "spec.steps is [{weight: 10, hold: 1m30s}, {weight: 5}, {weight: 100}]: "
        "weights must rise from step to step, such as 10, 30, 50, 100",
    )
    assert found("spec.readiness.minReady", 0)[0].startswith("spec.readiness.minReady is 0: must be a count of 1")
    assert found("spec.analysis.errorRate.maxRelative", "50%")[0].startswith(
        "spec.analysis.errorRate.maxRelative is '50%': must be a percentage of what the stable version has"
    )


def test_the_value_shown_is_that_of_the_field_the_message_is_about() -> None:
    assert found("spec.analysis.metrics[0].min", "6") == (
        "spec.analysis.metrics[0].min is '6': must not be above max: no value could pass",
    )
    assert found("spec.progressDeadline", "5s") == (
        "spec.progressDeadline is '5s': must not be shorter than analysis.interval: no step could pass",
    )
    assert found("spec.analysis.errorRate", {}) == (
        "spec.analysis.errorRate is {grpcServerFaults: [2, 4, 12, 13, 14, 15]}: "
        "must have a limit: set max (such as 1%), maxRelative (such as 150%) or both",
    )


def test_a_default_that_others_make_wrong_is_shown() -> None:
    spec = spec_with("spec.analysis.interval", "1h")
    del spec["progressDeadline"]

    (problem,) = problems(CanaryRolloutSpec.model_validate(spec), "shop")

    assert problem.startswith("spec.progressDeadline is '30m': must not be shorter than analysis.interval")


def test_a_long_value_is_cut() -> None:
    steps = [{"weight": weight} for weight in range(1, 51)]

    (problem,) = found("spec.steps", steps)

    assert len(problem) < 300
    assert problem.endswith("...: the last step must have weight 100, add {weight: 100}")


def test_every_problem_is_told_at_once() -> None:
    spec = spec_with("spec.hold", "9999h")
    spec["host"] = "Reviews"
    spec["analysis"]["interval"] = "0s"

    fields = [problem.split(" is ")[0] for problem in problems(CanaryRolloutSpec.model_validate(spec), "shop")]

    assert fields == ["spec.host", "spec.hold", "spec.analysis.interval"]
