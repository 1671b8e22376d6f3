"""Removing what was added: when it goes, what stays, and that the author gets back what was written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from canaryrollout.adapters.istio_patch import without_server_fields as bare
from canaryrollout.api.status import Phase
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
