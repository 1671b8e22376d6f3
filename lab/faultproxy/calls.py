"""What a request asks for, in the words in which Kubernetes' own rights and audit logs name it.

Rules and the journal speak of verbs and resources, as people do; requests speak of methods and paths. This is the one
place that knows both (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-uris).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
READS: Final = frozenset({"get", "list", "watch"})

_VERB_OF_ONE: Final = {"GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_VERB_OF_MANY: Final = {"GET": "list", "HEAD": "list", "POST": "create", "DELETE": "deletecollection"}
_TRUE: Final = frozenset({"true", "1"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        method: HTTP method.
        path: Path without the query, decoded.
        verb: ``get``, ``list``, ``watch``, ``create``, ``update``, ``patch``, ``delete``, ``deletecollection``; the
            method in lower case where the path names no resource.
        group: API group; empty for the core group and where the path names no resource.
        resource: Plural name, with the subresource as in ``canaryrollouts/status``; empty where there is none.
        namespace: Namespace; empty where there is none.
        name: Name of the object; empty for collections.
    """

    method: str
    path: str
    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.verb in WRITES

    @property
    def kind(self) -> str:
        """Verb and resource, such as ``patch canaryrollouts/status``; verb and path where there is no resource."""
        return f"{self.verb} {self.resource or self.path}"

    @property
    def subject(self) -> str:
        """The resource with its group and the object's name, as the API server quotes them."""
        plural = self.resource.partition("/")[0]
        return " ".join(filter(None, (f"{plural}.{self.group}" if self.group else plural, f'"{self.name}"')))


def call_of(method: str, path: str, query: Mapping[str, str]) -> Call:
    """Read a request; ``path`` is what stands before the question mark, still encoded."""
    decoded = unquote(path)
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return Call(method, decoded, method.lower())
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "")[:3]
    # A POST below an object creates: an eviction, a token.
    verb = _VERB_OF_ONE.get(method, "create") if name else _VERB_OF_MANY.get(method, method.lower())
    if verb in ("get", "list") and query.get("watch", "").lower() in _TRUE:
        verb = "watch"
    return Call(method, decoded, verb, group, "/".join(filter(None, (plural, subresource))), namespace, name)
