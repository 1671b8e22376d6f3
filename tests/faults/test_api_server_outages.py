"""The API server fails as a whole, for a while: nothing is lost, nothing is stuck, and a breach is answered after it.

Here the operator is elected, as it is in a cluster: an outage costs it the lease, which it has to get back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from tests.faults.cluster import ROLLOUTS, VIRTUAL_SERVICES
from tests.faults.conftest import Row
from tests.faults.life import ANALYSIS, NAME, STEPS, Ground, Life, new_life, shares

pytestmark = pytest.mark.cluster

OUTAGES: Final[Mapping[str, str]] = {
    "503": "answer=503",
    "429 with Retry-After": "answer=429 retry-after=1",
    "500": "answer=500",
    "hanging connections": "hang",
    "connections dropped": "drop",
    "answers cut short": "cut",
    "answers 2 s late": "delay=2s",
}
QUICK: Final = ("503", "hanging connections")
INTERVAL_SECONDS: Final = 1.0
ANSWERED_WITHIN: Final = INTERVAL_SECONDS + 1.0
"""After the end of an outage, for a breach that came about in it."""
LONGER: Final[Mapping[str, float]] = {"answers 2 s late": 1.0}
"""What an outage lasts longer than its rule: an answer to the last request in it comes when it is over."""
JUDGED: Final = {**ANALYSIS, "interval": f"{INTERVAL_SECONDS:g}s"}
ASK: Final = [{"weight": 20}, {"weight": 60, "approval": "Required"}, {"weight": 100}]
AT_ONCE: Final = 3


def in_effect(life: Life, weight: int) -> bool:
    """Whether the canary has a weight, and requests to show for it."""
    record = life.status.rollout
    return record is not None and record.weight == weight and record.in_effect_at is not None


def breach_in(ground: Ground, effect: str, seconds: float) -> float:
    """Let v2 fail while the API server is out for so long; return how long after it the weight was 0."""
    with new_life(ground, elected=True) as life:
        life.start()
        life.begin(steps=ASK, analysis=JUDGED)
        life.until(lambda: in_effect(life, STEPS[1]), "second step")
        life.until(lambda: life.status.verdict == "Pass", "pass")
        life.until_quiet()
        over = time.time() + seconds
        life.rule(f"* for={seconds:g}s {effect}")
        life.fail("v2")
        life.until(lambda: life.weight == 0, "rollback", seconds + 45)
        back = next(seen.at for seen in life.seen(VIRTUAL_SERVICES)[::-1] if not shares(seen.document).get("v2"))
        life.until(lambda: life.ended, "end")
        record = life.status.rollout
        assert record is not None
        assert record.reason in ("GateFailed", "RollbackResumed"), life.story()
        life.check_raises()
        life.check_not_repeated()
        return back - over


def progress_through(ground: Ground, effect: str, seconds: float) -> float:
    """Let the API server be out in the middle of a rollout; return how long after it the rollout had ended."""
    with new_life(ground, elected=True) as life:
        life.start()
        life.begin()
        life.until(lambda: life.weight == STEPS[0], "first step")
        over = time.time() + seconds
        life.rule(f"* for={seconds:g}s {effect}")
        life.until(lambda: life.ended, "end", seconds + 60)
        assert life.weights() == [0, *STEPS], life.story()
        life.check_raises()
        life.check_not_repeated()
        return time.time() - over


CASES: Final = [
    pytest.param(QUICK, 4.0, id="short"),
    pytest.param(tuple(OUTAGES), 30.0, id="30 s", marks=[pytest.mark.faults, pytest.mark.timeout(1200)]),
]


@pytest.mark.alone
@pytest.mark.parametrize(("kinds", "seconds"), CASES)
def test_a_breach_in_an_outage_is_rolled_back_after_it(
    ground: Ground, table: list[Row], kinds: tuple[str, ...], seconds: float
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda kind: breach_in(ground, OUTAGES[kind], seconds), kinds)
        delays = dict(zip(kinds, found, strict=True))
    for kind, delay in delays.items():
        when = f"weight 0 {delay:.1f} s after its end" if delay > 0 else f"weight 0 {-delay:.1f} s before its end"
        table.append(Row(f"API server: {kind} for {seconds:g} s", "a breach in the meantime", 1, when))
    late = {kind: round(d, 2) for kind, d in delays.items() if d > ANSWERED_WITHIN + LONGER.get(kind, 0.0)}
    assert not late, f"rolled back later than {ANSWERED_WITHIN:g} s after the outage"


@pytest.mark.parametrize(("kinds", "seconds"), CASES)
def test_a_rollout_goes_on_after_an_outage(
    ground: Ground, table: list[Row], kinds: tuple[str, ...], seconds: float
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda kind: progress_through(ground, OUTAGES[kind], seconds), kinds)
        ends = dict(zip(kinds, found, strict=True))
    for kind, end in ends.items():
        row = Row(
            f"API server: {kind} for {seconds:g} s", "in the middle of a rollout", 1, f"promoted {end:.0f} s later"
        )
        table.append(row)


@pytest.mark.parametrize(("kinds", "seconds"), CASES)
def test_a_rollout_that_is_created_in_an_outage_is_found_after_it(
    ground: Ground, table: list[Row], kinds: tuple[str, ...], seconds: float
) -> None:
    def live(kind: str) -> float:
        with new_life(ground, elected=True) as life:
            life.start()
            over = time.time() + seconds
            life.rule(f"* for={seconds:g}s {OUTAGES[kind]}")
            life.proxy.end_watches("canaryrollouts")
            life.begin()
            life.until(lambda: life.status.rollout is not None, "rollout", seconds + 45)
            found = time.time() - over
            life.until(lambda: life.ended, "end")
            assert life.weights() == [0, *STEPS], life.story()
            return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        delays = dict(zip(kinds, pool.map(live, kinds), strict=True))
    for kind, delay in delays.items():
        seen = f"begun {delay:.1f} s after its end" if delay > 0 else f"begun {-delay:.1f} s before its end"
        table.append(Row(f"API server: {kind} for {seconds:g} s", "a rollout is created in it", 1, f"{seen}, promoted"))


@pytest.mark.parametrize("gone", [False, True], ids=["cut", "410 Expired"])
def test_watches_that_end_all_the_time_lose_nothing(ground: Ground, table: list[Row], gone: bool) -> None:
    with new_life(ground, elected=True) as life:
        life.start()
        life.rule(f"watch {'gone' if gone else 'cut=1'}")
        life.begin()
        life.until(lambda: life.ended, "end")
        assert life.weights() == [0, *STEPS], life.story()
        ended = len(life.proxy.entries("watch canaryrollouts"))
    assert ended > 1
    table.append(Row(f"watch ends: {'410 Expired' if gone else 'cut'}", "whenever it stands", ended, "rollout as ever"))


def test_a_change_that_no_watch_saw_is_acted_on(ground: Ground, table: list[Row]) -> None:
    with new_life(ground, elected=True) as life:
        life.start()
        life.begin(steps=ASK)
        life.until(lambda: life.weight == STEPS[1], "second step")
        life.until_quiet()
        refused = life.rule("watch answer=503")
        assert life.proxy.end_watches("canaryrollouts") > 0
        life.proxy.wait(refused, within=10)
        life.ground.cluster.merge(ROLLOUTS, life.namespace, NAME, {"spec": {"version": "v1"}})
        life.proxy.retire(refused)
        took = life.until(lambda: life.weight == 0, "canary without traffic", 15)
    table.append(Row("watch down while the spec is changed back", "once", 1, f"weight 0 after {took:.1f} s"))


def test_one_request_that_never_returns_holds_up_nothing(ground: Ground, table: list[Row]) -> None:
    """A connection that hangs is given up, whatever it was for."""
    kinds = ("get virtualservices n=6", "patch virtualservices n=2", "patch canaryrollouts/status n=8")

    def live(kind: str) -> None:
        with new_life(ground, elected=True) as life:
            life.start()
            hung = life.rule(f"{kind} hang")
            life.begin()
            life.until(lambda: life.ended, "end")
            assert hung.hits == 1
            assert life.weights() == [0, *STEPS], life.story()
            life.check_raises()
            life.check_not_repeated()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(live, kinds))
    table.append(Row("a request that never returns", ", ".join(kinds), len(kinds), "rollout as ever"))


@pytest.mark.alone
@pytest.mark.parametrize(
    ("write", "fails_from", "asked", "least", "most"),
    [
        pytest.param("patch virtualservices n=2", None, 3, 3.0, 4.5, id="a raise"),
        pytest.param("patch canaryrollouts/status n=8", None, 3, 3.0, 4.5, id="a status"),
        pytest.param("patch virtualservices n=3", STEPS[1], 30, 0.0, 2.0, id="a rollback"),
    ],
)
def test_a_busy_api_server_is_left_alone_for_as_long_as_it_asks(
    ground: Ground, table: list[Row], write: str, fails_from: int | None, asked: int, least: float, most: float
) -> None:
    """A rollback is not asked for patience: it is tried again within a second."""
    with new_life(ground) as life:
        life.start()
        if fails_from is not None:
            life.fail_from(fails_from)
        refused = life.rule(f"{write} answer=429 retry-after={asked}")
        life.begin()
        life.until(lambda: life.ended, "end")
        assert refused.hits == 1, life.story()
        entries = life.proxy.entries(write.rpartition(" ")[0])
        after = [entry for entry in entries if entry.at > next(e.at for e in entries if e.rule)]
        waited = after[0].at - next(e.at for e in entries if e.rule)
        assert least <= waited <= most, life.story()
        assert life.weights() == ([0, *STEPS] if fails_from is None else [0, *STEPS[:2], 0]), life.story()
    row = Row(f"429 with Retry-After: {asked}", f"the answer to {write}", 1, f"tried again {waited:.1f} s later")
    table.append(row)


@pytest.mark.alone
@pytest.mark.faults
def test_a_restart_of_the_api_server_loses_nothing(ground: Ground, table: list[Row]) -> None:
    with new_life(ground, elected=True) as life:
        life.start()
        life.begin(steps=ASK, analysis=JUDGED)
        life.until(lambda: in_effect(life, STEPS[1]), "second step")
        ground.lab.stop("kube-apiserver")
        life.fail("v2")
        time.sleep(5)
        ground.lab.start("kube-apiserver")
        up = time.time()
        life.until(lambda: life.weight == 0, "rollback", 30)
        back = time.time() - up
        life.until(lambda: life.ended, "end")
    table.append(
        Row("API server restarted", "a breach in the meantime", 1, f"weight 0 {back:.1f} s after it was ready")
    )
    assert back < ANSWERED_WITHIN
