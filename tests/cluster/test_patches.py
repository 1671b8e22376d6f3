"""Patches, and reading what they made, on a real API server with Istio's resource definitions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.istio import IstioRouter
from canaryrollout.adapters.istio_patch import undo, without_server_fields
from canaryrollout.adapters.kube import Invalid, KubeClient, Request, Resource
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.domain.changes import changes_after_cleanup, changes_of, merge_changes
from canaryrollout.domain.decision import (
    AddSubset,
    CleanRoutes,
    RemoveSubsets,
    RouteCleanup,
    RouteWeights,
    SetWeights,
)
from canaryrollout.domain.observation import (
    Destination,
    DestinationRuleState,
    Mesh,
    Missing,
    Unreadable,
    VirtualServiceState,
    Weights,
)
from canaryrollout.engine.ports import Conflict, NotLeading
from lab.mesh import Lab

pytestmark = pytest.mark.cluster

SERVICES = Resource("networking.istio.io", "v1", "virtualservices")
RULES = Resource("networking.istio.io", "v1", "destinationrules")
_numbers = count(1)


def spec(**istio: Any) -> CanaryRolloutSpec:
    block = {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}, **istio}
    return CanaryRolloutSpec.model_validate({"version": "v2", "host": "reviews", "istio": block})


def virtual_service(*http: dict[str, Any], name: str = "reviews") -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name},
        "spec": {"hosts": [name], "http": list(http)},
    }


def destination_rule(**more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "reviews"},
        "spec": {"host": "reviews", **more},
    }


def to(subset: str, **more: Any) -> dict[str, Any]:
    return {"destination": {"host": "reviews", "subset": subset}, **more}


PLAIN = virtual_service({"route": [to("v1", headers={"request": {"set": {"x-a": "b"}}})]})
V1 = destination_rule(
    subsets=[
        {
            "name": "v1",
            "labels": {"version": "v1"},
            "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}},
        }
    ]
)


@dataclass
class Shop:
    """A namespace of its own, and the operator's way to it."""

    namespace: str
    client: KubeClient
    other: KubeClient
    router: IstioRouter
    requests: list[Request] = field(default_factory=list)

    async def create(self, *documents: dict[str, Any]) -> None:
        for document in documents:
            resource = SERVICES if document["kind"] == "VirtualService" else RULES
            await self.other.create(resource, self.namespace, document)

    async def mesh(self, of: CanaryRolloutSpec | None = None, *, references: bool = False) -> Mesh:
        return await self.router.observe(self.namespace, of or spec(), references=references)

    async def service(self) -> VirtualServiceState:
        found = (await self.mesh()).virtual_services["reviews"]
        assert isinstance(found, VirtualServiceState)
        return found

    async def rule(self) -> DestinationRuleState:
        found = (await self.mesh()).destination_rule
        assert isinstance(found, DestinationRuleState)
        return found

    async def apply(self, action: Any) -> None:
        await self.router.apply(self.namespace, action, lambda: None)

    async def document(self, resource: Resource, name: str = "reviews") -> dict[str, Any]:
        found = await self.client.get(resource, self.namespace, name)
        assert found is not None
        return found


@asynccontextmanager
async def shop_in(lab: Lab) -> AsyncIterator[Shop]:
    requests: list[Request] = []
    namespace = f"patches-{next(_numbers)}"
    path = str(lab.kubeconfig)
    async with (
        await KubeClient.connect(CollectorRegistry(), kubeconfig=path, on_request=requests.append) as client,
        await KubeClient.connect(CollectorRegistry(), kubeconfig=path, field_manager="kubectl-edit") as other,
    ):
        await other.create(Resource("", "v1", "namespaces"), None, {"metadata": {"name": namespace}})
        yield Shop(namespace, client, other, IstioRouter(client), requests)


@pytest.fixture
async def shop(apiserver: Lab) -> AsyncIterator[Shop]:
    async with shop_in(apiserver) as shop:
        yield shop


def split(found: VirtualServiceState, **weights: int) -> SetWeights:
    return SetWeights(found, (RouteWeights("", weights, "v1"),))


async def test_a_whole_rollout_and_its_undoing_leave_the_authors_json(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    before = {r: without_server_fields(await shop.document(r)) for r in (SERVICES, RULES)}

    add = AddSubset(await shop.rule(), "v2", "v2", "version", "v1")
    record = changes_of(add)
    await shop.apply(add)
    assert (await shop.document(RULES))["spec"]["subsets"][1] == {
        "name": "v2",
        "labels": {"version": "v2"},
        "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}},
    }
    for weight in (10, 50, 100, 0):
        action = split(await shop.service(), v1=100 - weight, v2=weight)
        record = merge_changes(record, changes_of(action, {"v2": "v2"}))
        await shop.apply(action)
        assert (await shop.service()).routes[""] == Weights(
            (Destination("v1", 100 - weight, 100 - weight), Destination("v2", weight, weight))
        )
        for resource in (SERVICES, RULES):
            assert without_server_fields(undo(await shop.document(resource), record)) == before[resource]
    assert (await shop.document(SERVICES))["spec"]["http"][0]["route"][1]["headers"] == {
        "request": {"set": {"x-a": "b"}}
    }

    clean = CleanRoutes(await shop.service(), (RouteCleanup("", ("v2",), {"v1": None}),))
    await shop.apply(clean)
    remove = RemoveSubsets(await shop.rule(), ("v2",))
    await shop.apply(remove)
    assert changes_after_cleanup(changes_after_cleanup(record, clean), remove) == ()
    for resource in (SERVICES, RULES):
        assert without_server_fields(await shop.document(resource)) == before[resource]


async def test_each_weight_is_one_patch(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    found = await shop.service()
    shop.requests.clear()
    await shop.apply(split(found, v1=90, v2=10))
    seen = Request("patch", "virtualservices.networking.istio.io", shop.namespace, "reviews", "ok")
    assert shop.requests == [seen]


async def test_a_stale_plan_conflicts_and_changes_nothing(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    stale = await shop.service()
    await shop.other.merge_patch(SERVICES, shop.namespace, "reviews", {"metadata": {"labels": {"team": "a"}}})
    changed = await shop.document(SERVICES)
    with pytest.raises(Conflict, match="modified"):
        await shop.apply(split(stale, v1=90, v2=10))
    assert await shop.document(SERVICES) == changed


async def test_a_test_that_does_not_hold_conflicts(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    found = await shop.service()
    await shop.other.json_patch(
        SERVICES,
        shop.namespace,
        "reviews",
        [{"op": "replace", "path": "/spec/http/0/route/0/destination/subset", "value": "v0"}],
    )
    changed = await shop.document(SERVICES)
    document = {**found.document, "metadata": {**found.document["metadata"], **_version(changed)}}
    with pytest.raises(Conflict, match="rejected our request"):
        await shop.apply(split(replace(found, document=document), v1=90, v2=10))
    assert await shop.document(SERVICES) == changed


def _version(document: dict[str, Any]) -> dict[str, str]:
    return {"resourceVersion": document["metadata"]["resourceVersion"]}


async def test_a_vanished_object_conflicts(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    found = await shop.service()
    await shop.other.delete(SERVICES, shop.namespace, "reviews")
    with pytest.raises(Conflict, match="not found"):
        await shop.apply(split(found, v1=90, v2=10))


def refused_by_validation(rule: DestinationRuleState) -> AddSubset:
    """A plan whose result the schema refuses, because its template is not what a server would have accepted."""
    document = deepcopy(dict(rule.document))
    document["spec"]["subsets"][0]["labels"]["tier"] = 3
    return AddSubset(replace(rule, document=document), "v2", "v2", "version", "v1")


async def test_what_validation_refuses_is_no_conflict(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    with pytest.raises(Invalid, match=r"spec\.subsets\[1\]\.labels\.tier"):
        await shop.apply(refused_by_validation(await shop.rule()))


async def test_a_refusal_is_a_conflict_where_somebody_wrote_meanwhile(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    rule = await shop.rule()
    await shop.other.merge_patch(RULES, shop.namespace, "reviews", {"metadata": {"labels": {"team": "a"}}})
    with pytest.raises(Conflict):
        await shop.apply(refused_by_validation(rule))


async def test_nothing_is_sent_for_what_is_so_already(shop: Shop) -> None:
    await shop.create(virtual_service({"route": [to("v1", weight=90), to("v2", weight=10)]}), V1)
    found = await shop.service()
    shop.requests.clear()
    await shop.apply(split(found, v1=90, v2=10))
    assert shop.requests == []


async def test_a_patch_that_changes_nothing_leaves_the_version_as_it_was(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    before = await shop.document(SERVICES)
    version = before["metadata"]["resourceVersion"]
    operations = [
        {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/spec/hosts/0", "value": "reviews"},
    ]
    after = await shop.client.json_patch(SERVICES, shop.namespace, "reviews", operations)
    assert after["metadata"]["resourceVersion"] == version


async def test_the_last_writer_of_the_routes_is_known(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    first = await shop.service()
    assert (first.writer, first.written_by_us) == ("kubectl-edit", False)

    await shop.apply(split(first, v1=90, v2=10))
    ours = await shop.service()
    assert (ours.writer, ours.written_by_us) == ("canaryrollout", True)
    assert ours.generation == first.generation + 1

    await shop.other.merge_patch(SERVICES, shop.namespace, "reviews", {"metadata": {"labels": {"team": "a"}}})
    labeled = await shop.service()
    assert labeled.written_by_us
    assert labeled.generation == ours.generation

    weight = [{"op": "add", "path": "/spec/http/0/route/0/weight", "value": 100}]
    await shop.other.json_patch(SERVICES, shop.namespace, "reviews", weight)
    assert (await shop.service()).writer == "kubectl-edit"


async def test_no_request_is_sent_without_the_permit(shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    found = await shop.service()

    def refuse() -> None:
        raise NotLeading("the lease is not ours")

    shop.requests.clear()
    with pytest.raises(NotLeading):
        await shop.router.apply(shop.namespace, split(found, v1=90, v2=10), refuse)
    assert shop.requests == []


async def test_what_does_not_exist_is_missing_and_says_what_to_do(shop: Shop) -> None:
    mesh = await shop.mesh()
    found = mesh.virtual_services["reviews"]
    assert isinstance(found, Missing)
    assert found.reason == "VirtualServiceNotFound"
    assert shop.namespace in found.message
    assert isinstance(mesh.destination_rule, Missing)
    assert mesh.destination_rule.reason == "DestinationRuleNotFound"


async def test_several_virtual_services_are_read_at_once_and_each_by_name(shop: Shop) -> None:
    gateway = virtual_service({"name": "primary", "route": [to("v1")]}, {"route": [to("v1")]}, name="edge")
    await shop.create(PLAIN, gateway, V1)
    refs = [{"name": "reviews"}, {"name": "edge", "routes": ["primary"]}]
    mesh = await shop.mesh(spec(virtualServices=refs))
    for name, route in (("reviews", ""), ("edge", "primary")):
        state = mesh.virtual_services[name]
        assert isinstance(state, VirtualServiceState)
        assert dict(state.routes) == {route: Weights((Destination("v1", 100),))}
    assert mesh.references is None


async def test_references_are_found_in_every_namespace_and_in_mirrors(apiserver: Lab, shop: Shop) -> None:
    host = f"reviews.{shop.namespace}.svc.cluster.local"
    await shop.create(
        PLAIN, destination_rule(subsets=[{"name": n, "labels": {"version": n}} for n in ("v1", "v2", "v3")])
    )
    async with shop_in(apiserver) as elsewhere:
        mirror = {"destination": {"host": host, "subset": "v2"}, "percentage": {"value": 5}}
        await elsewhere.create(virtual_service({"route": [to("v3")], "mirrors": [mirror]}, name="web"))
        mesh = await shop.mesh(references=True)
    assert mesh.references == {
        "v1": (f"{shop.namespace}/reviews",),
        "v2": (f"{elsewhere.namespace}/web",),
        "v3": (),
    }


async def test_references_of_the_namespace_are_enough_where_the_role_allows_no_more(apiserver: Lab, shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    grant(apiserver, shop.namespace)
    requests: list[Request] = []
    path = str(apiserver.kubeconfig_for("guest"))
    async with await KubeClient.connect(CollectorRegistry(), kubeconfig=path, on_request=requests.append) as client:
        router = IstioRouter(client)
        for _ in range(2):
            mesh = await router.observe(shop.namespace, spec(), references=True)
            assert mesh.references == {"v1": (f"{shop.namespace}/reviews",)}
    lists = [(request.namespace, request.outcome) for request in requests if request.verb == "list"]
    assert lists == [("", "denied"), (shop.namespace, "ok"), (shop.namespace, "ok")]


async def test_what_may_not_be_read_is_unreadable_and_not_missing(apiserver: Lab, shop: Shop) -> None:
    await shop.create(PLAIN, V1)
    path = str(apiserver.kubeconfig_for("guest"))
    async with await KubeClient.connect(CollectorRegistry(), kubeconfig=path) as client:
        mesh = await IstioRouter(client).observe(shop.namespace, spec(), references=True)
    found = mesh.virtual_services["reviews"]
    assert isinstance(found, Unreadable)
    assert "Role does not allow" in found.message
    assert isinstance(mesh.destination_rule, Unreadable)
    assert mesh.references is None


def grant(lab: Lab, namespace: str) -> None:
    """Let the lab's user ``guest`` read and patch the mesh in one namespace."""
    api = "rbac.authorization.k8s.io"
    metadata = {"name": "mesh", "namespace": namespace}
    rules = [{"apiGroups": ["networking.istio.io"], "resources": ["*"], "verbs": ["get", "list", "patch"]}]
    subjects = [{"kind": "User", "name": "guest", "apiGroup": api}]
    reference = {"kind": "Role", "name": "mesh", "apiGroup": api}
    lab.apply(
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "subjects": subjects,
            "roleRef": reference,
        },
    )
