"""Commands: when they apply, what they leave in status, and the answers to those that do not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Phase, RolloutRecord
from tests.unit.domain.watchedworld import set_to
from tests.world import World, spec


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def given(world: World, command: str) -> str:
    """Give a command and return what came of it."""
    world.command = command
    world.step()
    answered = world.state.last_command
    assert answered is not None
    assert (answered.command, answered.handled_at) == (command, world.now)
    return answered.result


def record(world: World) -> RolloutRecord:
    found = world.state.rollout
    assert found is not None
    return found


def taken_back() -> World:
    world = at(30)
    given(world, "abort/v2/0")
    world.run()
    assert world.phase is Phase.ROLLED_BACK
    return world


@pytest.mark.parametrize("verb", ["approve", "abort", "promote"])
class TestNothingUnderWay:
    def test_at_rest(self, verb: str) -> None:
        world = World(rollout=spec(version="v1")).run()
        assert given(world, f"{verb}/v1/1") == "refused: no rollout is under way"
        assert world.phase is Phase.STABLE

    def test_after_a_rollback(self, verb: str) -> None:
        world = taken_back()
        assert given(world, f"{verb}/v2/1") == "refused: no rollout is under way"

    def test_during_a_rollback(self, verb: str) -> None:
        world = at(30)
        given(world, "abort/v2/0")
        assert given(world, f"{verb}/v2/1") == "refused: v2 is being taken back already"
        assert world.run().phase is Phase.ROLLED_BACK

    def test_after_the_promotion(self, verb: str) -> None:
        world = World().run(until=lambda w: w.phase is Phase.PROMOTING)
        assert given(world, f"{verb}/v2/1") == "refused: v2 is promoted already"
        assert world.run().state.stable_version == "v2"

    def test_for_another_version(self, verb: str) -> None:
        world = at(10)
        assert given(world, f"{verb}/v3/1") == "refused: the rollout under way is to v2, not v3"
        assert world.share("v2") == 10


def test_an_approval_lets_one_step_go_on() -> None:
    steps = [{"weight": 10, "approval": "Required"}, {"weight": 50, "approval": "Required"}, {"weight": 100}]
    world = World(rollout=spec(steps=steps)).run(600)
    assert world.reason == "AwaitingApproval"
    assert given(world, "approve/v2/1") == "accepted"
    world.run(600)
    assert (world.reason, world.share("v2"), record(world).approved) == ("AwaitingApproval", 50, False)


def test_an_approval_that_nothing_waits_for_is_not_kept_for_later() -> None:
    world = at(10, rollout=spec(steps=[{"weight": 10, "approval": "Required"}, {"weight": 100}]))
    assert given(world, "approve/v2/1").startswith("refused: nothing waits for approval: ")
    world.run(600)
    assert (world.reason, world.share("v2")) == ("AwaitingApproval", 10)


def test_the_same_command_counts_again_with_a_new_token() -> None:
    world = taken_back()
    assert given(world, "retry/v2/1") == "accepted"
    world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
    assert world.run().phase is Phase.ROLLED_BACK
    world.error_rate = lambda version, weight, now: 0.0
    assert world.run().phase is Phase.ROLLED_BACK
    assert given(world, "retry/v2/2") == "accepted"
    assert world.run().phase is Phase.STABLE


class TestRetry:
    def test_it_starts_from_the_beginning(self) -> None:
        world = taken_back()
        before = len(world.weights)
        given(world, "retry/v2/1")
        assert (record(world).token, record(world).weight, record(world).reason) == ("1", 0, "")
        world.run()
        assert [weight for _, weight in world.weights[before:]] == [10, 30, 50, 100]

    def test_it_waits_for_the_end_of_a_rollback(self) -> None:
        world = at(30)
        given(world, "abort/v2/0")
        assert given(world, "retry/v2/1") == "refused: v2 is being taken back; retry once that is done"
        assert world.run().phase is Phase.ROLLED_BACK

    def test_another_version_than_the_one_that_was_taken_back(self) -> None:
        world = taken_back()
        words = "refused: v2 was taken back, not v3"
        assert given(world, "retry/v3/1") == words
        assert world.run().phase is Phase.ROLLED_BACK

    def test_soon_after_the_end_the_level_of_before_is_kept(self) -> None:
        world = taken_back()
        level = record(world).baseline
        assert level is not None
        given(world, "retry/v2/1")
        assert record(world).baseline == level

    def test_long_after_the_end_it_is_measured_again(self) -> None:
        world = taken_back()
        world.now += timedelta(hours=1)
        given(world, "retry/v2/1")
        assert record(world).baseline is None

    def test_nothing_was_taken_back(self) -> None:
        assert given(at(10), "retry/v2/1") == "refused: nothing was taken back"


def test_an_abort_takes_a_raise_under_way_back_too() -> None:
    world = at(10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    assert record(world).target is not None
    world.refusing = frozenset()
    given(world, "abort/v2/1")
    assert world.share("v2") == 0
    assert (record(world).target, record(world).reason) == (None, "Aborted")
    assert world.events[-1] == "Aborted"


def test_a_promotion_says_what_it_skips() -> None:
    world = at(10)
    assert given(world, "promote/v2/1") == "accepted"
    assert "PromoteRequested" in world.events
    assert world.share("v2") == 100


def test_a_command_is_answered_before_the_stable_version_is_known() -> None:
    world = World(api=False)
    assert given(world, "abort/v2/1") == "refused: no rollout is under way"


@pytest.mark.parametrize(
    ("command", "words"),
    [("retry/v2/1", "v2 was taken back, and spec.version is v3 now"), ("retry/v3/1", "v2 was taken back, not v3")],
)
def test_a_retry_that_comes_with_another_version_is_not_heeded(command: str, words: str) -> None:
    world = taken_back()
    world.apply(version="v3")
    assert given(world, command) == f"refused: {words}"
    world.run(until=lambda w: w.share("v3") == 10)
    assert record(world).version == "v3"


def test_a_retry_at_rest_has_nothing_to_do() -> None:
    world = World(rollout=spec(version="v1")).run()
    assert given(world, "retry/v1/1") == "refused: nothing was taken back"


def test_a_retry_does_not_cut_a_change_of_weights_short_that_is_still_respected() -> None:
    world = at(30, rollout=spec(hold="5m"))
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.step()
    assert given(world, "retry/v2/1") == "refused: nothing was taken back"
    assert world.share("v2") == 5


@pytest.mark.parametrize(("seconds", "kept"), [(59.999, True), (60, False)])
def test_a_level_is_kept_for_as_long_as_a_new_window_would_count_what_the_canary_did(
    seconds: float, kept: bool
) -> None:
    world = taken_back()
    ended = record(world).ended_at
    assert ended is not None
    world.now = ended + timedelta(seconds=seconds)
    given(world, "retry/v2/1")
    assert (record(world).baseline is not None) is kept


def test_a_promotion_ends_the_wait_of_who_gave_way_to_another() -> None:
    asking = [{"weight": 30, "approval": "Required"}, {"weight": 100}]
    world = World(rollout=spec(steps=asking)).run(until=lambda w: w.reason == "AwaitingApproval")
    while world.reason != "WeightContested":
        world.edit("reviews", set_to(("v1", 100)))
        world.run(300, until=lambda w: w.share("v2") == 30 or w.reason == "WeightContested")
    world.command = "promote/v2/1"
    world.run()
    assert (world.phase, world.share("v2")) == (Phase.STABLE, 100)


def test_a_promotion_leaves_a_contest_alone_that_goes_on() -> None:
    world = World(rollout=spec(hold="1h")).run(until=lambda w: w.reason == "Holding")
    world.edit("reviews", set_to(("v1", 100)))
    world.step()
    world.step()
    world.command = "promote/v2/1"
    world.step()
    assert (world.reason, world.share("v2")) == ("WeightDrift", 0)
    world.run()
    assert world.state.stable_version == "v2"
