"""Ready endpoints by version, on a real API server whose Pods and slices are written by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.endpoints import PODS, SERVICES, SLICES, MeshEndpoints
from canaryrollout.adapters.kube import KubeClient, Request, Resource
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.domain.observation import Endpoints, Unreadable
from lab.mesh import Lab

pytestmark = pytest.mark.cluster

ENTRIES = Resource("networking.istio.io", "v1", "workloadentries")
SERVICE_ENTRIES = Resource("networking.istio.io", "v1", "serviceentries")
_numbers = count(1)


def spec(host: str = "reviews") -> CanaryRolloutSpec:
    istio = {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}}
    return CanaryRolloutSpec.model_validate({"version": "v2", "host": host, "istio": istio})


class Shop:
    """A namespace of its own."""

    def __init__(self, namespace: str, client: KubeClient, requests: list[Request]) -> None:
        self.namespace = namespace
        self.client = client
        self.requests = requests

    async def create(self, resource: Resource, name: str, document: dict[str, Any], **metadata: Any) -> None:
        api_version = f"{resource.group}/{resource.version}" if resource.group else resource.version
        kinds = {"services": "Service", "pods": "Pod", "endpointslices": "EndpointSlice"}
        kinds |= {"workloadentries": "WorkloadEntry", "serviceentries": "ServiceEntry"}
        head = {"apiVersion": api_version, "kind": kinds[resource.plural], "metadata": {"name": name, **metadata}}
        await self.client.create(resource, self.namespace, {**head, **document})

    async def service(self, selector: dict[str, str] | None = None) -> None:
        ports = [{"name": "http", "port": 80}]
        await self.create(SERVICES, "reviews", {"spec": {"selector": selector or {"app": "reviews"}, "ports": ports}})

    async def pod(self, name: str, version: str, *, ready: bool = True) -> None:
        containers = [{"name": "app", "image": "app"}]
        document = {"spec": {"containers": containers, "serviceAccountName": "default"}}
        await self.create(PODS, name, document, labels={"app": "reviews", "version": version})
        status = {"status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}}
        await self.client.merge_patch(PODS, self.namespace, name, status, subresource="status")

    async def slice(self, name: str, *endpoints: tuple[str, dict[str, bool]]) -> None:
        entries = [
            {
                "addresses": [f"10.1.0.{number + 1}"],
                "conditions": conditions,
                "targetRef": {"kind": "Pod", "name": pod, "namespace": self.namespace},
            }
            for number, (pod, conditions) in enumerate(endpoints)
        ]
        document = {"addressType": "IPv4", "endpoints": entries, "ports": [{"name": "http", "port": 80}]}
        await self.create(SLICES, name, document, labels={"kubernetes.io/service-name": "reviews"})

    async def entry(
        self, name: str, version: str, *, healthy: bool | None = None, app: str = "reviews", checked: bool = False
    ) -> None:
        document = {"spec": {"address": "127.0.0.1", "labels": {"app": app, "version": version}}}
        annotations = {"proxy.istio.io/health-checks-enabled": "true"} if checked else {}
        await self.create(ENTRIES, name, document, annotations=annotations)
        if healthy is not None:
            conditions = [{"type": "Healthy", "status": "True" if healthy else "False"}]
            status = {"status": {"conditions": conditions}}
            await self.client.merge_patch(ENTRIES, self.namespace, name, status, subresource="status")

    async def ready(self, host: str = "reviews") -> Endpoints | Unreadable:
        self.requests.clear()
        return await MeshEndpoints(self.client).ready(self.namespace, spec(host))


@pytest.fixture
async def shop(apiserver: Lab) -> AsyncIterator[Shop]:
    requests: list[Request] = []
    namespace = f"endpoints-{next(_numbers)}"
    path = str(apiserver.kubeconfig)
    async with await KubeClient.connect(CollectorRegistry(), kubeconfig=path, on_request=requests.append) as client:
        apiserver.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}},
        )
        await client.served_versions("networking.istio.io")
        yield Shop(namespace, client, requests)


async def test_ready_pods_and_workload_entries_of_a_service_are_counted_by_version(shop: Shop) -> None:
    await shop.service()
    for name, version in (("a", "v1"), ("b", "v1"), ("c", "v2"), ("d", "v2")):
        await shop.pod(name, version)
    up = {"ready": True, "serving": True, "terminating": False}
    await shop.slice("one", ("a", up), ("b", {}), ("c", {"ready": False, "serving": False}))
    await shop.slice("two", ("a", up), ("d", {"ready": True, "serving": True, "terminating": True}))
    await shop.entry("vm-1", "v3")
    await shop.entry("vm-2", "v3", healthy=True)
    await shop.entry("vm-3", "v3", healthy=False)
    await shop.entry("other", "v9", app="ratings")
    assert await shop.ready() == Endpoints({"v1": 2, "v3": 2})
    assert [request.verb for request in shop.requests] == ["get", "list", "list", "list"]


async def test_a_pod_that_is_published_without_being_ready_does_not_count(shop: Shop) -> None:
    await shop.service()
    await shop.pod("a", "v1")
    await shop.slice("one", ("a", {"ready": True, "serving": False}))
    assert await shop.ready() == Endpoints({})


async def test_a_workload_entry_with_health_checks_counts_once_a_check_has_passed(shop: Shop) -> None:
    await shop.service()
    await shop.entry("passed", "v1", checked=True, healthy=True)
    await shop.entry("failed", "v1", checked=True, healthy=False)
    await shop.entry("untried", "v2", checked=True)
    assert await shop.ready() == Endpoints({"v1": 1})


async def test_an_own_label_of_a_workload_entry_overrides_the_one_in_its_spec(shop: Shop) -> None:
    await shop.service()
    document = {"spec": {"address": "127.0.0.1", "labels": {"app": "reviews", "version": "v1"}}}
    await shop.create(ENTRIES, "vm", document, labels={"version": "v2"})
    assert await shop.ready() == Endpoints({"v2": 1})


async def test_a_service_entry_selects_workloads(shop: Shop) -> None:
    document = {
        "spec": {
            "hosts": ["reviews.example.com"],
            "workloadSelector": {"labels": {"app": "reviews"}},
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "resolution": "STATIC",
        }
    }
    await shop.create(SERVICE_ENTRIES, "reviews", document)
    await shop.pod("a", "v1")
    await shop.pod("b", "v1", ready=False)
    await shop.entry("vm", "v2")
    assert await shop.ready("reviews.example.com") == Endpoints({"v1": 1, "v2": 1})
    assert len(shop.requests) == 3


async def test_a_service_entry_lists_endpoints(shop: Shop) -> None:
    endpoints = [
        {"address": f"10.0.0.{n}", "labels": {"version": version}} for n, version in ((1, "v1"), (2, "v1"), (3, "v2"))
    ]
    document = {
        "spec": {
            "hosts": ["reviews.example.com"],
            "endpoints": endpoints,
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "resolution": "STATIC",
        }
    }
    await shop.create(SERVICE_ENTRIES, "reviews", document)
    assert await shop.ready("reviews.example.com") == Endpoints({"v1": 2, "v2": 1})


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("reviews", "neither a Service nor a ServiceEntry"),
        ("reviews.example.com", "neither a Service nor a ServiceEntry"),
        ("reviews.elsewhere.svc", "is in namespace elsewhere"),
    ],
)
async def test_a_host_that_is_not_there_is_unreadable_and_not_zero(shop: Shop, host: str, words: str) -> None:
    found = await shop.ready(host)
    assert isinstance(found, Unreadable)
    assert words in found.message


async def test_what_may_not_be_read_is_unreadable_and_not_zero(apiserver: Lab, shop: Shop) -> None:
    await shop.service()
    path = str(apiserver.kubeconfig_for("guest"))
    async with await KubeClient.connect(CollectorRegistry(), kubeconfig=path) as client:
        found = await MeshEndpoints(client).ready(shop.namespace, spec())
    assert isinstance(found, Unreadable)
    assert "Role does not allow" in found.message
