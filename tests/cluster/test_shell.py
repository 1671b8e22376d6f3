"""The whole program against a real API server: it starts, watches, leads, idles, survives, and stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.faultproxy import FaultProxy
from lab.mesh import Lab
from tests.cluster.program import Program
from tests.cluster.shop import body, install_crd

pytestmark = pytest.mark.cluster

PATIENCE = 30.0
"""In seconds, with what only has to come."""

_numbers = count(1)


@pytest.fixture
def namespace(apiserver: Lab) -> Iterator[str]:
    """A namespace of its own, emptied of rollouts in the end."""
    install_crd(apiserver)
    name = f"shell-{next(_numbers)}"
    apiserver.namespace(name)
    yield name
    apiserver.kubectl("delete", "canaryrollouts", "--all", "-n", name, "--wait=false")
    for left in items(apiserver, name, "canaryrollouts"):
        patch = json.dumps({"metadata": {"finalizers": None}})
        apiserver.kubectl(
            "patch", "canaryrollout", left["metadata"]["name"], "-n", name, "--type=merge", "-p", patch, check=False
        )


def items(lab: Lab, namespace: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lab.kubectl("get", kind, "-n", namespace, "-o", "json"))["items"]
    return found


def status(lab: Lab, namespace: str, name: str = "reviews") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.kubectl("get", "canaryrollout", name, "-n", namespace, "-o", "json"))
    return found.get("status") or {}


def flags(namespace: str) -> tuple[str, ...]:
    return ("--namespace", namespace, "--lease-namespace", namespace, "--prometheus-url", "http://127.0.0.1:9")


def apply_mesh(lab: Lab, namespace: str) -> None:
    """A service whose only version is v1, and routes to it."""
    istio = "networking.istio.io/v1"
    subset = {"name": "v1", "labels": {"version": "v1"}}
    route = {"destination": {"host": "reviews", "subset": "v1"}}
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "spec": {"selector": {"app": "reviews"}, "ports": [{"name": "http", "port": 80}]},
        },
        {
            "apiVersion": istio,
            "kind": "WorkloadEntry",
            "spec": {"address": "127.0.0.1", "labels": {"app": "reviews", "version": "v1"}},
        },
        {"apiVersion": istio, "kind": "DestinationRule", "spec": {"host": "reviews", "subsets": [subset]}},
        {"apiVersion": istio, "kind": "VirtualService", "spec": {"hosts": ["reviews"], "http": [{"route": [route]}]}},
    ]
    for document in documents:
        document["metadata"] = {"name": "reviews", "namespace": namespace}
    lab.apply(*documents)


def apply_rollout(lab: Lab, namespace: str, name: str = "reviews", **spec: Any) -> None:
    document = body(name, **spec)
    document["metadata"]["namespace"] = namespace
    lab.apply(document)


def test_it_starts_watches_answers_and_stops(apiserver: Lab, namespace: str) -> None:
    apply_rollout(apiserver, namespace)
    with Program(apiserver.kubeconfig, *flags(namespace)) as program:
        program.wait_ready()
        assert program.probe("/healthz") == (200, "ok")
        program.wait(lambda: status(apiserver, namespace).get("phase") == "Blocked", "seen at the start")
        apply_rollout(apiserver, namespace, "ratings")
        program.wait(lambda: status(apiserver, namespace, "ratings").get("phase") == "Blocked", "seen later", PATIENCE)
        program.wait(lambda: program.metrics()[("canaryrollout_rollouts", "Blocked")] == 2, "counted", PATIENCE)
        apiserver.kubectl("delete", "canaryrollout", "ratings", "-n", namespace)
        program.wait(lambda: program.metrics().get(("canaryrollout_rollouts", "Blocked")) == 1, "deleted", PATIENCE)
        lines = [line for line in program.log if line.get("rollout") == f"{namespace}/reviews"]
        assert lines, "what it says about a rollout carries its key"
        code, seconds = program.stop()
        assert code == 0
        assert seconds < 5
    assert [line for line in program.log if line["level"] in ("error", "critical", "unreadable")] == []
    (lease,) = items(apiserver, namespace, "leases")
    assert lease["spec"]["holderIdentity"] == "", "the lease was given back"


def requests_so_far(lab: Lab) -> dict[str, int]:
    """Count what the API server has answered about rollouts, mesh objects and endpoints, by verb and resource."""
    counted: dict[str, int] = {}
    for line in lab.kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(part.split("=", 1) for part in line[line.index("{") + 1 : line.index("}")].split(","))
            resource, verb = labels["resource"].strip('"'), labels["verb"].strip('"')
            if resource in RESOURCES:
                counted[f"{verb} {resource}"] = counted.get(f"{verb} {resource}", 0) + int(float(line.split()[-1]))
    return counted


RESOURCES = (
    "canaryrollouts",
    "virtualservices",
    "destinationrules",
    "services",
    "endpointslices",
    "workloadentries",
    "pods",
    "events",
)


def test_a_rollout_at_rest_costs_no_request_between_resyncs(apiserver: Lab, namespace: str) -> None:
    apply_mesh(apiserver, namespace)
    apply_rollout(apiserver, namespace, version="v1")
    with Program(apiserver.kubeconfig, *flags(namespace), "--resync", "24h") as program:
        program.wait(lambda: status(apiserver, namespace).get("phase") == "Stable", "Stable")
        time.sleep(2)
        passes = figures(program)
        costs = []
        for _ in range(2):  # the API server itself lists services every few minutes, and counts that too
            before = requests_so_far(apiserver)
            time.sleep(6)
            after = requests_so_far(apiserver)
            costs.append({what: n - before.get(what, 0) for what, n in after.items() if n != before.get(what, 0)})
        print(f"a Stable rollout, twice 6 s between resyncs: {costs}")
        assert figures(program) == passes
        assert {} in costs


def figures(program: Program) -> dict[tuple[str, ...], float]:
    """What it does about rollouts: passes, requests but for the lease, and queries."""
    return {
        key: value
        for key, value in program.metrics().items()
        if key[0]
        in (
            "canaryrollout_passes_total",
            "canaryrollout_kubernetes_requests_total",
            "canaryrollout_prometheus_queries_total",
        )
        and not any("leases" in label for label in key)
    }


def test_a_resync_notices_what_no_watch_tells(apiserver: Lab, namespace: str) -> None:
    apply_mesh(apiserver, namespace)
    apply_rollout(apiserver, namespace, version="v1")
    with Program(apiserver.kubeconfig, *flags(namespace), "--resync", "3s") as program:
        program.wait(lambda: status(apiserver, namespace).get("phase") == "Stable", "Stable")
        before = looks(program)
        program.wait(lambda: looks(program) > before + 3, "look after look, by default one in five minutes", PATIENCE)
        apiserver.kubectl("delete", "virtualservice", "reviews", "-n", namespace)
        program.wait(lambda: status(apiserver, namespace)["phase"] == "Blocked", "noticed by a resync", PATIENCE)


def looks(program: Program) -> float:
    """How often it has looked at any rollout."""
    return sum(value for (name, *_), value in figures(program).items() if name == "canaryrollout_passes_total")


def test_a_second_replica_stands_by_and_takes_over(apiserver: Lab, namespace: str) -> None:
    apply_rollout(apiserver, namespace)
    with Program(apiserver.kubeconfig, *flags(namespace)) as first:
        first.wait(lambda: first.leads, "the first leads")
        first.wait(lambda: status(apiserver, namespace).get("phase") == "Blocked", "worked on")
        with Program(apiserver.kubeconfig, *flags(namespace)) as second:
            second.wait_ready()
            assert second.metrics()[("canaryrollout_rollouts", "Blocked")] == 1, "it has seen it"
            assert not second.leads
            assert second.probe("/healthz") == (200, "ok"), "a follower is alive"
            assert ("canaryrollout_passes_total", "acted") not in second.metrics(), "a follower does nothing"
            first.stop()
            handover = second.wait(lambda: second.leads, "handed over", 10)  # it would expire after 15 s
            with Program(apiserver.kubeconfig, *flags(namespace)) as third:
                third.wait_ready()
                second.process.kill()
                takeover = third.wait(lambda: third.leads, "taken over", 20)
                print(f"handed over after {handover:.1f} s, taken over after a crash within {takeover:.1f} s")
                apply_rollout(apiserver, namespace, "ratings")
                third.wait(
                    lambda: status(apiserver, namespace, "ratings").get("phase") == "Blocked", "it works", PATIENCE
                )


def test_a_replica_is_ready_once_it_knows_what_there_is(apiserver: Lab, namespace: str, tmp_path: Path) -> None:
    apply_rollout(apiserver, namespace)
    with FaultProxy(apiserver.kubeconfig) as proxy:
        proxy.rule("list canaryrollouts answer=503")
        with Program(proxy.kubeconfig(tmp_path / "kubeconfig"), *flags(namespace)) as program:
            unlisted = (503, "CanaryRollouts could not be listed yet")
            program.wait(lambda: program.probe("/readyz") == unlisted, "not ready")
            program.wait(lambda: program.said("rollouts could not be listed"), "it says so", PATIENCE)
            proxy.calm()
            program.wait_ready()


def test_an_outage_of_the_api_server_loses_nothing(apiserver: Lab, namespace: str) -> None:
    apply_rollout(apiserver, namespace)
    with Program(apiserver.kubeconfig, *flags(namespace)) as program:
        program.wait(lambda: status(apiserver, namespace).get("phase") == "Blocked", "worked on")
        apiserver.stop("kube-apiserver")
        program.wait(lambda: program.said("lease not reachable"), "it notices", PATIENCE)
        assert program.probe("/healthz") == (200, "ok"), "a restart would not help"
        apiserver.start("kube-apiserver")
        apply_rollout(apiserver, namespace, "ratings")
        program.wait(lambda: status(apiserver, namespace, "ratings").get("phase") == "Blocked", "it goes on", 60)


def test_an_address_that_is_taken_ends_it_with_status_1(apiserver: Lab, namespace: str) -> None:
    with Program(apiserver.kubeconfig, *flags(namespace)) as first:
        port = first.url.rpartition(":")[2]
        with Program(apiserver.kubeconfig, *flags(namespace), "--http-port", port) as second:
            assert second.process.wait(30) == 1
            assert port in second.said("giving up")[0]["error"]


def test_providers_change_while_it_runs(apiserver: Lab, namespace: str, tmp_path: Path) -> None:
    apply_mesh(apiserver, namespace)
    file = tmp_path / "config.yaml"

    def write(**settings: Any) -> None:
        (tmp_path / "next.yaml").write_text(yaml.safe_dump(settings))
        (tmp_path / "next.yaml").rename(file)

    def message() -> str:
        return str(status(apiserver, namespace).get("message", ""))

    here = {"namespaces": [namespace], "leaderElection": {"namespace": namespace}}
    first = {"default": {"url": "http://127.0.0.1:9"}}
    write(**here, providers=first)
    apply_rollout(apiserver, namespace, version="v2", analysis={"provider": "later"})
    result = ("canaryrollout_config_last_reload_successful",)
    with Program(apiserver.kubeconfig, "--config", str(file)) as program:
        program.wait(lambda: "later, which the administrator has not defined" in message(), "the provider is missed")
        write(**here, providers=first | {"later": {"url": "http://127.0.0.1:9"}})
        program.wait(lambda: "has not defined" not in message(), "taken in", PATIENCE)
        assert program.said("providers have changed")[0]["added"] == ["later"]
        assert program.metrics()[result] == 1
        write(**here, workers=2, providers={"later": {"url": "nowhere"}})
        program.wait(lambda: program.metrics()[result] == 0, "refused", PATIENCE)
        (said,) = program.said("settings cannot be used, what was good before goes on")
        assert said["problems"][0].startswith("providers.later.url is 'nowhere'")
        assert program.probe("/readyz") == (200, "ok")
        write(**here, workers=2, providers=first)
        program.wait(lambda: "later, which the administrator has not defined" in message(), "gone again", PATIENCE)
        assert program.said("settings have changed that need a restart")[0]["settings"] == ["workers"]
        assert program.metrics()[result] == 1
