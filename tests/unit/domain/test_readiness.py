"""Ready endpoints of both versions: a canary that comes and goes, a stable version that shrinks."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, Phase, RolloutRecord
from canaryrollout.domain.draft import Draft, situation
from canaryrollout.domain.observation import Endpoints, Identity, Observation
from canaryrollout.domain.readiness import follow_stable, unready
from tests.world import NAMESPACE, SETTINGS, START, World, spec

SECOND = timedelta(seconds=1)


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def record(world: World) -> RolloutRecord:
    found = world.state.rollout
    assert found is not None
    return found


def have(world: World, seconds: int, **ready: int) -> World:
    """Let versions have so many ready endpoints for so long, and look every second, as a busy mesh would call for."""
    world.ready = {"v1": 2, "v2": 2} | ready
    for _ in range(seconds):
        while world.step().again:
            pass
        world.now += timedelta(seconds=1)
    return world


def raised_at(world: World, weight: int) -> datetime:
    return next(time for time, found in world.weights if found == weight)


class TestUnreadyCanary:
    def test_moments_without_endpoints_add_up_in_a_crash_loop(self) -> None:
        world = at(10)
        for _ in range(2):
            have(world, 4, v2=0)
            have(world, 2, v2=1)
            assert world.share("v2") == 10
        have(world, 2, v2=0)
        assert world.share("v2") == 10, "9 s in all"
        have(world, 1, v2=0)
        assert (world.share("v2"), record(world).reason) == (0, "CanaryUnready")

    def test_a_moment_without_is_forgotten_after_as_long_as_the_grace(self) -> None:
        world = at(10, rollout=spec(hold="5m"))
        have(world, 8, v2=0)
        have(world, 9, v2=1)
        assert record(world).unready_since is not None
        have(world, 2, v2=1)
        assert (record(world).unready_since, record(world).ready_again_at) == (None, None)
        have(world, 8, v2=0)
        assert world.share("v2") == 10

    def test_not_knowing_counts_neither_as_without_nor_as_with(self) -> None:
        world = at(10, rollout=spec(hold="5m"))
        have(world, 8, v2=0)
        world.ready = None
        world.run(60)
        assert world.share("v2") == 10
        have(world, 2, v2=0)
        assert world.share("v2") == 10
        have(world, 1, v2=0)
        assert world.share("v2") == 0

    def test_a_grace_of_nothing_takes_it_back_at_the_first_look(self) -> None:
        world = at(10, rollout=spec(readiness={"unreadyGrace": "0s"}))
        have(world, 1, v2=0)
        assert world.share("v2") == 0


class TestShrinkingStable:
    def test_the_raise_waits_with_numbers_until_the_endpoints_are_back(self) -> None:
        world = at(10, ready={"v1": 4, "v2": 2})
        have(world, 120, v1=2)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PROGRESSING, "StableShrinking", 10)
        assert world.state.message.startswith("v1 has 2 ready endpoints of the 4 it had, so v2 stays at 10 % until")
        assert [e.reason for e in world.state.history].count("StableShrinking") == 1
        have(world, 1, v1=3)
        assert world.share("v2") == 30

    def test_it_ends_by_itself_and_what_is_left_is_the_new_size(self) -> None:
        world = at(10, ready={"v1": 4, "v2": 2})
        shrunk = world.now
        have(world, 900, v1=1)
        assert raised_at(world, 30) - shrunk >= SETTINGS.stable_settle
        assert world.run().state.stable_version == "v2"

    def test_the_deadline_stands_still_meanwhile(self) -> None:
        world = at(10, ready={"v1": 4, "v2": 2}, rollout=spec(progressDeadline="2m"))
        have(world, 900, v1=1)
        assert world.run().state.stable_version == "v2"
        assert "DeadlineExceeded" not in world.events

    def test_a_breach_is_answered_meanwhile(self) -> None:
        world = at(10, ready={"v1": 4, "v2": 2})
        have(world, 60, v1=2)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(60)
        assert (world.share("v2"), record(world).reason) == (0, "GateFailed")

    def test_an_autoscaler_that_follows_the_traffic_holds_nothing(self) -> None:
        world = at(50, ready={"v1": 10, "v2": 5})
        have(world, 300, v1=5, v2=5)
        assert world.state.stable_version == "v2"
        assert "StableShrinking" not in world.events

    def test_a_stable_version_of_which_there_was_nothing_ever_holds_nothing(self) -> None:
        world = World(ready={"v1": 0, "v2": 2}, rollout=spec(initialStableVersion="v1"))
        world.run()
        assert world.state.stable_version == "v2"
        assert "StableShrinking" not in world.events

    def test_endpoints_that_cannot_be_read_are_no_loss(self) -> None:
        world = at(10, ready={"v1": 4, "v2": 2})
        world.ready = None
        world.run(60)
        assert record(world).stable_shrunk_since is None
        world.ready = {"v1": 4, "v2": 2}
        assert world.run().state.stable_version == "v2"

    def test_a_person_may_promote_all_the_same(self) -> None:
        world = at(10, ready={"v1": 4, "v2": 2})
        have(world, 60, v1=0)
        world.command = "promote/v2/1"
        world.run(20)
        assert world.share("v2") == 100


def test_a_canary_is_not_taken_back_to_a_stable_version_that_is_gone_and_is_once_it_is_back() -> None:
    world = at(30)
    have(world, 60, v1=0, v2=0)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "StableGone", 30)
    assert world.state.deadline is None, "nothing happens at one"
    have(world, 3, v1=1, v2=0)
    assert (world.share("v2"), record(world).reason) == (0, "CanaryUnready")


def test_a_canary_with_too_few_endpoints_is_not_raised_and_says_how_many_it_lacks() -> None:
    world = at(10, rollout=spec(readiness={"minReady": 2}))
    world.ready = {"v1": 2, "v2": 1}
    world.run(60)
    assert (world.reason, world.share("v2")) == ("CanaryNotReady", 10)
    assert world.state.message == "v2 has 1 ready endpoints and needs 2 before it gets more traffic"
    assert "StepPassed" not in world.events
    world.ready = None
    world.run(10)
    assert "v2 has an unknown number of ready endpoints and needs 2" in world.state.message


def test_a_canary_with_exactly_as_many_is() -> None:
    assert at(10, rollout=spec(readiness={"minReady": 2})).run(60).share("v2") == 30


def under_way(weight: int, ready: dict[str, int], unstored: RolloutRecord | None = None, **fields: Any) -> Draft:
    found = RolloutRecord(version="v2", started_at=START, weight=weight, applied_at=START, **fields)
    kept = CanaryRolloutStatus(stable_version="v1", rollout=unstored) if unstored is not None else None
    seen = Observation(Identity(NAMESPACE, "reviews", "u", 1, START), endpoints=Endpoints(ready), unstored=kept)
    status = CanaryRolloutStatus(stable_version="v1", rollout=found)
    return Draft(situation(spec(), status, seen, START + timedelta(minutes=1), SETTINGS))


@pytest.mark.parametrize(
    ("full", "ready", "weight", "lost"),
    [
        (4, 2, 10, True),
        (4, 3, 10, False),
        (5, 3, 0, False),
        (5, 2, 0, True),
        (4, 2, 50, False),
        (4, 2, 49, True),
        (101, 48, 52, True),
        (100, 49, 51, False),
        (4, 0, 99, True),
        (4, 0, 100, False),
        (0, 0, 10, False),
    ],
)
def test_stable_has_shrunk_where_it_lost_half_and_has_less_than_its_share_needs(
    full: int, ready: int, weight: int, lost: bool
) -> None:
    draft = under_way(weight, {"v1": ready, "v2": 1}, stable_ready=full)
    follow_stable(draft)
    assert (draft.record.stable_ready, draft.record.stable_shrunk_since is not None) == (full, lost)


@pytest.mark.parametrize(
    ("other", "taken"),
    [({}, True), ({"version": "v3"}, False), ({"token": "1"}, False), ({"started_at": START - SECOND}, False)],
)
def test_moments_of_another_rollout_do_not_count(other: dict[str, Any], taken: bool) -> None:
    fields = {"version": "v2", "started_at": START, "unready_since": START} | other
    draft = under_way(10, {"v1": 2}, RolloutRecord(**fields))
    assert (unready(draft) is not None) is taken
