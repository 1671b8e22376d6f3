"""Objects that nobody should write: every place of good ones filled with what does not belong there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from canaryrollout.api.resource import read_rollout
from tests.world import World

Place = tuple[str | int, ...]

CONTROL = "\x1b[31m\u202e\u200b\x00\n"
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    101,
    2**63,
    -(2**70),
    1e308,
    float("nan"),
    float("inf"),
    "",
    CONTROL,
    "x" * 5000,
    "../../../namespaces/other/virtualservices/reviews",
    "http://169.254.169.254/latest",
    "{{ .Values }}${HOME}%s%n'\"; DROP",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "2026-01-01T00:00:00",
    "1/0",
    "NaN",
    "Blocked",
    "v2",
    [],
    [None],
    [[[[[]]]]],
    ["a"] * 1000,
    {},
    {"a": None},
    {CONTROL: CONTROL},
    {"v1": "v1", "": "", "x" * 300: "y"},
)
"""What stands in for a value: other types, extremes, texts that act when shown, paths, times at both ends."""


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place inside a document, the document itself first."""
    yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*at, index))


def put(value: Any, at: Place, new: Any) -> Any:
    """A document with something else in one place."""
    if not at:
        return new
    value = copy.copy(value)
    value[at[0]] = put(value[at[0]], at[1:], new)
    return value


def spoiled(document: Any) -> Iterator[tuple[Place, Any, Any]]:
    """Place, what is put there, and the document with it: for every place and every piece of junk."""
    for at in places(document):
        for junk in JUNK:
            yield at, junk, put(document, at, junk)


def rollout(**changes: Any) -> dict[str, Any]:
    """A CanaryRollout with every part of a spec."""
    spec: dict[str, Any] = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
        "steps": [{"weight": 10, "hold": "30s"}, {"weight": 100, "approval": "Required"}],
        "readiness": {"minReady": "50%", "unreadyGrace": "10s"},
        "analysis": {
            "interval": "10s",
            "minRequests": 100,
            "errorRate": {"max": "1%", "grpcServerFaults": [2]},
            "latency": {"threshold": "500ms", "maxSlow": "1%"},
            "metrics": [{"name": "failures", "query": "vector(1)", "max": "5"}],
        },
        "progressDeadline": "10m",
    }
    return {
        "apiVersion": "canaryrollout.io/v1alpha1",
        "kind": "CanaryRollout",
        "metadata": {"name": "reviews", "namespace": "shop"},
        "spec": spec | changes,
    }


def statuses() -> list[dict[str, Any]]:
    """Statuses along two lives: one promoted, one taken back."""
    found: list[dict[str, Any]] = []
    for world in (World(), World(error_rate=lambda version, weight, _: 0.05 * (version == "v2" and weight >= 30))):
        for _ in range(80):
            world.run(15)
            if world.status not in found:
                found.append(copy.deepcopy(world.status))
    assert not [status for status in found if read_rollout({"status": status}).status_problems]
    return found


def is_json(value: Any) -> bool:
    """Whether a document can be sent to an API server at all."""
    try:
        json.dumps(value, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True
