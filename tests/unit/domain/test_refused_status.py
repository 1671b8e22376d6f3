"""A status that cannot be written keeps no traffic on a canary that should have none."""

from __future__ import annotations

from datetime import timedelta

import pytest

from canaryrollout.api.status import Phase
from tests.modelworld import ModelWorld
from tests.world import spec

GRACE = timedelta(seconds=10)
A_LOOK = timedelta(seconds=2)


def at(weight: int) -> ModelWorld:
    """Return a world in which the canary has had this weight for a while, and status is refused from now on."""
    world = ModelWorld(rollout=spec(hold="10m"))
    world.run(until=lambda w: w.state.weight == weight and w.reason == "Holding")
    world.status_refused = True
    return world


def passing(world: ModelWorld, seconds: float) -> None:
    end = world.now + timedelta(seconds=seconds)
    while world.now < end:
        world.pass_time(1)


def test_a_canary_without_endpoints_is_taken_back_after_its_grace() -> None:
    world = at(10)
    world.ready, died = {"v1": 2}, world.now
    while world.share("v2"):
        world.pass_time(1)
        assert world.now - died < GRACE + A_LOOK
    assert world.now - died >= GRACE, "and not before"
    world.status_refused, world.ready = False, {"v1": 2, "v2": 2}
    world.run()
    assert (world.phase, world.share("v2")) == (Phase.ROLLED_BACK, 0)


def test_moments_without_endpoints_add_up() -> None:
    world = at(10)
    for _ in range(6):
        world.ready = {"v1": 2}
        passing(world, 3)
        world.ready = {"v1": 2, "v2": 2}
        passing(world, 3)
    assert world.share("v2") == 0


def test_moments_that_are_long_past_do_not() -> None:
    world = at(10)
    for _ in range(6):
        world.ready = {"v1": 2}
        passing(world, 3)
        world.ready = {"v1": 2, "v2": 2}
        passing(world, 15)
    assert world.share("v2") == 10


def test_what_was_seen_of_another_rollout_says_nothing() -> None:
    world = at(10)
    world.ready = {"v1": 2}
    passing(world, 7)
    seen = world.unstored
    other = ModelWorld(rollout=spec(hold="10m"), now=world.now)
    other.run(until=lambda w: w.state.weight == 10 and w.reason == "Holding")
    other.status_refused, other.ready, other.unstored = True, {"v1": 2}, seen
    passing(other, 7)
    assert other.share("v2") == 10


@pytest.mark.parametrize("command", ["abort/v2/1", ""])
def test_a_rollback_reaches_zero_and_stays_there(command: str) -> None:
    world = at(10)
    if command:
        world.command = command
    else:
        world.error_rate = lambda version, weight, at: 0.5 if version == "v2" else 0.0
    passing(world, 60)
    assert world.share("v2") == 0
    world.command, world.error_rate = "", lambda version, weight, at: 0.0
    passing(world, 60)
    assert world.share("v2") == 0, "although its reason cannot be seen any more"
    world.status_refused = False
    world.run()
    assert world.phase is Phase.ROLLED_BACK
