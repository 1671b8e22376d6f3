"""Prometheus is away for longer than several intervals, in the middle of a step."""

from __future__ import annotations

import time

import pytest

from canaryrollout.api.status import Phase
from tests.mesh.place import Place

pytestmark = pytest.mark.mesh

LONG_SECONDS = 12.0
"""Six intervals of analysis."""
LONG = [{"weight": 30, "hold": "10m"}, {"weight": 100}]
OVER = [{"weight": 30, "hold": "2s"}, {"weight": 100}]
"""A hold that ends in the outage, so that it is the outage that holds the step."""


def test_a_step_holds_says_since_when_and_goes_on_while_deadlines_and_rollbacks_wait_for_nobody(place: Place) -> None:
    """Four rollouts in the same outage: one is left alone, two meet their deadlines, one is wanted back."""
    patient, overdue, kept, reverted = (place.service(name) for name in ("patient", "overdue", "kept", "reverted"))
    everyone = (patient, overdue, kept, reverted)
    for service in everyone:
        service.send(15)
        service.apply("v2", steps=LONG)
    for service in everyone:
        service.until_weight(30)
    place.lab.stop("prometheus")
    stopped = time.monotonic()
    try:
        for service in everyone:
            service.until_phase(Phase.PROGRESSING, "ProviderError")
        patient.patch(steps=OVER)
        reverted.patch(version="v1")
        overdue.patch(steps=OVER, progressDeadline="2s")
        kept.patch(steps=OVER, progressDeadline="2s", onDeadline="Hold")
        reverted.until(lambda: reverted.weights()["v1"] == 100, "all traffic back on v1")
        status = overdue.until_taken_back("DeadlineExceeded")
        assert status.rollout is not None
        assert "no evidence from provider default since" in status.rollout.explanation
        kept.until_phase(Phase.PROGRESSING, "DeadlineExceeded")
        time.sleep(max(0.0, stopped + LONG_SECONDS - time.monotonic()))
        assert (patient.status.phase, patient.reason) == (Phase.PROGRESSING, "ProviderError")
        assert "no evidence from provider default since" in patient.status.message
        assert patient.condition("AnalysisHealthy") == ("False", "ProviderError")
        assert patient.weights() == kept.weights() == {"v1": 70, "v2": 30}
    finally:
        place.lab.start("prometheus")
    for service in (patient, kept):
        service.until_promoted("v2")
        assert not [status for status in service.statuses if status.phase is Phase.ROLLING_BACK]
    assert "there was none since" in patient.event("ProviderBack")["note"]
    overdue.assert_restored()
    for service in everyone:
        service.assert_nothing_lost()


def test_a_canary_that_turns_bad_meanwhile_is_caught(place: Place) -> None:
    """One loses its endpoints, which needs no evidence; one begins to fail, which is seen once there is some again."""
    lost, failing = place.service("lost"), place.service("failing")
    for service in (lost, failing):
        service.send(20)
        service.apply("v2", steps=LONG)
    for service in (lost, failing):
        service.until_weight(30, in_effect=True)
    place.lab.stop("prometheus")
    stopped = time.monotonic()
    try:
        for service in (lost, failing):
            service.until_phase(Phase.PROGRESSING, "ProviderError")
        lost.backends["v2"].withdraw()
        failing.backends["v2"].set_mode(error_rate=1.0)
        lost.until_taken_back("CanaryUnready")
        time.sleep(max(0.0, stopped + LONG_SECONDS - time.monotonic()))
        assert failing.weights() == {"v1": 70, "v2": 30}, "without evidence nothing speaks against it"
    finally:
        place.lab.start("prometheus")
    back = time.monotonic()
    status = failing.until_taken_back("GateFailed")
    print(f"taken back {time.monotonic() - back:.1f} s after the provider was back")
    assert status.rollout is not None
    assert not [status for status in failing.statuses if status.rollout is not None and status.rollout.weight > 30]
    for service in (lost, failing):
        service.assert_restored()
