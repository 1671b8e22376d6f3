from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.api.resource import read_rollout
from tests.unit.api.rule_cases import CASES, SPEC, RuleCase, spec_with

GOOD = [(case, value) for case in CASES for value in case.good]
# An empty list of routes is refused by the API server, and read as one left out where it got past it.
BAD = [(case, value) for case in CASES for value in case.bad if "at least one http route" not in case.message]


def name(part: object) -> str:
    return str(part) if isinstance(part, RuleCase) else f"{part!r:.40}"


def read_problems(spec: dict[str, Any], namespace: str = "shop") -> tuple[str, ...]:
    return read_rollout({"metadata": {"namespace": namespace}, "spec": spec}).problems


def test_a_spec_that_names_every_field_has_no_problems() -> None:
    assert read_problems(SPEC) == ()


@pytest.mark.parametrize(("case", "value"), GOOD, ids=name)
def test_the_operator_accepts(case: RuleCase, value: Any) -> None:
    assert read_problems(spec_with(case.path, value)) == ()


@pytest.mark.parametrize(("case", "value"), BAD, ids=name)
def test_the_operator_refuses_with_a_message_that_names_the_field(case: RuleCase, value: Any) -> None:
    problems = read_problems(spec_with(case.path, value))

    assert any(problem.startswith(f"{case.path} is") for problem in problems), problems
    assert any((case.operator or case.message) in problem for problem in problems), problems


@pytest.mark.parametrize(
    "path",
    ["spec.hold", "spec.analysis.latency.threshold", "spec.readiness.unreadyGrace", "spec.progressDeadline"],
)
def test_a_spec_out_of_bounds_stays_readable_so_that_traffic_can_be_taken_back(path: str) -> None:
    read = read_rollout({"metadata": {"namespace": "shop"}, "spec": spec_with(path, "9999h")})

    assert read.spec is not None
    assert len(read.problems) == 1
    assert read.problems[0].startswith(f"{path} is '9999h': must be between")
