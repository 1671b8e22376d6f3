"""What the API server itself says about who wrote what, in which order: its audit log.

Replicas are told apart by the user agent of their requests, and writes are ordered by the resourceVersion that the API
server gave them, which is one count for all objects. So no clock and no word of an operator is trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

OPERATOR: Final = "operator"
"""User of the operators in the lab."""
LEASES: Final = "leases"
_WRITES: Final = ("create", "update", "patch", "delete")
_AGENT: Final = re.compile(r"canaryrollout/\S+ \((?P<replica>[^_)]+)_[0-9a-f]+\)")

Object = tuple[str, str, str]
"""Resource, namespace and name."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write that the API server has done.

    Attributes:
        replica: Who asked for it.
        object: What it changed; a status is part of its object.
        version: The resourceVersion that it led to.
        asked: When it arrived, in seconds since the epoch.
        done: When it was answered.
        holder: For a Lease: whom it names from then on.
    """

    replica: str
    object: Object
    version: int
    asked: float
    done: float
    holder: str = ""

    @property
    def on_lease(self) -> bool:
        """Whether it is about a Lease."""
        return self.object[0] == LEASES


class Audit:
    """The audit log of an API server that is started with `flags`."""

    def __init__(self, directory: Path) -> None:
        self._policy, self._log = directory / "policy.yaml", directory / "audit.log"
        told = {"level": "RequestResponse", "users": [OPERATOR], "verbs": list(_WRITES)}
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "omitManagedFields": True,
            "rules": [told, {"level": "None"}],
        }
        self._policy.write_text(yaml.safe_dump(policy))

    @property
    def flags(self) -> tuple[str, ...]:
        """What switches it on, for kube-apiserver."""
        return f"--audit-policy-file={self._policy}", f"--audit-log-path={self._log}"

    def events(self, namespace: str) -> Iterator[dict[str, Any]]:
        """Yield what operators wrote, or tried to, in a namespace."""
        with self._log.open() as log:
            for line in log:
                event = json.loads(line) if line.endswith("\n") else {}
                if event.get("objectRef", {}).get("namespace") == namespace:
                    yield event

    def writes(self, namespace: str) -> list[Write]:
        """Return the writes that were done in a namespace, in the order in which they were; Events are left out."""
        found = {write for event in self.events(namespace) if (write := _write(event)) is not None}
        return sorted(found, key=lambda write: (write.version, write.asked))


def _write(event: dict[str, Any]) -> Write | None:
    about, answer = event["objectRef"], event.get("responseObject") or {}
    agent = _AGENT.fullmatch(event.get("userAgent", ""))
    assert agent is not None, f"a write of nobody that can be told: {event.get('userAgent')}"
    if about["resource"] == "events" or event["responseStatus"]["code"] >= 300:
        return None
    return Write(
        agent["replica"],
        (about["resource"], about["namespace"], about["name"]),
        int(answer["metadata"]["resourceVersion"]),
        _seconds(event["requestReceivedTimestamp"]),
        _seconds(event["stageTimestamp"]),
        (answer.get("spec") or {}).get("holderIdentity", "").partition("_")[0] if about["resource"] == LEASES else "",
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def terms(writes: Iterable[Write]) -> list[Write]:
    """Return the writes by which a replica became leader, oldest first."""
    found: list[Write] = []
    holder = ""
    for write in writes:
        if write.on_lease:
            if write.holder and write.holder != holder:
                found.append(write)
            holder = write.holder
    return found


def after_their_time(writes: list[Write]) -> list[Write]:
    """Return the writes of former leaders that were accepted after another leader's first write to the same object."""
    led = terms(writes)
    return [write for write in writes if not write.on_lease and _is_late(write, writes, led)]


def _is_late(write: Write, writes: list[Write], led: list[Write]) -> bool:
    before = [term for term in led if term.version < write.version]
    own = max((term.version for term in before if term.holder == write.replica), default=0)
    return any(
        other.object == write.object and other.replica == term.holder and term.version < other.version < write.version
        for term in before
        if term.version > own
        for other in writes
    )


def out_of_term(writes: list[Write]) -> list[Write]:
    """Return the writes that were accepted while the Lease named somebody else: more than the promise."""
    holder, found = "", []
    for write in writes:
        if write.on_lease:
            holder = write.holder or holder
        elif write.replica != holder:
            found.append(write)
    return found
