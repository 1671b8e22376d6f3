"""An audited API server with an operator, shared by the tests of what it must never do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import requests

from lab.demo.scene import grants
from lab.mesh import CLUSTER, Lab
from lab.site import Options
from tests.audit import Audited
from tests.faults.cluster import (
    DESTINATION_RULES,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
    WORKLOAD_ENTRIES,
    Cluster,
    Document,
    Kind,
    Witness,
)
from tests.faults.life import shares
from tests.faults.traffic import running_traffic
from tests.hostile import CONTROL
from tests.operatorprocess import NAMESPACE, OperatorProcess, definition
from tests.prometheusstub import Asked, Reply, prometheus_stub

EVENTS: Final = "api/v1", "events"
LEASES: Final = ("coordination.k8s.io", "leases")
SECRETS: Final = ("bearer", "password", "header", "plain", "parameter", "certificate", "key")
TOKENS: Final = {what: f"canary-token-{what}-5f1d9c" for what in SECRETS}
PATIENCE: Final = 90.0
SPEC: Final[dict[str, Any]] = {
    "version": "v2",
    "host": "reviews",
    "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
    "steps": [{"weight": 50}, {"weight": 100}],
    "hold": "0s",
    "analysis": {"mode": "Threshold", "interval": "1s", "minRequests": 20, "errorRate": {"max": "1%"}},
    "progressDeadline": "2m",
}


@dataclass
class Town:
    """An audited API server with an operator, and traffic that follows the weights."""

    lab: Lab
    cluster: Cluster
    operator: OperatorProcess
    audit: Audited
    fail: Callable[[str, str, float], None]

    def furnish(self, namespace: str) -> None:
        """A service whose traffic all goes to v1, with v2 ready beside it."""
        self.cluster.namespace(namespace)
        create(self.cluster, SERVICES, namespace, "reviews", {"selector": {"app": "reviews"}, "ports": [{"port": 80}]})
        for version in ("v1", "v2"):
            labels = {"app": "reviews", "version": version}
            create(self.cluster, WORKLOAD_ENTRIES, namespace, version, {"address": "127.0.0.1", "labels": labels})
        subset = {"name": "v1", "labels": {"version": "v1"}}
        create(self.cluster, DESTINATION_RULES, namespace, "reviews", {"host": "reviews", "subsets": [subset]})
        route = {"route": [{"destination": {"host": "reviews", "subset": "v1"}}]}
        create(self.cluster, VIRTUAL_SERVICES, namespace, "reviews", {"hosts": ["reviews"], "http": [route]})

    def status(self, namespace: str, name: str = "reviews") -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get(ROLLOUTS, namespace, name).get("status") or {}
        return found

    def wait(self, holds: Callable[[], object], what: str, within: float = PATIENCE) -> float:
        started = time.monotonic()
        while not holds():
            self.operator.check_alive()
            assert time.monotonic() - started < within, f"not within {within:g} s: {what}"
            time.sleep(0.1)
        return time.monotonic() - started


KINDS: Final = {
    SERVICES: ("v1", "Service"),
    WORKLOAD_ENTRIES: ("networking.istio.io/v1", "WorkloadEntry"),
    DESTINATION_RULES: ("networking.istio.io/v1", "DestinationRule"),
    VIRTUAL_SERVICES: ("networking.istio.io/v1", "VirtualService"),
    ROLLOUTS: ("canaryrollout.io/v1alpha1", "CanaryRollout"),
}


def create(cluster: Cluster, kind: Kind, namespace: str, name: str, spec: Any) -> None:
    version, kind_name = KINDS[kind]
    cluster.create(
        kind, namespace, {"apiVersion": version, "kind": kind_name, "metadata": {"name": name}, "spec": spec}
    )


def echo(asked: Asked) -> Reply:
    """Answer with everything that was sent, in every place where words may stand."""
    said = f"{CONTROL} you sent {json.dumps(asked.headers)} {json.dumps(asked.form)}"
    query = asked.form.get("query", "")
    if "warn" in query:
        envelope = {"status": "success", "data": {"resultType": "vector", "result": []}, "warnings": [said]}
        return Reply(200, envelope)
    if "redirect" in query:
        return Reply(
            302, {}, {"Location": "http://elsewhere/" + asked.headers.get("Authorization", "").replace(" ", "")}
        )
    return Reply(422 if "own" in query else 500, {"status": "error", "errorType": "internal", "error": said})


@contextmanager
def running_town(directory: Path) -> Iterator[Town]:
    """Run it to the end of the block."""
    audit = Audited.into(directory)
    secrets = {what: directory / what for what in TOKENS}
    for what, file in secrets.items():
        file.write_text(TOKENS[what] + "\n")
    options = Options(apiserver_flags=(*Options().apiserver_flags, *audit.flags))
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(f"audit-{uuid4().hex[:8]}", CLUSTER, options=options))
        traffic = stack.enter_context(running_traffic())
        stub = stack.enter_context(prometheus_stub())
        stub.reply = echo
        definition(lab)
        lab.namespace(NAMESPACE)
        lab.apply(*grants(NAMESPACE))
        cluster = Cluster(lab)

        def follow(kind: Kind, found: Document) -> None:
            if kind == VIRTUAL_SERVICES and found["metadata"]["name"] == "reviews":
                traffic.weigh(host(found["metadata"]["namespace"]), shares(found))

        stack.callback(Witness(cluster, follow).stop)
        usual = {"scrapeInterval": "1s", "lag": "300ms", "timeout": "5s"}
        providers = {
            "default": {"url": traffic.prometheus_url, **usual},
            "bearer": {"url": stub.url, **usual, "bearerTokenFile": str(secrets["bearer"])},
            "basic": {
                "url": stub.url,
                **usual,
                "basicAuth": {"username": "operator", "passwordFile": str(secrets["password"])},
            },
            "header": {
                "url": stub.url,
                **usual,
                "headerFiles": {"X-Api-Key": str(secrets["header"])},
                "headers": {"X-Plain": TOKENS["plain"]},
            },
            "parameter": {"url": stub.url, **usual, "queryParameters": {"api_key": TOKENS["parameter"]}},
            "unusable": {
                "url": stub.url.replace("http://", "https://"),
                **usual,
                "clientCertFile": str(secrets["certificate"]),
                "clientKeyFile": str(secrets["key"]),
            },
            "others": {"url": traffic.prometheus_url, **usual, "namespaces": ["somebody-else"]},
        }
        operator = OperatorProcess(lab, traffic.prometheus_url, providers=providers, logLevel="debug")
        stack.callback(operator.close)
        operator.start()
        yield Town(lab, cluster, operator, audit, lambda ns, version, rate: traffic.fail(host(ns), version, rate))


def host(namespace: str) -> str:
    return f"reviews.{namespace}.svc.cluster.local"


FORGED: Final = "forged-"
"""What rollouts are called whose status somebody else has written."""


def messages(town: Town) -> str:
    """Everything the operator has said so far, wherever it says something."""
    port = town.operator.settings()["httpPort"]
    spoken = [town.operator.log.read_text(errors="replace"), requests.get(f"http://127.0.0.1:{port}/metrics").text]
    spoken += [
        json.dumps(item.get("status"), ensure_ascii=False)
        for item in town.cluster.list(ROLLOUTS)["items"]
        if not item["metadata"]["name"].startswith(FORGED)
    ]
    spoken += [json.dumps(item, ensure_ascii=False) for item in town.cluster.list(EVENTS)["items"]]
    return "\n".join(spoken)
