"""What happens when a step's deadline passes: its policy decides, and what is being done goes on being done."""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from tests.world import World, destination, destination_rule, spec

HOLD = {"onDeadline": "Hold", "progressDeadline": "2m"}


def at(weight: int, **fields: object) -> World:
    """Return a world in which the canary has just got this weight."""
    world = World(rollout=spec(**fields))
    return world.run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def test_a_raise_that_was_refused_past_the_deadline_is_made_once_it_can_be() -> None:
    world = at(10, **HOLD)
    world.refusing = frozenset({"reviews"})
    world.run(600)
    assert (world.share("v2"), world.state.weight) == (10, 10)
    assert world.events.count("DeadlineExceeded") == 1
    assert world.state.deadline is None, "it has passed, and nothing more happens"
    world.refusing = frozenset()
    assert world.run().phase is Phase.STABLE


def test_a_raise_that_is_refused_past_the_deadline_is_taken_back_where_that_is_the_policy() -> None:
    world = at(10, progressDeadline="2m")
    world.refusing = frozenset({"reviews"})
    world.run(600)
    assert (world.phase, world.reason) == (Phase.ROLLING_BACK, "DeadlineExceeded")
    world.refusing = frozenset()
    world.run(60)
    assert (world.phase, world.share("v2")) == (Phase.ROLLED_BACK, 0)


def test_a_promotion_by_command_past_the_deadline_is_seen_to_its_end() -> None:
    world = at(10, **HOLD)
    world.refusing = frozenset({"reviews"})
    world.run(600)
    world.refusing, world.command = frozenset(), "promote/v2/1"
    world.run(120)
    assert (world.phase, world.share("v2"), world.state.stable_version) == (Phase.STABLE, 100, "v2")


def test_a_subset_that_is_removed_past_the_deadline_is_added_again() -> None:
    world = at(10, **HOLD)
    world.prometheus = False
    due = world.state.deadline
    world.run(600)
    assert (world.phase, world.reason) == (Phase.PROGRESSING, "DeadlineExceeded")
    assert world.state.deadline == due, "which one was missed"
    world.rule = destination_rule("v1")
    world.run(30)
    assert world.rule is not None
    assert {subset["labels"]["version"] for subset in world.rule["spec"]["subsets"]} == {"v1", "v2"}


@pytest.mark.parametrize(("policy", "weight"), [("Hold", 10), ("Rollback", 0)])
def test_foreign_weights_are_answered_until_the_deadline_and_then_by_its_policy(policy: str, weight: int) -> None:
    """Nobody accepts the operator's answer meanwhile."""
    world = at(10, onDeadline=policy, progressDeadline="2m")
    world.refusing = frozenset({"reviews"})
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 50), destination("v2", 50)]))
    world.run(600)
    assert world.events.count("DeadlineExceeded") == 1
    assert world.phase is (Phase.ROLLING_BACK if policy == "Rollback" else Phase.PROGRESSING)
    world.refusing = frozenset()
    world.run(5)
    assert world.share("v2") == weight


def test_the_hold_begins_anew_where_a_subset_was_gone_for_a_moment() -> None:
    """Requests went nowhere meanwhile: the canary was not at its weight without interruption."""
    world = at(10, hold="60s").run(50)
    assert world.reason == "Holding"
    world.rule = destination_rule("v1")
    back = world.run(5).now
    assert world.events.count("SubsetLost") == 1
    world.run(58)
    assert (world.share("v2"), world.reason) == (10, "Holding")
    world.run(until=lambda w: w.share("v2") == 30)
    assert 60 <= (world.now - back).total_seconds() < 75


def test_no_deadline_is_shown_while_promoting() -> None:
    world = World()
    world.run(until=lambda w: w.phase is Phase.PROMOTING)
    assert world.state.deadline is None


def test_the_deadline_runs_again_after_a_pause_although_weights_were_contested() -> None:
    world = at(10, hold="10m", progressDeadline="30m", paused=False)
    world.apply(paused=True)
    world.run(900)
    assert world.state.deadline is None
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 95), destination("v2", 5)]))
    world.run(30)
    assert world.state.contest is not None
    world.apply(paused=False, hold="20m")
    world.run(5)
    assert world.state.contest is not None
    assert world.state.deadline is not None


def test_at_the_very_moment_of_the_deadline_it_is_over() -> None:
    world = at(10, **HOLD)
    world.refusing = frozenset({"reviews"})
    world.run(45)
    assert world.reason == "SettingWeight"
    due = world.state.deadline
    assert due is not None
    world.now = due
    world.step()
    assert world.state.deadline is None
    assert world.events.count("DeadlineExceeded") == 1


def _lower(world: World) -> None:
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 95), destination("v2", 5)]))


def test_while_a_person_is_awaited_it_is_said_since_when_and_nothing_is_written() -> None:
    world = at(10, steps=[{"weight": 10, "approval": "Required"}, {"weight": 100}])
    world.run(until=lambda w: w.reason == "AwaitingApproval")
    before = world.status["rollout"]
    assert "awaitingSince" in before
    world.run(3600)
    assert world.reason == "AwaitingApproval"
    assert world.status["rollout"] == before


def test_while_the_operator_has_given_way_it_is_said_since_when_and_nothing_is_written() -> None:
    world = at(10, hold="10m")
    for _ in range(4):
        _lower(world)
        world.run(100, until=lambda w: w.reason == "WeightContested" or w.share("v2") == 10)
    world.run(60)
    assert world.reason == "WeightContested"
    before = world.status["rollout"]
    assert "awaitingSince" in before
    world.run(3600)
    assert world.reason == "WeightContested"
    assert world.status["rollout"] == before


def test_a_pause_stops_the_deadline_from_the_first_look_on_whatever_is_waited_for() -> None:
    world = at(10)
    world.prometheus = False
    world.run(60)
    world.apply(paused=True)
    world.step()
    before = world.status["rollout"]["awaitingSince"]
    world.run(3600)
    assert (world.state.deadline, world.status["rollout"]["awaitingSince"]) == (None, before)
