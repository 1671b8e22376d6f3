"""Too little is known: the canary stays where it is, says why with its numbers, and is not taken back for it."""

from __future__ import annotations

import time

import pytest

from canaryrollout.api.status import Phase
from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, Service

pytestmark = pytest.mark.mesh

LONG_ENOUGH_SECONDS = 8.0
"""Several intervals of analysis."""


def test_a_step_without_evidence_holds_and_says_so(place: Place) -> None:
    """One service without any request, one with a few, and one whose owner wants no data to mean no."""
    silent, quiet, strict = (place.service(name) for name in ("silent", "quiet", "strict"))
    quiet.send(6)
    silent.apply("v2", steps=[{"weight": 30}, {"weight": 100}])
    quiet.apply("v2", steps=[{"weight": 50}, {"weight": 100}], analysis={"minRequests": 3000})
    strict.apply("v2", steps=[{"weight": 30}, {"weight": 100}], analysis={"onNoData": "Rollback"})

    silent.until_phase(Phase.PROGRESSING, "NoData")
    assert silent.status.message == "v2 at 30 %: Prometheus has no series of the canary"
    assert silent.status.verdict == "Inconclusive"
    assert silent.condition("TrafficConverged") == ("Unknown", "TooLittleTraffic")
    quiet.until_phase(Phase.PROGRESSING, "LowSample")
    assert "of 3,000 requests of the canary so far" in quiet.status.message
    assert quiet.condition("TrafficConverged") == ("True", "Converged")

    held = time.monotonic() + LONG_ENOUGH_SECONDS
    strict.until_taken_back("NoData")
    assert "onNoData is Rollback" in strict.event("NoData")["note"]
    strict.assert_restored()
    time.sleep(max(0.0, held - time.monotonic()))
    for service, reason, weight in ((silent, "NoData", 30), (quiet, "LowSample", 50)):
        assert (service.status.phase, service.reason, service.status.weight) == (Phase.PROGRESSING, reason, weight)
        assert len(service.seen(VIRTUAL_SERVICE)) == 2
        warnings = [event["reason"] for event in service.events() if event["type"] != "Normal"]
        assert warnings == ["UncoveredTraffic"], "its only route is at the gateway, and nothing else went wrong"

    silent.send(40)
    quiet.patch(analysis={"minRequests": 10})
    silent.until_promoted("v2")
    quiet.until_promoted("v2")
    quiet.assert_nothing_lost()


def told_of_provider(service: Service) -> str:
    return next(c.message for c in service.status.conditions if c.type == "AnalysisHealthy")


def test_an_outage_of_prometheus_holds_and_hinders_no_way_back(place: Place) -> None:
    held, aborted = (place.service(name) for name in ("held", "aborted"))
    long, over = ([{"weight": 30, "hold": hold}, {"weight": 100}] for hold in ("10m", "2s"))
    for service in (held, aborted):
        service.send(30)
        service.apply("v2", steps=long)
    for service in (held, aborted):
        service.until_weight(30)
    place.lab.stop("prometheus")
    try:
        for service in (held, aborted):
            service.until_condition("AnalysisHealthy", "False", "ProviderError")
            assert service.status.phase is Phase.PROGRESSING
        assert held.reason in ("Converging", "ProviderError")
        held.until(lambda: "Connection refused" in told_of_provider(held), "sight of why the provider does not answer")
        held.patch(steps=over)
        held.until(lambda: held.status.observed_generation == 2, "sight of the shorter hold")
        aborted.command("abort/v2/1")
        aborted.until_taken_back("Aborted")
        aborted.assert_restored()
        time.sleep(LONG_ENOUGH_SECONDS)
        assert held.weights() == {"v1": 70, "v2": 30}, "it is the outage that holds the step, not its hold"
    finally:
        place.lab.start("prometheus")
    held.until_promoted("v2")
    assert held.condition("Ready")[0] == "True"
    for service in (held, aborted):
        service.assert_nothing_lost()
