from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from tests.unit.domain.watchedworld import WatchedWorld, on_two, set_to
from tests.unit.domain.watchedworld import at as watched_at
from tests.world import OURS, World, destination, destination_rule, spec, virtual_service


def at(world: World, weight: int) -> World:
    return world.run(until=lambda w: w.share("v2") == weight and w.state.rollout is not None)


def weights(canary: int) -> Any:
    def change(mesh: dict[str, Any]) -> None:
        mesh["http"][0]["route"][0]["weight"], mesh["http"][0]["route"][1]["weight"] = 100 - canary, canary

    return change


def lose_subset(world: World) -> None:
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]


def mesh_writes(world: World) -> list[str]:
    return [write for write in world.writes if "/" in write]


def test_a_weight_is_not_set_again_before_its_subset_is_back() -> None:
    world = at(World(), 10)
    world.run(5)
    world.edit("reviews", weights(0))
    lose_subset(world)
    before = len(mesh_writes(world))
    world.run(60, until=lambda w: len(mesh_writes(w)) == before + 2)
    assert mesh_writes(world)[before:] == ["AddSubset/reviews", "SetWeights/reviews"]
    assert world.share("v2") == 10


def test_a_raise_under_way_waits_for_a_subset_that_was_removed_meanwhile() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    lose_subset(world)
    world.refusing = frozenset()
    before = len(mesh_writes(world))
    world.run(60, until=lambda w: len(mesh_writes(w)) == before + 2)
    assert mesh_writes(world)[before:] == ["AddSubset/reviews", "SetWeights/reviews"]
    assert world.share("v2") == 30


def test_a_raise_under_way_waits_for_a_destination_rule_that_is_gone() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    rule, world.rule, world.refusing = world.rule, None, frozenset()
    world.run(60)
    assert world.phase is Phase.BLOCKED
    assert world.reason == "DestinationRuleNotFound"
    world.rule = rule
    world.run(5)
    assert world.share("v2") == 30


def test_what_passed_stays_on_record_once_for_each_weight() -> None:
    world = at(World(), 30)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.edit("reviews", weights(1))
    world.refusing = frozenset()
    world.run(until=lambda w: w.share("v2") == 50)
    record = world.state.rollout
    assert record is not None
    assert [step.weight for step in record.finished] == [10, 30]


def test_a_clock_set_back_while_a_person_is_awaited_leaves_a_status_that_can_be_read() -> None:
    world = World(rollout=spec(steps=[{"weight": 10, "approval": "Required"}, {"weight": 100}]))
    world.run(300, until=lambda w: w.reason == "AwaitingApproval")
    world.now -= timedelta(minutes=3)
    world.command = "approve/v2/1"
    for _ in range(2):
        world.step()
    record = world.state.rollout
    assert record is not None
    assert record.awaiting_since is None
    assert record.awaited_seconds == 0


def test_a_raise_under_way_is_given_up_where_the_canary_has_too_few_endpoints() -> None:
    world = at(World(rollout=spec(readiness={"minReady": 2, "unreadyGrace": "5m"})), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.refusing, world.ready = frozenset(), {"v1": 2, "v2": 1}
    world.step()
    assert world.state.message == "v2 has 1 ready endpoints and needs 2; it gets no more traffic"
    world.run(60)
    assert world.share("v2") == 10
    world.ready = {"v1": 2, "v2": 2}
    world.run(120)
    assert world.share("v2") > 10


def test_a_raise_under_way_goes_on_while_endpoints_cannot_be_read() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.refusing, world.ready = frozenset(), None
    world.run(3)
    assert world.share("v2") == 30


def test_a_raise_under_way_waits_while_the_mesh_cannot_be_read() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.refusing, world.api = frozenset(), False
    world.run(30)
    assert (world.phase, world.reason) == (Phase.PROGRESSING, "MeshUnreadable")
    world.api = True
    world.run(3)
    assert world.share("v2") == 30


def test_a_virtual_service_that_goes_during_a_raise_blocks_it() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.services.clear()
    world.run(30)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")
    record = world.state.rollout
    assert record is not None
    assert (record.weight, record.target is not None) == (10, True)


def test_weights_that_somebody_changes_during_a_raise_are_not_raised_further() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.edit("reviews", weights(5))
    world.refusing = frozenset()
    world.step()
    record = world.state.rollout
    assert record is not None
    assert (record.target, world.state.weight, world.share("v2")) == (None, 10, 5)
    assert "DriftDetected" in world.events
    world.run(15, until=lambda w: w.share("v2") != 5)
    assert world.share("v2") == 10


def test_an_edit_that_leaves_the_weights_does_not_end_a_raise() -> None:
    world = at(World(), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    world.edit("reviews", lambda mesh: mesh["http"][0].update(timeout="3s"))
    world.refusing = frozenset()
    world.run(3)
    assert world.share("v2") == 30
    assert "DriftDetected" not in world.events


def test_an_approval_counts_for_one_raise() -> None:
    steps = [{"weight": 10, "approval": "Required"}, {"weight": 50, "approval": "Required"}, {"weight": 100}]
    world = World(rollout=spec(steps=steps))
    world.run(300, until=lambda w: w.reason == "AwaitingApproval")
    world.command = "approve/v2/1"
    world.run(2)
    record = world.state.rollout
    assert record is not None
    assert (world.share("v2"), record.approved, record.awaiting_since) == (50, False, None)


def test_the_time_in_which_a_person_was_awaited_is_counted_from_the_next_weight_on() -> None:
    world = World(rollout=spec(paused=True)).run(90)
    world.apply(paused=False)
    world.run(until=lambda w: w.share("v2") == 10)
    record = world.state.rollout
    assert record is not None
    assert 75 <= record.awaited_seconds <= 90


def test_a_raise_that_one_of_two_virtual_services_refuses_goes_on_there_once_it_accepts() -> None:
    istio = {
        "virtualServices": [{"name": "reviews"}, {"name": "gateway", "routes": ["primary"]}],
        "destinationRule": {"name": "reviews"},
    }
    gateway = virtual_service("gateway", {"name": "primary", "route": [destination("v1", 100)]})
    world = at(World(rollout=spec(istio=istio), services={"reviews": virtual_service(), "gateway": gateway}), 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: sorted(w.shares("v2")) == [10, 30])
    world.run(20)
    assert sorted(world.shares("v2")) == [10, 30]
    world.refusing = frozenset()
    world.run(2)
    assert world.shares("v2") == [30, 30]
    assert "DriftDetected" not in world.events
    assert world.run().phase is Phase.STABLE


def test_which_objects_named_the_host_is_on_record_from_the_first_weight_on() -> None:
    assert watched_at(10).record.host_named_by == ("reviews",)
    world = at(World(rollout=spec(hold="5m")), 10)
    world.edit("reviews", lambda mesh: mesh.update(hosts=["ratings"]))
    world.run(10)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "HostsChanged")


def test_a_raise_under_way_goes_on_with_exactly_as_many_endpoints_as_required() -> None:
    world = watched_at(10, rollout=spec(readiness={"minReady": 2})).refused_raise()
    world.step()
    assert world.share("v2") == 30


def test_a_raise_that_was_given_up_for_want_of_endpoints_is_decided_anew() -> None:
    world = watched_at(10, rollout=spec(readiness={"minReady": 2, "unreadyGrace": "5m"})).refused_raise()
    world.ready = {"v1": 2, "v2": 1}
    world.step()
    assert world.record.target is None


def test_no_route_is_raised_while_another_cannot_be_read() -> None:
    world = on_two(10).refused_raise()
    world.unread = frozenset({"gateway"})
    world.run(20)
    assert (world.phase, world.reason, world.shares("v2")) == (Phase.PROGRESSING, "MeshUnreadable", [10, 10])
    world.unread = frozenset()
    world.run(3)
    assert world.shares("v2") == [30, 30]


def test_a_first_weight_that_another_wrote_in_part_is_brought_to_its_target() -> None:
    world = WatchedWorld(rule=destination_rule("v1", "v2")).refused_raise()
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.run(1)
    assert world.share("v2") == 10
    assert "DriftDetected" not in world.events


def test_a_route_that_is_listed_during_a_raise_is_raised_with_the_others() -> None:
    world = watched_at(10)
    world.services["gateway"] = gateway = virtual_service("gateway", {"route": [destination("v1", 100)]})
    gateway["metadata"]["managedFields"] = [{"manager": OURS, "fieldsV1": {"f:spec": {"f:http": {}}}}]
    world.refused_raise()
    listed = [{"name": "reviews"}, {"name": "gateway"}]
    world.apply(istio={"virtualServices": listed, "destinationRule": {"name": "reviews"}})
    world.run(2)
    assert world.shares("v2") == [30, 30]
    assert not {"DriftDetected", "RollbackResumed"} & set(world.events)


def test_more_than_the_target_is_no_rollback_that_was_under_way() -> None:
    world = watched_at(10).refused_raise()
    world.edit("reviews", weights(60), OURS)
    world.run(2)
    assert "RollbackResumed" not in world.events
    assert "DriftDetected" in world.events


def test_what_a_raise_was_planned_on_is_on_record_before_it_is_written() -> None:
    world = watched_at(10).refused_raise()
    world.refusing = frozenset({"reviews"})
    world.edit("reviews", lambda mesh: mesh["http"][0].update(timeout="3s"))
    world.step()
    target = world.record.target
    assert target is not None
    assert target.generations == {"reviews": world.services["reviews"]["metadata"]["generation"]}


def test_that_a_destination_rule_is_gone_is_said_in_its_own_words() -> None:
    world = watched_at(10).refused_raise()
    world.rule = None
    world.run(3)
    assert world.state.message == "DestinationRule reviews does not exist"


def test_a_promotion_ends_the_wait_for_the_end_of_a_pause() -> None:
    world = WatchedWorld(rollout=spec(paused=True))
    world.run(90)
    before = world.record
    assert before.awaiting_since is not None
    world.command = "promote/v2/1"
    world.step()
    assert (world.record.awaiting_since, world.record.target is not None) == (None, True)
    assert world.record.awaited_seconds >= 75


def test_traffic_beyond_the_target_of_a_raise_is_taken_to_the_weight_before_at_once() -> None:
    world = watched_at(10).refused_raise()
    world.edit("reviews", weights(60))
    world.step()
    assert world.share("v2") == 10


def _shared(**fields: Any) -> WatchedWorld:
    """Return a world whose VirtualService has a route of another host, which another CanaryRollout moves."""
    routes = [{"name": name, "route": [destination("v1", 100)]} for name in ("reviews", "ratings")]
    routes[1]["route"][0]["destination"]["host"] = "ratings"  # type: ignore[index]
    listed = [{"name": "reviews", "routes": ["reviews"]}]
    rollout = spec(istio={"virtualServices": listed, "destinationRule": {"name": "reviews"}})
    return WatchedWorld(rollout=rollout, services={"reviews": virtual_service("reviews", *routes)}, **fields)


def _other_rollout_writes(world: World) -> None:
    def change(mesh: dict[str, Any]) -> None:
        mesh["http"][1]["timeout"] = f"{world.passes}s"

    world.edit("reviews", change, OURS)


@pytest.mark.parametrize("weight", [0, 10, 30])
def test_a_raise_is_not_ended_by_another_rollout_that_writes_the_same_virtual_service(weight: int) -> None:
    world = _shared(rule=destination_rule("v1", "v2"))
    world.run(until=lambda w: w.share("v2") == weight and (not weight or w.state.weight == weight))
    world.refused_raise()
    _other_rollout_writes(world)
    world.run(until=lambda w: w.state.stable_version == "v2")
    assert world.shares("v2") == [100]
    assert not {"RollbackResumed", "DriftDetected"} & set(world.events)


def test_a_first_weight_that_was_taken_back_from_the_destination_added_for_it_is_not_given_again() -> None:
    world = on_two(0)
    world.ready, world.refusing = {"v1": 2, "v2": 2}, frozenset({"gateway"})
    world.run(until=lambda w: sorted(w.shares("v2")) == [0, 10])
    world.edit("reviews", weights(0), OURS)
    world.refusing = frozenset()
    world.run(3)
    assert "RollbackResumed" in world.events
    assert max(world.shares("v2")) == 0


def test_a_first_weight_that_only_one_of_two_virtual_services_has_is_judged() -> None:
    world = on_two(0)
    world.ready, world.refusing = {"v1": 2, "v2": 2}, frozenset({"gateway"})
    world.run(until=lambda w: w.shares("v2") == [10, 0])
    world.run(60)
    assert world.shares("v2") == [10, 0]
    assert world.state.rollout is not None
    assert not world.state.rollout.reason
    world.error_rate, since = lambda version, *_: 0.3 if version == "v2" else 0.0, world.now
    world.run(until=lambda w: w.shares("v2") == [0, 0])
    assert world.now - since < timedelta(seconds=30)
    assert world.run().phase is Phase.ROLLED_BACK
    assert "at 10 %: " in world.state.message
    assert world.reason == "GateFailed"


@pytest.mark.parametrize("before", [0, 10])
def test_traffic_beyond_the_target_is_taken_back_although_another_virtual_service_is_gone(before: int) -> None:
    world = on_two(before)
    world.ready, world.refusing = {"v1": 2, "v2": 2}, frozenset({"gateway"})
    world.run(until=lambda w: w.shares("v2")[0] > before and bool(w.failures))
    world.refusing, world.failures = frozenset(), {}
    del world.services["gateway"]
    world.edit("reviews", set_to(("v1", 10), ("v2", 90)))
    world.run(5)
    assert world.shares("v2") == [before]
    assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")
