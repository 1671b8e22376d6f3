"""When a rollout with traffic is looked at again: nothing that is due by the clock comes late."""

from __future__ import annotations

from datetime import timedelta

from canaryrollout.domain.looks import grid_start, opening_window
from tests.world import START, World, spec

SECOND = timedelta(seconds=1)


def at(weight: int, **analysis: str) -> World:
    """Return a world in which the canary has just got this weight, and hardly any traffic to judge it by."""
    scarce = {"interval": "10s", "minRequests": 100_000} | analysis
    world = World(rollout=spec(analysis=scarce, hold="0s", progressDeadline="10m3s"))
    return world.run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def test_a_deadline_between_two_looks_is_met() -> None:
    world = at(10)
    due = world.state.deadline
    assert due is not None
    world.run(until=lambda w: w.share("v2") == 0)
    assert due <= world.now < due + SECOND / 10


def test_the_mesh_is_looked_at_every_few_seconds_however_long_the_interval() -> None:
    world = at(10, interval="60s")
    world.run(30)
    decision = world.step()
    assert decision.wake_at is not None
    assert SECOND / 10 < decision.wake_at - world.now <= timedelta(seconds=5)


def test_a_canary_without_endpoints_is_taken_back_when_its_grace_ends() -> None:
    world = at(10, interval="60s")
    world.run(30)
    world.ready = {"v1": 2}
    world.step()
    lost = world.now
    world.now += timedelta(seconds=7)
    decision = world.step()
    assert decision.wake_at is not None
    assert timedelta(seconds=10) <= decision.wake_at - lost < timedelta(seconds=10) + SECOND / 10


def test_evidence_begins_once_proxies_had_time_and_what_comes_before_is_no_longer_than_that() -> None:
    assert grid_start(START, SECOND) == START + SECOND
    assert opening_window(START, SECOND) == (START - SECOND, START + SECOND)
