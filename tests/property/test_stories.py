"""Lives in which something that chance seldom brings about happens for certain."""

from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.api.status import Phase
from tests.property.machine import ANALYSES, LADDERS, Life


def begin(**fields: Any) -> Life:
    life = Life()
    fields = {"steps": LADDERS[0], "analysis": ANALYSES[0], "undisturbed": 0} | fields
    life.begin(both=fields.pop("both", True), subsets=("v1", "v2"), shape="one", **fields)
    return life


def reach(life: Life, weight: int) -> None:
    life.world.run(until=lambda w: w.state.weight == weight and w.reason == "Holding")
    assert life.world.share("v2") == weight


@pytest.mark.parametrize("weight", [0, 10])
def test_paused(weight: int) -> None:
    life = begin()
    if weight:
        reach(life, weight)
    life.a_field_is_edited({"paused": True}, then=20)
    life.a_long_time_goes_by(3)
    assert (life.world.phase, life.world.share("v2")) == (Phase.PAUSED, weight)
    life.teardown()
    assert life.world.phase is Phase.STABLE


@pytest.mark.parametrize("policy", ["Hold", "Rollback"])
def test_a_deadline_that_passes(policy: str) -> None:
    life = begin(analysis=ANALYSES[0] | {"minRequests": 1_000_000})
    life.world.run(until=lambda w: w.state.weight == 10)
    life.a_field_is_edited({"onDeadline": policy}, then=1)
    life.a_field_is_edited({"progressDeadline": "2m"}, then=1)
    life.a_long_time_goes_by(3)
    assert life.world.share("v2") == (10 if policy == "Hold" else 0)
    life.gates_are_edited(ANALYSES[0], then=0)
    life.teardown()


@pytest.mark.parametrize("policy", ["Hold", "Rollback"])
def test_a_canary_without_series(policy: str) -> None:
    life = begin(analysis=ANALYSES[0] | {"onNoData": policy})
    life.world.canary_seen = False
    life.world.run(until=lambda w: w.share("v2") == 10)
    life.a_long_time_goes_by(3)
    assert life.world.share("v2") == (10 if policy == "Hold" else 0)
    life.teardown()


@pytest.mark.parametrize("names", [["gateway"], ["gateway", "reviews"]])
def test_a_lowering_by_somebody_else(names: list[str]) -> None:
    life = begin()
    reach(life, 30)
    for _ in range(2):
        for name in names:
            life.weights_are_changed(name, weight=0, canary="v2", then=0)
        life.time_goes_by(12)
    assert "WeightReasserted" in life.world.events
    life.teardown()


def test_a_lowering_on_one_route_while_the_next_weight_is_being_written() -> None:
    life = begin()
    reach(life, 30)
    while life.world.share("v2") != 50:
        life.world.pass_time(1)
    life.weights_are_changed("reviews", weight=0, canary="v2", then=1)
    assert (life.world.reason, life.world.shares("v2")) == ("WeightDrift", [0, 50])
    life.teardown()
    assert life.world.phase is Phase.STABLE


def test_a_gitops_tool_that_does_not_give_way() -> None:
    life = begin()
    reach(life, 30)
    life.a_gitops_tool_keeps_applying("gateway", then=0)
    life.a_long_time_goes_by(3)
    assert (life.world.reason, life.world.share("v2")) == ("WeightContested", 0)
    life.teardown()


def test_another_rollout_on_the_host() -> None:
    life = begin()
    reach(life, 10)
    life.another_rollout_claims_the_host(on=True, then=0)
    life.a_long_time_goes_by(3)
    assert (life.world.reason, life.world.share("v2")) == ("HostClaimed", 10)
    life.teardown()


@pytest.mark.parametrize("minutes", [-10, 10])
@pytest.mark.parametrize("restarted", [True, False])
def test_a_clock_that_is_set_and_set_right(minutes: int, restarted: bool) -> None:
    life = begin()
    reach(life, 10)
    life.the_clock_is_set(minutes, then=3)
    if restarted:
        life.the_operator_restarts(then=3)
    life.the_clock_is_set_right(then=3)
    life.teardown()
    assert life.world.phase is Phase.STABLE


def test_a_canary_that_dies_while_no_status_can_be_written() -> None:
    life = begin()
    reach(life, 10)
    life.a_dead_canary_would_be_taken_back_now()
    life.teardown()


def test_a_canary_that_is_dead_while_the_clock_is_set_back() -> None:
    life = begin()
    reach(life, 10)
    life.endpoints_change({"v1": 2}, then=1)
    life.the_clock_is_set(-10, then=20)
    assert life.world.share("v2") == 0
    life.teardown()
