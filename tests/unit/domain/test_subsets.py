"""Subsets: found by label, added where there is none, and put back where somebody took them away."""

from __future__ import annotations

from typing import Any

from canaryrollout.api.status import ChangeKind, Phase
from tests.world import World, destination, destination_rule, virtual_service


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
