"""Deleting an object in each stretch of its life: what is given back, and in whose name."""

from __future__ import annotations

from canaryrollout.api.status import Phase
from tests.unit.domain.watchedworld import WatchedWorld, at


def named(world: WatchedWorld) -> list[str | None]:
    return [entry["destination"].get("subset") for entry in world.services["reviews"]["spec"]["http"][0]["route"]]


def subsets(world: WatchedWorld) -> list[str]:
    assert world.rule is not None
    return [entry["name"] for entry in world.rule["spec"].get("subsets", [])]


def test_under_way_the_traffic_goes_back_because_of_it() -> None:
    world = at(30)
    world.deleting = True
    world.run(60)
    assert (world.share("v2"), world.finalizer, world.events.count("Deleted")) == (0, False, 1)


def test_a_rollback_under_way_goes_on_under_its_own_name() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.step()
    world.deleting = True
    world.run(60)
    assert (world.finalizer, "Aborted" in world.events, "Deleted" in world.events) == (False, True, False)


def test_after_a_promotion_what_the_version_before_needed_goes_first() -> None:
    world = WatchedWorld()
    world.run()
    world.apply(version="v3")
    world.run(until=lambda w: w.phase is Phase.PROMOTING)
    world.deleting = True
    world.run(60)
    assert (named(world), subsets(world), world.finalizer) == (["v1", "v3"], ["v1", "v3"], False)


def test_after_a_rollback_it_goes_at_once() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.run()
    assert world.phase is Phase.ROLLED_BACK
    world.finalizer, world.deleting = True, True
    world.step()
    assert (world.finalizer, world.phase, world.reason) == (False, Phase.STABLE, "Deleted")
