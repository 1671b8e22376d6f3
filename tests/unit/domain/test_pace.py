from __future__ import annotations

from datetime import timedelta

from canaryrollout.api.status import Phase
from canaryrollout.domain.pace import Pace
from tests.world import World, spec

MINUTE = timedelta(minutes=1)


def test_it_says_what_is_needed_what_is_seen_and_how_long_that_takes() -> None:
    said = Pace(40, 10 * MINUTE).too_slow(300, 30 * MINUTE)
    assert said == "needs about 300 more requests, sees 4/min, would take 1h15m; deadline in 30m"


def test_enough_traffic_is_not_mentioned() -> None:
    assert Pace(400, 10 * MINUTE).too_slow(300, 30 * MINUTE) == ""


def test_a_few_requests_do_not_prove_that_there_will_be_few() -> None:
    assert Pace(4, MINUTE).too_slow(300, 30 * MINUTE) == "", "eleven a minute are plausible"
    assert Pace(8, 2 * MINUTE).too_slow(300, 30 * MINUTE)


def test_no_requests_at_all() -> None:
    assert (
        Pace(0, timedelta(seconds=91))
        .too_slow(100, 10 * MINUTE)
        .startswith("needs about 100 more requests, has seen none in 1m31s")
    )


def test_nothing_is_said_before_anything_was_seen() -> None:
    assert Pace(0, timedelta()).too_slow(100, MINUTE) == ""


def test_a_step_that_can_never_pass_in_time_says_so_long_before_its_deadline() -> None:
    world = World(rps=1, rollout=spec(progressDeadline="10m"))
    world.run(600, until=lambda w: w.reason == "TooLittleTraffic")
    assert (world.phase, world.share("v2")) == (Phase.PROGRESSING, 10)
    assert "needs about" in world.state.message
    assert "deadline in" in world.state.message
    assert world.events.count("TooLittleTraffic") == 1
    assert world.state.deadline is not None
    assert world.state.deadline - world.now > 4 * MINUTE, "at once, not at the deadline"
    world.run(1200)
    assert world.events.count("TooLittleTraffic") == 1, "once for each weight"
    assert world.phase is Phase.ROLLED_BACK


def test_what_is_plausible_lies_above_what_was_seen() -> None:
    assert [Pace(seen, 2 * MINUTE).fastest for seen in (0, 4, 9)] == [1.5, 5.5, 9]


def test_requests_that_just_come_in_time_are_awaited() -> None:
    assert Pace(0, MINUTE).too_slow(30, 10 * MINUTE) == ""
    assert Pace(0, MINUTE).too_slow(31, 10 * MINUTE)


def test_a_step_that_lacks_no_requests_is_not_called_slow_after_its_deadline() -> None:
    assert Pace(4, MINUTE).too_slow(0, -MINUTE) == ""


def test_after_the_deadline_no_time_is_left() -> None:
    assert Pace(4, MINUTE).too_slow(100, timedelta(seconds=-1)).endswith("; deadline in 0s")


def test_beyond_a_month_it_is_not_said_how_long_it_would_take() -> None:
    assert "sees 0.1/min, would take 720h; deadline" in Pace(1, 10 * MINUTE).too_slow(1_000_000, MINUTE)


def test_of_minutes_seconds_are_left_out() -> None:
    assert Pace(4, MINUTE).too_slow(1000, timedelta(seconds=150)).endswith("; deadline in 2m")
