"""CanaryRollout objects on the API server.

Every write names the resourceVersion it was decided on, so that the API server refuses it once somebody else has
written, be it a user, another replica, or this one before it was paused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from canaryrollout.adapters.events import Recorder
from canaryrollout.adapters.kube import EXPIRED, ApiError, KubeClient
from canaryrollout.adapters.rollouts import CANARYROLLOUTS, finalizer_patch, rollout_of, status_patch
from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.decision import Event
from canaryrollout.engine.ports import Conflict, Gone, Permit, Rollout


class KubernetesStore:
    """`RolloutStore` on a cluster, or on some of its namespaces."""

    def __init__(self, client: KubeClient, recorder: Recorder, namespaces: tuple[str, ...] = ()) -> None:
        """Make a store; nothing is sent.

        Args:
            client: The way to the API server.
            recorder: Creates Events.
            namespaces: Where rollouts are listed; everywhere when empty.
        """
        self._client = client
        self._recorder = recorder
        self._namespaces = namespaces

    async def get(self, key: str) -> Rollout | None:
        """Read one rollout now; ``None`` when it does not exist."""
        namespace, _, name = key.partition("/")
        body = await self._client.get(CANARYROLLOUTS, namespace, name)
        return None if body is None else rollout_of(body)

    async def list(self) -> AsyncIterator[Rollout]:
        """Read all rollouts in scope, page by page, so that no more than a page is in memory at a time."""
        for scope in self._namespaces or (None,):
            try:
                async for page in self._client.pages(CANARYROLLOUTS, scope):
                    for body in page:
                        yield rollout_of(body)
            except ApiError as error:
                if error.status != EXPIRED:
                    raise
                for body in await self._client.list(CANARYROLLOUTS, scope):  # begun anew; seeing one twice is harmless
                    yield rollout_of(body)

    async def write_status(self, rollout: Rollout, status: CanaryRolloutStatus, permit: Permit) -> Rollout:
        """Write a status, guarded by ``rollout.resource_version``; raises `Conflict` or `Gone`."""
        permit()
        identity = rollout.identity
        patch = status_patch(rollout.resource_version, status)
        body = await self._client.json_patch(
            CANARYROLLOUTS, identity.namespace, identity.name, patch, subresource="status"
        )
        return rollout_of(body)

    async def set_finalizer(self, rollout: Rollout, present: bool, permit: Permit) -> Rollout:
        """Put our finalizer on the object or take it off, guarded likewise; others' finalizers stay."""
        identity = rollout.identity
        found = await self._client.get(CANARYROLLOUTS, identity.namespace, identity.name)
        if found is None:
            raise Gone(f"{identity.key} does not exist")
        metadata = found["metadata"]
        if metadata["resourceVersion"] != rollout.resource_version:
            raise Conflict(f"{identity.key} has changed since it was decided upon")
        patch = finalizer_patch(rollout.resource_version, metadata.get("finalizers") or (), present=present)
        if not patch:
            return rollout_of(found)
        permit()
        return rollout_of(await self._client.json_patch(CANARYROLLOUTS, identity.namespace, identity.name, patch))

    async def emit(self, rollout: Rollout, event: Event, permit: Permit) -> None:
        """Create a Kubernetes Event; never raises, a lost Event is logged."""
        await self._recorder.emit(rollout, event, permit)
