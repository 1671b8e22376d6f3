"""Which Events warn: what people should look at, and nothing that goes as it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from tests.unit.domain.watchedworld import WatchedWorld, at
from tests.world import destination, destination_rule, spec, virtual_service

NORMAL = {"StableVersionFound", "RolloutStarted", "WeightSet", "StepPassed", "Promoted"}


def plain(*entries: dict[str, Any], **fields: Any) -> dict[str, dict[str, Any]]:
    service = virtual_service("reviews", {"route": list(entries)})
    service["spec"] |= fields
    return {"reviews": service}


def commanded(world: WatchedWorld, *verbs: str) -> WatchedWorld:
    for verb in verbs:
        world.command = f"{verb}/v2/{verb}"
        world.run(120)
    return world


def broken() -> WatchedWorld:
    world = at(10)
    world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
    return world


def without_subset() -> WatchedWorld:
    world = at(10, rollout=spec(hold="5m"))
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]
    return world


def changed(times: int = 1) -> WatchedWorld:
    world = at(30, rollout=spec(hold="5m"))

    def change(mesh: dict[str, Any]) -> None:
        mesh["http"][0]["route"][0]["weight"], mesh["http"][0]["route"][1]["weight"] = 95, 5

    for _ in range(times):
        world.edit("reviews", change)
        world.run(90)
    return world


def refused() -> WatchedWorld:
    world = at(10)
    world.refusing = frozenset({"reviews"})
    return world


def contradicted() -> WatchedWorld:
    world = at(10, rollout=spec(hold="5m"))
    world.show(60)
    return world


def away(world: WatchedWorld) -> WatchedWorld:
    world.prometheus = False
    world.run(60)
    world.prometheus = True
    return world


def shrinking() -> WatchedWorld:
    world = at(10, ready={"v1": 4, "v2": 2})
    world.ready = {"v1": 2, "v2": 2}
    return world


def dead_stable_with_all_traffic_gone() -> WatchedWorld:
    world = WatchedWorld(rollout=spec(version="v1"), rule=destination_rule("v1", "v2"))
    world.run()
    world.ready = {"v2": 2}
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 0), destination("v2", 100)]))
    world.apply(version="v2")
    return world


SPLIT: dict[str, Any] = {
    "services": plain(destination("v1", 80), destination("v2", 20)),
    "rule": destination_rule("v1", "v2"),
}
SCARCE = {"interval": "10s", "minRequests": 100_000}
ENDED = {"GateFailed", "RolledBack"}
SLOW = {"TooLittleTraffic", "DeadlineExceeded"}
STORIES: list[tuple[str, Callable[[], WatchedWorld], set[str], set[str]]] = [
    ("all goes well", WatchedWorld, NORMAL, set()),
    ("a split was there", lambda: WatchedWorld(**SPLIT), {"SplitAdopted"}, set()),
    ("a gate fails", broken, set(), ENDED),
    ("a person takes it back", lambda: commanded(at(10), "abort"), set(), {"Aborted", "RolledBack"}),
    ("and tries again", lambda: commanded(at(10), "abort", "retry"), {"Retried"}, {"Aborted", "RolledBack"}),
    ("a command has no use", lambda: commanded(at(10), "approve"), set(), {"CommandRefused"}),
    ("a person promotes", lambda: commanded(at(10), "promote"), {"PromoteRequested", "Promoted"}, set()),
    ("the version of before is wanted", lambda: reverted(), set(), {"SpecReverted", "RolledBack"}),
    ("the API server refuses writes", refused, set(), {"WriteFailed", "DeadlineExceeded"}),
    ("weights are changed", changed, {"WeightReasserted"}, {"DriftDetected"}),
    ("again and again", lambda: changed(4), {"WeightReasserted"}, {"DriftDetected", "WeightContested"}),
    ("a subset is lost", without_subset, set(), {"SubsetLost"}),
    ("traffic disagrees", contradicted, set(), {"ShareContradicts"}),
    ("traffic is scarce", lambda: at(10, rps=1), set(), SLOW | {"RolledBack"}),
    ("nothing passes", lambda: at(10, rollout=spec(onDeadline="Hold", analysis=SCARCE)), set(), SLOW),
    ("the canary dies", lambda: dying(), set(), {"CanaryUnready", "RolledBack"}),
    ("stable shrinks", shrinking, set(), {"StableShrinking"}),
    ("stable died before", lambda: WatchedWorld(ready={"v2": 2}), {"Promoted"}, {"ServingVersionGone"}),
    ("stable died, and all went on", dead_stable_with_all_traffic_gone, {"Promoted"}, {"ServingVersionGone"}),
    ("the provider was away", lambda: away(at(10)), {"ProviderBack"}, set()),
    ("there is no traffic", lambda: silent(), {"NoSeries"}, SLOW | {"RolledBack"}),
    ("callers meet the canary", lambda: WatchedWorld(services=past_the_list()), set(), {"UncoveredTraffic"}),
    ("an object is missing", lambda: WatchedWorld(services={}), set(), {"VirtualServiceNotFound"}),
    ("it is paused", lambda: WatchedWorld(rollout=spec(paused=True)), {"Paused"}, set()),
    ("a person is asked", lambda: commanded(approved(), "approve"), {"AwaitingApproval", "Approved"}, set()),
]


def reverted() -> WatchedWorld:
    world = at(10)
    world.apply(version="v1")
    return world


def dying() -> WatchedWorld:
    world = at(10)
    world.ready = {"v1": 2}
    return world


def silent() -> WatchedWorld:
    return WatchedWorld(rps=0, found={"host_series": False})


def past_the_list() -> dict[str, dict[str, Any]]:
    return plain(destination("v1"), gateways=["istio-ingress/public"])


def approved() -> WatchedWorld:
    world = WatchedWorld(rollout=spec(steps=[{"weight": 10, "approval": "Required"}, {"weight": 100}]))
    world.run(300, until=lambda w: w.reason == "AwaitingApproval")
    return world


@pytest.mark.parametrize(
    ("world", "normal", "warnings"), [story[1:] for story in STORIES], ids=[story[0] for story in STORIES]
)
def test_what_people_should_look_at_warns_and_nothing_else(
    world: Callable[[], WatchedWorld], normal: set[str], warnings: set[str]
) -> None:
    found = world()
    found.run(1200)
    assert {event.reason for event in found.told if event.warning} == warnings
    told = {event.reason for event in found.told if not event.warning}
    assert normal <= told <= normal | NORMAL


def test_what_is_on_record_is_told_and_what_is_told_is_on_record() -> None:
    world = commanded(at(10), "abort")
    assert world.phase is Phase.ROLLED_BACK
    assert [(entry.reason, entry.message) for entry in world.state.history] == [
        (event.reason, event.message) for event in world.told
    ]
