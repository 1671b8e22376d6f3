"""A move that only prepares the next is followed by it at once: nothing waits for a look that nobody needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from canaryrollout.domain.decision import Decision
from tests.unit.domain.watchedworld import WatchedWorld, at
from tests.world import destination, destination_rule, spec, virtual_service

PREPARING = {"StableVersionFound", "RolloutStarted", "SplitAdopted", "ServingVersionGone", "WeightSet", "Promoted"}


def edited(*entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"reviews": virtual_service("reviews", {"route": list(entries)})}


def plain() -> WatchedWorld:
    return WatchedWorld(services=edited(destination(None)), rollout=spec(initialStableVersion="v1"))


def split() -> WatchedWorld:
    services = edited(destination("v1", 80), destination("v2", 20))
    return WatchedWorld(services=services, rule=destination_rule("v1", "v2"))


def early() -> WatchedWorld:
    world = WatchedWorld(ready={"v1": 2})
    world.run(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 60), destination("v2", 40)]))
    return world


def aborted() -> WatchedWorld:
    world = at(30)
    world.command = "abort/v2/1"
    return world


def broken() -> WatchedWorld:
    world = at(10)
    world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
    return world


def reverted() -> WatchedWorld:
    world = at(30)
    world.apply(version="v1")
    return world


def changed() -> WatchedWorld:
    world = at(30)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 100), destination("v2", 0)]))
    return world


def changed_at_rest() -> WatchedWorld:
    world = WatchedWorld(rollout=spec(version="v1"))
    world.run()
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 60), destination(None, 40)]))
    return world


def shrunk() -> WatchedWorld:
    world = at(10, ready={"v1": 4, "v2": 2})
    world.ready = {"v1": 2, "v2": 2}
    return world


def without_finalizer() -> WatchedWorld:
    world = at(10)
    world.finalizer = False
    return world


def deleted() -> WatchedWorld:
    world = at(30)
    world.deleting = True
    return world


def without_subset() -> WatchedWorld:
    world = at(10)
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]
    return world


def prepares(decision: Decision) -> bool:
    return bool(decision.actions or PREPARING & {event.reason for event in decision.events})


@pytest.mark.parametrize(
    "make",
    [
        WatchedWorld,
        plain,
        split,
        early,
        aborted,
        broken,
        reverted,
        changed,
        changed_at_rest,
        shrunk,
        without_finalizer,
        deleted,
        without_subset,
    ],
)
def test_what_only_prepares_is_followed_at_once_and_looked_at_again_should_it_fail(
    make: Callable[[], WatchedWorld],
) -> None:
    world = make()
    world.run(400)
    preparing = [decision for decision in world.decisions if prepares(decision)]
    assert preparing
    assert [decision.status.message for decision in preparing if not decision.again] == []
    acting = [decision for decision in preparing if decision.actions]
    assert acting
    assert [decision.status.message for decision in acting if decision.wake_at is None] == []
    ahead = zip(world.decisions, world.times, strict=True)
    assert [d.status.message for d, now in ahead if d.wake_at is not None and d.wake_at <= now] == []
