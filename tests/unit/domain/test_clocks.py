"""A clock that was set, by the machine or because another replica leads: no wait is longer than if it began now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, Condition, Contest, Phase, RolloutRecord, Target
from canaryrollout.domain.clocks import as_of, moved_along
from tests.modelworld import ModelWorld
from tests.world import SETTINGS, START, World, spec

TEN_MINUTES = timedelta(minutes=10)
SECOND = timedelta(seconds=1)
STEPS = [{"weight": 10}, {"weight": 100}]
TIMES = [name for name, field in RolloutRecord.model_fields.items() if "datetime" in str(field.annotation)]
WAITS = [name for name in TIMES if name.endswith("_since") or name in ("subset_seen_at", "cleaned_at")]


def status(**fields: Any) -> CanaryRolloutStatus:
    record = RolloutRecord.model_validate({"version": "v2", "startedAt": START - TEN_MINUTES, "weight": 10})
    return CanaryRolloutStatus(stable_version="v1", rollout=record.model_copy(update=fields))


def read(before: CanaryRolloutStatus) -> RolloutRecord:
    found = as_of(before, spec(), START, SETTINGS).rollout
    assert found is not None
    return found


def contest(**fields: Any) -> CanaryRolloutStatus:
    return status().model_copy(update={"contest": Contest.model_validate({"manager": "argocd"} | fields)})


class TestReading:
    @pytest.mark.parametrize("name", [name for name in TIMES if name != "in_effect_at"])
    def test_a_time_in_the_future_is_taken_for_now(self, name: str) -> None:
        assert getattr(read(status(**{name: START + TEN_MINUTES})), name) == START

    @pytest.mark.parametrize("name", TIMES)
    def test_a_time_in_the_past_stays(self, name: str) -> None:
        before = status(**{name: START - SECOND})
        assert as_of(before, spec(), START, SETTINGS) is before

    def test_a_weight_from_the_future_has_to_show_itself_in_traffic_again(self) -> None:
        later = START + TEN_MINUTES
        found = read(status(applied_at=later, in_effect_at=later + SECOND, convergence="Converged"))
        assert (found.applied_at, found.in_effect_at, found.convergence) == (START, None, "")

    def test_a_weight_that_came_into_effect_in_the_future_is_held_from_now(self) -> None:
        found = read(status(applied_at=START - SECOND, in_effect_at=START + SECOND, convergence="Converged"))
        assert (found.applied_at, found.in_effect_at, found.convergence) == (START - SECOND, START, "Converged")

    def test_a_target_from_the_future_was_set_now(self) -> None:
        found = read(status(target=Target(weight=30, set_at=START + SECOND, generations={"reviews": 1})))
        assert found.target == Target(weight=30, set_at=START, generations={"reviews": 1})
        current = status(target=found.target)
        assert as_of(current, spec(), START, SETTINGS) is current

    def test_nobody_was_awaited_for_longer_than_the_step_has_lasted(self) -> None:
        assert read(status(awaited_seconds=500)).awaited_seconds == 500
        whole = status(awaited_seconds=600)
        assert as_of(whole, spec(), START, SETTINGS) is whole
        assert read(status(awaited_seconds=700)).awaited_seconds == 600
        assert read(status(awaited_seconds=700, last_passed_at=START + SECOND)).awaited_seconds == 0

    @pytest.mark.parametrize(
        ("fields", "longest"),
        [({}, 10), ({"count": 2}, 40), ({"givenUpGeneration": 1}, 80), ({"count": 99}, 80), ({"count": -1}, 10)],
    )
    def test_an_answer_to_drift_waits_no_longer_than_its_pause(self, fields: dict[str, Any], longest: int) -> None:
        for seconds, expected in ((longest - 1, longest - 1), (longest, longest), (longest + 1, longest)):
            before = contest(notBefore=START + seconds * SECOND, **fields)
            found = as_of(before, spec(), START, SETTINGS).contest
            assert found is not None
            assert found.not_before == START + expected * SECOND

    def test_an_answer_to_drift_that_is_due_stays_as_it_is(self) -> None:
        for seconds in (0, 10):
            before = contest(changedAt=START, notBefore=START + seconds * SECOND)
            assert as_of(before, spec(), START, SETTINGS) is before

    def test_conditions_are_no_newer_than_now_while_a_change_is_under_way(self) -> None:
        later = Condition(type="AnalysisHealthy", status="False", reason="x", last_transition_time=START + SECOND)
        before = status().model_copy(update={"conditions": (later,)})
        assert as_of(before, spec(), START, SETTINGS).conditions[0].last_transition_time == START
        current = before.model_copy(update={"conditions": (later.model_copy(update={"last_transition_time": START}),)})
        assert as_of(current, spec(), START, SETTINGS) is current
        ended = status(ended_at=START).model_copy(update={"conditions": (later,)})
        assert as_of(ended, spec(), START, SETTINGS) is ended, "a rollout at rest is not written for that"


class TestForward:
    """The clock was set forward while the operator ran."""

    @pytest.mark.parametrize("name", WAITS)
    def test_what_waits_is_moved_along(self, name: str) -> None:
        record = read(status(**{name: START - 2 * SECOND}))
        after = START + TEN_MINUTES
        assert moved_along(record, TEN_MINUTES, after)[name] == after - 2 * SECOND
        assert moved_along(record, TEN_MINUTES, START)[name] == START, "and never into the future"

    def test_the_deadline_is_later_by_as_much(self) -> None:
        assert moved_along(read(status(awaited_seconds=5)), TEN_MINUTES, START + TEN_MINUTES) == {
            "awaited_seconds": 605
        }

    def test_evidence_keeps_its_times(self) -> None:
        record = read(status(applied_at=START - 2 * SECOND, in_effect_at=START - SECOND, last_passed_at=START))
        assert moved_along(record, TEN_MINUTES, START).keys() == {"awaited_seconds"}

    def test_some_seconds_are_worth_a_write(self) -> None:
        assert moved_along(read(status()), 5 * SECOND, START) == {"awaited_seconds": 5}

    @pytest.mark.parametrize("step", [timedelta(), 4 * SECOND, -TEN_MINUTES])
    def test_a_small_step_or_one_back_moves_nothing(self, step: timedelta) -> None:
        assert moved_along(read(status(unready_since=START)), step, START) == {}

    def test_nothing_of_a_rollout_that_ended_moves(self) -> None:
        assert moved_along(read(status(ended_at=START)), TEN_MINUTES, START) == {}

    @pytest.mark.parametrize(("reason", "command"), [("Settling", ""), ("Draining", "abort/v2/1")])
    def test_the_mesh_has_its_time_whatever_the_clock_says(self, reason: str, command: str) -> None:
        world = ModelWorld(rollout=spec(steps=STEPS))
        if command:
            world.run(until=lambda w: w.share("v2") == 10)
            world.command = command
        decision = world.step()
        while world.reason != reason:
            world._wait(decision)
            decision = world.step()
        world.jump(TEN_MINUTES)
        world.step()
        assert world.reason == reason

    def test_a_rollout_is_not_taken_back_for_a_deadline_that_only_the_clock_has_passed(self) -> None:
        world = ModelWorld(rollout=spec(steps=STEPS), ready={"v1": 2})
        world.run(until=lambda w: w.reason == "WaitingForCanary")
        world.jump(timedelta(hours=1))
        world.run(60)
        assert (world.phase, world.reason) == (Phase.PREPARING, "WaitingForCanary")


def set_back(world: World, by: timedelta) -> None:
    """Set every clock back, the provider's as well; traffic goes on as it was."""
    world.now -= by
    world.weights = [(at - by, weight) for at, weight in world.weights]
    world._counted.clear()


def undisturbed() -> tuple[int, datetime]:
    world = World(rollout=spec(steps=STEPS)).run()
    return world.passes, world.now


PASSES, END = undisturbed()


@pytest.mark.parametrize("passes", range(0, PASSES, 2))
@pytest.mark.parametrize("by", [timedelta(minutes=5), timedelta(hours=2)])
def test_a_clock_set_back_at_any_moment_costs_no_more_than_one_wait(passes: int, by: timedelta) -> None:
    world = World(rollout=spec(steps=STEPS))
    world.run(until=lambda w: w.passes >= passes)
    set_back(world, by)
    world.run()
    assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
    longest = timedelta(seconds=30 + 30 + 10)  # the hold, the look at traffic, an interval
    assert world.now + by <= END + longest
    assert [weight for _, weight in world.weights] == [0, 10, 100]


@pytest.mark.parametrize("passes", range(0, PASSES, 5))
def test_a_clock_set_back_keeps_no_failing_canary(passes: int) -> None:
    world = World(rollout=spec(steps=STEPS))
    world.run(until=lambda w: w.share("v2") > 0 and w.passes >= passes)
    if world.state.stable_version == "v2":
        return
    set_back(world, timedelta(hours=2))
    world.ready = {"v1": 2}
    died = world.now
    world.run(until=lambda w: w.share("v2") == 0)
    assert world.now - died <= timedelta(seconds=16), "the grace and a look"
