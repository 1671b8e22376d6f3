"""Ready endpoints behind a host, by version: what must be there before a version is given traffic.

Istio finds a Service's endpoints in its EndpointSlices and in WorkloadEntries whose labels match its selector; a host
that is no Service may be a ServiceEntry, which lists endpoints or selects workloads. They are looked for in the same
places here.

Requests for each reading: a Service costs four (Service, EndpointSlices, the metadata of its Pods, WorkloadEntries), a
ServiceEntry up to four (Service where the host could be one, ServiceEntries, Pods, WorkloadEntries). What could not be
read makes the whole answer unreadable: half a count looks like endpoints that went away.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from canaryrollout.adapters.istio import GROUP, istio_version
from canaryrollout.adapters.kube import ApiError, KubeClient, Resource
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.domain.naming import CLUSTER_DOMAIN, fqdn, service_of
from canaryrollout.domain.observation import Endpoints, Unreadable
from canaryrollout.engine.ports import Gone

SERVICES: Final = Resource("", "v1", "services")
PODS: Final = Resource("", "v1", "pods")
SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices")

HEALTH_CHECKS: Final = "proxy.istio.io/health-checks-enabled"

Document = Mapping[str, Any]


class MeshEndpoints:
    """`EndpointSource` that looks where Istio looks."""

    def __init__(self, client: KubeClient, *, domain: str = CLUSTER_DOMAIN) -> None:
        """Make a source; nothing is sent.

        Args:
            client: The way to the API server.
            domain: DNS domain of the cluster.
        """
        self._client = client
        self._domain = domain

    async def ready(self, namespace: str, spec: CanaryRolloutSpec) -> Endpoints | Unreadable:
        """Count ready endpoints by value of the version label."""
        host = fqdn(spec.host, namespace, self._domain)
        try:
            return Endpoints(await self._count(namespace, spec, host))
        except (ApiError, Gone) as error:
            return Unreadable(f"ready endpoints of {host} could not be counted: {error}")

    async def _count(self, namespace: str, spec: CanaryRolloutSpec, host: str) -> dict[str, int]:
        service = service_of(host, self._domain)
        if service is not None and service[1] != namespace:
            raise ApiError(
                0, f"spec.host {spec.host!r} is in namespace {service[1]}; a rollout moves a host of its own"
            )
        found = await self._client.get(SERVICES, namespace, service[0]) if service is not None else None
        if found is not None:
            return await self._of_service(namespace, found, spec.version_label)
        return await self._of_service_entry(namespace, host, spec.version_label)

    async def _of_service(self, namespace: str, service: Document, label: str) -> dict[str, int]:
        selector: Mapping[str, str] = (service.get("spec") or {}).get("selector") or {}
        name = service["metadata"]["name"]
        slices, pods, entries = await asyncio.gather(
            self._client.list(SLICES, namespace, labels={"kubernetes.io/service-name": name}),
            self._client.list(PODS, namespace, labels=selector, metadata_only=True),
            self._workload_entries(namespace, selector),
        )
        return _tally(label, [*_pods_in(slices, pods), *entries])

    async def _of_service_entry(self, namespace: str, host: str, label: str) -> dict[str, int]:
        resource = Resource(GROUP, await istio_version(self._client), "serviceentries")
        for entry in await self._client.list(resource, namespace):
            spec = entry.get("spec") or {}
            if host in [fqdn(name, namespace, self._domain) for name in spec.get("hosts") or ()]:
                return await self._of_entry(namespace, spec, label)
        raise ApiError(404, f"namespace {namespace} has neither a Service nor a ServiceEntry of that host")

    async def _of_entry(self, namespace: str, spec: Document, label: str) -> dict[str, int]:
        selector: Mapping[str, str] = (spec.get("workloadSelector") or {}).get("labels") or {}
        if not selector:
            return _tally(label, [endpoint.get("labels") or {} for endpoint in spec.get("endpoints") or ()])
        pods, entries = await asyncio.gather(
            self._client.list(PODS, namespace, labels=selector), self._workload_entries(namespace, selector)
        )
        ready = [pod["metadata"].get("labels") or {} for pod in pods if _pod_is_ready(pod)]
        return _tally(label, [*ready, *entries])

    async def _workload_entries(self, namespace: str, selector: Mapping[str, str]) -> list[Mapping[str, str]]:
        """Return the labels of healthy WorkloadEntries that a selector matches; none where it is empty."""
        if not selector or not await self._client.served_versions(GROUP):
            return []
        resource = Resource(GROUP, await istio_version(self._client), "workloadentries")
        documents = await self._client.list(resource, namespace)
        labels = [_entry_labels(document) for document in documents if _entry_is_healthy(document)]
        return [found for found in labels if selector.items() <= found.items()]


def _tally(label: str, labels: Iterable[Mapping[str, str]]) -> dict[str, int]:
    return dict(Counter(found[label] for found in labels if label in found))


def _pods_in(slices: Iterable[Document], pods: Iterable[Document]) -> list[Mapping[str, str]]:
    """Return the labels of Pods that EndpointSlices call ready: each Pod once, however many slices name it."""
    labels = {pod["metadata"]["name"]: pod["metadata"].get("labels") or {} for pod in pods}
    ready = {
        (endpoint.get("targetRef") or {}).get("name")
        for piece in slices
        for endpoint in piece.get("endpoints") or ()
        if (endpoint.get("targetRef") or {}).get("kind") == "Pod" and _endpoint_is_ready(endpoint)
    }
    return [labels[name] for name in ready if name in labels]


def _endpoint_is_ready(endpoint: Document) -> bool:
    """Tell whether an endpoint takes new requests.

    An absent condition counts as ready, as the API documents. ``serving`` is looked at too, because ``ready`` is always
    true on a Service that publishes addresses which are not ready.
    """
    conditions = endpoint.get("conditions") or {}
    return (
        conditions.get("ready") is not False
        and conditions.get("serving") is not False
        and not conditions.get("terminating")
    )


def _pod_is_ready(pod: Document) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(entry.get("type") == "Ready" and entry.get("status") == "True" for entry in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


def _entry_labels(entry: Document) -> Mapping[str, str]:
    """Return the labels by which Istio selects a WorkloadEntry: those in its spec, overridden by its own."""
    return {**((entry.get("spec") or {}).get("labels") or {}), **(entry["metadata"].get("labels") or {})}


def _entry_is_healthy(entry: Document) -> bool:
    """Tell whether a WorkloadEntry takes requests.

    One with health checks takes none before a check has passed; one without is taken at its word.
    """
    if entry["metadata"].get("deletionTimestamp"):
        return False
    checked = str((entry["metadata"].get("annotations") or {}).get(HEALTH_CHECKS, "")).lower() in ("true", "t", "1")
    conditions = (entry.get("status") or {}).get("conditions") or ()
    healthy = {str(found.get("status")) for found in conditions if found.get("type") == "Healthy"}
    return healthy == {"True"} if checked else "False" not in healthy
