"""What the operator asked an API server for, by the API server's own audit log, and what the chart's Role grants."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from lab.demo.scene import OPERATOR, chart_rules

Right = tuple[str, str, str]
"""Group, resource (with subresource) and verb."""


@dataclass(frozen=True)
class Audited:
    """The audit log of an API server that is started with ``flags``.

    Attributes:
        flags: Flags of kube-apiserver.
        log: The log.
    """

    flags: tuple[str, ...]
    log: Path

    @classmethod
    def into(cls, directory: Path) -> Self:
        """Return one that writes to a directory."""
        policy, log = directory / "policy.yaml", directory / "audit.log"
        rules = [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}]
        document = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
        policy.write_text(yaml.safe_dump(document | {"rules": rules}))
        return cls((f"--audit-policy-file={policy}", f"--audit-log-path={log}"), log)

    def size(self) -> int:
        """How many requests there are so far."""
        return len(self.log.read_text().splitlines())

    def asked(self, since: int = 0) -> list[dict[str, Any]]:
        """The operator's requests, and how they were answered."""
        entries = (json.loads(line) for line in self.log.read_text().splitlines()[since:])
        return [entry for entry in entries if entry.get("user", {}).get("username") == OPERATOR]


def refused(asked: list[dict[str, Any]]) -> list[str]:
    """What was asked for without a right to it."""
    return [
        f"{entry['verb']} {entry['requestURI']}" for entry in asked if entry["responseStatus"]["code"] in (401, 403)
    ]


def used(asked: list[dict[str, Any]]) -> set[Right]:
    """The rights that were made use of."""
    return {_right(entry) for entry in asked if "objectRef" in entry}


def granted() -> set[Right]:
    """The rights that the chart grants."""
    return {
        (group, resource, verb)
        for rule in [*chart_rules(), *chart_rules("leaseRules")]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _right(entry: dict[str, Any]) -> Right:
    about = entry["objectRef"]
    resource = "/".join(part for part in (about["resource"], about.get("subresource", "")) if part)
    return about.get("apiGroup", ""), resource, entry["verb"]
