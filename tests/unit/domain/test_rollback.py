"""Taking the traffic back: what it depends on, what withholds it, and what is said where it cannot be done."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from tests.unit.domain.watchedworld import at as watched_at
from tests.unit.domain.watchedworld import history, set_to
from tests.world import World, destination, spec, virtual_service

TWO = {
    "virtualServices": [{"name": "reviews"}, {"name": "gateway", "routes": ["primary"]}],
    "destinationRule": {"name": "reviews"},
}


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def on_two(weight: int) -> World:
    gateway = virtual_service("gateway", {"name": "primary", "route": [destination("v1", 100)]})
    return at(weight, rollout=spec(istio=TWO), services={"reviews": virtual_service(), "gateway": gateway})


def test_one_virtual_service_that_refuses_delays_no_other() -> None:
    world = on_two(30)
    world.refusing = frozenset({"reviews"})
    world.command = "abort/v2/1"
    world.step()
    assert world.shares("v2") == [30, 0]
    world.run(30)
    assert (world.phase, world.shares("v2")) == (Phase.ROLLING_BACK, [30, 0])
    world.refusing = frozenset()
    world.run(2)
    assert world.shares("v2") == [0, 0]


def test_the_mesh_is_written_before_the_status() -> None:
    world = at(30)
    before = len(world.writes)
    world.command = "abort/v2/1"
    world.step()
    assert world.writes[before:] == ["SetWeights/reviews", "status"]


def test_a_rollback_that_nobody_wrote_down_is_finished_by_a_successor() -> None:
    world = on_two(30)
    world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
    rehearsal, before = copy.deepcopy(world), len(world.writes)
    rehearsal.run(until=lambda w: "GateFailed" in w.events)
    world.crash_at = before + 2 + rehearsal.writes[before:].index("SetWeights/reviews")
    world.run(60, until=lambda w: len(w.writes) == w.crash_at)
    assert sorted(world.shares("v2")) == [0, 30]
    world.crash_at, world.prometheus = None, False
    world.run(3)
    assert world.shares("v2") == [0, 0]
    world.run()
    assert world.phase is Phase.ROLLED_BACK
    assert "WeightReasserted" not in history(world)


def test_a_rollback_in_the_middle_of_a_raise_is_finished_by_a_successor() -> None:
    world = on_two(10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: sorted(w.shares("v2")) == [10, 30])
    world.refusing = frozenset()
    world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
    world.command = "abort/v2/1"
    world.crash_at = len(world.writes) + 2
    world.run(5, until=lambda w: len(w.writes) == w.crash_at)
    assert 0 in world.shares("v2")
    world.crash_at, world.command = None, ""
    world.run(3)
    assert world.shares("v2") == [0, 0]
    assert world.run().phase is Phase.ROLLED_BACK
    assert max(weight for _, weight in world.weights) == 30


def test_traffic_on_a_route_that_cannot_be_moved_any_more_is_named_until_it_is_gone() -> None:
    world = at(30)
    world.edit("reviews", lambda mesh: mesh["http"][0]["route"].append(destination("v9", 10)))
    world.command = "abort/v2/1"
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "TooManyDestinations")
    assert "v2 should be taken to 0 (a person gave the abort command)" in world.state.message
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 100)]))
    world.run(60)
    assert world.phase is Phase.ROLLED_BACK


def _renamed(mesh: dict[str, Any]) -> None:
    mesh["http"][0]["name"] = "main"


def _another_route_before_it(mesh: dict[str, Any]) -> None:
    mesh["http"].insert(0, {"match": [{"uri": {"prefix": "/old"}}], "route": [destination("v1", 100)]})


@pytest.mark.parametrize(
    ("change", "reason"), [(_renamed, "RouteNotFound"), (_another_route_before_it, "AmbiguousRoutes")]
)
@pytest.mark.parametrize("ending", ["abort", "spec", "deletion"])
def test_a_canary_on_a_route_that_is_not_found_any_more_is_not_called_taken_back(
    change: Any, reason: str, ending: str
) -> None:
    """Nobody may move a route that is not listed, but it is known to serve the canary."""
    route = {"name": "primary", "route": [destination("v1", 100)]}
    listed = {"name": "reviews", "routes": ["primary"] if reason == "RouteNotFound" else []}
    istio = {**TWO, "virtualServices": [listed]}
    world = at(30, rollout=spec(istio=istio), services={"reviews": virtual_service("reviews", route)})
    world.edit("reviews", change)
    if ending == "abort":
        world.command = "abort/v2/1"
    elif ending == "spec":
        world.apply(version="v1")
    else:
        world.deleting = True
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, reason)
    assert "still has traffic where it cannot be" in world.state.message
    assert world.finalizer
    world.edit("reviews", lambda mesh: mesh.update(http=[{"name": "primary", "route": [destination("v1", 100)]}]))
    world.run(60)
    if ending == "deletion":
        assert not world.finalizer
    else:
        assert world.phase is (Phase.ROLLED_BACK if ending == "abort" else Phase.STABLE)


def test_a_route_without_a_virtual_service_serves_nobody_and_is_not_called_stable() -> None:
    world = on_two(30)
    del world.services["gateway"]
    world.command = "abort/v2/1"
    world.run(60)
    assert world.shares("v2") == [0]
    said = next(entry.message for entry in world.state.history if entry.reason == "RolledBack")
    assert said.startswith("v2 has no traffic, VirtualService gateway does not exist: ")


def test_it_is_not_called_done_while_a_virtual_service_cannot_be_read() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.step()
    world.api = False
    world.run(60)
    assert (world.phase, world.reason) == (Phase.ROLLING_BACK, "MeshUnreadable")
    assert "cannot see whether v2 is at 0 everywhere" in world.state.message
    world.api = True
    assert world.run().phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("deleting", [False, True])
def test_traffic_stays_on_the_canary_while_stable_is_gone(deleting: bool) -> None:
    world = at(30)
    world.ready = {"v2": 2}
    world.command, world.deleting = "" if deleting else "abort/v2/1", deleting
    world.run(60)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "StableGone", 30)
    assert deleting or world.state.deadline is None, "nothing happens when the step's deadline passes"
    world.ready = {"v1": 1, "v2": 2}
    world.run(5)
    assert world.share("v2") == 0


def test_an_object_that_goes_is_not_kept_by_two_versions_that_are_gone() -> None:
    world = at(30)
    world.ready, world.deleting = {}, True
    world.run(60)
    assert (world.share("v2"), world.finalizer) == (0, False)


def test_a_baseline_is_kept_for_the_version_that_follows_at_once() -> None:
    world = at(30)
    measured = world.state.rollout
    assert measured is not None
    assert measured.baseline is not None
    world.apply(version="v3")
    world.run(until=lambda w: w.state.rollout is not None and w.state.rollout.version == "v3")
    started = world.state.rollout
    assert started is not None
    assert started.baseline == measured.baseline


def test_what_was_taken_back_says_why_and_stays_so() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.run()
    record = world.state.rollout
    assert record is not None
    assert (world.phase, world.reason, record.weight) == (Phase.ROLLED_BACK, "Aborted", 0)
    assert world.state.message == "v2 was taken back: a person gave the abort command"
    assert "all traffic is on v1 again: a person gave the abort command" in [e.message for e in world.state.history]
    world.now += timedelta(days=1)
    world.run()
    assert world.share("v2") == 0


def test_going_back_to_stable_ends_at_rest_and_not_as_a_failure() -> None:
    world = at(30)
    world.apply(version="v1")
    world.run()
    assert (world.phase, world.state.stable_version, world.state.rollout) == (Phase.STABLE, "v1", None)
    assert history(world)[-2:] == ["SpecReverted", "RolledBack"]


def test_a_canary_that_cannot_be_taken_anywhere_is_named() -> None:
    world = at(30)
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v2"]
    world.status["subsets"] = {"v2": "v2"}
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v2", 100)]))
    world.command = "abort/v2/1"
    world.run(10)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "StableUnknown", 100)
    assert "no subset of v1 is known to take it back to" in world.state.message


ELSEWHERE = {"match": [{"uri": {"prefix": "/ratings"}}], "route": [{"destination": {"host": "ratings"}}]}


@pytest.mark.parametrize("deleting", [False, True])
def test_a_route_that_is_listed_by_name_no_more_is_taken_back_all_the_same(deleting: bool) -> None:
    listed = {"virtualServices": [{"name": "reviews", "routes": ["primary"]}], "destinationRule": {"name": "reviews"}}
    routes = virtual_service("reviews", {"name": "primary", "route": [destination("v1")]}, ELSEWHERE)
    world = at(30, rollout=spec(istio=listed), services={"reviews": routes})
    world.apply(istio=listed | {"virtualServices": [{"name": "reviews"}]})
    world.run(10)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "AmbiguousRoutes")
    world.command, world.deleting = "" if deleting else "abort/v2/1", deleting
    world.run(60)
    assert world.services["reviews"]["spec"] == world.originals[0]["reviews"]["spec"]


def test_it_is_not_called_done_while_nobody_can_tell_which_route_is_meant() -> None:
    world = at(30)
    world.edit("reviews", lambda mesh: mesh["http"].insert(0, ELSEWHERE))
    world.command = "abort/v2/1"
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "AmbiguousRoutes")
    assert "v2 should be taken to 0 (a person gave the abort command), but still has traffic" in world.state.message
    world.edit("reviews", lambda mesh: mesh["http"].pop(0))
    assert world.run(60).phase is Phase.ROLLED_BACK
    assert world.share("v2") == 0


def test_a_contest_ends_with_the_rollout_it_was_about() -> None:
    world = at(30)
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.step()
    contested = world.state
    assert contested.contest is not None
    world.apply(version="v1")
    world.step()
    assert (world.share("v2"), world.state.contest) == (0, None)


def test_a_version_that_has_no_traffic_needs_no_endpoints_of_another_to_end() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.ready, world.command = {}, "abort/v2/1"
    world.run(60)
    assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "Aborted")


def test_traffic_on_one_of_two_routes_stays_as_well_while_stable_is_gone() -> None:
    world = on_two(30)
    world.edit("gateway", set_to(("v1", 100), ("v2", 0)))
    world.ready, world.command = {"v2": 2}, "abort/v2/1"
    world.run(30)
    assert (world.phase, world.reason, sorted(world.shares("v2"))) == (Phase.BLOCKED, "StableGone", [0, 30])


def test_the_weight_is_0_as_soon_as_the_traffic_is_gone() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.run(until=lambda w: w.reason == "Draining")
    record = world.state.rollout
    assert record is not None
    assert (record.weight, world.state.weight) == (0, 0)


def test_requests_of_traffic_that_came_back_in_between_may_end_too() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.run(until=lambda w: w.reason == "Draining")
    world.edit("reviews", set_to(("v1", 80), ("v2", 20)))
    world.step()
    assert world.share("v2") == 0
    lowered = world.now
    world.run(until=lambda w: len(w.services["reviews"]["spec"]["http"][0]["route"]) == 1)
    assert world.now - lowered >= timedelta(seconds=5)


FOREIGN = {"destination": {"host": "ratings"}, "weight": 40}


@pytest.mark.parametrize("subsets", [{"v1": "v1"}, {"v1": "v1", "v2": "v2"}])
@pytest.mark.parametrize("rule", [False, True])
def test_a_route_that_cannot_be_moved_and_does_not_serve_the_canary_keeps_nothing(
    subsets: dict[str, str], rule: bool
) -> None:
    world = at(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 60), FOREIGN]))
    world.rule, world.status["subsets"] = world.rule if rule else None, subsets
    world.command = "abort/v2/1"
    world.run(30)
    assert "RolledBack" in world.events


def test_a_route_that_cannot_be_moved_and_serves_another_version_than_the_canary_keeps_nothing() -> None:
    world = at(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v9", 60), FOREIGN]))
    world.command = "abort/v2/1"
    world.run(30)
    assert "RolledBack" in world.events


def test_a_route_that_sends_no_requests_on_keeps_nothing() -> None:
    world = on_two(30)
    world.edit("gateway", lambda mesh: mesh.update(http=[{"name": "primary", "redirect": {"uri": "/"}}]))
    world.command = "abort/v2/1"
    world.run(30)
    assert "RolledBack" in world.events


def test_a_rollback_that_nobody_wrote_down_is_finished_whatever_others_do_meanwhile() -> None:
    world = on_two(30)
    before = len(world.writes)
    world.command, world.crash_at = "abort/v2/1", before + 2
    world.run(5, until=lambda w: len(w.writes) == w.crash_at)
    left = next(name for name in ("reviews", "gateway") if max_share(world, name) == 30)
    world.crash_at, world.command = None, ""
    world.edit(left, set_to(("v1", 95), ("v2", 5)))
    world.run(2)
    assert world.shares("v2") == [0, 0]


def max_share(world: World, name: str) -> int:
    route = world.services[name]["spec"]["http"][0]["route"]
    return max(int(entry.get("weight", 0)) for entry in route if entry["destination"].get("subset") == "v2")


def test_a_spec_that_moves_on_during_a_rollback_is_followed_as_soon_as_it_is_done() -> None:
    world = watched_at(30)
    world.command = "abort/v2/1"
    world.step()
    world.apply(version="v3")
    world.run(until=lambda w: w.share("v3") == 10)
    assert Phase.ROLLED_BACK not in {decision.status.phase for decision in world.decisions}


def test_nobody_is_named_where_a_first_weight_of_ours_is_taken_back() -> None:
    world = on_two(0)
    world.ready, world.refusing = {"v1": 2, "v2": 2}, frozenset({"gateway"})
    world.run(until=lambda w: w.shares("v2") == [10, 0])
    world.refusing, world.command = frozenset({"reviews", "gateway"}), "abort/v2/1"
    world.run(5)
    assert world.shares("v2") == [10, 0]
    assert "DriftDetected" not in world.events


def test_who_edited_another_field_before_the_rollback_gave_the_canary_nothing() -> None:
    world = at(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(timeout="5s"))
    world.refusing, world.command = frozenset({"reviews"}), "abort/v2/1"
    world.run(5)
    assert world.share("v2") == 30
    assert "again" not in world.state.message
    assert "DriftDetected" not in world.events


def test_who_gives_the_canary_traffic_again_while_it_is_taken_back_is_named_once() -> None:
    world = watched_at(30)
    world.error_rate = lambda version, *_: 0.5 if version == "v2" else 0.0
    world.run(until=lambda w: w.share("v2") == 0)
    world.run(2)
    for _ in range(3):
        world.edit("reviews", set_to(("v1", 70), ("v2", 30)))
        world.step()
        assert world.share("v2") == 0
        assert world.state.message.startswith("taking v2 to 0 again, as argocd gave it traffic: at 30 %")
        world.run(3)
    told = [(event.message, event.warning) for event in world.told if event.reason == "DriftDetected"]
    assert told == [("weights were changed by argocd while v2 is taken back: reviews is at v1 70 / v2 30", True)]
    world.run()
    assert world.phase is Phase.ROLLED_BACK
