"""Removing what was added: when it goes, what stays, and that the author gets back what was written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.adapters.istio_patch import without_server_fields as bare
from canaryrollout.api.status import Phase
from canaryrollout.domain.decision import RemoveSubsets
from tests.unit.domain.watchedworld import WatchedWorld, on_two, set_to
from tests.world import World, destination, destination_rule, spec, virtual_service


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def aborted(world: World) -> World:
    world.command = "abort/v2/1"
    world.step()
    assert world.share("v2") == 0
    return world


def named(world: World, name: str = "reviews") -> list[str | None]:
    return [d["destination"].get("subset") for d in world.services[name]["spec"]["http"][0]["route"]]


def subsets(world: World) -> list[str]:
    assert world.rule is not None
    return [entry["name"] for entry in world.rule["spec"].get("subsets", [])]


def test_requests_under_way_may_end_before_a_destination_goes() -> None:
    world = aborted(at(30))
    since = world.now
    world.run(until=lambda w: named(w) == ["v1"])
    assert timedelta(seconds=5) <= world.now - since < timedelta(seconds=7)
    assert subsets(world) == ["v1", "v2"]


def test_the_mesh_may_forget_a_route_before_its_subset_goes() -> None:
    world = aborted(at(30)).run(until=lambda w: named(w) == ["v1"])
    since = world.now
    world.run(until=lambda w: subsets(w) == ["v1"])
    assert timedelta(seconds=5) <= world.now - since < timedelta(seconds=7)
    assert world.finalizer
    world.run()
    assert not world.finalizer


def test_the_authors_words_come_back() -> None:
    split = {"route": [destination("v1", 100), destination("v2", 0)]}
    world = World(services={"reviews": virtual_service("reviews", split)}, rule=destination_rule("v1", "v2"))
    aborted(world.run(until=lambda w: w.share("v2") == 30)).run()
    services, rule = world.originals
    assert bare(world.services["reviews"]) == bare(services["reviews"])
    assert bare(world.rule or {}) == bare(rule or {})
    assert not world.state.changes


def test_weights_that_would_move_traffic_are_not_written_back() -> None:
    split = {"route": [destination("v1", 80), destination("v2", 20)]}
    world = World(services={"reviews": virtual_service("reviews", split)}, rule=destination_rule("v1", "v2"))
    world.run(until=lambda w: w.share("v2") == 30)
    aborted(world).run()
    assert (world.phase, world.share("v1")) == (Phase.ROLLED_BACK, 100)
    assert named(world) == ["v1", "v2"]


def test_a_subset_that_another_virtual_service_names_stays() -> None:
    world = at(30)
    world.services["other"] = virtual_service("other", {"route": [destination("v2", 0), destination("v1", 100)]})
    aborted(world).run()
    assert (world.phase, subsets(world)) == (Phase.ROLLED_BACK, ["v1", "v2"])
    assert not world.finalizer


def test_a_subset_that_the_authors_own_destination_names_stays() -> None:
    split = {"route": [destination("v1", 100), destination("v2", 0)]}
    world = World(services={"reviews": virtual_service("reviews", split)})
    aborted(world.run(until=lambda w: w.share("v2") == 30)).run()
    assert (world.phase, named(world), subsets(world)) == (Phase.ROLLED_BACK, ["v1", "v2"], ["v1", "v2"])
    assert not world.finalizer


def test_a_subset_goes_only_where_it_is_known_that_nobody_names_it() -> None:
    world = at(30)
    world.listable = False
    aborted(world).run(120)
    assert (world.phase, world.reason, subsets(world)) == (Phase.ROLLING_BACK, "MeshUnreadable", ["v1", "v2"])
    assert world.state.message == "cannot see which VirtualServices name the subsets that should go"
    world.listable = True
    world.run()
    assert (world.phase, subsets(world)) == (Phase.ROLLED_BACK, ["v1"])


def test_a_destination_that_got_traffic_again_is_not_removed() -> None:
    world = World().run(until=lambda w: w.phase is Phase.PROMOTING)

    def give_back(mesh: dict[str, Any]) -> None:
        mesh["http"][0]["route"] = [destination("v1", 40), destination("v2", 60)]

    world.edit("reviews", give_back)
    world.run(8)
    assert "v1" in named(world)


def test_what_serves_stable_stays_after_deletion() -> None:
    world = World().run()
    assert world.state.stable_version == "v2"
    world.deleting = True
    world.run(60)
    assert (named(world), world.finalizer) == (["v1", "v2"], False)
    assert "v2" in subsets(world)


def test_a_rule_that_is_gone_keeps_no_object_from_going() -> None:
    world = at(30)
    world.rule = None
    world.deleting = True
    world.run(120)
    assert (world.finalizer, named(world)) == (False, ["v1"])


def test_both_virtual_services_are_cleaned() -> None:
    istio = {
        "virtualServices": [{"name": "reviews"}, {"name": "gateway", "routes": ["primary"]}],
        "destinationRule": {"name": "reviews"},
    }
    gateway = virtual_service("gateway", {"name": "primary", "route": [destination("v1", 100)]})
    world = at(30, rollout=spec(istio=istio), services={"reviews": virtual_service(), "gateway": gateway})
    aborted(world).run()
    assert (named(world), named(world, "gateway")) == (["v1"], ["v1"])
    services, _ = world.originals
    assert {name: bare(s) for name, s in world.services.items()} == {name: bare(s) for name, s in services.items()}


@pytest.mark.parametrize("weights", [(100, None), (7, 0), (7, None)])
def test_weights_that_say_the_same_in_other_words_are_the_authors_again(weights: tuple[int, int | None]) -> None:
    split = {"route": [destination("v1", weights[0]), destination("v2", weights[1])]}
    world = World(services={"reviews": virtual_service("reviews", split)}, rule=destination_rule("v1", "v2"))
    aborted(world.run(until=lambda w: w.share("v2") == 30)).run()
    assert bare(world.services["reviews"]) == bare(world.originals[0]["reviews"])
    assert (world.phase, world.state.changes) == (Phase.ROLLED_BACK, ())


def test_each_route_gets_back_what_its_own_author_wrote() -> None:
    """One names the canary at 0 already, the others do not; two of them are in one object."""

    def both(**fields: str) -> dict[str, Any]:
        return fields | {"route": [destination("v1", 100), destination("v2", 0)]}

    def alone(**fields: str) -> dict[str, Any]:
        return fields | {"route": [destination("v1", 100)]}

    istio = {
        "virtualServices": [{"name": "reviews"}, {"name": "other"}, {"name": "gateway", "routes": ["a", "b"]}],
        "destinationRule": {"name": "reviews"},
    }
    services = {
        "reviews": virtual_service("reviews", alone()),
        "other": virtual_service("other", both()),
        "gateway": virtual_service("gateway", both(name="a"), alone(name="b")),
    }
    world = at(30, rollout=spec(istio=istio), services=services, rule=destination_rule("v1", "v2"))
    aborted(world).run()
    assert {name: bare(found) for name, found in world.services.items()} == {
        name: bare(found) for name, found in world.originals[0].items()
    }
    assert world.state.changes == ()


def test_a_destination_that_its_author_took_away_meanwhile_is_not_put_back() -> None:
    split = {"route": [destination("v1", 100), destination("v2")]}
    world = World(
        services={"reviews": virtual_service("reviews", split)},
        rule=destination_rule("v1", "v2"),
        rollout=spec(hold="5m"),
    )
    world.run(until=lambda w: w.share("v2") == 10 and w.state.weight == 10)
    world.edit("reviews", set_to(("v1", 100)))
    world.run(30, until=lambda w: w.share("v2") == 10)
    assert world.share("v2") == 10
    aborted(world).run()
    assert (world.phase, named(world), world.state.changes) == (Phase.ROLLED_BACK, ["v1"], ())


def test_a_weight_whose_destination_is_gone_keeps_no_rollback_from_ending() -> None:
    split = {"route": [destination("v1", 100), destination("v2", 0)]}
    world = World(services={"reviews": virtual_service("reviews", split)}, rule=destination_rule("v1", "v2"))
    aborted(world.run(until=lambda w: w.share("v2") == 30))
    world.edit("reviews", set_to(("v1", 100)))
    world.run()
    assert (world.phase, world.state.changes) == (Phase.ROLLED_BACK, ())


def test_stables_destination_stays_where_another_version_has_its_traffic() -> None:
    services = {"reviews": virtual_service("reviews", {"route": [destination(None)]})}
    rollout = spec(initialStableVersion="v1")
    world = at(30, services=services, rule=destination_rule("v1", "v9"), rollout=rollout)
    world.edit("reviews", set_to(("v1", 0), ("v2", 0), ("v9", 100)))
    world.command = "abort/v2/1"
    world.run(until=lambda w: "v2" not in named(w))
    assert named(world) == [None, "v1", "v9"] or named(world) == ["v1", "v9"]
    assert "v1" in subsets(world)


def test_stables_own_subset_stays_though_no_route_names_it() -> None:
    rule = destination_rule()
    rule["spec"]["subsets"] = []
    services = {"reviews": virtual_service("reviews", {"route": [destination(None)]})}
    world = World(services=services, rule=rule, rollout=spec(initialStableVersion="v1"), ready={"v1": 2})
    world.run(until=lambda w: subsets(w) == ["v1", "v2"])
    world.command = "abort/v2/1"
    world.run()
    assert (world.phase, named(world), subsets(world)) == (Phase.ROLLED_BACK, [None], ["v1"])


@pytest.mark.parametrize("written", [None, []])
def test_an_empty_list_of_subsets_is_left_where_its_author_wrote_one(written: list[Any] | None) -> None:
    rule = destination_rule()
    rule["spec"]["subsets"] = written
    if written is None:
        del rule["spec"]["subsets"]
    services = {"reviews": virtual_service("reviews", {"route": [destination(None)]})}
    world = WatchedWorld(services=services, rule=rule, rollout=spec(initialStableVersion="v1"))
    world.run(until=lambda w: w.share("v2") == 10)
    world.command = "abort/v2/1"
    world.step()
    elsewhere = {"kind": "Weight", "object": "elsewhere", "subset": "v1", "original": 0}
    world.status["changes"].append(elsewhere)
    world.run()
    removed = [a for decision in world.decisions for a in decision.actions if isinstance(a, RemoveSubsets)]
    assert [(action.names, action.keep_empty_list) for action in removed] == [(("v2",), written is not None)]


def test_a_rule_that_cannot_be_read_keeps_an_object_only_for_a_subset_of_ours() -> None:
    ours, theirs = WatchedWorld(), WatchedWorld(rule=destination_rule("v1", "v2"))
    for world in (ours, theirs):
        world.run(until=lambda w: w.share("v2") == 30)
        world.rule_unread, world.deleting = True, True
        world.run(60)
        assert named(world) == ["v1"]
    assert (ours.finalizer, ours.reason) == (True, "MeshUnreadable")
    assert not theirs.finalizer
    ours.rule_unread = False
    ours.run(10)
    assert (ours.finalizer, subsets(ours)) == (False, ["v1"])


def test_what_the_version_before_needed_goes_after_the_next_promotion() -> None:
    world = World().run()
    world.apply(version="v3")
    world.run()
    assert (world.phase, world.state.stable_version, world.finalizer) == (Phase.STABLE, "v3", False)
    assert (named(world), subsets(world)) == (["v1", "v3"], ["v1", "v3"])


def test_what_was_altered_off_the_list_stays_on_record() -> None:
    world = on_two(100)
    listed = {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}}
    world.apply(istio=listed)
    world.run()
    assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
    assert {change.object for change in world.state.changes} >= {"gateway"}
