"""The clock is set, by minutes and in either direction, and a process stands still for longer than its lease lasts.

Only the operator's clock is set: the API server, Prometheus and the traffic go on by the machine's, as they do in a
cluster in which one node has the wrong time. Then the operator asks Prometheus about another time than that in which
the canary serves; until the clock is right again it knows nothing of the canary, and has to say so and wait.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.clocks import WallClock, build
from tests.faults.cluster import VIRTUAL_SERVICES, WORKLOAD_ENTRIES
from tests.faults.life import ANALYSIS, NAME, STEPS, TIMINGS, Ground, Life, new_life, shares
from tests.faults.replicas import in_effect, new_team
from tests.faults.rows import Row

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MINUTES: Final = 300.0
"""How far a clock is set, in seconds."""
HOLD_SECONDS: Final = 3.0
WRONG_SECONDS: Final = 6.0
"""For how long the clock is wrong, where it is set right again."""
SOON: Final = 20.0
"""No wait may take longer, whatever the clock says; without a change of the clock none takes half of it."""
INTERVAL_SECONDS: Final = 1.0
LEASE: Final = {"leaseDuration": "6s", "renewDeadline": "4s", "retryPeriod": "1s"}
"""So that a process that stands still for ten seconds loses it."""
ASK: Final = [{"weight": 20}, {"weight": 60, "approval": "Required"}, {"weight": 100}]
AT_ONCE: Final = 4


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("clock"))


def direction(seconds: float) -> str:
    return f"{'ahead' if seconds > 0 else 'back'} by {abs(seconds) / 60:g} min"


@dataclass(frozen=True)
class Moment:
    """A moment in the life of a rollout, and what has to come of it when the clock is set then.

    Attributes:
        what: The moment, in words.
        reach: Lives up to it.
        outcome: Waits for what has to come, and returns it in words.
        spec: Fields of the rollout in place of the usual ones.
        timings: Likewise of the operator's timings.
    """

    what: str
    reach: Callable[[Life], None]
    outcome: Callable[[Life, WallClock], str]
    spec: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, str] = field(default_factory=dict)


def first_step(life: Life) -> None:
    life.until(in_effect(life, STEPS[0]), "first step")


def second_step(life: Life) -> None:
    life.until(in_effect(life, STEPS[1]), "second step")
    life.until(lambda: life.status.verdict == "Pass", "pass")


def lowered_by_somebody(life: Life) -> None:
    second_step(life)
    (route,) = life.ground.cluster.get(VIRTUAL_SERVICES, life.namespace, NAME)["spec"]["http"]
    for entry in route["route"]:
        entry["weight"] = {"v1": 90, "v2": 10}[entry["destination"]["subset"]]
    life.ground.cluster.merge(VIRTUAL_SERVICES, life.namespace, NAME, {"spec": {"http": [route]}})
    life.until(lambda: life.status.contest is not None, "contest")


def without_endpoints(life: Life) -> None:
    second_step(life)
    life.ground.cluster.delete(WORKLOAD_ENTRIES, life.namespace, "v2")

    def noticed() -> bool:
        record = life.status.rollout
        return record is not None and record.unready_since is not None

    life.until(noticed, "sight of no ready endpoint")


def draining(life: Life) -> None:
    life.until(lambda: life.status.stable_version == "v2", "promotion")


def waits_and_goes_on(life: Life, clock: WallClock) -> str:
    """While its clock is wrong it raises nothing; once it is right again the rollout goes on."""
    wrong = time.time()
    life.until(lambda: time.time() > wrong + WRONG_SECONDS, "end of waiting")
    clock.set(0)
    took = life.until(lambda: life.ended, "end", 3 * SOON)
    assert life.weights() == [0, *STEPS], life.story()
    life.check_raises()
    held_for_real(life)
    return f"nothing was raised meanwhile; set right after {WRONG_SECONDS:g} s, promoted {took:.0f} s later"


def takes_back_in_time(life: Life, clock: WallClock) -> str:
    """A breach is answered at the latest when the clock is right again."""
    life.fail("v2")
    begun = time.time()
    life.until(lambda: not life.weight or time.time() > begun + WRONG_SECONDS, "end of waiting")
    before = "before it was set right"
    if life.weight:
        clock.set(0)
        took = life.until(lambda: life.weight == 0, "rollback", SOON)
        before = f"{took:.1f} s after it was set right"
    life.until(lambda: life.ended, "end", SOON)
    assert life.weights() == [0, *STEPS[:2], 0], life.story()
    return f"weight 0 {before}"


def asserts_again(life: Life, _: WallClock) -> str:
    took = life.until(lambda: life.weight == STEPS[1], "weight as intended", SOON)
    assert life.weights() == [0, *STEPS[:2], 10, STEPS[1]], life.story()
    return f"weight set again after {took:.1f} s"


def taken_back_for_want_of_endpoints(life: Life, _: WallClock) -> str:
    record = life.status.rollout
    assert record is not None
    took = life.until(lambda: life.weight == 0, "rollback", SOON)
    life.until(lambda: life.ended, "end", SOON)
    assert took > GRACE_SECONDS - 2, f"too soon; {life.story()}"
    assert life.weights() == [0, *STEPS[:2], 0], life.story()
    return f"weight 0 after {took:.1f} s"


def cleans_up(life: Life, _: WallClock) -> str:
    took = life.until(lambda: life.ended, "end", SOON)
    assert life.weights() == [0, *STEPS], life.story()
    return f"cleaned up after {took:.1f} s"


def held_for_real(life: Life) -> None:
    """No step was shorter than its hold by the machine's clock, whatever the operator's said."""
    seen = [(s.at, shares(s.document).get("v2", 0)) for s in life.seen(VIRTUAL_SERVICES)]
    changes = [(at, weight) for (_, before), (at, weight) in pairwise([(0.0, 0), *seen]) if weight != before]
    for (since, weight), (until, raised) in pairwise(changes):
        if raised > weight:
            assert until - since >= HOLD_SECONDS, f"{weight} % was held for {until - since:.1f} s; {life.story()}"


GRACE_SECONDS: Final = 4.0
HELD: Final = {"hold": f"{HOLD_SECONDS:g}s"}
MOMENTS: Final[Mapping[str, Moment]] = {
    "step": Moment("in the middle of a step", first_step, waits_and_goes_on, HELD),
    "breach": Moment("just before a breach", second_step, takes_back_in_time, {"steps": ASK}),
    "drift": Moment("while weights that somebody changed are to be set again", lowered_by_somebody, asserts_again,
                    {"steps": ASK, "analysis": {**ANALYSIS, "interval": "2s"}}),
    "unready": Moment("while the canary is unready for a moment", without_endpoints, taken_back_for_want_of_endpoints,
                      {"steps": ASK, "readiness": {"unreadyGrace": f"{GRACE_SECONDS:g}s"}}),
    "drain": Moment("while the old subset drains", draining, cleans_up, {}, {"drain": "3s"}),
}  # fmt: skip


def lived(ground: Ground, library: Path, moment: Moment, shift: float, start: float = 0.0) -> str:
    """Set the clock at a moment of a life; return what came of it."""
    with new_life(ground, elected=True) as life:
        clock = WallClock(library, ground.directory / f"{life.namespace}.clock")
        clock.set(start)
        life.start(environment=clock.environment, timings={**TIMINGS, **moment.timings})
        life.begin(**moment.spec)
        moment.reach(life)
        clock.set(shift)
        seen = moment.outcome(life, clock)
        check_lease(life)
        return seen


def check_lease(life: Life) -> None:
    """Nobody ever doubted who leads."""
    assert life.program is not None
    assert not life.program.said("no longer leading"), life.story()
    assert len(life.program.said("leading")) == 1, life.story()


CASES: Final = [
    pytest.param([("step", -MINUTES), ("step", MINUTES), ("breach", -MINUTES), ("drift", -MINUTES)], id="quick"),
    pytest.param(
        [(moment, shift) for moment in MOMENTS for shift in (-MINUTES, MINUTES)],
        id="all moments",
        marks=[pytest.mark.faults, pytest.mark.timeout(900)],
    ),
]


@pytest.mark.parametrize("cases", CASES)
def test_the_clock_is_set(ground: Ground, library: Path, table: list[Row], cases: list[tuple[str, float]]) -> None:
    def tried(case: tuple[str, float]) -> tuple[str, str]:
        moment, shift = case
        try:
            return lived(ground, library, MOMENTS[moment], shift), ""
        except AssertionError as error:
            return "", f"{moment}, {direction(shift)}: {error}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(cases, pool.map(tried, cases), strict=True))
    for (moment, shift), (seen, _) in found.items():
        if seen:
            table.append(Row(f"the operator's clock is set {direction(shift)}", MOMENTS[moment].what, 1, seen))
    failures = [problem for _, problem in found.values() if problem]
    assert not failures, "\n\n".join(failures)


@pytest.mark.faults
@pytest.mark.parametrize("start", [-MINUTES, MINUTES])
def test_a_clock_that_was_wrong_from_the_beginning_is_set_right(
    ground: Ground, library: Path, table: list[Row], start: float
) -> None:
    with new_life(ground, elected=True) as life:
        clock = WallClock(library, ground.directory / f"{life.namespace}.clock")
        clock.set(start)
        life.start(environment=clock.environment)
        life.begin(**HELD)
        begun = time.time()
        life.until(lambda: time.time() > begun + WRONG_SECONDS, "end of waiting")
        assert life.weight <= STEPS[0], "nothing passes while Prometheus is asked about another time"
        clock.set(0)
        took = life.until(lambda: life.ended, "end", 3 * SOON)
        assert life.weights() == [0, *STEPS], life.story()
        life.check_raises()
        held_for_real(life)
        check_lease(life)
    seen = f"no step passed before it was set right, promoted {took:.0f} s after that"
    table.append(Row(f"the operator's clock is {direction(start)} from the beginning", "then set right", 1, seen))


def test_clocks_of_replicas_do_not_decide_who_leads(ground: Ground, library: Path, table: list[Row]) -> None:
    clocks = {name: WallClock(library, ground.directory / f"clock-{name}") for name in "ab"}
    changes = 0
    with new_team(ground, environment=lambda name: clocks[name].environment, lease=("15s", "10s", "500ms")) as team:
        leader = team.leader()
        for clock in clocks.values():
            for seconds in (MINUTES, -MINUTES, 0.0):
                clock.set(seconds)
                changes += 1
                renewed = len(leader.proxy.entries("update leases"))
                team.life.until(lambda n=renewed: len(leader.proxy.entries("update leases")) > n + 3, "renewals", 20)  # type: ignore[misc]
        for replica in team.replicas:
            said = [line["event"] for line in replica.program.log]
            assert said.count("leading") == (replica is leader)
            assert "no longer leading" not in said
    table.append(
        Row("clocks of two replicas are set by 5 min", "ahead, back and right", changes, "one leader, the same")
    )


STOPS: Final = [
    pytest.param(10.0, id="10 s"),
    pytest.param(60.0, id="a minute", marks=pytest.mark.faults),
]


@pytest.mark.alone
@pytest.mark.parametrize("seconds", STOPS)
def test_a_process_stands_still(ground: Ground, table: list[Row], seconds: float) -> None:
    with ThreadPoolExecutor(2) as pool:
        goes_on = pool.submit(stopped, ground, seconds, breach=False)
        takes_back = pool.submit(stopped, ground, seconds, breach=True)
    fault = f"SIGSTOP for {seconds:g} s, then resumed; the lease lasts 6 s"
    table.append(Row(fault, "in the middle of a step", 1, f"promoted {goes_on.result():.1f} s after that"))
    took = takes_back.result()
    table.append(Row(fault, "a breach in the meantime", 1, f"weight 0 {took:.1f} s after that"))
    assert took < INTERVAL_SECONDS + 1


def stopped(ground: Ground, seconds: float, *, breach: bool) -> float:
    """Let the process stand still in the middle of a life; return how long after it what had to come came."""
    with new_life(ground, elected=True, **LEASE) as life:
        life.start()
        life.begin(**({"steps": ASK} if breach else HELD))
        (second_step if breach else first_step)(life)
        assert life.program is not None
        life.program.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        if breach:
            life.fail("v2")
        writes = len(life.writes())
        time.sleep(seconds)
        assert len(life.writes()) == writes, "it stood still"
        life.program.process.send_signal(signal.SIGCONT)
        if breach:
            took = life.until(lambda: life.weight == 0, "rollback", SOON)
            life.until(lambda: life.ended, "end", SOON)
        else:
            took = life.until(lambda: life.ended, "end", 2 * SOON)
            assert life.weights() == [0, *STEPS], life.story()
            held_for_real(life)
        life.check_raises()
        life.check_not_repeated()
        return took
