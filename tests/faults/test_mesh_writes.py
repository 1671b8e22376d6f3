"""Writes of VirtualServices and DestinationRules that are refused, time out or fail, going up and coming back.

What refuses is a validating webhook that the real API server asks, in words of the API server's own; only a write that
never returns and a plain 503 are made by the proxy before it. The write is repeated at growing distances, or at least
once a second where traffic is being taken back; a person can read why; and a rollout next door notices nothing.
"""

from __future__ import annotations

import time
from typing import Final

import pytest

from canaryrollout.api.status import Phase
from tests.faults.cluster import DESTINATION_RULES, VIRTUAL_SERVICES
from tests.faults.life import LAG_SECONDS, NAME, STEPS, Ground, Life, shares
from tests.faults.obstacles import (
    ASK_AT_20,
    ASK_AT_60,
    LASTS_SECONDS,
    LONGEST_DELAY_SECONDS,
    LONGEST_URGENT_SECONDS,
    OBSTACLES,
    SLACK_SECONDS,
    asks,
    check_end,
    check_urgent,
    check_visible,
    distances,
    most_attempts,
    obstructed,
    rows,
    tries,
)
from tests.faults.rows import Row
from tests.faults.traffic import SCRAPE_SECONDS
from tests.faults.webhook import Review

pytestmark = pytest.mark.cluster

INTERVAL_SECONDS: Final = 1.0
ANSWERED_WITHIN: Final = INTERVAL_SECONDS + 1.0
VISIBLE_SECONDS: Final = SCRAPE_SECONDS + LAG_SECONDS
"""After a breach the provider has it."""
QUICK: Final = ("denied by a webhook",)
KINDS: Final = [
    pytest.param(QUICK, id="quick"),
    pytest.param(
        tuple(kind for kind in OBSTACLES if kind not in QUICK),
        id="all",
        marks=[pytest.mark.faults, pytest.mark.timeout(1200)],
    ),
]


# --- one VirtualService -----------------------------------------------------------------------------------------------


def whole_rollout(life: Life) -> float:
    """Let a rollout begin and end; return how many seconds it took."""
    life.begin()
    took = life.until(lambda: life.ended, "end")
    assert life.weights() == [0, *STEPS], life.story()
    return took


def check_undelayed(life: Life, took: float, usual: float) -> None:
    """A rollout beside one that cannot be written takes as long as without; waiting for it would cost 5 s a write."""
    assert took < 1.4 * usual + 2, f"{took:.1f} s, usually {usual:.1f} s; {life.story()}"


def weight_in(review: Review) -> int:
    """The canary's weight in a VirtualService under review."""
    return shares(review.document).get("v2", 0) if review.resource == "virtualservices" else 0


def refused_going_up(ground: Ground, kind: str) -> Row:
    """Let no weight be written in the middle of a rollout, and tell what was seen."""
    with obstructed(ground, kind) as (life, calm, beside, obstacle):
        life.begin(steps=ASK_AT_20)
        usual = whole_rollout(calm)
        life.until(lambda: asks(life, 20), "approved step")
        began = obstacle.begin()
        life.command("approve/v2/1")
        took = whole_rollout(beside)
        check_visible(life, obstacle.words)
        time.sleep(max(0.0, began + LASTS_SECONDS - time.time()))
        assert life.weights() == [0, 20], life.story()
        ended = obstacle.end()
        attempts = tries(life, began)
        most = most_attempts(ended - began, LONGEST_DELAY_SECONDS)
        life.until(lambda: life.ended, "end", 90)
        check_end(life, [0, *STEPS])
        assert 1 < len(attempts) <= most, life.story()
        check_undelayed(beside, took, usual)
        again = next(entry.at for entry in tries(life, ended) if entry.applied) - ended
        return Row(
            f"VirtualService {kind}",
            f"for {ended - began:.0f} s, going up",
            1,
            f"tried {len(attempts)} times ({most} at most), said in message and Event; written {again:.1f} s after it "
            f"ended, then promoted; a rollout beside it took {took:.1f} s, one before {usual:.1f} s",
        )


def refused_coming_back(ground: Ground, kind: str) -> Row:
    """Let no weight be written while a breach is to be answered, and tell what was seen."""
    with obstructed(ground, kind) as (life, calm, beside, obstacle):
        life.begin(steps=ASK_AT_60)
        usual = whole_rollout(calm)
        life.until(lambda: asks(life, 60), "approved step")
        began = obstacle.begin()
        life.fail("v2")
        took = whole_rollout(beside)
        check_visible(life, obstacle.words)
        time.sleep(max(0.0, began + LASTS_SECONDS - time.time()))
        assert life.weight == 60, life.story()
        ended = obstacle.end()
        attempts = tries(life, began)
        life.until(lambda: life.weight == 0, "rollback", 10)
        back = next(seen.at for seen in life.seen(VIRTUAL_SERVICES)[::-1] if not shares(seen.document).get("v2"))
        life.until(lambda: life.ended, "end")
        check_end(life, [0, 20, 60, 0])
        between = distances(attempts)
        check_urgent(attempts, life.story())
        assert len(attempts) <= most_attempts(ended - began, LONGEST_URGENT_SECONDS), life.story()
        assert back - ended < LONGEST_URGENT_SECONDS + obstacle.patience + SLACK_SECONDS, life.story()
        check_undelayed(beside, took, usual)
        return Row(
            f"VirtualService {kind}",
            f"for {ended - began:.0f} s, coming back after a breach",
            1,
            f"tried {len(attempts)} times, {max(between):.1f} s apart at most, said in message and Event; weight 0 "
            f"{back - ended:.1f} s after it ended; a rollout beside it took {took:.1f} s, one before {usual:.1f} s",
        )


WAYS: Final = {"up": refused_going_up, "back": refused_coming_back}


@pytest.mark.parametrize("kinds", KINDS)
def test_a_weight_that_cannot_be_written_is_tried_again_and_delays_nobody_else(
    ground: Ground, table: list[Row], kinds: tuple[str, ...]
) -> None:
    cases = [(way, kind) for kind in kinds for way in WAYS]
    rows(lambda case: WAYS[case[0]](ground, case[1]), cases, table)


@pytest.mark.faults
def test_a_canary_whose_raise_is_refused_is_judged_as_ever(ground: Ground, table: list[Row]) -> None:
    """However long the next attempt waits: who refuses more traffic for the canary lets it be taken back."""
    with obstructed(ground, "denied by a webhook") as (life, _, _, obstacle):
        life.begin(steps=ASK_AT_20)
        life.until(lambda: asks(life, 20), "approved step")
        began = obstacle.begin(lambda review: weight_in(review) > 20)
        life.command("approve/v2/1")
        time.sleep(2 * LASTS_SECONDS)
        attempts = tries(life, began)
        assert 1 < len(attempts) <= most_attempts(time.time() - began, LONGEST_DELAY_SECONDS), life.story()
        life.fail("v2")
        took = life.until(lambda: life.weight == 0, "rollback", 10)
        life.until(lambda: life.ended, "end")
        check_end(life, [0, 20, 0])
    table.append(
        Row(
            "VirtualService: a webhook denies every weight above 20",
            "a breach at 20 while the next step is refused",
            1,
            f"{len(attempts)} attempts in {2 * LASTS_SECONDS:g} s, weight 0 {took:.1f} s after the breach",
        )
    )
    assert took < VISIBLE_SECONDS + ANSWERED_WITHIN + SLACK_SECONDS, life.story()


# --- the DestinationRule ----------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_subset_that_cannot_be_written_keeps_traffic_where_it_is(ground: Ground, table: list[Row]) -> None:
    """Refused twice: when the canary's subset is to be added, and when stable's former one is to be removed."""
    with obstructed(ground, "denied by a webhook") as (life, _, beside, obstacle):
        began = obstacle.begin(lambda review: review.resource == "destinationrules")
        life.begin(steps=ASK_AT_20)
        took = whole_rollout(beside)
        check_visible(life, obstacle.words)
        assert life.status.phase is Phase.PREPARING, life.story()
        added = len(tries(life, began, "destinationrules"))
        assert 1 < added <= most_attempts(time.time() - began, LONGEST_DELAY_SECONDS), life.story()
        assert life.weights() == [0], life.story()
        obstacle.end()
        life.until(lambda: asks(life, 20), "first step")
        again = obstacle.begin(lambda review: review.resource == "destinationrules")
        life.fail("v2")
        life.until(lambda: life.weight == 0, "rollback", 10)
        check_visible(life, obstacle.words)
        time.sleep(2.0)
        removed = len(tries(life, again, "destinationrules"))
        assert 1 < removed <= most_attempts(time.time() - again, LONGEST_URGENT_SECONDS), life.story()
        obstacle.end()
        life.until(lambda: life.ended, "end")
        check_end(life, [0, 20, 0])
        rule = ground.cluster.get(DESTINATION_RULES, life.namespace, NAME)
        assert [subset["name"] for subset in rule["spec"]["subsets"]] == ["v1"]
    table.append(
        Row(
            "DestinationRule denied by a webhook",
            "when a subset is added, and when it is removed after a rollback",
            2,
            f"no weight before the subset ({added} attempts); weight 0 at once and the subset removed later ({removed} "
            f"attempts); a rollout beside it took {took:.1f} s",
        )
    )
