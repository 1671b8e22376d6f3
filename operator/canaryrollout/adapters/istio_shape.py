"""What has to be true of the shape of VirtualServices and DestinationRules before anybody looks into them.

The API server holds objects to Istio's own schemas, but an object may be older than its schema, or have been stored
while there was none. A list that is a text, or a weight that is one, is then named here with its path, and the readers
of `istio_read` need not expect it anywhere. Only what they look at is described; all else may be as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from canaryrollout.api.resource import explain


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Target(_Shape):
    host: str | None = None
    subset: str | None = None


class _Entry(_Shape):
    destination: _Target | None = None
    weight: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


class _Mirror(_Shape):
    destination: _Target | None = None


class _Delegate(_Shape):
    name: str | None = None
    namespace: str | None = None


class _PlainRoute(_Shape):
    route: list[_Entry] | None = None


class _HttpRoute(_PlainRoute):
    name: str | None = None
    mirror: _Target | None = None
    mirrors: list[_Mirror] | None = None
    delegate: _Delegate | None = None


class _VirtualService(_Shape):
    http: list[_HttpRoute] | None = None
    tcp: list[_PlainRoute] | None = None
    tls: list[_PlainRoute] | None = None


class _Subset(_Shape):
    name: str | None = None
    labels: dict[str, str | None] | None = None


class _DestinationRule(_Shape):
    host: str | None = None
    subsets: list[_Subset] | None = None


def virtual_service_flaw(document: Mapping[str, Any]) -> str:
    """Return what is wrong with the shape of a VirtualService's spec, for people; empty where nothing is."""
    return _flaw(_VirtualService, document)


def destination_rule_flaw(document: Mapping[str, Any]) -> str:
    """Return what is wrong with the shape of a DestinationRule's spec, for people; empty where nothing is."""
    return _flaw(_DestinationRule, document)


def covers(patterns: Iterable[str], host: str) -> bool:
    """Return whether one of some fully qualified hosts is this one; a pattern may begin with ``*``."""
    return any(host.endswith(p[1:]) if p.startswith("*") else p == host for p in patterns)


def _flaw(shape: type[_Shape], document: Mapping[str, Any]) -> str:
    spec = document.get("spec")
    try:
        shape.model_validate({} if spec is None else spec)
    except ValidationError as error:
        return explain(error, "spec")[0]
    return ""
