"""The Lease by which replicas elect the one that acts."""

from __future__ import annotations

from typing import Any, Final

from canaryrollout.adapters.kube import Document, KubeClient, Resource

LEASES: Final = Resource("coordination.k8s.io", "v1", "leases")

_KEPT = ("labels", "annotations", "ownerReferences", "finalizers")


class KubernetesLease:
    """`LeaseStore` on a Lease object; what others wrote beside its spec stays."""

    def __init__(self, client: KubeClient, namespace: str, name: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._others: Document = {}

    async def read(self) -> tuple[str, dict[str, Any]] | None:
        """Return (resourceVersion, spec) or ``None`` when there is no Lease."""
        body = await self._client.get(LEASES, self._namespace, self._name)
        if body is None:
            return None
        return self._note(body), dict(body.get("spec") or {})

    async def create(self, spec: dict[str, Any]) -> str:
        """Create the Lease and return its resourceVersion; raises `Conflict` when it exists."""
        return self._note(await self._client.create(LEASES, self._namespace, self._body({}, spec)))

    async def replace(self, resource_version: str, spec: dict[str, Any]) -> str:
        """Replace the spec guarded by resourceVersion and return the new one; raises `Conflict`."""
        body = self._body(self._others | {"resourceVersion": resource_version}, spec)
        return self._note(await self._client.replace(LEASES, self._namespace, self._name, body))

    def _body(self, metadata: Document, spec: dict[str, Any]) -> Document:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata | {"namespace": self._namespace, "name": self._name},
            "spec": spec,
        }

    def _note(self, body: Document) -> str:
        metadata: Document = body["metadata"]
        self._others = {field: metadata[field] for field in _KEPT if field in metadata}
        return str(metadata["resourceVersion"])
