"""What a rollout costs: requests to the API server and queries to Prometheus, as the operator itself counts them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kubernetes import client, config

from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, Service, destination, route, written
from tests.operatorprocess import Figures

pytestmark = pytest.mark.mesh

REQUESTS = "canaryrollout_kubernetes_requests_total"
QUERIES = "canaryrollout_prometheus_queries_total"
IDLE_SECONDS = 6.0
STEPS = (25, 60, 100)
MANY_STEPS = (10, 25, 40, 55, 70, 85, 100)
"""So many that a hand which writes all the time is in the way of one at least."""
BUSY_SECONDS = 0.04
"""Between two writes of the other hand, until it has been in the way."""
CALM_SECONDS = 0.3
"""Between two of its writes from then on: a hand that never rests can keep everybody else out."""
LONG_SECONDS = 120.0
LOOK_SECONDS = 0.2


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


def table(title: str, requests: Counter[tuple[str, str, str]], queries: int) -> list[str]:
    rows = [f"  {n:4} {verb:6} {resource} ({outcome})" for (resource, verb, outcome), n in sorted(requests.items())]
    return [f"{title}: {requests.total()} API requests, {queries} Prometheus queries", *rows]


def test_a_step_costs_one_write_per_virtual_service_and_rest_costs_nothing(place: Place, figures: list[str]) -> None:
    http = {name: [route(destination("reviews", "v1", 100))] for name in ("reviews", "reviews-mesh")}
    reviews = place.service("reviews", http=http)
    reviews.send(60)
    start = place.operator.figures()
    reviews.apply("v2", steps=[{"weight": weight} for weight in STEPS])
    reviews.until_promoted("v2")
    reviews.event("Promoted")
    requests, queries = spent(start, place.operator.figures())
    figures += table(f"a rollout of {len(STEPS)} steps on 2 VirtualServices", requests, queries)
    assert [outcome for _, _, outcome in requests if outcome != "ok"] == [], "nobody else wrote"
    assert requests["virtualservices", "patch", "ok"] == 2 * len(STEPS)
    assert requests["destinationrules", "patch", "ok"] == 1, "the canary's subset"
    assert requests["virtualservices", "list", "ok"] == 1, "to warn of callers that no listed route covers"
    assert queries >= len(STEPS)

    still = place.operator.figures()
    time.sleep(IDLE_SECONDS)
    requests, queries = spent(still, place.operator.figures())
    figures += table(f"a rollout at rest, in {IDLE_SECONDS:g} s", requests, queries)
    assert (dict(requests), queries) == ({}, 0)


def test_a_conflict_costs_one_more_write(place: Place, figures: list[str]) -> None:
    """Another hand writes the VirtualService all the time, though not its routes; no write of either is lost."""
    reviews = place.service("reviews", http={"reviews": [route(destination("reviews", "v1", 100))]})
    reviews.send(40)
    start = place.operator.figures()

    def conflict() -> bool:
        time.sleep(LOOK_SECONDS)
        return spent(start, place.operator.figures())[0]["virtualservices", "patch", "conflict"] > 0

    with busy_hand(reviews) as calm:
        reviews.apply("v2", steps=[{"weight": weight} for weight in MANY_STEPS])
        reviews.until(lambda: conflict() or reviews.status.stable_version == "v2", "conflict", LONG_SECONDS)
        calm.set()
        reviews.until(lambda: reviews.status.stable_version == "v2", "promotion", LONG_SECONDS)
        reviews.until_promoted("v2")
    requests, queries = spent(start, place.operator.figures())
    figures += table(
        f"a rollout of {len(MANY_STEPS)} steps on a VirtualService that is written all the time", requests, queries
    )
    assert requests["virtualservices", "patch", "ok"] == len(MANY_STEPS)
    assert requests["virtualservices", "patch", "conflict"] > 0, "the other hand was not busy enough to be in the way"
    seen = [written(seen.document["spec"]["http"][0]).get("v2") for seen in reviews.seen(VIRTUAL_SERVICE)]
    assert [weight for weight, before in zip(seen[1:], seen, strict=False) if weight != before] == list(MANY_STEPS)
    numbers = [int(seen.document["metadata"]["annotations"].get("n", -1)) for seen in reviews.seen(VIRTUAL_SERVICE)]
    assert numbers == sorted(numbers), "a write of the other hand was undone"
    reviews.assert_nothing_lost()


@contextmanager
def busy_hand(service: Service) -> Iterator[threading.Event]:
    """Count up an annotation of the service's VirtualService until the end of the block.

    Yields:
        Set, it makes the hand write a few times a second only.
    """
    stopping, calm = threading.Event(), threading.Event()
    api = client.CustomObjectsApi(config.new_client_from_config(str(service.place.lab.kubeconfig)))

    def run() -> None:
        n = 0
        while not stopping.wait(CALM_SECONDS if calm.is_set() else BUSY_SECONDS):
            n += 1
            place = ("networking.istio.io", "v1", service.place.namespace, "virtualservices", service.name)
            api.patch_namespaced_custom_object(*place, {"metadata": {"annotations": {"n": str(n)}}})

    hand = threading.Thread(target=run, name="busy-hand", daemon=True)
    hand.start()
    try:
        yield calm
        assert hand.is_alive(), "the other hand stopped writing"
    finally:
        stopping.set()
        hand.join(timeout=10)
