"""Routes in terms of versions, and which patches bring a weight to them."""

from __future__ import annotations

import pytest

from canaryrollout.domain.observation import (
    Destination,
    DestinationRuleState,
    Mesh,
    Missing,
    Refused,
    Subset,
    Unreadable,
    VirtualServiceState,
    Weights,
)
from canaryrollout.domain.routes import RouteView, lower, shift, view

RULE = DestinationRuleState("reviews", 1, (Subset("one", "v1"), Subset("two", "v2"), Subset("all", None)))
SUBSETS = {"v1": "one", "v2": "two"}


def service(name: str, **routes: list[tuple[str | None, int]]) -> VirtualServiceState:
    states = {route: Weights(tuple(Destination(s, w) for s, w in split)) for route, split in routes.items()}
    return VirtualServiceState(name, 1, "kubectl", False, states)


def mesh(*services: VirtualServiceState) -> Mesh:
    return Mesh({found.name: found for found in services}, RULE)


def only(split: list[tuple[str | None, int]]) -> RouteView:
    (route,) = view(mesh(service("reviews", primary=split)), {}).routes
    return route


class TestView:
    def test_a_route_is_shown_with_versions_and_shares(self) -> None:
        route = only([("one", 70), ("two", 20), (None, 10), ("all", 0)])
        assert route.name == "reviews/primary"
        assert route.serving() == {"v1": 70, "v2": 20, None: 10}
        assert route.shares() == "v1 70 / v2 20 / no single version 10"
        assert (route.weight_of("v2"), route.weight_of("v3")) == (20, 0)

    def test_two_destinations_of_one_version_are_summed(self) -> None:
        assert only([("one", 70), ("one", 30)]).serving() == {"v1": 100}

    def test_of_two_subsets_of_a_version_the_one_with_traffic_is_used(self) -> None:
        rule = DestinationRuleState("reviews", 1, (Subset("one", "v1"), Subset("uno", "v1")))
        found = service("reviews", primary=[("one", 0), ("uno", 100)])
        (route,) = view(Mesh({"reviews": found}, rule), {}).routes
        assert route.subset_of("v1") == "uno"
        assert route.subset_of("v2") is None

    def test_a_rule_that_cannot_be_read_leaves_what_status_remembers(self) -> None:
        observed = Mesh({"reviews": service("reviews", primary=[("one", 90), ("two", 10)])}, Unreadable("timeout"))
        seen = view(observed, SUBSETS)
        assert seen.routes[0].serving() == {"v1": 90, "v2": 10}
        assert seen.rule is None
        assert seen.rule_flaw == Unreadable("timeout")

    def test_the_rule_knows_better_than_what_status_remembers(self) -> None:
        assert view(mesh(service("reviews", primary=[("two", 100)])), {"v9": "two"}).routes[0].serving() == {"v2": 100}

    def test_what_cannot_be_used_is_kept_apart(self) -> None:
        refused = Refused("Mirrored", "route shadow mirrors")
        odd = VirtualServiceState("gateway", 1, "", False, {"shadow": refused})
        away, missing = Unreadable("timeout"), Missing("VirtualServiceNotFound", "no such thing")
        seen = view(Mesh({"a": away, "b": missing, "gateway": odd}, RULE), {})
        assert (seen.routes, seen.flaws, seen.unreadable) == ((), (missing, refused), ("timeout",))

    def test_a_mesh_that_was_not_read_is_unreadable(self) -> None:
        seen = view(None, SUBSETS)
        assert seen.unreadable
        assert not seen.complete()

    def test_a_weight_is_reached_when_every_listed_route_shows_it(self) -> None:
        both = mesh(service("a", x=[("one", 90), ("two", 10)]), service("b", x=[("one", 70), ("two", 30)]))
        assert not view(both, {}).at("v2", 10)
        assert view(mesh(service("a", x=[("one", 90), ("two", 10)])), {}).at("v2", 10)

    @pytest.mark.parametrize("other", [Unreadable("timeout"), Missing("VirtualServiceNotFound", "gone")])
    def test_a_route_that_is_not_seen_has_not_reached_any_weight(self, other: Unreadable | Missing) -> None:
        first = service("a", x=[("one", 90), ("two", 10)])
        seen = view(Mesh({"a": first, "b": other}, RULE), {})
        assert not seen.at("v2", 10)


class TestShift:
    def test_each_virtual_service_gets_one_patch_of_the_routes_that_differ(self) -> None:
        first = service("a", x=[("one", 90), ("two", 10)], y=[("one", 70), ("two", 30)], z=[("one", 100)])
        second = service("b", x=[("one", 70), ("two", 30)])
        (action,) = shift(view(mesh(first, second), {}), "v1", "v2", 30, SUBSETS)
        assert action.found.name == "a"
        assert {target.route: target.weights for target in action.routes} == {
            "x": {"one": 70, "two": 30},
            "z": {"one": 70, "two": 30},
        }

    def test_a_third_version_loses_its_traffic(self) -> None:
        seen = view(mesh(service("a", x=[("one", 60), ("two", 30), ("all", 10)])), {})
        (action,) = shift(seen, "v1", "v2", 30, SUBSETS)
        assert action.routes[0].weights == {"one": 70, "two": 30}

    def test_a_canary_without_a_subset_gets_nothing(self) -> None:
        seen = view(mesh(service("a", x=[("one", 100)])), {})
        assert shift(seen, "v1", "v9", 30, {"v1": "one"}) == ()

    def test_nobody_is_at_0_on_a_route_that_does_not_name_it(self) -> None:
        seen = view(mesh(service("a", x=[(None, 100)])), {})
        (action,) = shift(seen, "v1", "v2", 0, SUBSETS)
        assert action.routes[0].weights == {"one": 100}

    def test_a_new_destination_is_a_copy_of_stables(self) -> None:
        seen = view(mesh(service("a", x=[("all", 80), ("one", 20)])), {})
        (action,) = shift(seen, "v1", "v2", 10, SUBSETS)
        assert action.routes[0].template == "one"

    def test_without_stable_it_is_a_copy_of_the_one_with_the_most_traffic(self) -> None:
        seen = view(mesh(service("a", x=[("all", 20), ("two", 80)])), {})
        (action,) = shift(seen, "v1", "v2", 10, SUBSETS)
        assert action.routes[0].template == "two"

    def test_the_subset_that_a_route_names_goes_before_the_one_that_is_remembered(self) -> None:
        seen = view(mesh(service("a", x=[("one", 100)])), {})
        (action,) = shift(seen, "v1", "v2", 10, {"v1": "uno", "v2": "two"})
        assert action.routes[0].weights == {"one": 90, "two": 10}


class TestLower:
    def test_only_routes_with_the_canary_are_touched(self) -> None:
        first = service("a", x=[("one", 90), ("two", 10)], y=[("one", 60), ("all", 40)])
        (action,) = lower(view(mesh(first), {}), "v1", "v2", SUBSETS)
        assert {target.route: target.weights for target in action.routes} == {"x": {"one": 100, "two": 0}}

    def test_it_needs_no_rule_but_what_status_remembers(self) -> None:
        observed = Mesh({"a": service("a", x=[("one", 90), ("two", 10)])}, Missing("DestinationRuleNotFound", "gone"))
        (action,) = lower(view(observed, SUBSETS), "v1", "v2", SUBSETS)
        assert action.routes[0].weights == {"one": 100, "two": 0}


def test_a_route_at_its_weight_is_not_written_for_what_others_have_at_0() -> None:
    seen = view(mesh(service("a", x=[("one", 90), ("two", 10), ("all", 0), (None, 0)])), {})
    assert shift(seen, "v1", "v2", 10, SUBSETS) == ()


def test_a_route_without_destinations_gains_them_from_nowhere() -> None:
    seen = view(mesh(service("a", x=[])), {})
    (action,) = shift(seen, "v1", "v2", 10, SUBSETS)
    assert [(found.weights, found.template) for found in action.routes] == [({"one": 90, "two": 10}, None)]
