"""A warning, before the first step, about requests that no listed route covers; it never keeps a rollout from going."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, Condition, Phase
from canaryrollout.domain.coverage import ASK_AGAIN_FOR, SHOWN, unanswered
from canaryrollout.domain.decide import decide_invalid
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Identity
from tests.world import NAMESPACE, SETTINGS, START, World, destination, spec, virtual_service

KIND = "TrafficCovered"
BY_MESH = "the mesh: no listed VirtualService is bound to it"


def at_the_gateway(**fields: Any) -> World:
    """Return a world whose only VirtualService is bound to a gateway."""
    service = virtual_service()
    service["spec"]["gateways"] = ["istio-ingress/public"]
    return World(services={"reviews": service}, **fields)


def conditions(world: World) -> list[str]:
    """Return which conditions there are."""
    return [condition.type for condition in world.state.conditions]


def asks(world: World) -> bool:
    """Return whether the next pass lists VirtualServices."""
    return needs(world.rollout, world.state, world._identity(), world.now, SETTINGS).references


def at(weight: int) -> Any:
    """Return whether the canary has a weight by now."""
    return lambda world: world.share("v2") == weight


class TestWarning:
    """Callers that no listed route covers."""

    def test_it_is_there_before_the_first_weight_and_until_the_rollout_ends(self) -> None:
        world = at_the_gateway(ready={"v1": 2}).run(60)
        assert (world.phase, world.reason) == (Phase.PREPARING, "WaitingForCanary")
        before = world.condition(KIND)
        assert (before.status, before.reason) == ("False", "UncoveredTraffic")
        assert before.message == (
            f"some callers of reviews meet v2 as soon as it is ready, whatever its weight: {BY_MESH}. List a route for "
            "them in spec.istio.virtualServices, or give them the subset of v1"
        )
        world.ready = {"v1": 2, "v2": 2}
        for weight in (10, 30, 50):
            assert world.run(until=at(weight)).condition(KIND) == before
        assert world.run(until=lambda w: w.phase is Phase.PROMOTING).condition(KIND) == before
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
        assert KIND not in conditions(world)
        assert world.events.count("UncoveredTraffic") == 1
        assert [entry.message for entry in world.state.history if entry.reason == "UncoveredTraffic"] == [
            before.message
        ]

    def test_it_stays_while_the_canary_is_taken_back(self) -> None:
        world = at_the_gateway().run(until=at(30))
        before = world.condition(KIND)
        world.command = "abort/v2/1"
        assert world.run(until=lambda w: w.phase is Phase.ROLLING_BACK).condition(KIND) == before
        world.run()
        assert world.phase is Phase.ROLLED_BACK
        assert KIND not in conditions(world)

    def test_promote_is_warned_of_as_well(self) -> None:
        world = at_the_gateway(ready={"v1": 2}).run(0.001)
        world.command = "promote/v2/1"
        world.run(60)
        assert world.condition(KIND).status == "False"
        world.ready = {"v1": 2, "v2": 2}
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
        assert world.events.count("UncoveredTraffic") == 1

    def test_the_next_rollout_is_warned_of_anew(self) -> None:
        world = at_the_gateway().run()
        world.apply(version="v3")
        world.run(until=lambda w: w.share("v3") == 10)
        assert "meet v3 as soon as" in world.condition(KIND).message
        assert world.events.count("UncoveredTraffic") == 2

    def test_a_version_that_supersedes_another_gets_a_warning_of_its_own(self) -> None:
        world = at_the_gateway().run(until=at(30))
        world.apply(version="v3")
        world.run(until=lambda w: w.share("v3") == 10)
        assert "meet v3 as soon as" in world.condition(KIND).message

    def test_a_retry_gets_a_warning_of_its_own(self) -> None:
        world = at_the_gateway().run(until=at(30))
        world.command = "abort/v2/1"
        world.run()
        world.command = "retry/v2/2"
        world.run(until=at(10))
        assert world.condition(KIND).status == "False"
        assert world.events.count("UncoveredTraffic") == 2

    def test_only_some_of_many_are_named(self) -> None:
        world = World()
        for index in range(SHOWN + 2):
            extra = virtual_service(f"extra-{index}", {"route": [destination(None)]})
            world.services[f"extra-{index}"] = extra
        world.run(60)
        message = world.condition(KIND).message
        assert f"shop/extra-{SHOWN - 1} is" in message
        assert f"shop/extra-{SHOWN} is" not in message
        assert "no subset; and 2 more. List a route" in message

    def test_a_restart_and_a_spec_that_cannot_be_used_keep_it(self) -> None:
        world = at_the_gateway().run(until=at(30))
        before = world.condition(KIND)
        world.restarted = True
        world.run(5)
        assert world.condition(KIND) == before
        invalid = decide_invalid(world.state, world._identity(), ["spec.steps: wrong"], world.now).status
        assert [condition for condition in invalid.conditions if condition.type == KIND] == [before]

    def test_whatever_dies_in_between_it_is_said(self) -> None:
        writes = len(at_the_gateway().run(until=at(10)).writes)
        for crash in range(1, writes + 1):
            for after in (False, True):
                world = at_the_gateway(crash_at=crash, crash_after=after).run(until=at(10))
                assert world.condition(KIND).reason == "UncoveredTraffic"

    def test_as_many_as_are_named_are_all(self) -> None:
        world = World()
        for index in range(SHOWN):
            world.services[f"extra-{index}"] = virtual_service(f"extra-{index}", {"route": [destination(None)]})
        world.run(60)
        message = world.condition(KIND).message
        assert f"shop/extra-{SHOWN - 1} is" in message
        assert "more. List a route" not in message


class TestCost:
    """VirtualServices are listed once before traffic moves."""

    def test_once_for_a_rollout_before_its_end(self) -> None:
        world = at_the_gateway(ready={"v1": 2}).run(120)
        assert world.listings == 1
        world.ready = {"v1": 2, "v2": 2}
        world.run(until=lambda w: w.phase is Phase.PROMOTING)
        assert world.listings == 1

    def test_nothing_at_rest(self) -> None:
        world = World().run()
        assert world.phase is Phase.STABLE
        assert not asks(world)

    def test_again_when_the_spec_has_changed(self) -> None:
        world = at_the_gateway(ready={"v1": 2}).run(60)
        world.services["inside"] = virtual_service("inside")
        world.run(60)
        assert world.condition(KIND).status == "False"
        routing = {"virtualServices": [{"name": "reviews"}, {"name": "inside"}], "destinationRule": {"name": "reviews"}}
        world.apply(istio=routing)
        world.run(60)
        found = world.condition(KIND)
        assert (found.status, found.reason) == ("True", "Covered")
        assert (
            found.message
            == "no caller of reviews meets v2 past the listed routes, as far as VirtualServices can be listed"
        )
        assert world.listings == 2

    def test_not_while_the_rollout_is_blocked_by_what_it_lists(self) -> None:
        routing = {"virtualServices": [{"name": "reviews"}, {"name": "inside"}], "destinationRule": {"name": "reviews"}}
        world = at_the_gateway(rollout=spec(version="v1", istio=routing))
        world.services["inside"] = inside = virtual_service("inside")
        world.run()
        del world.services["inside"]
        world.apply(version="v2")
        world.run(300)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")
        assert KIND not in conditions(world)
        asked = world.listings
        assert asked <= 1
        world.services["inside"] = inside
        world.run(until=at(10))
        assert world.condition(KIND).status == "True"
        assert world.listings == asked + 1


class TestUnreadable:
    """VirtualServices cannot be listed."""

    def test_it_is_tried_again_for_a_while_and_waited_for_by_nobody(self) -> None:
        world = at_the_gateway(listable=False, ready={"v1": 2}).run(30)
        found = world.condition(KIND)
        assert (found.status, found.reason) == ("Unknown", "VirtualServicesUnreadable")
        assert found.message.endswith("past the listed routes: VirtualServices could not be listed")
        assert "UncoveredTraffic" not in world.events
        assert asks(world)
        world.run(ASK_AGAIN_FOR.total_seconds())
        listings = world.listings
        assert not asks(world)
        world.run(60)
        assert world.listings == listings
        world.listable, world.ready = True, {"v1": 2, "v2": 2}
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")

    def test_it_is_found_out_once_they_can(self) -> None:
        world = at_the_gateway(listable=False, ready={"v1": 2}).run(30)
        world.listable = True
        world.run(30)
        assert world.condition(KIND).status == "False"
        assert world.events.count("UncoveredTraffic") == 1

    def test_the_status_is_not_written_for_it_again_and_again(self) -> None:
        world = at_the_gateway(listable=False, ready={"v1": 2}).run(30)
        writes = len(world.writes)
        assert len(world.run(200).writes) == writes


@pytest.mark.parametrize("weight", [0, 10])
def test_traffic_that_was_split_already_is_asked_about_only_before_it_has_a_weight(weight: int) -> None:
    split = virtual_service("reviews", {"route": [destination("v1", 100 - weight), destination("v2", weight)]})
    world = World(services={"reviews": split}, ready={"v1": 2} if not weight else {"v1": 2, "v2": 2})
    world.run(until=lambda w: w.now - START > timedelta(seconds=30))
    assert (world.listings == 1) is (weight == 0)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, True),
        ({"phase": Phase.BLOCKED, "observed_generation": 2}, False),
        ({"phase": Phase.BLOCKED, "observed_generation": 1}, True),
        ({"phase": Phase.PREPARING, "observed_generation": 2}, True),
        ({"seen": ("True", 2, 0)}, False),
        ({"seen": ("True", 1, 0)}, True),
        ({"seen": ("False", 2, 0)}, False),
        ({"seen": ("Unknown", 2, 0.999)}, True),
        ({"seen": ("Unknown", 2, 1)}, False),
    ],
)
def test_it_is_found_out_once_for_each_edit_of_the_spec(status: dict[str, Any], expected: bool) -> None:
    fields = dict(status)
    if found := fields.pop("seen", None):
        state, generation, waits = found
        since = START - waits * ASK_AGAIN_FOR
        condition = Condition(
            type=KIND, status=state, reason="x", last_transition_time=since, observed_generation=generation
        )
        fields["conditions"] = (condition,)
    who = Identity(NAMESPACE, "reviews", "uid-1", 2, START)
    assert unanswered(CanaryRolloutStatus(**fields), who, START) is expected
