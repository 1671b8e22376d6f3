"""Endpoints that come and go as a test says, without any workload behind them.

What the operator reads are objects of the API server, so they are written here as a kubelet, an autoscaler or a health
check of Istio would leave them: WorkloadEntries, or Pods and the EndpointSlices that name them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from tests.faults.cluster import WORKLOAD_ENTRIES, Cluster, Kind
from tests.faults.life import NAME, Life

PODS: Final = "api/v1", "pods"
ACCOUNTS: Final = "api/v1", "serviceaccounts"
SLICES: Final = "apis/discovery.k8s.io/v1", "endpointslices"
VERSIONS: Final = ("v1", "v2")
_CHECKED: Final = "proxy.istio.io/health-checks-enabled"


class Workloads(Protocol):
    """The endpoints of both versions of a life; times are seconds since the epoch, when the last write was done."""

    def scale(self, version: str, count: int) -> float:
        """Let a version have so many endpoints, all ready."""

    def unready(self, version: str) -> float:
        """Let all the endpoints of a version stay and be ready no longer; `scale` makes them ready again."""


class Entries:
    """WorkloadEntries; a life begins with one for each version."""

    def __init__(self, life: Life) -> None:
        self._cluster: Cluster = life.ground.cluster
        self._namespace = life.namespace
        self._names = {version: [version] for version in VERSIONS}

    def scale(self, version: str, count: int) -> float:
        """Create, delete and heal WorkloadEntries until there are so many healthy ones."""
        names = self._names[version]
        for name in names[:count]:
            self._check(name, None)
        while len(names) > count:
            self._cluster.delete(WORKLOAD_ENTRIES, self._namespace, names.pop())
        while len(names) < count:
            names.append(version if version not in names else f"{version}-{len(names)}")
            spec = {"address": "127.0.0.1", "labels": {"app": NAME, "version": version}}
            head = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": names[-1]}}
            self._cluster.create(WORKLOAD_ENTRIES, self._namespace, {**head, "spec": spec})
        return time.time()

    def unready(self, version: str) -> float:
        """Give them health checks that none has passed yet."""
        for name in self._names[version]:
            self._check(name, "true")
        return time.time()

    def _check(self, name: str, checked: str | None) -> None:
        patch = {"metadata": {"annotations": {_CHECKED: checked}}}
        self._cluster.merge(WORKLOAD_ENTRIES, self._namespace, name, patch)


class Pods:
    """Pods and one EndpointSlice for each version, in place of a life's WorkloadEntries; at first one Pod each."""

    def __init__(self, life: Life) -> None:
        self._cluster: Cluster = life.ground.cluster
        self._namespace = life.namespace
        self._made: dict[str, int] = dict.fromkeys(VERSIONS, 0)
        self._count: dict[str, int] = dict.fromkeys(VERSIONS, 0)
        self._create(ACCOUNTS, "v1", "ServiceAccount", "default", {})
        for version in VERSIONS:
            head = {"kubernetes.io/service-name": NAME}
            body = {"addressType": "IPv4", "endpoints": [], "ports": [{"name": "http", "port": 80}]}
            self._create(SLICES, "discovery.k8s.io/v1", "EndpointSlice", version, body, head)
            self.scale(version, 1)
            self._cluster.delete(WORKLOAD_ENTRIES, self._namespace, version)

    def scale(self, version: str, count: int) -> float:
        """Name so many Pods in the slice, all ready."""
        self._count[version] = count
        return self._write(version, {"ready": True, "serving": True, "terminating": False})

    def unready(self, version: str) -> float:
        """Say in the slice that they are not ready."""
        return self._write(version, {"ready": False, "serving": False, "terminating": False})

    def terminating(self, version: str) -> float:
        """Say in the slice that they still serve and are on their way out."""
        return self._write(version, {"ready": False, "serving": True, "terminating": True})

    def _write(self, version: str, conditions: Mapping[str, bool]) -> float:
        count = self._count[version]
        for number in range(self._made[version], count):
            spec = {"containers": [{"name": "app", "image": "app"}], "serviceAccountName": "default"}
            self._create(PODS, "v1", "Pod", f"{version}-{number}", {"spec": spec}, {"app": NAME, "version": version})
        self._made[version] = max(count, self._made[version])
        endpoints = [
            {
                "addresses": [f"10.1.{version[1:]}.{number + 1}"],
                "conditions": dict(conditions),
                "targetRef": {"kind": "Pod", "name": f"{version}-{number}", "namespace": self._namespace},
            }
            for number in range(count)
        ]
        self._cluster.merge(SLICES, self._namespace, version, {"endpoints": endpoints})
        return time.time()

    def _create(
        self, kind: Kind, api: str, of: str, name: str, body: Mapping[str, Any], labels: Mapping[str, str] | None = None
    ) -> None:
        metadata = {"name": name, "labels": dict(labels or {})}
        self._cluster.create(kind, self._namespace, {"apiVersion": api, "kind": of, "metadata": metadata, **body})
