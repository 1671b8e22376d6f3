"""The Istio side of a rollout: what its routes say now, and how they are changed.

Reading costs one request for each VirtualService and one for the DestinationRule, all at once; asking for references
adds one listing of VirtualServices, a request for every 500 of them: a rollout asks before its first step, to warn of
callers that no listed route covers, and at its end. A change is one guarded patch of one object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from canaryrollout.adapters.istio_coverage import Listed, uncovered
from canaryrollout.adapters.istio_patch import build_patch
from canaryrollout.adapters.istio_read import read_destination_rule, read_virtual_service, subsets_named
from canaryrollout.adapters.kube import ApiError, Invalid, KubeClient, Resource
from canaryrollout.api.spec import CanaryRolloutSpec, VirtualServiceRef
from canaryrollout.domain.decision import Action, AddSubset, CleanRoutes, RemoveSubsets, SetWeights
from canaryrollout.domain.naming import CLUSTER_DOMAIN, fqdn
from canaryrollout.domain.observation import (
    DestinationRuleState,
    Mesh,
    Missing,
    Refused,
    Unreadable,
    VirtualServiceState,
)
from canaryrollout.engine.ports import Conflict, Gone, Permit

GROUP: Final = "networking.istio.io"
PREFERRED: Final = ("v1", "v1beta1", "v1alpha3")
LISTING_SECONDS: Final = 4.0
"""The longest that listing VirtualServices may take: less than all of a reading, which must not fail over it."""

_MeshAction = SetWeights | CleanRoutes | AddSubset | RemoveSubsets


async def istio_version(client: KubeClient) -> str:
    """Return the version in which to speak of Istio's networking objects: the newest of those served.

    Raises:
        ApiError: If the API server serves none, or does not answer.
    """
    served = await client.served_versions(GROUP)
    for version in PREFERRED:
        if version in served:
            return version
    raise ApiError(404, f"the API server serves no {GROUP}/{PREFERRED[0]}; are Istio's CRDs installed?")


class IstioRouter:
    """`TrafficRouter` for VirtualServices and DestinationRules."""

    def __init__(self, client: KubeClient, *, domain: str = CLUSTER_DOMAIN, cluster_wide: bool = True) -> None:
        """Make a router; nothing is sent.

        Args:
            client: The way to the API server.
            domain: DNS domain of the cluster.
            cluster_wide: Whether to look for references in all namespaces. Where our Role forbids that, the rollout's
                namespace is all that is looked at, and the first refusal is remembered.
        """
        self._client = client
        self._domain = domain
        self._cluster_wide = cluster_wide

    async def observe(self, namespace: str, spec: CanaryRolloutSpec, *, references: bool) -> Mesh:
        """Read what the spec refers to; never raises for what it finds."""
        host = fqdn(spec.host, namespace, self._domain)
        try:
            version = await istio_version(self._client)
        except ApiError as error:
            return _nothing_readable(spec, str(error))
        services, rule, documents = await asyncio.gather(
            self._virtual_services(namespace, spec, host, version),
            self._destination_rule(namespace, spec, host, version),
            self._all_virtual_services(namespace, version) if references else _not_asked(),
        )
        if documents is None or isinstance(documents, Unreadable):
            return Mesh(services, rule, uncovered=documents)
        named = _by_subset(rule, documents, host, self._domain)
        return Mesh(services, rule, named, self._uncovered(namespace, spec, host, rule, documents))

    async def apply(self, namespace: str, action: Action, permit: Permit) -> None:
        """Carry an action out in one guarded patch.

        Nothing is sent when the object already is as the action wants it.

        Raises:
            Conflict: If the object changed, or went away, since it was found.
            Invalid: If the API server or Istio's webhook refuses the result.
            istio_patch.Unpatchable: If the plan does not fit what was found.
            ApiError: If the API server did not answer, or refused.
        """
        if not isinstance(action, _MeshAction):
            raise TypeError(f"{type(action).__name__} does not change the mesh")
        found = action.found
        patch = build_patch(found.document, action, domain=self._domain)
        if not patch:
            return
        plural = "virtualservices" if isinstance(found, VirtualServiceState) else "destinationrules"
        resource = Resource(GROUP, await istio_version(self._client), plural)
        permit()
        try:
            await self._client.json_patch(resource, namespace, found.name, patch)
        except Gone as error:
            raise Conflict(str(error)) from error
        except Invalid as error:
            await self._if_changed(resource, namespace, found.name, found.document, error)
            raise

    async def _if_changed(
        self, resource: Resource, namespace: str, name: str, planned_on: Mapping[str, Any], error: Invalid
    ) -> None:
        """Raise `Conflict` if a refusal is explained by an object that is not the one the patch was planned on."""
        present = await self._client.get(resource, namespace, name)
        if present is None or present["metadata"]["resourceVersion"] != planned_on["metadata"]["resourceVersion"]:
            raise Conflict(str(error)) from error

    async def _virtual_services(
        self, namespace: str, spec: CanaryRolloutSpec, host: str, version: str
    ) -> dict[str, VirtualServiceState | Missing | Unreadable]:
        refs = spec.istio.virtual_services
        states = await asyncio.gather(*(self._virtual_service(namespace, ref, host, version) for ref in refs))
        return {ref.name: state for ref, state in zip(refs, states, strict=True)}

    async def _virtual_service(
        self, namespace: str, ref: VirtualServiceRef, host: str, version: str
    ) -> VirtualServiceState | Missing | Unreadable:
        try:
            document = await self._client.get(Resource(GROUP, version, "virtualservices"), namespace, ref.name)
        except ApiError as error:
            return Unreadable(str(error))
        if document is None:
            return Missing(
                "VirtualServiceNotFound",
                f"VirtualService {ref.name} does not exist in namespace {namespace}; create it, or correct "
                "spec.istio.virtualServices[].name",
            )
        return read_virtual_service(document, ref.routes, host, manager=self._client.field_manager, domain=self._domain)

    async def _destination_rule(
        self, namespace: str, spec: CanaryRolloutSpec, host: str, version: str
    ) -> DestinationRuleState | Missing | Refused | Unreadable:
        name = spec.istio.destination_rule.name
        try:
            document = await self._client.get(Resource(GROUP, version, "destinationrules"), namespace, name)
        except ApiError as error:
            return Unreadable(str(error))
        if document is None:
            return Missing(
                "DestinationRuleNotFound",
                f"DestinationRule {name} does not exist in namespace {namespace}; create it with host {spec.host}, or "
                "correct spec.istio.destinationRule.name",
            )
        return read_destination_rule(document, host, spec.version_label, domain=self._domain)

    def _uncovered(
        self,
        namespace: str,
        spec: CanaryRolloutSpec,
        host: str,
        rule: DestinationRuleState | Missing | Refused | Unreadable,
        documents: list[dict[str, Any]],
    ) -> tuple[str, ...] | Unreadable | None:
        if not isinstance(rule, DestinationRuleState):
            return rule if isinstance(rule, Unreadable) else None
        routes = {ref.name: ref.routes for ref in spec.istio.virtual_services}
        subsets = {subset.name: subset.version for subset in rule.subsets}
        listed = Listed(host, namespace, spec.version, routes, subsets, self._domain)
        return uncovered(documents, listed, everywhere=self._cluster_wide)

    async def _all_virtual_services(self, namespace: str, version: str) -> list[dict[str, Any]] | Unreadable:
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                return await self._listed(Resource(GROUP, version, "virtualservices"), namespace)
        except TimeoutError:
            return Unreadable(f"VirtualServices could not be listed within {LISTING_SECONDS:g} s")
        except (ApiError, Gone) as error:
            return Unreadable(str(error))

    async def _listed(self, resource: Resource, namespace: str) -> list[dict[str, Any]]:
        if self._cluster_wide:
            try:
                return await self._client.list(resource)
            except ApiError as error:
                if error.status != 403:
                    raise
                self._cluster_wide = False
        return await self._client.list(resource, namespace)


async def _not_asked() -> None:
    return None


def _by_subset(
    rule: DestinationRuleState | Missing | Refused | Unreadable,
    documents: list[dict[str, Any]],
    host: str,
    domain: str,
) -> dict[str, tuple[str, ...]]:
    """Answer for every subset of the DestinationRule, and for those that routes name without there being one."""
    names: dict[str, list[str]] = {}
    for document in documents:
        metadata = document["metadata"]
        for subset in subsets_named(document, host, domain):
            names.setdefault(subset, []).append(f"{metadata['namespace']}/{metadata['name']}")
    known = [subset.name for subset in rule.subsets] if isinstance(rule, DestinationRuleState) else []
    return {subset: tuple(sorted(names.get(subset, ()))) for subset in [*known, *sorted(set(names) - set(known))]}


def _nothing_readable(spec: CanaryRolloutSpec, message: str) -> Mesh:
    return Mesh({ref.name: Unreadable(message) for ref in spec.istio.virtual_services}, Unreadable(message))
