"""A spec that cannot be used: what is said of it, since when, and once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, Condition, Phase
from canaryrollout.domain.decide import decide_invalid
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.observation import Identity
from tests.world import NAMESPACE, START

PROBLEMS = ("spec.host: 'a b' is no host", "spec.steps: the last must be 100")
MESSAGE = "; ".join(PROBLEMS)


def decided(**fields: Any) -> Decision:
    identity = Identity(NAMESPACE, "reviews", "uid-1", 3, START)
    return decide_invalid(CanaryRolloutStatus(**fields), identity, PROBLEMS, START + timedelta(microseconds=999_998))


def ready(status: str) -> Condition:
    return Condition(type="Ready", status=status, reason="Serving", last_transition_time=START - timedelta(hours=1))


def test_it_is_neither_ready_nor_on_its_way() -> None:
    status = decided(stable_version="v1").status
    assert (status.phase, status.message, status.observed_generation) == (Phase.BLOCKED, MESSAGE, 3)
    assert status.stable_version == "v1"
    assert [(c.type, c.status, c.reason, c.message, c.observed_generation) for c in status.conditions] == [
        (kind, state, "InvalidSpec", MESSAGE, 3)
        for kind, state in (("Ready", "False"), ("Reconciling", "False"), ("Stalled", "True"))
    ]
    assert {c.last_transition_time for c in status.conditions} == {START + timedelta(milliseconds=999)}


@pytest.mark.parametrize(("before", "since"), [("True", timedelta(milliseconds=999)), ("False", -timedelta(hours=1))])
def test_the_time_of_a_condition_is_that_of_its_last_change(before: str, since: timedelta) -> None:
    found = decided(conditions=(ready(before),)).status.conditions[0]
    assert found.last_transition_time == START + since


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, True),
        ({"phase": Phase.BLOCKED, "message": MESSAGE}, False),
        ({"phase": Phase.BLOCKED, "message": "another reason"}, True),
        ({"phase": Phase.STABLE, "message": MESSAGE}, True),
    ],
)
def test_it_is_told_once_for_as_long_as_it_is_so(fields: dict[str, Any], told: bool) -> None:
    events = decided(**fields).events
    assert [(event.reason, event.message, event.warning) for event in events] == (
        [("InvalidSpec", MESSAGE, True)] if told else []
    )
