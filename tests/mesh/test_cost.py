"""What a rollout costs: requests to the API server and queries to Prometheus, as the operator itself counts them."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.mesh.place import Place, destination, route
from tests.operatorprocess import Figures

pytestmark = pytest.mark.mesh

REQUESTS = "canaryrollout_kubernetes_requests_total"
QUERIES = "canaryrollout_prometheus_queries_total"
IDLE_SECONDS = 6.0
STEPS = (25, 60, 100)


def spent(before: Figures, after: Figures) -> tuple[Counter[tuple[str, str, str]], int]:
    """Requests by resource, verb and outcome, those of the leader election apart; and queries."""
    requests: Counter[tuple[str, str, str]] = Counter()
    queries = 0
    for (name, labels), value in after.items():
        more = round(value - before.get((name, labels), 0))
        if name == REQUESTS and more:
            outcome, resource, verb = labels
            if not resource.startswith("leases."):
                requests[resource.partition(".")[0], verb, outcome] += more
        elif name == QUERIES:
            queries += more
    return requests, queries


def test_a_step_costs_one_write_per_virtual_service_and_rest_costs_nothing(place: Place) -> None:
    reviews = place.service(
        "reviews",
        http={
            "reviews": [route(destination("reviews", "v1", 100))],
            "reviews-mesh": [route(destination("reviews", "v1", 100))],
        },
    )
    reviews.send(60)
    operator = place.operator
    start = operator.figures()
    reviews.apply("v2", steps=[{"weight": weight} for weight in STEPS])
    reviews.until_promoted("v2")
    reviews.event("Promoted")
    requests, queries = spent(start, operator.figures())
    table = "\n".join(f"  {n:4} {verb:6} {resource} ({outcome})" for (resource, verb, outcome), n in requests.items())
    print(
        f"API requests and Prometheus queries per rollout of {len(STEPS)} steps and 2 VirtualServices: "
        f"{requests.total()} and {queries}\n{table}"
    )
    conflicts = sum(n for (_, _, outcome), n in requests.items() if outcome == "conflict")
    mesh = requests["virtualservices", "patch", "ok"]
    assert conflicts == 0, "nobody else wrote"
    assert mesh == 2 * len(STEPS)
    assert requests["destinationrules", "patch", "ok"] == 1, "the canary's subset"
    assert queries > 0

    still = operator.figures()
    time.sleep(IDLE_SECONDS)
    requests, queries = spent(still, operator.figures())
    print(f"at rest, in {IDLE_SECONDS:g} s: {requests.total()} and {queries}")
    assert (dict(requests), queries) == ({}, 0)
