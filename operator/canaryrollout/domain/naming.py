"""Names that have to agree with Istio's: subsets and hosts.

A version such as ``1.4.2`` is a fine label value but no subset name, and one host has several spellings. Both questions
come up wherever objects of the mesh are compared, so they are answered once, here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import sha256
from typing import Final

CLUSTER_DOMAIN: Final = "cluster.local"

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_LENGTH: Final = 63
_HASH_LENGTH: Final = 6


def subset_name(version: str, taken: Collection[str]) -> str:
    """Name a subset after a version.

    The name is the version itself where that is a DNS-1123 label and free; otherwise what is left of it once sanitized,
    and a short hash of the version, so that ``1.4.2`` and ``1-4-2`` do not meet.

    Args:
        version: Value of the version label.
        taken: Names of subsets that exist and stand for something else.

    Returns:
        A DNS-1123 label of at most 63 characters that is not in ``taken``; always the same for the same arguments.
    """
    if version not in taken and len(version) <= _LABEL_LENGTH and _LABEL.fullmatch(version):
        return version
    base = re.sub(r"[^a-z0-9]+", "-", version.lower()).strip("-")[: _LABEL_LENGTH - _HASH_LENGTH - 1].rstrip("-")
    attempt = 0
    while True:
        salt = version if attempt == 0 else f"{version}/{attempt}"
        digest = sha256(salt.encode()).hexdigest()[:_HASH_LENGTH]
        name = f"{base}-{digest}" if base else digest
        if name not in taken:
            return name
        attempt += 1


def fqdn(host: str, namespace: str, domain: str = CLUSTER_DOMAIN) -> str:
    """Qualify a host as Istio does: a short name belongs to the namespace of the object that holds it.

    ``reviews``, ``reviews.shop``, ``reviews.shop.svc`` and ``reviews.shop.svc.cluster.local`` are one host in namespace
    ``shop``. Any other name with dots is a name outside the cluster and stays as it is; so does a two-part name whose
    second part is another namespace, because Istio reads ``reviews.com`` as a name in the domain ``com``.

    Args:
        host: The host as written.
        namespace: Namespace of the object that names it.
        domain: DNS domain of the cluster.

    Returns:
        The fully qualified host, lower case, without a trailing dot.
    """
    name = host.lower().rstrip(".")
    if not name or name == "*":
        return name
    parts = name.split(".")
    if len(parts) == 1 or (len(parts) == 2 and parts[1] == namespace):
        return f"{parts[0]}.{namespace}.svc.{domain}"
    if len(parts) == 3 and parts[2] == "svc":
        return f"{name}.{domain}"
    return name


def service_of(host: str, domain: str = CLUSTER_DOMAIN) -> tuple[str, str] | None:
    """Tell which Service a fully qualified host belongs to.

    Args:
        host: A host as `fqdn` returns it.
        domain: DNS domain of the cluster.

    Returns:
        Name and namespace of the Service; ``None`` for a host that can be no Service of this cluster.
    """
    suffix = f".svc.{domain}"
    parts = host.removesuffix(suffix).split(".")
    if not host.endswith(suffix) or len(parts) != 2 or not all(_LABEL.fullmatch(part) for part in parts):
        return None
    return parts[0], parts[1]
