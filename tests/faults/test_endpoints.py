"""Endpoints go and come, of the canary and of the stable version, in the middle of a step.

What takes the traffic back here is that nobody is there to answer: the counters say all the while that the canary does
well, or nothing at all, because a canary without endpoints is not waited for until metrics show it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import pytest

from canaryrollout.api.status import Phase
from tests.faults.cluster import VIRTUAL_SERVICES
from tests.faults.conftest import Row
from tests.faults.life import STEPS, TIMINGS, Ground, Life, new_life, shares
from tests.faults.relay import Fault, Way, relay
from tests.faults.workloads import Entries, Pods, Workloads

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

AT_ONCE: Final = 3
GRACE_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.5
"""How often the operator of a life looks at endpoints: every 5 s by default."""
SLACK_SECONDS: Final = 2.0
"""For a machine that is busy with several operators at once."""
ANSWERED_WITHIN: Final = GRACE_SECONDS + POLL_SECONDS + SLACK_SECONDS
READINESS: Final = {"unreadyGrace": f"{GRACE_SECONDS:g}s"}
STAY: Final = [{"weight": 20, "hold": "10m"}, {"weight": 100}]
ASK: Final = [{"weight": 20, "approval": "Required"}, {"weight": 60}, {"weight": 100}]


@dataclass(frozen=True)
class Going:
    """One way in which a canary loses its endpoints.

    Attributes:
        injected: In plain words.
        go: Lets them go, and returns when that was done.
        workloads: What the endpoints are.
        blind: Whether Prometheus is down by then.
    """

    injected: str
    go: Callable[[Workloads], float]
    workloads: type[Entries] | type[Pods]
    blind: bool = False


GOING: Final = {
    "unready": Going("its WorkloadEntries fail their health checks", lambda w: w.unready("v2"), Entries),
    "unready, Prometheus down": Going(
        "its WorkloadEntries fail their health checks while Prometheus is down",
        lambda w: w.unready("v2"),
        Entries,
        True,
    ),
    "scaled to 0": Going("scaled from 3 WorkloadEntries to 0", lambda w: w.scale("v2", 0), Entries),
    "slice not ready": Going("its Pods become unready (EndpointSlice)", lambda w: w.unready("v2"), Pods),
    "slice empty": Going("scaled from 3 Pods to 0 (EndpointSlice)", lambda w: w.scale("v2", 0), Pods),
    "slice terminating": Going(
        "its Pods terminate (EndpointSlice)", lambda w: w.terminating("v2") if isinstance(w, Pods) else 0.0, Pods
    ),
}
QUICK: Final = ("unready", "unready, Prometheus down", "slice empty")


def holding(life: Life, weight: int) -> bool:
    """Whether the canary has a weight, and has shown it."""
    record = life.status.rollout
    return record is not None and record.weight == weight and record.in_effect_at is not None


def zero_after(life: Life, since: float, within: float) -> float:
    """Wait until the canary has no weight, and return when that was written, in seconds after a moment."""
    life.until(lambda: life.weight == 0, "canary without traffic", within)
    at = next(s.at for s in life.seen(VIRTUAL_SERVICES) if s.at > since and not shares(s.document).get("v2"))
    return at - since


def reason(life: Life) -> str:
    """Why the rollout waits, or what it came to."""
    return next((c.reason for c in life.status.conditions if c.type == "Ready"), "")


def ended_as(life: Life, why: str) -> None:
    """The rollout was taken back for this reason, and is over."""
    life.until(lambda: life.ended, "end")
    record = life.status.rollout
    assert record is not None
    assert record.reason == why, life.story()
    assert life.status.phase is Phase.ROLLED_BACK
    life.check_raises()
    life.check_not_repeated()


@dataclass(frozen=True)
class Answered:
    """When the weight of a canary without endpoints was 0, in seconds.

    Attributes:
        since_begun: Since the first of them was about to go: the operator can have counted from no earlier moment.
        since_gone: Since all of them were gone.
    """

    since_begun: float
    since_gone: float


def lost(ground: Ground, going: Going) -> Answered:
    """Let a canary with traffic lose its endpoints; return when its weight was 0."""
    with relay(ground.traffic.prometheus_url) as between, new_life(ground) as life:
        workloads = going.workloads(life)
        workloads.scale("v2", 3)
        life.start(provider={"url": between.url})
        life.begin(steps=STAY, readiness=READINESS)
        life.until(lambda: holding(life, 20), "first step")
        if going.blind:
            between.fail(Fault(Way.REFUSED))
            life.until(lambda: reason(life) == "ProviderError", "outage of Prometheus", 20)
        begun = time.time()
        gone = going.go(workloads)
        took = zero_after(life, gone, 15)
        ended_as(life, "CanaryUnready")
        return Answered(took + gone - begun, took)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(QUICK, id="short"),
        pytest.param(tuple(GOING), id="all", marks=pytest.mark.faults),
    ],
)
def test_a_canary_without_endpoints_is_taken_back_without_waiting_for_metrics(
    ground: Ground, table: list[Row], kinds: tuple[str, ...]
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        took = dict(zip(kinds, pool.map(lambda kind: lost(ground, GOING[kind]), kinds), strict=True))
    for kind, answered in took.items():
        seen = f"weight 0 {answered.since_gone:.1f} s after they went; unreadyGrace is {GRACE_SECONDS:g} s"
        table.append(Row("canary without ready endpoints", GOING[kind].injected, 1, seen))
    assert all(answered.since_begun >= GRACE_SECONDS for answered in took.values()), took
    late = {kind: round(a.since_gone, 2) for kind, a in took.items() if a.since_gone > ANSWERED_WITHIN}
    assert not late, f"weight 0 later than {ANSWERED_WITHIN:g} s after the endpoints went"


def test_a_canary_that_crashes_again_and_again_is_taken_back(ground: Ground, table: list[Row]) -> None:
    """It is never away for as long as the grace; the moments without add up."""
    grace, away, there = 4.0, 1.6, 0.9
    with new_life(ground) as life:
        workloads = Entries(life)
        life.start()
        life.begin(steps=STAY, readiness={"unreadyGrace": f"{grace:g}s"})
        life.until(lambda: holding(life, 20), "first step")
        began, crashes = time.time(), 0
        while life.weight and crashes < 10:
            crashes += 1
            workloads.unready("v2")
            time.sleep(away)
            workloads.scale("v2", 1)
            time.sleep(there)
        took = zero_after(life, began, 5)
        ended_as(life, "CanaryUnready")
    seen = f"weight 0 {took:.1f} s after the first crash, in crash {crashes}; unreadyGrace is {grace:g} s"
    table.append(Row("canary in a crash loop", f"away for {away:g} s, there for {there:g} s, over again", 1, seen))
    assert 2 <= crashes <= 5


@pytest.mark.faults
def test_a_canary_that_is_unready_for_a_moment_keeps_its_traffic(ground: Ground, table: list[Row]) -> None:
    grace, away = 4.0, 1.5
    with new_life(ground) as life:
        workloads = Entries(life)
        life.start()
        life.begin(steps=ASK, readiness={"unreadyGrace": f"{grace:g}s"})
        life.until(lambda: life.status.phase is Phase.PAUSED, "wait for approval")
        workloads.unready("v2")
        life.until(lambda: life.status.rollout and life.status.rollout.unready_since, "unready canary")
        time.sleep(away)
        workloads.scale("v2", 1)
        life.until(lambda: life.status.rollout and not life.status.rollout.unready_since, "ready canary", 15)
        life.command("approve/v2/1")
        life.until(lambda: life.ended, "end")
        assert life.weights() == [0, *STEPS], life.story()
        life.check_raises()
        life.check_not_repeated()
    seen = f"kept its weight and was promoted; unreadyGrace is {grace:g} s"
    table.append(Row("canary unready for a moment", f"for {away:g} s", 1, seen))


@pytest.mark.parametrize("first", ["stable", pytest.param("canary", marks=pytest.mark.faults)])
def test_with_both_versions_gone_weights_stay_until_one_is_back(ground: Ground, table: list[Row], first: str) -> None:
    stays = 2.0
    with new_life(ground) as life:
        workloads = Entries(life)
        life.start()
        life.begin(steps=ASK, readiness=READINESS)
        life.until(lambda: life.status.phase is Phase.PAUSED, "wait for approval")
        workloads.scale("v1", 0)
        workloads.scale("v2", 0)
        life.until(lambda: reason(life) == "StableGone", "word of it", 10)
        assert life.status.phase is Phase.BLOCKED
        assert "v1 has no ready endpoint: traffic stays until it has one" in life.status.message
        time.sleep(stays)
        assert life.weights() == [0, 20], life.story()
        if first == "stable":
            took = zero_after(life, workloads.scale("v1", 1), 15)
            assert took < POLL_SECONDS + SLACK_SECONDS, life.story()
            seen = f"weight 0 {took:.1f} s after stable was back"
            ended_as(life, "CanaryUnready")
        else:
            workloads.scale("v2", 1)
            life.until(lambda: life.status.phase is Phase.PAUSED, "wait for approval again", 10)
            workloads.scale("v1", 1)
            life.command("approve/v2/1")
            life.until(lambda: life.ended, "end")
            assert life.weights() == [0, *STEPS], life.story()
            seen = "went on at its step once the canary was back, and was promoted"
    seen = f"Blocked/StableGone, weights stayed; {seen}"
    table.append(Row("both versions without ready endpoints", f"{first} is back first", 1, seen))


def test_a_stable_version_that_loses_half_its_endpoints_holds_the_raise(ground: Ground, table: list[Row]) -> None:
    stays = 2.0
    with new_life(ground) as life:
        workloads = Entries(life)
        workloads.scale("v1", 4)
        life.start()
        life.begin(steps=ASK)
        life.until(lambda: life.status.phase is Phase.PAUSED, "wait for approval")
        workloads.scale("v1", 2)
        life.until(lambda: life.status.rollout and life.status.rollout.stable_shrunk_since, "look at stable", 10)
        life.command("approve/v2/1")
        life.until(lambda: reason(life) == "StableShrinking", "hold", 10)
        message = life.status.message
        assert message.startswith("v1 has 2 ready endpoints of the 4 it had, so v2 stays at 20 % until"), message
        time.sleep(stays)
        assert life.weights() == [0, 20], life.story()
        back = workloads.scale("v1", 4)
        life.until(lambda: life.weight == 60, "raise", 10)
        took = next(s.at for s in life.seen(VIRTUAL_SERVICES) if shares(s.document).get("v2") == 60) - back
        life.until(lambda: life.ended, "end")
        assert life.weights() == [0, *STEPS], life.story()
        life.check_raises()
        life.check_not_repeated()
    seen = f"raise held with StableShrinking, and made {took:.1f} s after they were back"
    table.append(Row("stable loses half its endpoints", "4 become 2 at 20 %", 1, seen))
    assert took < POLL_SECONDS + SLACK_SECONDS + 1.0


@pytest.mark.faults
def test_what_a_stable_version_keeps_for_long_enough_is_its_new_size(ground: Ground, table: list[Row]) -> None:
    settle = 4.0
    with new_life(ground) as life:
        workloads = Pods(life)
        workloads.scale("v1", 4)
        life.start(timings={**TIMINGS, "stableSettle": f"{settle:g}s"})
        life.begin(steps=ASK, progressDeadline="1m")
        life.until(lambda: life.status.phase is Phase.PAUSED, "wait for approval")
        life.command("approve/v2/1")
        begun = time.time()
        shrunk = workloads.scale("v1", 1)
        life.until(lambda: life.weight == 60, "raise", 20)
        raised = next(s.at for s in life.seen(VIRTUAL_SERVICES) if shares(s.document).get("v2") == 60)
        held = raised - shrunk
        life.until(lambda: life.ended, "end")
        assert life.weights() == [0, *STEPS], life.story()
    table.append(Row("stable shrinks for good", "4 Pods become 1 at 20 %", 1, f"raise held for {held:.1f} s"))
    assert raised - begun >= settle
    assert held <= settle + 2 * POLL_SECONDS + SLACK_SECONDS


@contextmanager
def _autoscaler(workloads: Workloads, changes: list[int]) -> Iterator[None]:
    """Change the replicas of both versions twice a second, within what readiness asks for."""
    over = threading.Event()

    def scale() -> None:
        while not over.wait(0.5):
            count = len(changes)
            workloads.scale("v1", 4 + count % 3)
            workloads.scale("v2", 2 + count % 2)
            changes.append(count)

    thread = threading.Thread(target=scale, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.faults
def test_autoscalers_never_move_a_weight(ground: Ground, table: list[Row]) -> None:
    changes: list[int] = []

    def patches(scaled: bool) -> int:
        with new_life(ground) as life:
            workloads = Pods(life)
            workloads.scale("v1", 4)
            workloads.scale("v2", 2)
            life.start()
            with _autoscaler(workloads, changes) if scaled else nullcontext():
                life.begin(hold="2s", readiness={"minReady": 2, "unreadyGrace": "0s"})
                life.until(lambda: life.ended, "end")
            assert life.weights() == [0, *STEPS], life.story()
            life.check_raises()
            life.check_not_repeated()
            return life.applied()["patch virtualservices"]

    with ThreadPoolExecutor(2) as pool:
        scaled, undisturbed = pool.map(patches, [True, False])
    seen = f"weights and the {scaled} writes of the VirtualService as without"
    table.append(Row("autoscalers of both versions", "replicas up and down, not below minReady", len(changes), seen))
    assert scaled == undisturbed
    assert len(changes) >= 4
