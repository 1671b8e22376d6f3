from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from canaryrollout.adapters.prometheus_counts import Reading
from canaryrollout.adapters.prometheus_entry import DROPPED, Entry, Fetched, Job, Stretch
from canaryrollout.domain import evidence as evidence_module
from canaryrollout.domain.evidence import KEPT_BLOCKS, Block, EvidenceRequest

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


def fetch(found: Entry, now: datetime, warnings: tuple[str, ...] = ()) -> bool:
    """Let one answer arrive, if one is due."""
    stretches = found.due(now, timedelta())
    for stretch in stretches:
        job = Job(found, stretch)
        blocks = (Reading(Block(end - stretch.window, end, unreached=end.minute)) for end in stretch.ends)
        job.outcome = Fetched(tuple(blocks), warnings)
        found.jobs = (*found.jobs, job)
    return found.settle(now)


def caught_up(now: datetime) -> Entry:
    found = entry()
    while fetch(found, now):
        pass
    return found


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(evidence_module, "KEPT_BLOCKS", 20)
    return 20


def test_a_long_step_keeps_its_newest_blocks_and_a_restart_finds_the_same(few: int) -> None:
    found = entry()
    for number in range(1, 150):
        now = T0 + number * INTERVAL
        assert fetch(found, now)
        evidence, again = found.evidence(), caught_up(now).evidence()
        assert evidence is not None
        assert evidence == again
        assert evidence.blocks[-1].end == now
        assert min(number, few) <= len(evidence.blocks) < 2 * few
        assert all(one.end == other.start for one, other in pairwise(evidence.blocks))
        assert (DROPPED in evidence.notes) == (number >= 2 * few)


def test_blocks_that_were_dropped_are_not_asked_for_again_when_a_warning_ends(few: int) -> None:
    found = entry()
    for number in range(1, 100, 7):
        now = T0 + number * INTERVAL
        found.not_before = None
        assert fetch(found, now, ("one store is away",))
    now += INTERVAL
    found.not_before = None
    while fetch(found, now):
        pass
    assert found.evidence() == caught_up(now).evidence()


def test_a_clock_that_was_ahead_for_a_moment_drops_nothing_for_good(few: int) -> None:
    found = entry()
    fetch(found, T0 + timedelta(days=1))
    now = T0 + 5 * INTERVAL
    while fetch(found, now):
        pass
    assert found.evidence() == caught_up(now).evidence()


def test_a_step_of_a_month_has_no_more_blocks_than_are_kept() -> None:
    request = replace(REQUEST, interval=timedelta(seconds=1))
    now = T0 + timedelta(days=30)
    begin = request.first_kept(now)
    assert KEPT_BLOCKS <= len(request.ends(begin, now)) < 2 * KEPT_BLOCKS
    assert request.first_kept(T0 + timedelta(seconds=2 * KEPT_BLOCKS - 1)) == T0, "shorter steps are counted whole"
