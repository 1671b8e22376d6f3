"""What is said of a provider that gives no evidence."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, Condition
from canaryrollout.domain.draft import Draft, situation
from canaryrollout.domain.observation import Identity, Observation
from canaryrollout.domain.outage import went_away
from tests.unit.domain.watchedworld import at
from tests.world import NAMESPACE, SETTINGS, START, spec

MINUTE = timedelta(minutes=1)
SEEN = "no evidence from provider default since 11:59:00 UTC: connection refused"


def said(error: str, since: datetime | None, *, seen: bool = True) -> str:
    condition = Condition(
        type="AnalysisHealthy",
        status="False",
        reason="ProviderError",
        message=SEEN,
        last_transition_time=START - MINUTE,
    )
    status = CanaryRolloutStatus(conditions=(condition,) if seen else ())
    case = situation(spec(), status, Observation(Identity(NAMESPACE, "reviews", "u", 1, START)), START, SETTINGS)
    return went_away(Draft(case), error, since)


@pytest.mark.parametrize(
    ("error", "since", "seen", "words"),
    [
        ("timeout", None, False, "no evidence from provider default: timeout"),
        ("timeout", START, False, "no evidence from provider default since 12:00:00 UTC: timeout"),
        ("timeout", START, True, "no evidence from provider default since 11:59:00 UTC: timeout"),
        ("timeout", START - 2 * MINUTE, True, "no evidence from provider default since 11:58:00 UTC: timeout"),
        ("timeout", None, True, "no evidence from provider default since 11:59:00 UTC: timeout"),
        ("", None, True, SEEN),
    ],
)
def test_it_is_as_old_as_anybody_knows_with_the_newest_reason(
    error: str, since: datetime | None, seen: bool, words: str
) -> None:
    assert said(error, since, seen=seen) == words


@pytest.mark.parametrize(("seconds", "told"), [(4, 0), (40, 1)])
def test_that_it_is_back_is_told_where_it_was_missed(seconds: int, told: int) -> None:
    world = at(10, rollout=spec(hold="5m"))
    world.run(30)
    world.prometheus = False
    world.step()
    assert world.condition("AnalysisHealthy").reason == "ProviderError"
    world.now += timedelta(seconds=seconds)
    world.prometheus = True
    world.run(60)
    assert world.condition("AnalysisHealthy").status == "True"
    assert world.events.count("ProviderBack") == told
