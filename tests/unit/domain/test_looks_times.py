"""When exactly the next look is: evidence is looked at once the provider has it, and no time comes twice."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, RolloutRecord
from canaryrollout.domain.draft import Draft, situation
from canaryrollout.domain.looks import is_due, next_look
from canaryrollout.domain.observation import Identity, Observation
from tests.world import NAMESPACE, SETTINGS, START, spec


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def draft(now: float, **times: float) -> Draft:
    """Return a draft so many seconds after the start: interval 10 s, lag 2 s, propagation 1 s, a look every 5 s."""
    fields: dict[str, Any] = {name: at(second) for name, second in times.items()}
    record = RolloutRecord(version="v2", weight=10, **({"started_at": START} | fields))
    status = CanaryRolloutStatus(stable_version="v1", rollout=record)
    seen = Observation(Identity(NAMESPACE, "reviews", "uid-1", 1, START))
    return Draft(situation(spec(hold="0s", progressDeadline="10m"), status, seen, at(now), SETTINGS))


@pytest.mark.parametrize(
    ("now", "times", "expected"),
    [
        (3, {"applied_at": 3}, 8),
        (8, {"applied_at": 3}, 12),
        (9, {"applied_at": 3}, 12),
        (12, {"applied_at": 3}, 17),
        (18, {"applied_at": 3}, 22),
        (9.6, {"applied_at": 9.5}, 14.6),  # the grid begins at 10.5, so there is nothing to see at 12
        (19, {"applied_at": 9.5}, 22),
        (8, {}, 13),
        (8, {"applied_at": 3, "unready_since": 1}, 11),
        (11, {"applied_at": 3, "unready_since": 1}, 12),
        (599, {"applied_at": 3}, 600),
        (600, {"applied_at": 3}, 602),
        (603, {"applied_at": 3}, 608),
    ],
)
def test_the_next_look_is_at_what_comes_first_and_always_ahead(
    now: float, times: dict[str, float], expected: float
) -> None:
    assert next_look(draft(now, **times)) == at(expected)


@pytest.mark.parametrize(("now", "due"), [(11.999, False), (12, True), (100, True)])
def test_evidence_can_be_known_once_its_first_block_has_ended_and_the_provider_has_it(now: float, due: bool) -> None:
    assert is_due(draft(now, applied_at=3)) is due


def test_of_a_weight_that_was_not_confirmed_there_is_no_evidence() -> None:
    assert not is_due(draft(100))
