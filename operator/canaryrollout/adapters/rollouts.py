"""Between a CanaryRollout as the API server spells it and as the engine knows it.

Pure functions: the watch, the list and every write turn objects into `Rollout` here, and every write to a CanaryRollout
is built here as data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from sys import intern
from typing import Any, Final

from canaryrollout.adapters.kube import Resource
from canaryrollout.api.crd import GROUP, PLURAL, VERSION
from canaryrollout.api.resource import read_rollout
from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.api.text import plain
from canaryrollout.domain.observation import Identity
from canaryrollout.engine.ports import Rollout

CANARYROLLOUTS: Final = Resource(GROUP, VERSION, PLURAL)
FINALIZER: Final = f"{GROUP}/traffic"
COMMAND: Final = f"{GROUP}/command"
LONGEST_COMMAND: Final = 512
"""How much of a command is read: it is compared with what status says was answered, which holds no more."""

Operation = dict[str, Any]


def rollout_of(body: Mapping[str, Any]) -> Rollout:
    """Turn an object of the API server into a `Rollout`; never raises for what a user may have written."""
    found = body.get("metadata")
    metadata = found if isinstance(found, Mapping) else {}
    read = read_rollout(body)
    identity = Identity(
        namespace=intern(str(metadata.get("namespace") or "")),
        name=str(metadata.get("name") or ""),
        uid=str(metadata.get("uid") or ""),
        generation=_number(metadata.get("generation")),
        created_at=_time(metadata.get("creationTimestamp")),
        deleting=bool(metadata.get("deletionTimestamp")),
        finalizer=FINALIZER in _list(metadata.get("finalizers")),
        command=plain(_annotation(metadata.get("annotations")), LONGEST_COMMAND),
        deleted_at=_time(metadata["deletionTimestamp"]) if metadata.get("deletionTimestamp") else None,
    )
    version = str(metadata.get("resourceVersion") or "")
    return Rollout(identity, version, read.spec, read.status, read.problems, read.status_problems)


def status_patch(resource_version: str, status: CanaryRolloutStatus) -> list[Operation]:
    """Return the JSON Patch that replaces the whole status, stale fields included, of exactly this version."""
    return [_guard(resource_version), {"op": "add", "path": "/status", "value": status.as_object()}]


def finalizer_patch(resource_version: str, finalizers: Sequence[str], *, present: bool) -> list[Operation]:
    """Return the JSON Patch that puts our finalizer beside the others or takes it off; empty when it is as wanted.

    Args:
        resource_version: Version of the object that is changed; the API server refuses any other.
        finalizers: The finalizers of that version.
        present: Whether ours is to be there.
    """
    if present is (FINALIZER in finalizers):
        return []
    path = "/metadata/finalizers"
    if present and finalizers:
        return [_guard(resource_version), {"op": "add", "path": f"{path}/-", "value": FINALIZER}]
    if present:
        return [_guard(resource_version), {"op": "add", "path": path, "value": [FINALIZER]}]
    place = f"{path}/{list(finalizers).index(FINALIZER)}"
    return [
        _guard(resource_version),
        {"op": "test", "path": place, "value": FINALIZER},
        {"op": "remove", "path": place},
    ]


def _guard(resource_version: str) -> Operation:
    return {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version}


def _annotation(annotations: object) -> str:
    return str(annotations.get(COMMAND) or "").strip() if isinstance(annotations, Mapping) else ""


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _time(value: object) -> datetime:
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)
