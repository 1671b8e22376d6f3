"""The provider of evidence fails in all the ways there are, in the middle of a step.

Four rollouts of one operator meet each fault. One is left alone: its step holds, says why, and goes on afterwards. One
begins to fail at the same moment: it is taken back as soon as that can be seen. Two are taken back meanwhile, by a
person and because their endpoints are gone: nothing about that waits for a provider. The Prometheus is a real one; a
relay before it (`tests.faults.relay`) makes the fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest

from canaryrollout.adapters.prometheus_breaker import LONGEST_PAUSE, SHORTEST_PAUSE
from canaryrollout.api.status import Phase
from tests.faults.cluster import ROLLOUTS, VIRTUAL_SERVICES, WORKLOAD_ENTRIES
from tests.faults.life import ANALYSIS, Ground, Life, new_life, shares
from tests.faults.phases import edit
from tests.faults.relay import Fault, Relay, Way, doubled, emptied, relay, valued, warned, without_failures
from tests.faults.rows import Row

pytestmark = pytest.mark.cluster

AT_ONCE: Final = 2
WEIGHT: Final = 20
INTERVAL_SECONDS: Final = 1.0
LASTS_SECONDS: Final = 6.0
"""At least: six intervals of analysis."""
TIMEOUT_SECONDS: Final = 2.0
SLACK_SECONDS: Final = 1.5
"""For a machine that is busy with other tests."""
ANSWERED_WITHIN: Final = INTERVAL_SECONDS + 1.0
"""After the first sound answer, for a breach that began in the meantime."""
GRACE_SECONDS: Final = 1.0
AT_ONCE_SECONDS: Final = 5.0
"""Usually one; the fault lasts longer, and so does a query that hangs."""
LONG: Final = [{"weight": WEIGHT, "hold": "10m"}, {"weight": 100}]
OVER: Final = [{"weight": WEIGHT, "hold": f"{LASTS_SECONDS:g}s"}, {"weight": 100}]
"""A hold that ends before the fault does, so that it is the fault that holds the step."""
OWN_QUERY: Final = "vector(3)"
OWN: Final = {**ANALYSIS, "metrics": [{"name": "checkout-failures", "query": OWN_QUERY, "max": "5"}]}


@dataclass(frozen=True)
class Case:
    """A fault, and what is to be seen of it.

    Attributes:
        fault: The fault.
        health: Reason of the condition AnalysisHealthy.
        reason: Reason of the wait, in the condition Ready.
        verdict: What the column VERDICT says.
        words: What the column MESSAGE has in it.
        blind: Whether a breach cannot be seen before it is over.
        healthy: Status of the condition AnalysisHealthy.
    """

    fault: Fault
    reason: str = "ProviderError"
    health: str = "ProviderError"
    verdict: str = "Error"
    words: str = "no evidence from provider default since"
    blind: bool = True
    healthy: str = "False"


def altered(alter: Callable[[Any], None]) -> Fault:
    """A fault in what is answered."""
    return Fault(Way.ALTERED, alter=alter)


def of_the_user(alter: Callable[[Any], None], reason: str, words: str) -> Case:
    """A fault in the answers to a query of the user's own: only one that cannot be run is the provider's word on it."""
    fault = Fault(Way.ALTERED, alter=alter, concerns=lambda query: query == OWN_QUERY)
    if reason == "BadQuery":
        return Case(fault, reason, reason, words=words, blind=False)
    return Case(fault, reason, "Answering", "Inconclusive", words, blind=False, healthy="True")


LOGIN: Final = b"<!doctype html><title>Sign in</title>"
BUSY: Final = b'{"status":"error","errorType":"unavailable","error":"too many queries"}'
BROKEN: Final = b'{"status":"error","errorType":"internal","error":"out of memory"}'
CASES: Final[Mapping[str, Case]] = {
    "refuses connections": Case(Fault(Way.REFUSED), words="refused"),
    "hangs": Case(Fault(Way.HANGS), words="no answer within 3 s"),
    "answers 500": Case(Fault(Way.ANSWERED, 500, BROKEN), words="answers 500: out of memory"),
    "answers 429 with Retry-After": Case(
        Fault(Way.ANSWERED, 429, BUSY, {"Retry-After": "2"}), words="answers 429: too many queries"
    ),
    "answers half": Case(Fault(Way.CUT), words="cannot ask"),
    "answers a page for people": Case(Fault(Way.ANSWERED, 200, LOGIN), words="no Prometheus result"),
    "counts NaN": Case(altered(valued("NaN")), words="NaN"),
    "counts NaN failures": Case(altered(without_failures), words="NaN"),
    "counts +Inf": Case(altered(valued("+Inf")), words="Inf"),
    "finds nothing": Case(
        altered(emptied), "NoData", "Answering", "Inconclusive", "no series of the canary", healthy="True"
    ),
    "warns": Case(
        altered(warned("store east is away")), "PartialData", "PartialData", "Inconclusive", "store east", blind=False
    ),
    "own query: NaN": of_the_user(valued("NaN"), "NotANumber", "NaN"),
    "own query: +Inf": of_the_user(valued("+Inf"), "NotANumber", "+Inf"),
    "own query: nothing": of_the_user(emptied, "NoData", "no series"),
    "own query: several series": of_the_user(doubled, "BadQuery", "2 series"),
}
QUICK: Final = ("answers 500", "counts NaN failures")


def in_effect(life: Life) -> bool:
    """Whether the canary has its weight, and requests to show for it."""
    record = life.status.rollout
    return record is not None and record.weight == WEIGHT and record.in_effect_at is not None


def condition(life: Life, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    return next(((c.status, c.reason) for c in life.status.conditions if c.type == kind), ("", ""))


def back_at(life: Life) -> float:
    """When the canary's weight was 0 again, in seconds since the epoch."""
    return next(seen.at for seen in life.seen(VIRTUAL_SERVICES)[::-1] if not shares(seen.document).get("v2"))


@dataclass
class Lives:
    """The four rollouts, and the relay between their operator and Prometheus."""

    ground: Ground
    relay: Relay
    patient: Life
    failing: Life
    aborted: Life
    lost: Life

    def begin(self) -> None:
        """Bring all to the same step."""
        self.patient.start(provider={"url": self.relay.url, "timeout": f"{TIMEOUT_SECONDS:g}s"})
        for life in (self.failing, self.aborted, self.lost):
            life.begin(steps=LONG, readiness={"unreadyGrace": f"{GRACE_SECONDS:g}s"})
        self.patient.begin(steps=LONG, analysis=OWN)
        for life in (self.patient, self.failing, self.aborted, self.lost):
            life.until(lambda life=life: in_effect(life), "step in effect")  # type: ignore[misc]

    def take_back(self) -> tuple[float, float]:
        """Let a person abort one, and another lose its endpoints; return how long each had traffic after that."""
        cluster, began = self.ground.cluster, time.time()
        self.aborted.command("abort/v2/1")
        cluster.delete(WORKLOAD_ENTRIES, self.lost.namespace, "v2")
        for life in (self.aborted, self.lost):
            life.until(lambda life=life: life.weight == 0, "rollback", 10)  # type: ignore[misc]
        return back_at(self.aborted) - began, back_at(self.lost) - began


def row(ground: Ground, name: str) -> Row:
    """Let a provider fail in one way, and tell what was seen."""
    case = CASES[name]
    with relay(ground.traffic.prometheus_url) as between, new_life(ground) as patient:
        lives = Lives(ground, between, patient, *(patient.neighbor() for _ in range(3)))
        lives.begin()
        began = between.fail(case.fault)
        lives.failing.fail("v2")
        time.sleep(INTERVAL_SECONDS)
        aborted, lost = lives.take_back()
        assert aborted < AT_ONCE_SECONDS, lives.aborted.story()
        assert lost < GRACE_SECONDS + AT_ONCE_SECONDS, lives.lost.story()

        healthy = (case.healthy, case.health)
        patient.until(lambda: condition(patient, "AnalysisHealthy") == healthy, f"{case.health} in AnalysisHealthy", 15)
        patient.until(lambda: condition(patient, "Ready")[1] == case.reason, f"{case.reason} in Ready", 15)
        noticed = time.time() - began
        edit(patient, steps=OVER)
        patient.until(lambda: patient.status.observed_generation == 2, "sight of the shorter hold", 15)
        time.sleep(max(2 * INTERVAL_SECONDS, began + LASTS_SECONDS + 2 * INTERVAL_SECONDS - time.time()))
        check_columns(patient, case)
        assert (lives.failing.weight == WEIGHT) == case.blind, lives.failing.story()
        for life in (lives.aborted, lives.lost):
            life.until(lambda life=life: life.ended, "end of a rollback without a provider", 20)  # type: ignore[misc]

        healed = between.heal()
        lives.failing.until(lambda: lives.failing.weight == 0, "rollback")
        patient.until(lambda: patient.ended, "end")
        lives.failing.until(lambda: lives.failing.ended, "end")
        check_ends(lives)
        return Row(
            f"Prometheus {name}",
            f"for {healed - began:.0f} s in the middle of a step",
            1,
            f"held as {case.reason}, said after {noticed:.1f} s, promoted afterwards; abort: weight 0 after "
            f"{aborted:.1f} s; endpoints gone: after {lost:.1f} s (grace {GRACE_SECONDS:g} s); "
            f"{breach(lives, case, began, healed)}",
        )


def check_columns(life: Life, case: Case) -> None:
    """A person sees the fault in `kubectl get`."""
    wide = life.ground.lab.kubectl("get", "canaryrollouts", "-n", life.namespace, "-o", "wide").splitlines()
    head, line = wide[0], wide[1]
    verdict = line[head.index("VERDICT") :].split()[0]
    assert verdict == case.verdict, wide
    assert case.words in line[head.index("MESSAGE") :], wide
    assert "Progressing" in line, wide


def check_ends(lives: Lives) -> None:
    """The one that was left alone went on as if nothing had happened, and the others ended for their own reasons."""
    patient = lives.patient
    assert patient.weights() == [0, WEIGHT, 100], patient.story()
    phases = {Life.status_of(seen.document).phase for seen in patient.seen(ROLLOUTS)}
    assert not phases & {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.BLOCKED}, patient.story()
    patient.check_raises()
    patient.check_not_repeated()
    for life, reason in ((lives.failing, "GateFailed"), (lives.aborted, "Aborted"), (lives.lost, "CanaryUnready")):
        record = life.status.rollout
        assert record is not None
        assert record.reason == reason, life.story()
        assert life.weights() == [0, WEIGHT, 0], life.story()


def longest_pause(seconds: float) -> float:
    """Seconds between two questions to a provider at most that has been away for so long: the pauses double."""
    pause, waited = SHORTEST_PAUSE, SHORTEST_PAUSE
    while waited <= seconds and pause < LONGEST_PAUSE:
        pause = min(2 * pause, LONGEST_PAUSE)
        waited += pause
    return pause


def breach(lives: Lives, case: Case, began: float, healed: float) -> str:
    """Check that the breach was answered in time, and say when."""
    back = back_at(lives.failing)
    if not case.blind:
        return f"breach: seen in spite of it, weight 0 after {back - began:.1f} s"
    first = min(asked.answered for asked in lives.relay.asked(healed) if asked.sound)
    hanging = TIMEOUT_SECONDS + 1 if case.fault.way is Way.HANGS else 0
    assert first - healed < longest_pause(healed - began) + SLACK_SECONDS + hanging, lives.failing.story()
    assert back - first < ANSWERED_WITHIN + SLACK_SECONDS + hanging, lives.failing.story()
    return f"breach: weight 0 {back - healed:.1f} s after its end, {back - first:.1f} s after the first answer"


def rows(ground: Ground, table: list[Row], names: Sequence[str]) -> None:
    """Let a provider fail in several ways, some at once, and tell of all of them before one that went wrong."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tried = [(name, pool.submit(row, ground, name)) for name in names]
    problems = {name: error for name, future in tried if (error := future.exception()) is not None}
    table += [future.result() for name, future in tried if name not in problems]
    assert not problems, "\n\n".join(f"Prometheus {name}: {error}" for name, error in problems.items())


def test_a_provider_that_fails_holds_a_step_and_no_rollback(ground: Ground, table: list[Row]) -> None:
    rows(ground, table, QUICK)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_provider_that_fails_in_any_other_way_holds_a_step_and_no_rollback(ground: Ground, table: list[Row]) -> None:
    rows(ground, table, [name for name in CASES if name not in QUICK])
