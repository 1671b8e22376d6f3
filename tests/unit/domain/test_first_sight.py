"""Reading the stable version from the mesh: what tells it, what does not, and what is said then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import ChangeKind, Phase
from canaryrollout.domain.observation import Claim
from tests.world import SETTINGS, START, World, destination, destination_rule, spec, virtual_service


def split(*shares: tuple[str | None, int | None]) -> dict[str, dict[str, Any]]:
    return {"reviews": virtual_service("reviews", {"route": [destination(*share) for share in shares]})}


def two_routes(first: int, second: int) -> dict[str, dict[str, Any]]:
    routes = [
        {"name": name, "route": [destination("v1", 100 - weight), destination("v2", weight)]}
        for name, weight in (("a", first), ("b", second))
    ]
    return {"reviews": virtual_service("reviews", *routes)}


BOTH = {"virtualServices": [{"name": "reviews", "routes": ["a", "b"]}], "destinationRule": {"name": "reviews"}}


def seen(world: World) -> tuple[Phase | None, str, str | None]:
    world.step()
    return world.phase, world.reason, world.state.stable_version


def test_one_version_with_all_the_traffic_is_stable() -> None:
    world = World()
    world.step()
    assert world.state.stable_version == "v1"
    assert [entry.message for entry in world.state.history] == ["v1 has all the traffic"]
    assert world.run().state.stable_version == "v2"


def test_of_a_split_with_the_wanted_version_the_other_is_stable() -> None:
    world = World(services=split(("v1", 80), ("v2", 20)), rule=destination_rule("v1", "v2"))
    assert seen(world) == (Phase.PROGRESSING, "SplitAdopted", "v1")
    record = world.state.rollout
    assert record is not None
    assert (record.version, record.weight, record.applied_at) == ("v2", 20, world.now)
    assert world.state.subsets == {"v1": "v1", "v2": "v2"}
    assert {(c.kind, c.subset, c.original) for c in world.state.changes} == {
        (ChangeKind.WEIGHT, "v1", 80),
        (ChangeKind.WEIGHT, "v2", 20),
    }


def test_a_split_that_differs_between_routes_is_judged_at_the_smallest_share() -> None:
    world = World(services=two_routes(20, 40), rule=destination_rule("v1", "v2"), rollout=spec(istio=BOTH))
    assert seen(world) == (Phase.PROGRESSING, "SplitAdopted", "v1")
    assert world.state.weight == 20


def test_a_split_that_one_route_knows_nothing_of_is_prepared_first() -> None:
    world = World(services=two_routes(0, 40), rule=destination_rule("v1", "v2"), rollout=spec(istio=BOTH))
    assert seen(world) == (Phase.PREPARING, "SplitAdopted", "v1")
    record = world.state.rollout
    assert record is not None
    assert (record.weight, record.applied_at) == (0, None)


@pytest.mark.parametrize(
    "shares",
    [
        (("v1", 50), ("v3", 50)),
        (("v1", 50), (None, 50)),
        (("v2", 50), (None, 50)),
    ],
)
def test_what_does_not_tell_the_stable_version_moves_nothing(shares: tuple[tuple[str | None, int], ...]) -> None:
    world = World(services=split(*shares), rule=destination_rule("v1", "v2", "v3"))
    assert seen(world) == (Phase.BLOCKED, "StableVersionUnknown", None)
    assert "Set spec.initialStableVersion to the version that serves now" in world.state.message
    assert world.state.message.startswith("cannot tell which version is stable: reviews sends ")


def test_the_user_may_say_which_version_is_stable() -> None:
    shares = split(("v1", 50), ("v3", 50))
    world = World(services=shares, rule=destination_rule("v1", "v2", "v3"), rollout=spec(initialStableVersion="v1"))
    world.step()
    assert world.state.stable_version == "v1"


def test_without_subsets_the_one_version_with_endpoints_is_stable() -> None:
    world = World(services=split((None, None)), ready={"v1": 2, "v9": 0})
    world.step()
    assert world.state.stable_version == "v1"


def test_without_subsets_and_endpoints_nobody_knows() -> None:
    world = World(services=split((None, None)), ready={})
    assert seen(world) == (Phase.BLOCKED, "StableVersionUnknown", None)
    assert "no version of reviews has a ready endpoint" in world.state.message


class TestServingVersionGone:
    """The version that serves has no ready endpoint."""

    @pytest.mark.parametrize("ready", [1, 2])
    def test_everything_moves_to_a_wanted_version_that_has(self, ready: int) -> None:
        world = World(ready={"v2": ready})
        assert seen(world) == (Phase.PREPARING, "ServingVersionGone", "v1")
        assert world.events == ["ServingVersionGone"]
        world.run(30)
        assert world.share("v2") == 100

    def test_nothing_moves_to_a_wanted_version_that_has_none_either(self) -> None:
        world = World(ready={})
        assert seen(world) == (Phase.STABLE, "StableVersionFound", "v1")

    def test_that_the_wanted_version_serves_already_is_enough(self) -> None:
        world = World(rollout=spec(version="v1"), ready={})
        assert seen(world) == (Phase.STABLE, "StableVersionFound", "v1")


@pytest.mark.parametrize("fields", [{"api": False}, {"ready": None}])
def test_what_could_not_be_read_is_read_again_soon(fields: dict[str, Any]) -> None:
    world = World(**fields)
    decision = world.step()
    assert (world.phase, world.reason) == (Phase.BLOCKED, "MeshUnreadable")
    assert world.state.message.startswith("cannot read the mesh: ")
    assert decision.wake_at is not None
    assert 0 < (decision.wake_at - world.now).total_seconds() <= 5


def test_three_versions_on_two_routes_do_not_tell_which_is_stable() -> None:
    routes = [
        {"name": name, "route": [destination(other, 80), destination("v2", 20)]}
        for name, other in (("a", "v1"), ("b", "v3"))
    ]
    services = {"reviews": virtual_service("reviews", *routes)}
    world = World(services=services, rule=destination_rule("v1", "v2", "v3"), rollout=spec(istio=BOTH))
    assert seen(world) == (Phase.BLOCKED, "StableVersionUnknown", None)


def test_what_cannot_be_read_is_not_read_again_all_the_time() -> None:
    world = World(api=False)
    wake_at = world.step().wake_at
    assert wake_at is not None
    assert wake_at - world.now == 5 * SETTINGS.retry
    rest = World(rollout=spec(version="v1")).run()
    rest.api = False
    wake_at = rest.step().wake_at
    assert wake_at is not None
    assert wake_at - rest.now == 5 * SETTINGS.retry


@pytest.mark.parametrize("active", [False, True])
def test_who_was_there_first_judges_the_host(active: bool) -> None:
    older = Claim("shop/other", "uid-0", START - timedelta(hours=1), active=active)
    assert seen(World(claims=(older,))) == (Phase.BLOCKED, "HostClaimed", None)
    younger = Claim("shop/other", "uid-0", START + timedelta(hours=1), active=False)
    assert seen(World(claims=(younger,)))[0] is Phase.STABLE


def test_who_judges_a_host_at_rest_begins_nothing_that_another_has_the_older_right_to() -> None:
    older = Claim("shop/other", "uid-0", START - timedelta(hours=1), active=False)
    world = World(rollout=spec(version="v1")).run()
    world.claims = (older,)
    world.apply(version="v2")
    assert seen(world) == (Phase.BLOCKED, "HostClaimed", "v1")
    under_way = World().run(until=lambda w: w.share("v2") == 10)
    under_way.claims = (older,)
    assert under_way.run().state.stable_version == "v2", "who is at it goes on"


def test_what_is_found_is_on_record_with_its_version() -> None:
    world = World()
    world.step()
    assert [(entry.reason, entry.version) for entry in world.state.history] == [("StableVersionFound", "v1")]
