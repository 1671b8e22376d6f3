"""Callers that no listed route covers meet the canary before its first step, and its users are told so."""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, destination, route

pytestmark = pytest.mark.mesh


def test_callers_past_the_listed_routes_are_named_and_meet_the_canary_before_its_first_step(place: Place) -> None:
    """A route that is not listed, which has load here, and another VirtualService for callers in the mesh."""
    http = [
        route(destination("reviews"), name="admin", prefix="/admin"),
        route(destination("reviews", "v1"), name="primary"),
    ]
    extra = [route(destination("reviews"))]
    reviews = place.service(
        "reviews",
        http={"reviews": http, "extra": extra},
        routes={"reviews": ("primary",)},
    )
    past, covered = reviews.send(20, "/admin"), reviews.send(20)
    reviews.apply("v2", paused=True)

    reviews.until_phase(Phase.PAUSED)
    reviews.until_condition("TrafficCovered", "False", "UncoveredTraffic")
    words = next(c.message for c in reviews.status.conditions if c.type == "TrafficCovered")
    assert "route 'admin' of VirtualService reviews is not listed and sends requests to every version" in words
    assert (
        f"the mesh: VirtualService {place.namespace}/extra is not listed and sends requests to every version" in words
    )
    assert reviews.event("UncoveredTraffic")["note"] == words
    reviews.until(lambda: len(past.records) > 60 and len(covered.records) > 60, "requests on both routes")
    assert {record.version for record in covered.records} == {"v1"}
    assert {record.version for record in past.records} == {"v1", "v2"}, "the warning was about nothing"
    assert len(reviews.seen(VIRTUAL_SERVICE)) == 1, "a weight was written"

    reviews.patch(paused=False)
    reviews.until_weight(50)
    assert reviews.condition("TrafficCovered") == ("False", "UncoveredTraffic")
    reviews.command("promote/v2/now")
    reviews.until_promoted("v2")
    assert reviews.condition("TrafficCovered") == ("", "")
    assert [event["reason"] for event in reviews.events()].count("UncoveredTraffic") == 1
