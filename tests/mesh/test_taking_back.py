"""A bad version: seen by what its requests show, taken back at once, and not tried again by itself.

All rollouts of this module start together; each test then follows one of them.
"""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, Service, assert_fair

pytestmark = pytest.mark.mesh

NO_SHARES = {"mode": "Threshold", "minRequests": 100_000}
"""More requests than ever come: no gate decides on a share."""
UNTIL_FURTHER_NOTICE = "10m"


@pytest.fixture(scope="module")
def services(street: Place) -> dict[str, Service]:
    """Five services, each with a v2 that is bad in its own way, or will be."""
    names = ("flaky", "slow", "broken", "lost")
    found = {name: street.service(name) for name in names}
    found["absent"] = street.service("absent", versions=("v1",))
    found["flaky"].backends["v2"].set_mode(error_rate=0.05)
    found["broken"].backends["v2"].set_mode(error_rate=1.0)
    for name, rate in {"flaky": 50, "slow": 40, "broken": 40, "lost": 4, "absent": 10}.items():
        found[name].send(rate)

    def ladder(weight: int) -> list[dict[str, object]]:
        return [{"weight": weight, "hold": UNTIL_FURTHER_NOTICE}, {"weight": 100}]

    found["flaky"].apply("v2", steps=ladder(40), analysis={"minRequests": 50})
    latency = {"threshold": "500ms", "maxSlow": "5%"}
    found["slow"].apply("v2", steps=[{"weight": 25}, *ladder(50)], analysis={"latency": latency})
    found["broken"].apply("v2", steps=ladder(50), analysis=NO_SHARES)
    readiness = {"unreadyGrace": "3s"}
    found["lost"].apply("v2", steps=ladder(30), readiness=readiness, analysis=NO_SHARES)
    found["absent"].apply("v2", progressDeadline="10s")
    return found


def assert_taken_back(service: Service, *words: str) -> None:
    """It is over, the reason is told everywhere with its numbers, and the mesh is as it was."""
    status = service.until_taken_back("GateFailed")
    assert status.rollout is not None
    assert all(each in status.rollout.explanation for each in words)
    assert (status.stable_version, status.weight, status.verdict) == ("v1", 0, "Fail")
    assert service.condition("Ready") == ("False", "GateFailed")
    assert service.condition("Stalled") == ("True", "GateFailed")
    told = service.event("GateFailed")
    assert told["type"] == "Warning"
    assert all(each in told["note"] for each in words)
    assert "all traffic is on v1 again" in service.event("RolledBack")["note"]
    service.assert_restored()
    service.assert_nothing_lost("v2")


def test_a_canary_is_judged_by_its_very_first_requests(services: dict[str, Service]) -> None:
    """They all fail and then there are none; their series is new, so that `increase()` alone would see nothing."""
    broken = services["broken"]
    load = broken.load
    assert load is not None

    def enough() -> bool:
        failures = sum(record.version == "v2" for record in load.records)
        return failures >= 50 or broken.status.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)

    broken.until(enough, "50 failures, or an answer to fewer")
    load.stop()
    status = broken.until_taken_back("GateFailed")
    assert status.rollout is not None
    assert "requests of the canary failed (at once beyond 50 %)" in status.rollout.explanation
    assert [step.weight for step in broken.steps("v2")] == [50]
    broken.assert_restored()
    broken.assert_nothing_lost("v2")


def test_a_canary_without_endpoints_is_taken_back_after_its_grace(services: dict[str, Service]) -> None:
    """Few requests, so that no gate decides before it."""
    lost = services["lost"]
    lost.until_weight(30)
    lost.backends["v2"].withdraw()
    lost.backends["v2"].crash()
    status = lost.until_taken_back("CanaryUnready")
    assert status.rollout is not None
    assert status.rollout.explanation == "v2 has had no ready endpoint for 3s"
    noticed = next(s.rollout.unready_since for s in lost.statuses if s.rollout and s.rollout.unready_since)
    began = next(entry.time for entry in status.history if entry.reason == "CanaryUnready")
    assert 3 <= (began - noticed).total_seconds() < 5
    lost.assert_restored()


def test_a_canary_with_a_few_errors_is_taken_back(services: dict[str, Service]) -> None:
    """One request in twenty fails, one in a hundred is allowed."""
    flaky = services["flaky"]
    assert_taken_back(flaky, "error rate ", ": limit 1 %, evidence ")
    writes = len(flaky.seen(VIRTUAL_SERVICE))
    flaky.patch(analysis={"errorRate": {"max": "50%"}})
    flaky.until(lambda: flaky.status.observed_generation == 2, "look at the new spec")
    assert flaky.status.phase is Phase.ROLLED_BACK, "a laxer gate does not resume what was taken back"
    assert len(flaky.seen(VIRTUAL_SERVICE)) == writes


def test_a_canary_that_becomes_slow_is_taken_back(services: dict[str, Service]) -> None:
    """It is fine at 25 %; at 50 % half of its requests take 800 ms longer."""
    slow = services["slow"]
    slow.until_weight(50, in_effect=True)
    slow.backends["v2"].set_mode(latency_ms=800, latency_rate=0.5)
    assert_taken_back(slow, "share slower than 500ms ", ": limit 5 %, evidence ")
    steps = slow.steps("v2")
    assert [step.weight for step in steps] == [25, 50]
    assert_fair(steps)


def test_a_canary_that_is_never_ready_gets_no_traffic(services: dict[str, Service]) -> None:
    absent = services["absent"]
    absent.until_taken_back("CanaryNotReady")
    assert absent.event("CanaryNotReady")["note"].endswith("waiting for ready endpoints of v2: 0 of 1")
    assert {record.version for record in absent.requests()} == {"v1"}
    assert len(absent.seen(VIRTUAL_SERVICE)) == 1, "the routes were never touched"
    absent.assert_restored()
    absent.assert_nothing_lost()
