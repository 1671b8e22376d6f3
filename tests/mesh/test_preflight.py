"""What the evidence can tell is found out first: no request goes to a canary that nobody could judge."""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from lab import probe
from lab.demo.watch import DESTINATION_RULE, VIRTUAL_SERVICE
from tests.mesh.place import Place, Service, destination, route

pytestmark = pytest.mark.mesh

REVISION = "service.istio.io/canonical-revision"


def known(service: Service, version: str) -> None:
    """Wait until Prometheus has counted and timed requests to a version."""
    labels = f'destination_service="{service.host}",destination_version="{version}"'
    query = f"count(istio_request_duration_milliseconds_bucket{{{labels}}})"

    def found() -> bool:
        with probe.session() as client:
            url = f"{service.place.lab.prometheus_url}/api/v1/query"
            return bool(client.get(url, params={"query": query}, timeout=5).json()["data"]["result"])

    service.until(found, f"series of {version}")


def untouched(service: Service) -> bool:
    """Whether no mesh object was written since its author did."""
    return len(service.seen(VIRTUAL_SERVICE)) == len(service.seen(DESTINATION_RULE)) == 1


def test_what_cannot_be_judged_gets_no_traffic_until_it_is_mended(place: Place) -> None:
    """A threshold between two buckets, a stable version that metrics name otherwise, and a host without requests."""
    wrong, renamed, silent = (place.service(name) for name in ("wrong", "renamed", "silent"))
    entry = renamed.backends["v1"].name
    renamed.kubectl("label", "workloadentry", entry, f"{REVISION}=2026-01")
    place.lab.wait_synced()
    for service, version in ((wrong, "v1"), (renamed, "2026-01")):
        service.send(20)
        known(service, version)
    wrong.apply("v2", analysis={"latency": {"threshold": "300ms", "maxSlow": "5%"}})
    renamed.apply("v2")
    silent.apply("v2")

    status = wrong.until_phase(Phase.BLOCKED, "LatencyThreshold")
    assert "300ms is no bucket edge; the nearest: 250ms or 500ms" in status.message
    assert "300ms is no bucket edge" in wrong.event("LatencyThreshold")["note"]
    status = renamed.until_phase(Phase.BLOCKED, "MetricsLabels")
    assert f"series of requests to {renamed.host} for '2026-01', and none for the stable version 'v1'" in status.message
    silent.until_weight(50)
    assert "has no series of requests" in silent.event("NoSeries")["note"]
    for service in (wrong, renamed):
        assert service.status.phase is Phase.BLOCKED
        assert service.condition("AnalysisHealthy") == ("False", service.reason)
        assert untouched(service)

    wrong.patch(analysis={"latency": {"threshold": "250ms"}})
    renamed.kubectl("label", "workloadentry", entry, f"{REVISION}-")
    for service in (wrong, renamed):
        service.until_promoted("v2")
        service.assert_nothing_lost()


def test_a_share_that_contradicts_the_weight_holds_where_convergence_is_required(place: Place) -> None:
    """Testers reach the canary by a route of their own, so that it has more requests than its weight explains."""
    http = [
        route(destination("reviews", "v2"), name="testers", prefix="/testers"),
        route(destination("reviews", "v1"), name="primary"),
    ]
    subsets = [{"name": version, "labels": {"version": version}} for version in ("v1", "v2")]
    reviews = place.service("reviews", http={"reviews": http}, routes={"reviews": ("primary",)}, subsets=subsets)
    reviews.send(20, "/")
    reviews.send(60, "/testers")
    reviews.apply("v2", analysis={"requireConvergence": "Required"})

    status = reviews.until_phase(Phase.PROGRESSING, "ShareContradicts")
    assert status.message.startswith("v2 at 50 %: canary had ")
    assert status.message.endswith("at weight 50; analysis.requireConvergence is Required")
    assert status.rollout is not None
    assert status.rollout.in_effect_at is None
    assert status.deadline is not None
    assert reviews.condition("TrafficConverged") == ("False", "ShareContradicts")
    assert "at weight 50" in reviews.event("ShareContradicts")["note"]

    reviews.patch(analysis={"requireConvergence": "NotRequired"})
    reviews.until_promoted("v2")
    reviews.assert_nothing_lost()
