from __future__ import annotations

from datetime import timedelta
from typing import Any

from canaryrollout.api.status import Phase
from tests.world import World, destination, spec, virtual_service


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
