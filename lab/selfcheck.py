"""The lab's proof that it is a mesh: requests split by weight, and Prometheus counts exactly those that were sent.

Two backends, one Service, a VirtualService with 90/10. What the gateway answered is counted here by
``X-App-Version``, and must (1) lie in the interval that a fair 90/10 split leaves only once in 10,000 times, and (2)
be found again, to the last request, in ``istio_requests_total`` by ``destination_version`` and in the count of the
latency histogram.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from math import exp, lgamma, log
from typing import Any

from lab import probe
from lab.backends import service
from lab.errors import LabError
from lab.istio import GATEWAY
from lab.mesh import Lab

WEIGHTS = {"v1": 90, "v2": 10}
REQUESTS = 1_000
CONFIDENCE = 0.9999
SCRAPE_SECONDS = 10.0
_NAMESPACE, _APP = "lab-check", "echo"
_HISTOGRAM = "istio_request_duration_milliseconds_count"
_HOST = f"{_APP}.{_NAMESPACE}.svc.cluster.local"


@dataclass
class Result:
    """What the self-check saw.

    Attributes:
        answered: answers by version, as counted by the client.
        counted: requests by version, as counted by Prometheus.
        timed: entries of the latency histogram by version, as counted by Prometheus.
        problems: what is wrong, in words; empty when all is well.
    """

    answered: dict[str, int]
    counted: dict[str, int]
    timed: dict[str, int]
    problems: list[str] = field(default_factory=list)


def binomial_interval(n: int, p: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Smallest central interval that a Binomial(n, p) count leaves with at most ``1 - confidence``, half each side.

    Exact, from the probabilities themselves; for thousands of draws, not for millions.
    """
    tail = (1 - confidence) / 2
    mass = [exp(_log_choose(n, k) + k * log(p) + (n - k) * log(1 - p)) for k in range(n + 1)]
    low, below = 0, mass[0]
    while below <= tail:
        low += 1
        below += mass[low]
    high, above = n, mass[n]
    while above <= tail:
        high -= 1
        above += mass[high]
    return low, high


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def run(lab: Lab, requests: int = REQUESTS) -> Result:
    """Run the self-check on a lab that is up, and clean up after it.

    Raises:
        LabError: the mesh did not even answer.
    """
    before = _counts(lab, "istio_requests_total"), _counts(lab, _HISTOGRAM)
    with contextlib.ExitStack() as cleanup:
        # The namespace itself stays: without a controller manager its deletion would never end.
        cleanup.callback(lab.kubectl, "delete", "virtualservice,destinationrule,service", "--all", "-n", _NAMESPACE)
        lab.namespace(_NAMESPACE)
        for version in WEIGHTS:
            cleanup.callback(lab.backend(_NAMESPACE, _APP, version).stop)
        lab.apply(service(_NAMESPACE, _APP), _destination_rule(), _virtual_service())
        lab.wait_synced()
        answered = _send(lab, requests)
        counted, timed = _settled(lab, before, requests)
    result = Result(answered, counted, timed)
    result.problems = _problems(result, requests)
    return result


def _destination_rule() -> dict[str, Any]:
    subsets = [{"name": version, "labels": {"version": version}} for version in WEIGHTS]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": _APP, "namespace": _NAMESPACE},
        "spec": {"host": _HOST, "subsets": subsets},
    }


def _virtual_service() -> dict[str, Any]:
    route = [{"destination": {"host": _HOST, "subset": v}, "weight": weight} for v, weight in WEIGHTS.items()]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": _APP, "namespace": _NAMESPACE},
        "spec": {"hosts": [_HOST], "gateways": [GATEWAY], "http": [{"route": route}]},
    }


def _send(lab: Lab, requests: int) -> dict[str, int]:
    versions: Counter[str] = Counter()
    with probe.session() as client:
        for _ in range(requests):
            answer = client.get(lab.gateway_url, headers={"Host": _HOST}, timeout=5)
            versions[answer.headers.get("X-App-Version", f"status {answer.status_code}")] += 1
    return dict(versions)


def _counts(lab: Lab, metric: str) -> Counter[str]:
    query = f'sum by (destination_version) ({metric}{{destination_service="{_HOST}", reporter="source"}})'
    with probe.session() as client:
        answer = client.get(f"{lab.prometheus_url}/api/v1/query", params={"query": query}, timeout=5)
    if not answer.ok:
        raise LabError(f"Prometheus answers {answer.status_code} to {query}: {answer.text.strip()}")
    return Counter({s["metric"]["destination_version"]: int(s["value"][1]) for s in answer.json()["data"]["result"]})


def _settled(
    lab: Lab, before: tuple[Counter[str], Counter[str]], requests: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Counts since ``before``, once both have reached the number of requests, or as they are after the last scrape."""
    deadline = time.monotonic() + SCRAPE_SECONDS
    while True:
        counted = _counts(lab, "istio_requests_total") - before[0]
        timed = _counts(lab, _HISTOGRAM) - before[1]
        if min(counted.total(), timed.total()) >= requests or time.monotonic() > deadline:
            return dict(counted), dict(timed)
        time.sleep(0.1)


def _problems(result: Result, requests: int) -> list[str]:
    problems = []
    low, high = binomial_interval(requests, WEIGHTS["v2"] / 100)
    canary = result.answered.get("v2", 0)
    if result.answered.keys() - WEIGHTS.keys():
        problems.append(f"some requests reached no version: {result.answered}")
    if not low <= canary <= high:
        problems.append(f"v2 answered {canary} of {requests} requests, not {low} to {high} as 10 % would have it")
    for name, seen in (("istio_requests_total", result.counted), (_HISTOGRAM, result.timed)):
        if seen != result.answered:
            problems.append(f"{name} says {seen}, but the answers were {result.answered}")
    return problems
