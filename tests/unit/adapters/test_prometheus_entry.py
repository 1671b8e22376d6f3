from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from canaryrollout.adapters.prometheus_counts import Reading
from canaryrollout.adapters.prometheus_entry import Entry, Fetched, Job, Stretch
from canaryrollout.domain.evidence import Block, EvidenceRequest

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
INTERVAL = timedelta(seconds=10)
REQUEST = EvidenceRequest("default", "shop", "reviews", "v1", "v2", "version", T0, INTERVAL)


def entry() -> Entry:
    return Entry(REQUEST, lambda: None, T0)


def test_a_pause_after_a_failure_ends_though_the_clock_went_back() -> None:
    found, later = entry(), T0 + timedelta(minutes=10)
    found.fail("connection refused", later)
    assert not found.due(later + timedelta(seconds=0.5), timedelta()), "it pauses"
    assert found.due(later - timedelta(minutes=5), timedelta()), "five minutes would be no pause but a stop"


@pytest.mark.parametrize("warnings", [(), ("one store is away",)])
def test_blocks_that_were_counted_before_their_time_are_counted_again(warnings: tuple[str, ...]) -> None:
    found = entry()
    ends = tuple(T0 + n * INTERVAL for n in range(1, 7))
    job = Job(found, Stretch(INTERVAL, ends))
    job.outcome = Fetched(tuple(Reading(Block(end - INTERVAL, end)) for end in ends), warnings)
    found.jobs = (job,)
    assert found.settle(ends[-1])
    back = T0 + 2 * INTERVAL
    found.due(back, timedelta())
    evidence = found.evidence()
    assert evidence is not None
    assert evidence.until == back
    again = found.due(back + 2 * INTERVAL, timedelta())
    assert [end for stretch in again for end in stretch.ends][-2:] == [ends[2], ends[3]]


def test_warnings_have_one_order_whatever_the_servers_is() -> None:
    shown = []
    for warnings in (("store b is away", "store a is away"), ("store a is away", "store b is away")):
        found = entry()
        end = T0 + INTERVAL
        job = Job(found, Stretch(INTERVAL, (end,)))
        job.outcome = Fetched((Reading(Block(T0, end)),), warnings)
        found.jobs = (job,)
        assert found.settle(end)
        evidence = found.evidence()
        assert evidence is not None
        shown.append(evidence.warnings)
    assert shown[0] == shown[1] == ("store a is away", "store b is away")
