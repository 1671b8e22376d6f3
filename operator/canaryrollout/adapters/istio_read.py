"""VirtualServices and DestinationRules as decisions see them.

Routes come in many shapes, and only some can be moved without guessing. These functions read a document and answer with
weights, or with a refusal that names the field, what stands there, and what would be right. They never raise for what a
document holds, and they change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from canaryrollout.adapters.istio_shape import covers, destination_rule_flaw, virtual_service_flaw
from canaryrollout.api.text import is_plain
from canaryrollout.domain.naming import CLUSTER_DOMAIN, fqdn
from canaryrollout.domain.observation import (
    Destination,
    DestinationRuleState,
    Missing,
    Refused,
    RouteState,
    Subset,
    VirtualServiceState,
    Weights,
)
from canaryrollout.domain.shares import percentages

Document = Mapping[str, Any]

_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def read_virtual_service(
    document: Document, routes: Sequence[str], host: str, *, manager: str, domain: str = CLUSTER_DOMAIN
) -> VirtualServiceState:
    """Read a VirtualService.

    Args:
        document: The object.
        routes: Names of the managed routes; empty where the only route is meant.
        host: Fully qualified host of the rollout.
        manager: Our own field manager.
        domain: DNS domain of the cluster.
    """
    metadata = document["metadata"]
    writer = last_writer(document)
    return VirtualServiceState(
        name=metadata["name"],
        generation=int(metadata.get("generation") or 0),
        writer=writer,
        written_by_us=writer == manager,
        routes=_read_routes(document, routes, host, domain),
        document=document,
        names_host=_names_host(document, host, domain),
    )


def _names_host(document: Document, host: str, domain: str) -> bool:
    spec = document.get("spec")
    hosts = spec.get("hosts") if isinstance(spec, Mapping) else None
    named = hosts if isinstance(hosts, Sequence) and not isinstance(hosts, str) else ()
    return covers((fqdn(str(name), document["metadata"]["namespace"], domain) for name in named), host)


def read_destination_rule(
    document: Document, host: str, version_label: str, *, domain: str = CLUSTER_DOMAIN
) -> DestinationRuleState | Refused:
    """Read a DestinationRule; refused when it is about another host.

    A subset stands for a version when its labels select that version, whatever else they select. Several subsets may
    stand for one version; all of them are returned, in the order in which they are written.
    """
    metadata = document["metadata"]
    if flaw := destination_rule_flaw(document):
        return Refused("Misshapen", f"DestinationRule {metadata['name']}: {flaw}")
    spec = document.get("spec") or {}
    written = str(spec.get("host", ""))
    if fqdn(written, metadata["namespace"], domain) != host:
        return Refused(
            "HostMismatch",
            f"DestinationRule {metadata['name']}: spec.host is {written!r}, but the rollout is about {host}; "
            "name the DestinationRule of that host in spec.istio.destinationRule",
        )
    subsets = tuple(
        Subset(str(subset.get("name", "")), _version(subset, version_label)) for subset in spec.get("subsets") or ()
    )
    for subset in subsets:
        if not is_plain(subset.name):
            return Refused(
                "UnusableName",
                f"DestinationRule {metadata['name']}: a subset is named {subset.name!r}; use letters and digits",
            )
    return DestinationRuleState(
        name=metadata["name"],
        generation=int(metadata.get("generation") or 0),
        subsets=subsets,
        empty_list=spec.get("subsets") == [],
        document=document,
    )


def _version(subset: Document, version_label: str) -> str | None:
    """Return the version that a subset stands for; none where the value is one that no Pod's label can have."""
    value = (subset.get("labels") or {}).get(version_label)
    return str(value) if value is not None and _LABEL_VALUE.fullmatch(str(value)) else None


def last_writer(document: Document) -> str:
    """Return the field manager that wrote ``spec.http`` last; empty where managedFields do not tell.

    Lists of a VirtualService have one owner as a whole: whoever changed ``spec.http`` last.
    """
    owners = {
        str(entry.get("manager", ""))
        for entry in document["metadata"].get("managedFields") or ()
        if "f:http" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    }
    return owners.pop() if len(owners) == 1 else ""


def find_route(http: Sequence[Document], name: str) -> int | None:
    """Return the index of a managed route, ``""`` being the only one; ``None`` where it is absent or ambiguous."""
    found = [index for index, route in enumerate(http) if not name or route.get("name") == name]
    return found[0] if len(found) == 1 else None


def names_host(destination: Document, host: str, namespace: str, domain: str = CLUSTER_DOMAIN) -> bool:
    """Return whether a ``destination`` names a fully qualified host; short names belong to ``namespace``."""
    return fqdn(str(destination.get("host", "")), namespace, domain) == host


def subsets_named(document: Document, host: str, domain: str = CLUSTER_DOMAIN) -> frozenset[str]:
    """Return the subsets of a host that a VirtualService names anywhere, whatever the weight, mirrors included."""
    if virtual_service_flaw(document):
        return frozenset()  # Istio makes no use of it either
    namespace = document["metadata"]["namespace"]
    spec = document.get("spec") or {}
    destinations: list[Document] = []
    for route in spec.get("http") or ():
        destinations += [entry.get("destination") or {} for entry in route.get("route") or ()]
        destinations.append(route.get("mirror") or {})
        destinations += [entry.get("destination") or {} for entry in route.get("mirrors") or ()]
    for route in [*(spec.get("tcp") or ()), *(spec.get("tls") or ())]:
        destinations += [entry.get("destination") or {} for entry in route.get("route") or ()]
    return frozenset(
        str(destination["subset"])
        for destination in destinations
        if destination.get("subset") and names_host(destination, host, namespace, domain)
    )


def _subset_of(entry: Document) -> str:
    return str((entry.get("destination") or {}).get("subset") or "")


def _read_routes(document: Document, routes: Sequence[str], host: str, domain: str) -> dict[str, RouteState]:
    subject = f"VirtualService {document['metadata']['name']}"
    keys = tuple(dict.fromkeys(routes)) or ("",)
    if misshapen := virtual_service_flaw(document):
        return dict.fromkeys(keys, Refused("Misshapen", f"{subject}: {misshapen}"))
    http: Sequence[Document] = (document.get("spec") or {}).get("http") or ()
    if not http:
        return dict.fromkeys(keys, _no_http(document, subject))
    states: dict[str, RouteState] = {}
    for key in keys:
        flaw = _which(http, routes, key, subject)
        index = find_route(http, key)
        if isinstance(flaw, Refused):
            meant = [route for route in http if not key or route.get("name") == key]
            states[key] = replace(flaw, destinations=_of_all(meant, document, host, domain))
        elif flaw is not None or index is None:
            states[key] = flaw or Missing("RouteNotFound", f"{subject}: no http route is named {key!r}")
        else:
            states[key] = _read_route(http[index], document, host, domain, f"{subject}: {_place(http[index], index)}")
    return states


def _no_http(document: Document, subject: str) -> Refused:
    spec = document.get("spec") or {}
    other = " and ".join(kind for kind in ("tcp", "tls") if spec.get(kind))
    found = f"only {other} routes" if other else "no routes"
    return Refused(
        "NoHttpRoutes",
        f"{subject}: spec has {found}; requests can be counted and split on http routes only, so spec.http needs one",
    )


def _which(http: Sequence[Document], routes: Sequence[str], key: str, subject: str) -> Missing | Refused | None:
    """Tell why it is not clear which route is meant."""
    field = "spec.istio.virtualServices[].routes"
    names = [str(route.get("name", "")) for route in http]
    shown = ", ".join(repr(name) if name else "one without a name" for name in names)
    if not key:
        if len(http) == 1:
            return None
        advice = f"list in {field} the names of those to move" + ("" if all(names) else ", and name them first")
        return Refused("AmbiguousRoutes", f"{subject}: spec.http has {len(http)} routes ({shown}); {advice}")
    if list(routes).count(key) > 1:
        return Refused("RouteListedTwice", f"{subject}: {field} lists {key!r} more than once; list each route once")
    if key not in names:
        return Missing("RouteNotFound", f"{subject}: {field} lists {key!r}, but spec.http has {shown}")
    if names.count(key) > 1:
        return Refused(
            "DuplicateRouteName",
            f"{subject}: {names.count(key)} routes in spec.http are named {key!r}; give each a name of its own",
        )
    return None


def _place(route: Document, index: int) -> str:
    return f"route {route['name']!r}" if route.get("name") else f"spec.http[{index}]"


def _of_all(routes: Sequence[Document], document: Document, host: str, domain: str) -> tuple[Destination, ...]:
    """Return the destinations of the host on routes of which it is not clear which one is meant."""
    namespace = document["metadata"]["namespace"]
    found: list[Destination] = []
    for route in routes:
        entries: Sequence[Document] = route.get("route") or ()
        shares = percentages([entry.get("weight") for entry in entries]) or ()
        for entry, share in zip(entries, shares, strict=False):
            if names_host(entry.get("destination") or {}, host, namespace, domain):
                found.append(Destination(_subset_of(entry) or None, share, entry.get("weight")))
    return tuple(found)


def _read_route(route: Document, document: Document, host: str, domain: str, subject: str) -> RouteState:
    entries: Sequence[Document] = route.get("route") or ()
    if not entries:
        return _without_destinations(route, subject)
    namespace = document["metadata"]["namespace"]
    written = [entry.get("weight") for entry in entries]
    shares = percentages(written)
    ours = [names_host(entry.get("destination") or {}, host, namespace, domain) for entry in entries]
    if not any(ours):
        hosts = ", ".join(sorted({str((entry.get("destination") or {}).get("host", "")) for entry in entries}))
        return Refused(
            "HostNotRouted",
            f"{subject} routes to {hosts}, not to {host}; list only routes of that host, or correct spec.host",
        )
    if shares is None:
        return Refused(
            "NoWeights",
            f"{subject} has {len(entries)} destinations and no weight above 0; give them weights that sum to 100",
        )
    odd = sorted({name for entry in entries if not is_plain(name := _subset_of(entry))})
    if odd:
        return Refused("UnusableName", f"{subject} names subset {odd[0]!r}; use letters, digits and dashes")
    destinations = tuple(
        Destination((entry.get("destination") or {}).get("subset") or None, share, entry.get("weight"))
        for entry, own, share in zip(entries, ours, shares, strict=True)
        if own
    )
    for entry, own, share in zip(entries, ours, shares, strict=True):
        if share and not own:
            other = (entry.get("destination") or {}).get("host")
            return Refused(
                "ForeignDestination",
                f"{subject} sends {share} % of its requests to {other!r}, not to {host}; only "
                "a route whose traffic all goes to that host can be moved: set the other weights to 0",
                destinations,
            )
    return _countable(Weights(destinations), subject)


def _without_destinations(route: Document, subject: str) -> Refused:
    if route.get("delegate"):
        delegate = route["delegate"]
        name = "/".join(str(delegate[part]) for part in ("namespace", "name") if delegate.get(part))
        return Refused(
            "RouteDelegates",
            f"{subject} delegates to VirtualService {name}; name that one in spec.istio.virtualServices instead",
        )
    if route.get("redirect"):
        return Refused("RouteRedirects", f"{subject} is a redirect and sends no request to the host; leave it out")
    if route.get("directResponse"):
        return Refused(
            "RouteRespondsDirectly",
            f"{subject} answers by itself (directResponse) and sends no request on; leave it out",
        )
    return Refused("NoDestinations", f"{subject} has no destinations; it needs a route to the host")


def _countable(weights: Weights, subject: str) -> Weights | Refused:
    names = [destination.subset for destination in weights.destinations]
    for name in names:
        if names.count(name) > 1:
            what = f"subset {name!r}" if name else "the host without a subset"
            return Refused(
                "DuplicateDestination",
                f"{subject} names {what} {names.count(name)} times; keep one destination for each subset",
                weights.destinations,
            )
    weighted = [destination for destination in weights.destinations if destination.weight]
    if len(weighted) > 2:
        shown = ", ".join(f"{destination.subset or 'no subset'} {destination.weight} %" for destination in weighted)
        return Refused(
            "TooManyDestinations",
            f"{subject} splits its traffic {len(weighted)} ways ({shown}); a rollout moves traffic between two "
            "versions: set all weights but two to 0",
            weights.destinations,
        )
    return weights
