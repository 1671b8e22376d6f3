"""Subsets: found by label, added where there is none, and put back where somebody took them away."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import ChangeKind, Phase
from canaryrollout.domain.decision import AddSubset
from tests.world import World, destination, destination_rule, spec, virtual_service


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def subsets(world: World) -> dict[str, str]:
    assert world.rule is not None
    return {entry["name"]: entry["labels"]["version"] for entry in world.rule["spec"]["subsets"]}


def named(**names: str) -> dict[str, Any]:
    rule = destination_rule()
    rule["spec"]["subsets"] = [{"name": name, "labels": {"version": v}} for name, v in names.items()]
    return rule


def test_a_subset_is_found_by_its_label_whatever_its_name() -> None:
    services = {"reviews": virtual_service("reviews", {"route": [destination("main")]})}
    world = at(10, services=services, rule=named(main="v1", next="v2"))
    assert world.state.subsets == {"v1": "main", "v2": "next"}
    assert "AddSubset/reviews" not in world.writes
    assert world.run().phase is Phase.STABLE


def test_of_two_subsets_the_one_that_a_route_names_is_used() -> None:
    services = {"reviews": virtual_service("reviews", {"route": [destination("uno")]})}
    world = at(10, services=services, rule=named(one="v1", uno="v1"))
    assert world.state.subsets["v1"] == "uno"


def test_a_subset_that_is_added_copies_stables_and_is_on_record() -> None:
    rule = named(other="v3", v1="v1")
    rule["spec"]["subsets"][1]["trafficPolicy"] = {"tls": {"mode": "DISABLE"}}
    world = at(10, rule=rule)
    assert world.rule is not None
    added = world.rule["spec"]["subsets"][-1]
    assert added == {"name": "v2", "labels": {"version": "v2"}, "trafficPolicy": {"tls": {"mode": "DISABLE"}}}
    assert [(c.subset, c.version) for c in world.state.changes if c.kind is ChangeKind.SUBSET] == [("v2", "v2")]


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    world = at(10, rule=named(v1="v1", v2="v9"))
    name = world.state.subsets["v2"]
    assert name != "v2"
    assert subsets(world) == {"v1": "v1", "v2": "v9", name: "v2"}


def test_a_subset_comes_back_under_the_name_that_routes_know() -> None:
    world = at(10, rule=named(v1="v1", v2="v9"))
    name = world.state.subsets["v2"]
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]
    world.run(3)
    assert subsets(world) == {"v1": "v1", name: "v2"}
    assert world.events.count("SubsetLost") == 1


def test_stables_subset_comes_back_too() -> None:
    world = at(10)
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v2"]
    world.run(3)
    assert subsets(world) == {"v2": "v2", "v1": "v1"}


class TestAtRest:
    """The subset of the version that was promoted last, where it was ours."""

    def promoted(self) -> World:
        world = World().run()
        assert world.state.stable_version == "v2"
        return world

    def lose(self, world: World, name: str) -> None:
        assert world.rule is not None
        world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] != name]

    def test_it_comes_back(self) -> None:
        world = self.promoted()
        self.lose(world, "v2")
        world.run(10)
        assert subsets(world)["v2"] == "v2"
        assert world.phase is Phase.STABLE

    def test_what_was_never_ours_is_not_our_business(self) -> None:
        world = self.promoted()
        self.lose(world, "v1")
        before = list(world.writes)
        world.run(10)
        assert world.writes == before

    def test_a_rule_that_is_gone_is_left_alone(self) -> None:
        world = self.promoted()
        world.rule = None
        before = len([write for write in world.writes if "/" in write])
        world.run(10)
        assert len([write for write in world.writes if "/" in write]) == before

    def test_it_comes_back_also_where_the_destination_was_not_ours(self) -> None:
        services = {"reviews": virtual_service("reviews", {"route": [destination("v1", 100), destination("v2", 0)]})}
        world = World(services=services).run()
        assert world.state.stable_version == "v2"
        self.lose(world, "v2")
        world.run(10)
        assert subsets(world)["v2"] == "v2"

    def test_it_comes_back_for_one_route_that_names_it(self) -> None:
        world = self.promoted()
        world.services["gateway"] = virtual_service("gateway", {"route": [destination(None)]})
        listed = [{"name": "reviews"}, {"name": "gateway"}]
        world.apply(istio={"virtualServices": listed, "destinationRule": {"name": "reviews"}})
        world.run(5)
        self.lose(world, "v2")
        world.run(10)
        assert subsets(world)["v2"] == "v2"

    def test_it_stays_away_where_no_route_names_it(self) -> None:
        rule = destination_rule()
        rule["spec"]["subsets"] = []
        plain = {"reviews": virtual_service("reviews", {"route": [destination(None)]})}
        world = World(services=plain, rule=rule, rollout=spec(initialStableVersion="v1"), ready={"v1": 2})
        world.run(until=lambda w: set(subsets(w)) == {"v1", "v2"})
        world.command = "abort/v2/1"
        world.run()
        assert (world.phase, subsets(world)) == (Phase.ROLLED_BACK, {"v1": "v1"})
        self.lose(world, "v1")
        self.assert_left_alone(world)

    @pytest.mark.parametrize("other", [False, True])
    @pytest.mark.parametrize("plain", [False, True])
    def test_the_authors_own_is_not_our_business_though_something_else_is_ours(self, other: bool, plain: bool) -> None:
        route = {"route": [destination(None if plain else "v1")]}
        world = at(10, services={"reviews": virtual_service("reviews", route)}, rollout=spec(initialStableVersion="v1"))
        if other:
            kept = {"route": [destination("v2", 0), destination("v1", 100)]}
            world.services["other"] = virtual_service("other", kept)
        world.command = "abort/v2/1"
        world.run()
        assert (world.phase, "v2" in subsets(world)) == (Phase.ROLLED_BACK, other)
        self.lose(world, "v1")
        self.assert_left_alone(world)

    def assert_left_alone(self, world: World) -> None:
        before = len([write for write in world.writes if "/" in write])
        world.run(10)
        assert len([write for write in world.writes if "/" in write]) == before


def test_a_name_that_now_stands_for_another_version_is_left_to_it() -> None:
    world = World(ready={"v1": 2})
    world.run(until=lambda w: w.reason == "WaitingForCanary")
    assert world.rule is not None
    world.rule["spec"]["subsets"][1]["labels"] = {"version": "v9"}
    decision = world.step()
    (action,) = decision.actions
    assert isinstance(action, AddSubset)
    assert action.name not in ("v1", "v2")
    assert world.state.subsets["v2"] == action.name, "on record before it is written"
    assert subsets(world) == {"v1": "v1", "v2": "v9", action.name: "v2"}


def test_the_mesh_has_its_time_again_to_learn_of_a_subset_that_was_lost() -> None:
    world = World(ready={"v1": 2})
    world.run(until=lambda w: w.reason == "WaitingForCanary")
    world.run(30)
    assert world.rule is not None
    world.rule["spec"]["subsets"].pop()
    world.ready = {"v1": 2, "v2": 2}
    world.step()
    added = world.now
    assert "v2" in subsets(world)
    world.run(until=lambda w: w.share("v2") == 10)
    assert world.now - added >= timedelta(seconds=5)


def test_the_subset_of_a_version_that_is_being_promoted_comes_back_before_the_clean_up() -> None:
    world = World().run()
    world.apply(version="v3")
    world.run(until=lambda w: w.phase is Phase.PROMOTING)
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] != "v3"]
    before = len(world.writes)
    world.run(60)
    mesh = [write for write in world.writes[before:] if "/" in write]
    assert mesh[0] == "AddSubset/reviews"
    assert subsets(world) == {"v1": "v1", "v3": "v3"}


def test_a_subset_of_the_promoted_version_is_added_again_before_anything_else_is_removed() -> None:
    world = World().run(until=lambda w: w.phase is Phase.PROMOTING)
    world.rule = destination_rule("v1")
    world.run(2)
    assert world.phase is Phase.PROMOTING
    assert {subset["name"] for subset in world.rule["spec"]["subsets"]} == {"v1", "v2"}
