"""Which callers of a host meet the canary without any listed route sending them there.

A weight splits what goes by the listed routes. A gateway uses only VirtualServices that are bound to it, the mesh only
those bound to ``mesh``, and a destination without a subset is every Pod behind the Service: such callers meet the
canary as soon as it is ready, before its first step. This is found in the VirtualServices that can be listed, and said
in words.

Not looked at: mirrored requests (their answers reach nobody), Ingresses and HTTPRoutes, Sidecars, callers outside the
mesh, defaults of ``exportTo`` in the mesh's configuration, and other hosts that happen to have the same Pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from canaryrollout.adapters.istio_shape import covers
from canaryrollout.domain.naming import CLUSTER_DOMAIN, fqdn
from canaryrollout.domain.shares import percentages

MESH: Final = "mesh"
_EVERYWHERE: Final = "*"
_NOWHERE: Final = "~"

Key = tuple[str, str]
"""Namespace and name of a VirtualService."""


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Target(_Shape):
    host: str = ""
    subset: str | None = None


class _Entry(_Shape):
    destination: _Target = _Target()
    weight: Annotated[int, Field(ge=0)] | None = None


class _Delegate(_Shape):
    name: str = ""
    namespace: str | None = None


class _Route(_Shape):
    name: str | None = None
    route: list[_Entry] | None = None
    delegate: _Delegate | None = None


class _Spec(_Shape):
    hosts: list[str] | None = None
    gateways: list[str] | None = None
    export_to: Annotated[list[str] | None, Field(alias="exportTo")] = None
    http: list[_Route] | None = None
    tcp: list[_Route] | None = None
    tls: list[_Route] | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """What a rollout says of its traffic.

    Attributes:
        host: Fully qualified host.
        namespace: Namespace of the rollout, and of the VirtualServices that it lists.
        canary: The version that is on its way to serve.
        routes: Names of the listed routes by VirtualService; none where the only route is meant.
        subsets: Version of each subset of the DestinationRule, ``None`` where its labels tell no version.
        domain: DNS domain of the cluster.
    """

    host: str
    namespace: str
    canary: str
    routes: Mapping[str, Sequence[str]]
    subsets: Mapping[str, str | None]
    domain: str = CLUSTER_DOMAIN


@dataclass(frozen=True, slots=True)
class _Binding:
    """By which gateways (``mesh`` among them), hosts and namespaces of callers a VirtualService is used.

    ``namespaces`` is ``None`` where all are.
    """

    gateways: frozenset[str]
    hosts: tuple[str, ...]
    namespaces: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class _VirtualService:
    key: Key
    spec: _Spec


def uncovered(documents: Iterable[Mapping[str, Any]], listed: Listed, *, everywhere: bool = True) -> tuple[str, ...]:
    """Say which callers of a host meet the canary whatever its weight.

    Args:
        documents: The VirtualServices that can be listed. One that is misshapen is left out: Istio makes no use of it.
        listed: What the rollout says of its traffic.
        everywhere: Whether the documents are those of all namespaces.

    Returns:
        A few words for each; none where there are no such callers.
    """
    services = {service.key: service for service in _readable(documents)}
    bindings = _bindings(services, listed.domain)
    found = list(_mesh(services, bindings, listed, everywhere=everywhere))
    for key in sorted(services):
        if key in bindings:
            own = key[0] == listed.namespace and key[1] in listed.routes
            found += _beside(services[key], listed) if own else _instead(services[key], bindings[key], listed)
    return tuple(found)


def _readable(documents: Iterable[Mapping[str, Any]]) -> Iterator[_VirtualService]:
    for document in documents:
        metadata = document["metadata"]
        try:
            spec = _Spec.model_validate(document.get("spec") or {})
        except ValidationError:
            continue
        yield _VirtualService((str(metadata["namespace"]), str(metadata["name"])), spec)


def _bindings(services: Mapping[Key, _VirtualService], domain: str) -> dict[Key, list[_Binding]]:
    """Return how each VirtualService is used: by itself, or by those that delegate to it; unused ones are absent."""
    found: dict[Key, list[_Binding]] = {}
    for (namespace, name), service in services.items():
        spec = service.spec
        namespaces = _visible(spec.export_to, namespace)
        if not spec.hosts or namespaces == frozenset():
            continue
        gateways = frozenset(_gateway(gateway, namespace) for gateway in spec.gateways or (MESH,))
        binding = _Binding(gateways, tuple(fqdn(host, namespace, domain) for host in spec.hosts), namespaces)
        found.setdefault((namespace, name), []).append(binding)
        for route in spec.http or ():
            if route.delegate is not None:
                delegate = route.delegate.namespace or namespace, route.delegate.name
                if delegate in services and not services[delegate].spec.hosts:
                    found.setdefault(delegate, []).append(binding)
    return found


def _visible(export_to: Sequence[str] | None, namespace: str) -> frozenset[str] | None:
    if not export_to or _EVERYWHERE in export_to:
        return None
    return frozenset(namespace if name == "." else name for name in export_to if name != _NOWHERE)


def _gateway(name: str, namespace: str) -> str:
    """Qualify a gateway's name as Istio does: ``name``, ``./name``, ``namespace/name``, and an old spelling by dots."""
    if name == MESH:
        return name
    if "/" not in name:
        first, *rest = name.split(".")
        return f"{rest[0]}/{first}" if rest else f"{namespace}/{name}"
    return f"{namespace}/{name[2:]}" if name.startswith("./") else name


def _mesh(
    services: Mapping[Key, _VirtualService],
    bindings: Mapping[Key, Sequence[_Binding]],
    listed: Listed,
    *,
    everywhere: bool,
) -> Iterator[str]:
    """Tell whether callers in the mesh reach the host by the plain Service."""
    bound = {key: [b for b in bindings[key] if MESH in b.gateways] for key in bindings}
    used = {
        key: matching
        for key, of_mesh in bound.items()
        if services[key].spec.http and (matching := [b for b in of_mesh if covers(b.hosts, listed.host)])
    }
    own = [(listed.namespace, name) for name in listed.routes]
    if not used:
        if not everywhere and any(key in services and key not in bindings for key in own):
            return  # a delegate; who delegates to it cannot be seen
        if any(bound.get(key) for key in own):
            yield f"the mesh: no listed VirtualService that is bound to it has {listed.host} among its hosts"
        else:
            yield "the mesh: no listed VirtualService is bound to it"
        return
    reach = [binding.namespaces for matching in used.values() for binding in matching]
    if None not in reach:
        names = ", ".join(sorted({name for namespaces in reach for name in namespaces or ()}))
        who = " and ".join("/".join(key) for key in sorted(used))
        yield f"the mesh outside {names}: exportTo of VirtualService {who} leaves it out"


def _beside(service: _VirtualService, listed: Listed) -> Iterator[str]:
    """Tell which routes of a listed VirtualService are not listed and reach the canary."""
    namespace, name = service.key
    names = listed.routes[name]
    for index, route in enumerate(service.spec.http or ()):
        whom = _reached(route, namespace, listed)
        if whom and names and (route.name or "") not in names:
            place = f"route {route.name!r}" if route.name else f"spec.http[{index}]"
            yield f"{place} of VirtualService {name} is not listed and sends requests to {whom}"
    for kind, routes in (("tcp", service.spec.tcp), ("tls", service.spec.tls)):
        for index, route in enumerate(routes or ()):
            if whom := _reached(route, namespace, listed):
                yield f"spec.{kind}[{index}] of VirtualService {name} sends connections to {whom}"


def _instead(service: _VirtualService, bindings: Sequence[_Binding], listed: Listed) -> Iterator[str]:
    """Tell whom a VirtualService that is not listed sends to the canary."""
    routes = [*(service.spec.http or ()), *(service.spec.tcp or ()), *(service.spec.tls or ())]
    reached = dict.fromkeys(whom for route in routes if (whom := _reached(route, service.key[0], listed)))
    if reached:
        gateways = frozenset[str]().union(*(binding.gateways for binding in bindings))
        callers = [f"gateway {gateway}" for gateway in sorted(gateways - {MESH})]
        callers = ["the mesh"] * (MESH in gateways) + callers
        yield (
            f"{' and '.join(callers)}: VirtualService {'/'.join(service.key)} is not listed and sends requests to "
            f"{' and '.join(reached)}"
        )


def _reached(route: _Route, namespace: str, listed: Listed) -> str:
    """Return in words by which destinations a route reaches the canary past its weight; empty where it does not."""
    entries = route.route or ()
    shares = percentages([entry.weight for entry in entries])
    if shares is None:
        return ""
    found: dict[str, None] = {}
    for entry, share in zip(entries, shares, strict=True):
        if share and fqdn(entry.destination.host, namespace, listed.domain) == listed.host:
            found |= dict.fromkeys(_named(entry.destination.subset or "", listed))
    return " and ".join(found)


def _named(subset: str, listed: Listed) -> Iterator[str]:
    if not subset:
        yield "every version, as it names no subset"
    elif subset in listed.subsets:
        version = listed.subsets[subset]
        if version is None:
            yield f"subset {subset!r}, which tells no version"
        elif version == listed.canary:
            yield f"{version} (subset {subset!r})"
