from __future__ import annotations

from datetime import timedelta

from canaryrollout.api.status import RolloutRecord
from canaryrollout.domain.steps import deadline, hold_of, needs_approval, next_weight
from tests.world import START, spec


def test_a_step_has_its_hold_and_the_time_beyond_it() -> None:
    record = RolloutRecord(version="v2", started_at=START, weight=10)
    assert deadline(spec(hold="30s", progressDeadline="10m"), record) == START + timedelta(minutes=10, seconds=30)


def test_before_the_first_weight_nothing_is_held() -> None:
    record = RolloutRecord(version="v2", started_at=START)
    assert deadline(spec(hold="30s", progressDeadline="10m"), record) == START + timedelta(minutes=10)


def test_time_in_which_a_person_was_awaited_is_added() -> None:
    record = RolloutRecord(version="v2", started_at=START, awaited_seconds=90)
    assert deadline(spec(progressDeadline="10m"), record) == START + timedelta(minutes=11, seconds=30)


def test_beyond_the_last_step_there_is_all_the_traffic_and_no_more() -> None:
    assert next_weight(spec(steps=[{"weight": 40}, {"weight": 100}]), 40) == 100
    assert next_weight(spec(steps=[{"weight": 40}, {"weight": 100}]), 100) == 100


def test_each_step_has_its_own_hold_and_approval() -> None:
    steps = [{"weight": 10}, {"weight": 40, "hold": "2m", "approval": "Required"}, {"weight": 100, "hold": "0s"}]
    plan = spec(hold="30s", steps=steps)
    assert [hold_of(plan, weight) / timedelta(seconds=1) for weight in (10, 25, 40, 100)] == [30, 30, 120, 0]
    assert [needs_approval(plan, weight) for weight in (10, 25, 40, 100)] == [False, False, True, False]


def test_time_counts_from_the_step_that_passed_last() -> None:
    passed = START + timedelta(minutes=7)
    record = RolloutRecord(version="v2", started_at=START, last_passed_at=passed, weight=10)
    assert deadline(spec(hold="30s", progressDeadline="10m"), record) == passed + timedelta(minutes=10, seconds=30)
