"""The record of what was altered: what goes on it, what stays, what comes off."""

from __future__ import annotations

from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.changes import changes_after_cleanup, changes_of, merge_changes, plan_route
from canaryrollout.domain.decision import (
    AddSubset,
    CleanRoutes,
    RemoveSubsets,
    RouteCleanup,
    RouteWeights,
    SetFinalizer,
    SetWeights,
)
from canaryrollout.domain.observation import (
    Destination,
    DestinationRuleState,
    Refused,
    RouteState,
    VirtualServiceState,
    Weights,
)


def found(**routes: RouteState) -> VirtualServiceState:
    return VirtualServiceState("reviews", 1, "kubectl", False, routes)


def weight(route: str, subset: str, original: int | None) -> Change:
    return Change(kind=ChangeKind.WEIGHT, object="reviews", route=route, subset=subset, original=original)


def destination(route: str, subset: str, version: str = "") -> Change:
    return Change(kind=ChangeKind.DESTINATION, object="reviews", route=route, subset=subset, version=version)


def subset(name: str, original: int | None = None) -> Change:
    return Change(kind=ChangeKind.SUBSET, object="reviews", subset=name, version=name, original=original)


SINGLE = Weights((Destination("v1", 100),))
SPLIT = Weights((Destination("v1", 75, 3), Destination("v2", 25, 1), Destination(None, 0)))


def test_a_plan_writes_what_differs_and_adds_what_is_missing() -> None:
    plan = plan_route(SPLIT, RouteWeights("", {"v1": 100}, "v1"))
    assert (plan.write, plan.add) == ({"v1": 100, "v2": 0}, {})
    plan = plan_route(SINGLE, RouteWeights("", {"v1": 90, "v2": 10}, "v1"))
    assert (plan.write, plan.add) == ({"v1": 90}, {"v2": 10})
    plan = plan_route(SINGLE, RouteWeights("", {"v1": 100}, "v1"))
    assert (plan.write, plan.add) == ({}, {})
    plan = plan_route(SPLIT, RouteWeights("", {"": 100}, None))
    assert (plan.write, plan.add) == ({"v1": 0, "v2": 0, "": 100}, {})


def test_weights_are_recorded_with_what_their_author_wrote() -> None:
    targets = tuple(RouteWeights(route, {"v1": 90, "v2": 10}, "v1") for route in ("a", "b"))
    action = SetWeights(found(a=SINGLE, b=SPLIT), targets)
    assert changes_of(action, {"2.0": "v2"}) == (
        weight("a", "v1", None),
        destination("a", "v2", "2.0"),
        weight("b", "v1", 3),
        weight("b", "v2", 1),
    )


def test_a_route_that_is_refused_is_not_altered() -> None:
    action = SetWeights(found(a=Refused("RouteDelegates", "")), (RouteWeights("a", {"v1": 100}, "v1"),))
    assert changes_of(action) == ()


def test_an_added_subset_remembers_an_empty_list() -> None:
    for empty, original in ((False, None), (True, 0)):
        rule = DestinationRuleState("reviews", 1, (), empty_list=empty)
        assert changes_of(AddSubset(rule, "v2", "v2", "version", None)) == (subset("v2", original),)


def test_taking_away_and_bookkeeping_record_nothing() -> None:
    rule = DestinationRuleState("reviews", 1, ())
    for action in (CleanRoutes(found(), ()), RemoveSubsets(rule, ("v2",)), SetFinalizer(True)):
        assert changes_of(action) == ()


def test_the_first_record_of_a_leaf_stays() -> None:
    first = (weight("a", "v1", None), destination("a", "v2"))
    later = (weight("a", "v1", 90), weight("a", "v2", 10), weight("b", "v1", 100), subset("v2"))
    assert merge_changes(first, later) == (*first, weight("b", "v1", 100), subset("v2"))
    assert merge_changes((), later) == later


def test_a_clean_up_takes_removed_destinations_and_restored_weights_off_the_record() -> None:
    record = (
        subset("v2"),
        weight("a", "v1", None),
        destination("a", "v2"),
        weight("b", "v1", 3),
        destination("b", "v2"),
    )
    action = CleanRoutes(found(), (RouteCleanup("a", ("v2",), {"v1": None}), RouteCleanup("b", ("v2",), {})))
    assert changes_after_cleanup(record, action) == (subset("v2"), weight("b", "v1", 3))


def test_a_clean_up_of_one_object_leaves_the_record_of_another() -> None:
    other = Change(kind=ChangeKind.DESTINATION, object="edge", route="a", subset="v2")
    action = CleanRoutes(found(), (RouteCleanup("a", ("v2",), {}),))
    assert changes_after_cleanup((other,), action) == (other,)
    assert changes_after_cleanup((other,), SetFinalizer(False)) == (other,)


def test_that_the_list_was_empty_outlives_the_first_subset() -> None:
    rule = DestinationRuleState("reviews", 1, ())
    record = (subset("v2", 0), subset("v3"))
    assert changes_after_cleanup(record, RemoveSubsets(rule, ("v2",))) == (subset("v3", 0),)
    assert changes_after_cleanup(record, RemoveSubsets(rule, ("v2", "v3"))) == ()


def test_a_subset_and_a_destination_of_one_name_are_two_changes() -> None:
    route = Change(kind=ChangeKind.DESTINATION, object="reviews", route="", subset="v2", version="v2")
    rule = Change(kind=ChangeKind.SUBSET, object="reviews", subset="v2", version="v2")
    assert merge_changes([route], [rule]) == (route, rule)
    assert merge_changes([rule], [route]) == (rule, route)


def test_a_single_destination_says_so_once_another_comes_beside_it() -> None:
    """Alone it has everything without a weight; beside another it would have nothing."""
    plan = plan_route(Weights((Destination("v1", 100),)), RouteWeights("", {"v1": 100, "v2": 0}, "v1"))
    assert (plan.write, plan.add) == ({"v1": 100}, {"v2": 0})
    plan = plan_route(Weights((Destination("v1", 100),)), RouteWeights("", {"v1": 0, "v2": 100}, "v1"))
    assert (plan.write, plan.add) == ({}, {"v2": 100})


def test_that_a_list_was_empty_is_known_of_that_list_alone() -> None:
    rule = DestinationRuleState("reviews", 1, ())
    elsewhere = Change(kind=ChangeKind.SUBSET, object="ratings", subset="v2", version="v2", original=0)
    record = (weight("", "v1", 0), elsewhere, subset("v2"), subset("v3"))
    assert changes_after_cleanup(record, RemoveSubsets(rule, ("v2",))) == (weight("", "v1", 0), elsewhere, subset("v3"))
