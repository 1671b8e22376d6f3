"""A namespace with CanaryRollouts on a real API server, and the operator's way to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from canaryrollout.adapters.clock import SystemClock
from canaryrollout.adapters.events import EVENTS, Recorder
from canaryrollout.adapters.kube import KubeClient, Request
from canaryrollout.adapters.rollouts import CANARYROLLOUTS, rollout_of
from canaryrollout.adapters.store import KubernetesStore
from canaryrollout.engine.ports import Rollout
from lab.mesh import Lab

CRD = Path(__file__).parents[2] / "deploy" / "crds" / "canaryrollouts.yaml"
_numbers = count(1)


def body(name: str = "reviews", **spec: Any) -> dict[str, Any]:
    """A CanaryRollout as a user writes it."""
    istio = {"virtualServices": [{"name": name}], "destinationRule": {"name": name}}
    return {
        "apiVersion": "canaryrollout.io/v1alpha1",
        "kind": "CanaryRollout",
        "metadata": {"name": name},
        "spec": {"version": "v2", "host": name, "istio": istio, **spec},
    }


@cache
def install_crd(lab: Lab) -> None:
    """Install the definition of CanaryRollouts and wait until it is served."""
    lab.kubectl("apply", "--server-side", "-f", str(CRD))
    lab.kubectl.wait_served("canaryrollouts.canaryrollout.io")


@dataclass
class Shop:
    """A namespace of its own, a client as the operator uses it, and a record of its requests."""

    namespace: str
    client: KubeClient
    store: KubernetesStore
    requests: list[Request] = field(default_factory=list)

    async def create(self, document: dict[str, Any]) -> Rollout:
        return rollout_of(await self.client.create(CANARYROLLOUTS, self.namespace, document))

    async def read(self, name: str = "reviews") -> dict[str, Any]:
        found = await self.client.get(CANARYROLLOUTS, self.namespace, name)
        assert found is not None
        return found

    async def merge(self, patch: dict[str, Any], name: str = "reviews") -> Rollout:
        return rollout_of(await self.client.merge_patch(CANARYROLLOUTS, self.namespace, name, patch))

    async def events(self) -> list[dict[str, Any]]:
        return await self.client.list(EVENTS, self.namespace)


@asynccontextmanager
async def new_shop(lab: Lab, clock: Any = None) -> AsyncIterator[Shop]:
    """Open a shop in a namespace that nobody has used."""
    install_crd(lab)
    namespace = f"shop-{next(_numbers)}-{id(lab) % 10_000}"
    lab.namespace(namespace)
    requests: list[Request] = []
    registry = CollectorRegistry()
    async with await KubeClient.connect(registry, kubeconfig=str(lab.kubeconfig), on_request=requests.append) as client:
        recorder = Recorder(client, clock or SystemClock(), "canaryrollout-0")
        yield Shop(namespace, client, KubernetesStore(client, recorder, (namespace,)), requests)
