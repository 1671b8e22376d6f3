"""Make before break: what comes before the first weight, in which order, and what ends the wait for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from canaryrollout.domain.decide import decide
from canaryrollout.domain.observation import Observation
from canaryrollout.domain.prepare import baseline_window
from canaryrollout.domain.settings import DomainSettings
from tests.unit.domain.watchedworld import WatchedWorld, on_two, set_to
from tests.world import START, World, destination, destination_rule, spec, virtual_service


def plain() -> dict[str, Any]:
    """Return a VirtualService whose route names no subset."""
    return {"reviews": virtual_service("reviews", {"route": [destination(None)]})}


def mesh_writes(world: World) -> list[str]:
    return [write for write in world.writes if write != "status"]


def until_weight(world: World, weight: int) -> World:
    return world.run(until=lambda w: w.share("v2") == weight)


def test_each_thing_comes_after_what_it_needs() -> None:
    world = World(services=plain(), ready={"v1": 2}).run(30)
    assert mesh_writes(world) == ["finalizer", "AddSubset/reviews", "SetWeights/reviews"]
    assert (world.share("v1"), world.share("v2"), world.reason) == (100, 0, "WaitingForCanary")


def test_no_route_names_a_subset_before_the_mesh_had_time_to_learn_of_it() -> None:
    world = World(services=plain(), ready={"v1": 2})
    world.run(until=lambda w: "AddSubset/reviews" in w.writes)
    added = world.now
    world.run(until=lambda w: "SetWeights/reviews" in w.writes)
    assert world.now - added >= timedelta(seconds=5)


def test_a_plain_route_is_not_pinned_to_a_stable_version_that_is_gone() -> None:
    world = World(services=plain(), ready={"v1": 2})
    world.run(3)
    world.ready = {"v2": 2}
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "StableGone")
    assert "reviews cannot be pinned to v1" in world.state.message
    assert "SetWeights/reviews" not in world.writes


def test_a_canary_that_gets_traffic_early_is_taken_to_0_first() -> None:
    world = World(ready={"v1": 2}).run(30)
    assert world.reason == "WaitingForCanary"
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 60), destination("v2", 40)]))
    world.run(2)
    assert world.share("v2") == 0
    world.ready = {"v1": 2, "v2": 2}
    assert world.run().phase is Phase.STABLE


def test_traffic_that_the_canary_has_early_stays_while_stable_does_not_answer() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 60), destination("v2", 40)]))
    world.ready = {"v2": 2}
    world.run(60)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "StableGone", 40)
    assert world.state.message == (
        "v2 has traffic on reviews before its first step, but v1 has no ready endpoint: traffic stays until it has one"
    )
    world.ready = {"v1": 2, "v2": 2}
    assert world.run().phase is Phase.STABLE
    assert [weight for _, weight in world.weights][:4] == [0, 40, 0, 10]


def test_a_promotion_of_a_canary_with_early_traffic_goes_on_while_stable_does_not_answer() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 60), destination("v2", 40)]))
    world.ready, world.command = {"v2": 2}, "promote/v2/1"
    world.run(30)
    assert world.share("v2") == 100
    assert min(weight for _, weight in world.weights[1:]) == 40


def test_a_canary_that_has_everything_while_stable_does_not_answer_keeps_it() -> None:
    world = World(rollout=spec(version="v1"), rule=destination_rule("v1", "v2")).run()
    world.ready = {"v2": 2}
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 0), destination("v2", 100)]))
    world.run(120)
    world.apply(version="v2")
    world.run()
    assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
    assert "SetWeights/reviews" not in world.writes
    assert "ServingVersionGone" in world.events


def test_exactly_as_many_endpoints_as_required_are_enough() -> None:
    world = World(rollout=spec(readiness={"minReady": 2}), ready={"v1": 2, "v2": 1}).run(30)
    assert (world.reason, world.state.message) == (
        "WaitingForCanary",
        "waiting for ready endpoints of v2: 1 of 2",
    )
    world.ready = {"v1": 2, "v2": 2}
    assert world.run().state.stable_version == "v2"


def test_unknown_endpoints_are_not_enough() -> None:
    world = World().run(1)
    world.ready = None
    world.run(60)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.PREPARING, "EndpointsUnreadable", 0)
    assert world.state.message == "endpoints cannot be read"


def test_without_a_destination_rule_nothing_begins() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.rule = None
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "DestinationRuleNotFound")
    world.rule, world.ready = destination_rule("v1"), {"v1": 2, "v2": 2}
    assert until_weight(world, 10).phase is not Phase.BLOCKED


def test_a_mesh_that_cannot_be_read_is_waited_for() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.api = False
    world.run(60)
    assert (world.phase, world.reason) == (Phase.PREPARING, "MeshUnreadable")
    assert "the API server does not answer" in world.state.message


def test_a_virtual_service_that_goes_while_the_canary_is_awaited_blocks() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.services.clear()
    world.run(30)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")


def test_a_pause_before_the_first_weight_holds_it_for_any_time() -> None:
    world = World(rollout=spec(paused=True)).run(3600)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.PAUSED, "Paused", 0)
    assert world.state.message == "ready to give v2 traffic; spec.paused is true"
    assert world.events.count("Paused") == 1
    world.apply(paused=False)
    world.run(10)
    assert world.share("v2") == 10


def test_a_promotion_does_not_wait_for_the_end_of_a_pause() -> None:
    world = World(rollout=spec(paused=True)).run(60)
    world.command = "promote/v2/1"
    world.run(30)
    assert world.share("v2") == 100


def test_a_canary_that_is_ready_when_its_time_is_over_is_not_called_unready() -> None:
    world = World(found=None).run()
    record = world.state.rollout
    assert record is not None
    assert record.reason == "DeadlineExceeded"
    assert record.explanation.startswith("v2 was not ready for traffic within 10m: ")


def test_time_is_over_at_the_deadline_and_not_before() -> None:
    world = World(ready={"v1": 2})
    world.run(until=lambda w: w.phase is Phase.ROLLING_BACK)
    started = next(entry.time for entry in world.state.history if entry.reason == "RolloutStarted")
    assert timedelta(minutes=10) <= world.now - started < timedelta(minutes=10, seconds=6)


def test_requests_that_reach_nobody_are_counted_before_the_rollout() -> None:
    assert baseline_window(START, timedelta(seconds=60)) == (START - timedelta(seconds=60), START)


def test_one_virtual_service_that_cannot_be_read_holds_what_comes_next() -> None:
    world = on_two(0)
    world.unread, world.ready = frozenset({"gateway"}), {"v1": 2, "v2": 2}
    world.run(60)
    assert (world.phase, world.reason, world.state.message) == (Phase.PREPARING, "MeshUnreadable", "timeout")
    assert "SetWeights/reviews" not in world.writes
    world.rule = None
    world.run(10)
    assert (world.phase, world.reason) == (Phase.PREPARING, "MeshUnreadable")


def test_a_destination_rule_that_cannot_be_read_holds_it_too() -> None:
    world = WatchedWorld(ready={"v1": 2})
    world.run(30)
    world.rule_unread = True
    world.run(10)
    assert (world.phase, world.reason, world.state.message) == (Phase.PREPARING, "MeshUnreadable", "timeout")


def test_endpoints_that_cannot_be_read_have_a_deadline_too() -> None:
    world = World().run(1)
    world.ready = None
    world.run()
    assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")


def test_as_many_endpoints_as_required_are_not_called_too_few() -> None:
    world = World(found=None, ready={"v1": 2, "v2": 1}).run()
    assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")


def test_it_is_over_at_the_very_moment_of_the_deadline() -> None:
    world = World(ready={"v1": 2}).run(60)
    due = world.state.deadline
    assert due is not None
    world.now = due - timedelta(milliseconds=1)
    assert world.step().status.phase is Phase.PREPARING
    world.now = due
    assert world.step().status.phase is Phase.ROLLING_BACK


def test_a_canary_that_has_everything_is_found_once() -> None:
    world = World(rollout=spec(version="v1"), rule=destination_rule("v1", "v2")).run()
    world.ready = {"v2": 2}
    world.edit("reviews", set_to(("v1", 0), ("v2", 100)))
    world.run(120)
    world.apply(version="v2")
    world.run(60)
    assert world.events.count("ServingVersionGone") == 1


def test_a_canary_that_has_everything_on_one_of_two_routes_is_not_promoted_for_that() -> None:
    world = on_two(0)
    world.ready = {"v2": 2}
    world.edit("reviews", set_to(("v1", 0), ("v2", 100)))
    world.run(60)
    assert (world.phase, world.reason, world.shares("v2")) == (Phase.BLOCKED, "StableGone", [100, 0])
    assert not world.record.promote


def test_a_promotion_takes_nothing_from_a_canary_beside_plain_traffic() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.edit("reviews", set_to((None, 60), ("v2", 40)))
    world.ready, world.command = {"v2": 2}, "promote/v2/1"
    world.run(30)
    assert world.share("v2") == 100
    assert min(weight for _, weight in world.weights[1:]) == 40


@pytest.mark.parametrize(("lag", "unknown"), [({}, False), ({"thanos": timedelta()}, True)])
def test_a_provider_is_unknown_where_others_are_defined(lag: dict[str, timedelta], unknown: bool) -> None:
    world = World().run(0.001)
    seen = Observation(world._identity(), world._mesh(references=False), world._endpoints())
    decision = decide(world.rollout, world.state, seen, world.now, DomainSettings(lag=lag))
    if decision.status.phase is Phase.PREPARING and decision.again:
        decision = decide(world.rollout, decision.status, seen, world.now, DomainSettings(lag=lag))
    ready = next(c for c in decision.status.conditions if c.type == "Ready")
    assert (ready.reason == "ProviderUnknown") is unknown
    assert ("use one of thanos" in decision.status.message) is unknown


@pytest.mark.parametrize(("finalizer", "stable", "share"), [(True, 2, 0), (False, 2, 40), (True, 0, 40)])
def test_a_canary_that_gets_traffic_early_is_taken_to_0_although_another_virtual_service_is_gone(
    finalizer: bool, stable: int, share: int
) -> None:
    """Nothing is written without the finalizer, by which it would be undone, nor in favor of a version that is gone."""
    world = on_two(0)
    world.ready = {"v1": stable}
    del world.services["gateway"]
    world.edit("reviews", set_to(("v1", 60), ("v2", 40)))
    world.finalizer = finalizer
    world.run(60)
    assert world.shares("v2") == [share]
    assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")
